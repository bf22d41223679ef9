"""The web process's side of the engine: starts it, talks to it, watches its heart, starts it again.

All methods belong to the event loop's thread; two threads for each engine read and write its pipe, since a hung engine
must not hang the loop.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lwm_env.errors import LwmError
from lwm_env.spec import WorldSpec
from lwm_env.web import pipe
from lwm_env.web.cores import threads_of_engine
from lwm_env.web.costs import BatchCosts
from lwm_env.web.pipe import Message
from lwm_env.web.settings import Settings
from lwm_env.web.slot_table import SlotTable

HEARTBEAT_SECONDS = 1.0
MAX_MISSES = 3
START_SECONDS = 120.0  # to import torch and load the worlds
ANSWER_SECONDS = 10.0
QUICK_DEATH_SECONDS = 20.0  # an engine that lives shorter than this is started again ever more slowly

log = logging.getLogger("lwm.supervisor")


class EngineLost(LwmError, ConnectionError):
    """The engine died or is being started; ask again in a moment."""


class Refused(LwmError, ValueError):
    """The engine would not do it, and told why."""


@dataclass(frozen=True)
class PlayedWorld:
    """A world on offer."""

    spec: WorldSpec
    folder: Path
    fps: float


class Supervisor:
    """One engine process and what replaces it.

    Args:
        on_event: called with every event of the engine but answers.
        on_ready: awaited whenever an engine has come up, before `ready` is true.
    """

    def __init__(
        self,
        worlds: dict[str, PlayedWorld],
        settings: Settings,
        on_event: Callable[[Message], None],
        on_ready: Callable[[], Awaitable[None]],
    ) -> None:
        self.worlds, self.settings = worlds, settings
        self.ready = False
        self.restarts = 0
        self.costs = {name: BatchCosts({}) for name in worlds}  # of steps, as lately seen
        self.failure: str | None = None  # why no engine can come up at all
        self.tables: dict[str, SlotTable] = {}
        self._on_event, self._on_ready = on_event, on_ready
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._number = 0
        self._started = asyncio.Event()
        self._lost = asyncio.Event()
        self._heard_at = 0.0
        self._process: Any = None
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    @property
    def pid(self) -> int | None:
        """Of the engine that runs now."""
        return self._process.pid if self._process else None

    @property
    def healthy(self) -> bool:
        """Up, and heard from within the last two heartbeats."""
        return self.ready and time.monotonic() - self._heard_at < 2.5 * HEARTBEAT_SECONDS

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the engine; 0 where /proc does not tell."""
        try:
            # Asked for four times a second, and a Path leaves its parts in the interpreter's table of interned texts.
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                pages = int(file.read().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def run(self) -> None:
        """Keep an engine running until cancelled."""
        self.tables = {name: SlotTable(w.spec, self.settings.max_rooms) for name, w in self.worlds.items()}
        quick_deaths = 0
        try:
            while self.failure is None:
                begin = time.monotonic()
                self._spawn()
                await self._watch()
                await self._end()
                quick_deaths = quick_deaths + 1 if time.monotonic() - begin < QUICK_DEATH_SECONDS else 0
                await asyncio.sleep(min(10.0, 2.0 ** max(0, quick_deaths - 1) - 1))
                self.restarts += 1
        finally:
            self._outbox.put(Message({"command": "exit", "number": 0}))
            await self._end(patience=1.0)
            for table in self.tables.values():
                table.close()

    async def call(self, command: str, payload: bytes = b"", /, **arguments: Any) -> Message:
        """The engine's answer to a command.

        Raises:
            EngineLost: it is not up, died or did not answer in time.
            Refused: it answered with an error.
        """
        if not self._started.is_set():
            raise EngineLost("the engine is being started. Try again in a few seconds.")
        self._number = number = self._number + 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._outbox.put(Message({"command": command, "number": number, **arguments}, payload))
        try:
            message = await asyncio.wait_for(answer, ANSWER_SECONDS)
        except TimeoutError as error:
            raise EngineLost(f"the engine did not answer {command!r} in {ANSWER_SECONDS:g} s. Try again.") from error
        finally:
            self._answers.pop(number, None)
        if "error" in message.facts:
            raise Refused(message.facts["error"])
        return message

    def tell(self, command: str, **arguments: Any) -> None:
        """A command whose answer does not matter. It is on its way when this returns, before any later one; an engine
        that is away does not hear of it."""
        if self._started.is_set():
            self._outbox.put(Message({"command": command, "number": 0, **arguments}))

    # -- the process -------------------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        worlds = [
            {
                "id": name,
                "folder": str(world.folder),
                "fps": world.fps,
                "num_slots": self.settings.max_rooms,
                "table": self.tables[name].name,
            }
            for name, world in self.worlds.items()
        ]
        options = {
            "device": self.settings.device,
            "backend": self.settings.backend,
            "threads": threads_of_engine(self.settings.threads, self.settings.engines),
            "log_level": logging.getLogger().level or logging.WARNING,
        }
        self._started, self._lost, self._outbox = asyncio.Event(), asyncio.Event(), queue.SimpleQueue()
        self._process = context.Process(target=_run_engine, args=(theirs, worlds, options), daemon=True)
        self._process.start()
        theirs.close()
        loop, mine = asyncio.get_running_loop(), self._lost

        def hear(message: Message | None) -> None:
            if self._lost is not mine:
                return  # the last words of an engine that was replaced
            if message is None:
                self._lose()
            else:
                self._hear(message)

        ends = {_read: (ours, loop, hear), _write: (ours, self._outbox)}
        for end, arguments in ends.items():
            threading.Thread(target=end, args=arguments, name=f"lwm-engine{end.__name__}", daemon=True).start()

    async def _watch(self) -> None:
        """Until the engine is lost, or has missed its heartbeats."""
        await _first_of(self._started, self._lost, seconds=START_SECONDS)
        if not self._started.is_set():
            if self.failure is None:
                log.error("the engine did not come up")
            return
        with contextlib.suppress(EngineLost):
            await self._on_ready()
            self.ready = not self._lost.is_set()
        misses = 0
        log.info("the engine is up, process %s", self.pid)
        while not self._lost.is_set() and misses < MAX_MISSES:
            begin, beat = time.monotonic(), asyncio.ensure_future(self._beat())
            await _first_of(self._lost, seconds=HEARTBEAT_SECONDS)
            # An engine that is too busy to answer in time, and says something else, is alive.
            alive = (beat.done() and beat.result()) or self._heard_at > begin
            misses = 0 if alive else misses + 1
            beat.cancel()
        log.warning("the engine %s", "died" if self._lost.is_set() else f"missed {misses} heartbeats")

    async def _beat(self) -> bool:
        """Whether the engine's loop answers."""
        with contextlib.suppress(EngineLost):
            await self.call("ping")
            return True
        return False

    async def _end(self, patience: float = 0.0) -> None:
        """Make sure that the process is gone, and tell all who wait for an answer."""
        self._lose()
        await asyncio.to_thread(self._process.join, patience)
        self._process.kill()
        await asyncio.to_thread(self._process.join)
        self._outbox.put(None)

    def _lose(self) -> None:
        self.ready = False
        self._started.clear()
        self._lost.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(EngineLost("the engine was lost and is being started again. Try again."))

    def _hear(self, message: Message) -> None:
        self._heard_at = time.monotonic()
        event = message.facts["event"]
        if event == "answer":
            answer = self._answers.get(message.facts["number"])
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif event == "ready":
            self.costs = {
                name: BatchCosts(dict(told["measured"]), told["size"]) for name, told in message.facts["costs"].items()
            }
            self._started.set()
        elif event == "failed":
            self.failure = message.facts["error"]
        else:
            self._on_event(message)


def _run_engine(connection: Connection, worlds: list[dict[str, Any]], options: dict[str, Any]) -> None:
    from lwm_env.web import engine_process  # in the new process alone: it imports torch

    engine_process.main(connection, worlds, options)


def _read(connection: Connection, loop: asyncio.AbstractEventLoop, hear: Callable[[Message | None], None]) -> None:
    """Tell the loop what the engine says, and None at its end.

    Nothing is read while the loop has not heard of the last payload: while it is busy for a moment, snapshots of all
    rooms would pile up, 2 MiB with 16, in a heap that may keep what it has grown to.
    """
    heard = threading.Event()
    with contextlib.suppress(RuntimeError):  # the loop is closed
        try:
            while True:
                message = pipe.receive(connection)
                loop.call_soon_threadsafe(hear, message)
                if message.payload:
                    heard.clear()
                    loop.call_soon_threadsafe(heard.set)
                    heard.wait(ANSWER_SECONDS)
                del message
        except (EOFError, OSError):
            loop.call_soon_threadsafe(hear, None)


def _write(connection: Connection, outbox: "queue.SimpleQueue[Message | None]") -> None:
    with contextlib.suppress(OSError), connection:
        while (message := outbox.get()) is not None:
            pipe.send(connection, message)


async def _first_of(*events: asyncio.Event, seconds: float) -> None:
    """Until one of the events is set, or the time is over."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()

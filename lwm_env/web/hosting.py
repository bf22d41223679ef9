"""Rooms in the slots of the engine: who may have one, what is in it, whether the clock steps it.

One event loop, so what has no `await` in it happens at once; what changes a slot of the engine holds the room's lock.
"""

import asyncio
import contextlib
import functools
import hashlib
import logging
import time
from collections import Counter
from typing import Any, NoReturn

from lwm_env.errors import LwmError
from lwm_env.web import room_files
from lwm_env.web.cores import physical_cores, threads_of_engine
from lwm_env.web.costs import FrameCost
from lwm_env.web.metrics import Metrics
from lwm_env.web.pipe import Message
from lwm_env.web.protocol import FIRST
from lwm_env.web.room_ids import new_room_id
from lwm_env.web.rooms import Room, RoomState
from lwm_env.web.settings import Settings
from lwm_env.web.slot_table import SlotTable
from lwm_env.web.supervisor import EngineLost, PlayedWorld, Refused, Supervisor

log = logging.getLogger("lwm.hosting")


class Busy(LwmError):
    """No room can be opened now."""


def shard_of(room_id: str, num_engines: int) -> int:
    """The index of the engine that a room belongs to: the same in every process and after every restart."""
    return int.from_bytes(hashlib.sha256(room_id.encode()).digest()[:8], "big") % num_engines


class Hosting:
    """All rooms of a server by id, those that hold a slot, and the supervisors of the engines that have the slots."""

    def __init__(self, worlds: dict[str, PlayedWorld], settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.rooms: dict[str, Room] = {}
        self.previews: dict[str, Room] = {}  # by world
        self.draining = False
        self.frame_cost = FrameCost()
        self._cores = physical_cores()
        self._threads = threads_of_engine(settings.threads, settings.engines)
        self.engines: list[Supervisor] = []
        for index in range(settings.engines):
            handlers = [functools.partial(work, index) for work in (self._on_event, self._reopen_all)]
            self.engines.append(Supervisor(worlds, settings, *handlers))

    def engine(self, room: Room) -> Supervisor:
        """That of the engine which a room belongs to."""
        return self.engines[shard_of(room.id, len(self.engines))]

    def table(self, room: Room) -> SlotTable:
        """The shared memory of the room's world in its engine."""
        return self.engine(room).tables[room.world.spec.id]

    def new_id(self) -> str:
        """An id for a room in the engine that has most time for it."""
        best = min(self.engines, key=lambda engine: (not engine.healthy, self.load(engine)))
        while True:
            room_id = new_room_id(self.settings.host_number)
            if self.engines[shard_of(room_id, len(self.engines))] is best:
                return room_id

    # -- who may come in ---------------------------------------------------------------------------------------------

    def load(self, engine: Supervisor, more: Room | None = None) -> float:
        """The share of an engine's time that its rooms in which people are, and one more, may be expected to take; and
        how late their steps are, in periods: what no expectation foresaw."""
        rooms = [room for room in self.rooms.values() if self.is_busy(room) and self.engine(room) is engine]
        counts = Counter(room.world.spec.id for room in [*rooms, *([more] if more else [])])
        share = sum(engine.costs[w].per_period(count) * engine.worlds[w].fps / 1000 for w, count in counts.items())
        return share + max((engine.costs[world_id].lateness for world_id in counts), default=0.0)

    def machine_load(self, more: Room | None = None) -> float:
        """The share of a CPU's cores that all engines and this process may be expected to take, or of this process's
        own core if that is more."""
        busy = [room for room in self.rooms.values() if self.is_busy(room)] + ([more] if more else [])
        own = sum(room.world.fps for room in busy) * self.frame_cost.milliseconds / 1000
        if self.settings.device != "cpu":
            return own
        host = more and self.engine(more)
        engines = sum(self._threads * self.load(engine, more if engine is host else None) for engine in self.engines)
        return max(own, (own + engines) / self._cores)

    def is_busy(self, room: Room) -> bool:
        """Whether the clock steps the room, or people were there a moment ago."""
        lately = time.monotonic() - room.used_at < self.settings.pause_seconds
        return room.slot is not None and room.clock == "realtime" and (bool(room.viewers) or lately)

    def holding(self, engine: Supervisor) -> list[Room]:
        """The rooms that hold a slot of an engine."""
        return [room for room in self.rooms.values() if room.slot is not None and self.engine(room) is engine]

    def _take_slot(self, room: Room) -> None:
        """Raises Busy unless the server has time and place for one more room."""
        self.admit_nobody_while_draining()
        engine = self.engine(room)
        if not engine.ready:
            raise EngineLost("the engine is being started. Try again in a few seconds.")
        self.check_load(room)
        taken = {other.slot for other in self.holding(engine) if other.world is room.world}
        free = [slot for slot in range(self.settings.max_rooms) if slot not in taken]
        if not free:
            self.refuse("slots", f"all {self.settings.max_rooms} rooms of {room.world.spec.id} are taken")
        room.slot = free[0]
        self.rooms[room.id] = room  # before any await: the slot counts as taken from now on

    def check_load(self, room: Room) -> None:
        """Raises Busy when people in this room too would slow the others down; a first room always may."""
        engine, allowed = self.engine(room), self.settings.max_load
        if room.clock != "realtime" or not any(self.is_busy(other) for other in self.holding(engine)):
            return
        for whose, load in (("engine", self.load(engine, room)), ("machine", self.machine_load(room))):
            if load > allowed:
                self.refuse(
                    "load", f"with one more room {load:.0%} of the {whose}'s time is taken, {allowed:.0%} may be"
                )

    def refuse(self, reason: str, told: str) -> NoReturn:
        """Raises Busy, and counts it."""
        self.metrics.rejected.labels(reason).inc()
        raise Busy(f"{told}. Try again in a while.")

    def admit_nobody_while_draining(self) -> None:
        """Raises Busy once the server is being stopped."""
        if self.draining:
            raise Busy("the server is being stopped. Try again in a moment.")

    # -- slots -------------------------------------------------------------------------------------------------------

    def release(self, room: Room) -> None:
        """Take the slot from a room that has one."""
        if room.slot is not None:
            self.engine(room).tell("close", world=room.world.spec.id, slot=room.slot)
            room.slot = None

    async def open(self, room: Room) -> None:
        """Give a room a slot, and go on from its last snapshot or begin with its seed. The room's lock is held.

        Raises:
            Busy: the server is full. EngineLost: it is being started. Refused: the snapshot is not of this world.
        """
        known = room.id in self.rooms
        self._take_slot(room)
        before, room.state = room.state, RoomState.WARMING
        try:
            self.table(room).rest(room.slot)
            await self._fill(room)
        except BaseException:
            self.release(room)
            room.state = before
            if not known:
                del self.rooms[room.id]
            raise
        room.state = RoomState.PAUSED
        self.settle(room)

    async def _fill(self, room: Room) -> None:
        if room.snapshots:
            await self._start(room, room.snapshots[-1][1], kind="snapshot")
        else:
            await self._start(room, kind="seed", seed=room.seed)

    async def _start(self, room: Room, payload: bytes = b"", /, **start: Any) -> Message:
        arguments = {"room": room.id, "frame_id": room.frame_id + 1, "temperature": room.temperature}
        return await self.call(room, "open", payload, **arguments, **start)

    async def start_over(self, room: Room, payload: bytes = b"", /, **start: Any) -> Message:
        """Another start in the slot that a room has; see `EngineProcess._open` for its keywords and its answer."""
        await self.wake(room)
        async with room.lock:
            room.used_at = time.monotonic()
            answer = await self._start(room, payload, **start)
            now = await self.call(room, "snapshot")
            room.snapshots.append((now.facts["frame_id"], now.payload))
            return answer

    async def call(self, room: Room, command: str, payload: bytes = b"", /, **arguments: Any) -> Message:
        """The engine's answer to a command about a room; raises as `Supervisor.call`."""
        if room.slot is None:
            raise EngineLost("the room holds no slot of the engine now. Try again.")
        return await self.engine(room).call(command, payload, world=room.world.spec.id, slot=room.slot, **arguments)

    async def wake(self, room: Room) -> None:
        """Give a room that sleeps a slot again; raises as `open`."""
        async with room.lock:
            if room.state is RoomState.SNAPSHOTTED:
                await self.open(room)

    async def sleep(self, room: Room) -> None:
        """Keep a room as a snapshot, on disk too where there is a folder for it, and free its slot."""
        async with room.lock:
            if room.slot is None or room.state is RoomState.CLOSED:
                return
            with contextlib.suppress(EngineLost):  # then the last snapshot has to do
                room.snapshots.append((room.frame_id, (await self.call(room, "snapshot")).payload))
            if not room.snapshots:
                return
            self.release(room)
            room.rest()
        if self.settings.state_dir:
            await asyncio.to_thread(room_files.write, self.settings.state_dir, room)

    def settle(self, room: Room) -> None:
        """Let the engine's clock step a room, or not, as it should be now; and tell those who watch."""
        if room.slot is not None and room.state in (RoomState.RUNNING, RoomState.PAUSED):
            idle = not room.has_player and time.monotonic() - room.used_at >= self.settings.pause_seconds
            running = not (room.held or idle) and (room.clock == "manual" or bool(room.viewers))
            state = RoomState.RUNNING if running else RoomState.PAUSED
            if state is not room.state:
                room.state = state
                if room.clock == "realtime":
                    self.engine(room).tell("run", world=room.world.spec.id, slot=room.slot, running=running)
        room.tell({"type": "room", **room.describe()})

    async def _reopen_all(self, index: int) -> None:
        """A new engine has come up: put every room that holds a slot of it back into it."""
        for room in self.holding(self.engines[index]):
            async with room.lock:
                if room.slot is None:
                    continue
                try:
                    await self._fill(room)
                except Refused as error:
                    log.error("a room of %s could not be restored: %s", room.world.spec.id, error)
                    room.slot, room.state = None, RoomState.SNAPSHOTTED
                    continue
                room.state = RoomState.PAUSED
                self.settle(room)

    # -- what the engine tells ---------------------------------------------------------------------------------------

    def _on_event(self, index: int, message: Message) -> None:
        facts = message.facts
        if facts["event"] == "frames":
            costs = self.engines[index].costs[facts["world"]]
            if facts["step_ms"]:
                self.metrics.step.labels(facts["world"]).observe(facts["step_ms"] / 1000)
                costs.observe(len(facts["frames"]), facts["step_ms"])
                costs.observe_lateness(facts["late"])
            self._on_frames(self.engines[index], facts["world"], facts["frames"])
        elif facts["event"] == "snapshot" and facts["room"] in self.rooms:
            self.rooms[facts["room"]].snapshots.append((facts["frame_id"], message.payload))

    def _on_frames(self, engine: Supervisor, world_id: str, frames: list[list[Any]]) -> None:
        for slot, room_id in frames:
            room = self.rooms.get(room_id)
            row = engine.tables[world_id].read(slot)
            if room is None or room.slot != slot or row is None or row.frame_id == room.frame_id:
                continue
            with self.metrics.encode.time():
                room.show(row, row.flags)
            self.frame_cost.count()
            self._after_frame(room)

    def _after_frame(self, room: Room) -> None:
        """Note how long actions took, and let the bots act."""
        now, row = time.monotonic(), room.frame.row
        for seat in room.seats:
            if seat.sent_at is not None and row.acked[seat.index] >= seat.sent_at[0]:
                self.metrics.latency.observe(now - seat.sent_at[1])
                seat.sent_at = None
            if seat.bot is not None and row.flags & FIRST:
                seat.bot.reset()
        self.let_bots_act(room)

    def let_bots_act(self, room: Room) -> None:
        """Hold what the bots of a room choose from its current frame."""
        for seat in room.seats:
            if seat.bot is not None and room.slot is not None and room.frame is not None:
                self.table(room).act(room.slot, seat.index, seat.bot.act(room.frame.row.frame))

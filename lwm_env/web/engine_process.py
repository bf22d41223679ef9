"""The engine process: owns the models and steps all due rooms of a world in one batch. Started by `spawn`.

Commands come and events go through a pipe (`lwm_env.web.pipe`), actions and frames through `SlotTable`s. Rooms enter
and leave between two ticks only. When the pipe ends, so does the process.
"""

import gc
import logging
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from lwm_env import familiar
from lwm_env.engine import Engine
from lwm_env.envs import facts, inputs
from lwm_env.envs.loading import choose_device, open_engine
from lwm_env.errors import LwmError, WrongOrder
from lwm_env.web import pipe
from lwm_env.web.pipe import Message
from lwm_env.web.protocol import FIRST, TERMINATED, TRUNCATED
from lwm_env.web.slot_table import Row, SlotTable
from lwm_env.web.tenants import BUCKETS, Hosted, Tenant, bucket, next_snapshot
from lwm_env.web.turns import Turns

WARM_UP_STEPS = 5  # of each size of a batch
ROOMS_PER_THREAD = 4  # in a batch on a CPU: as many as ONNX Runtime computes in one call (onnx_world.rows_together),
MIN_SLOTS = 8  # which it does in an engine of so many

log = logging.getLogger("lwm.engine")


class EngineProcess:
    """Answers commands and keeps the clock."""

    def __init__(self, connection: Connection, worlds: list[dict[str, Any]], options: dict[str, Any]) -> None:
        self.connection = connection
        self.worlds = {world["id"]: self._host(world, options) for world in worlds}
        self.commands = {
            "ping": self._ping, "open": self._open, "close": self._close, "run": self._run, "step": self._step,
            "snapshot": self._snapshot, "temperature": self._temperature,
        }  # fmt: skip

    def _host(self, world: dict[str, Any], options: dict[str, Any]) -> Hosted:
        modes = {"render_mode": None, "backend": options["backend"], "output": "numpy"}

        def open_bucket(num_slots: int) -> Engine:
            return open_engine(world["folder"], num_slots, options["device"], None, modes)

        # A GPU steps all slots in one go and has a graph for every number of them; a CPU pays for each that moves.
        on_cpu = choose_device(options["device"]).type == "cpu"
        size = ROOMS_PER_THREAD * options["threads"] if on_cpu else BUCKETS[-1]
        engine = open_bucket(bucket(min(max(size, MIN_SLOTS), world["num_slots"])) if on_cpu else 1)
        table = SlotTable(engine.model.spec, world["num_slots"], world["table"])
        return Hosted(engine, table, Turns(1 / world["fps"], min(size, BUCKETS[-1]), spread=on_cpu), open_bucket)

    def warm_up(self) -> dict[str, Any]:
        """Step every world a few times; of each the rooms of a batch at most, and pairs of rooms and milliseconds."""
        costs = {}
        for world_id, hosted in self.worlds.items():
            most = hosted.engine.num_envs
            sizes = sorted({size for size in BUCKETS if size < hosted.turns.size} | {hosted.turns.size})
            measured = [[size, self._time(hosted, size)] for size in sizes if size <= most]
            familiar.least_psnr(hosted.engine.model)  # before somebody waits for it
            costs[world_id] = {"size": hosted.turns.size, "measured": measured}
        gc.collect()
        gc.freeze()
        return costs

    def _time(self, hosted: Hosted, num_rooms: int) -> float:
        """Milliseconds of a step of so many rooms, the median of a few."""
        engine, slots, seconds = hosted.engine, list(range(num_rooms)), []
        blank = torch.zeros(engine.num_envs, 1, *engine.model.spec.frame_size, 3, dtype=torch.uint8)
        active = np.arange(engine.num_envs) < num_rooms
        engine.reset(
            active, [0] * engine.num_envs, inputs.check_prompts({"frames": blank}, engine.model.spec, engine.num_envs)
        )
        for _ in range(WARM_UP_STEPS):
            begin = time.perf_counter()
            engine.step(self._actions(hosted, slots)[0], active)
            seconds.append(time.perf_counter() - begin)
        return 1000 * sorted(seconds)[WARM_UP_STEPS // 2]

    def serve(self) -> None:
        """Until the other process is gone or says so."""
        while True:
            wait = max(0.0, self._next_due() - time.monotonic())
            while self.connection.poll(wait):
                message = pipe.receive(self.connection)
                if message.facts["command"] == "exit":
                    return
                self._answer(message)
                wait = 0.0
            # One batch, then commands again: the heart beats however many rooms there are.
            world_id = min(self.worlds, key=lambda name: self.worlds[name].turns.next_due)
            turns = self.worlds[world_id].turns
            slots, late = turns.take(time.monotonic())
            if slots:
                self._advance(world_id, slots, late / turns.period)
                self._send_snapshots(world_id, slots)

    def _next_due(self) -> float:
        return min(time.monotonic() + 1.0, *(hosted.turns.next_due for hosted in self.worlds.values()))

    def _answer(self, message: Message) -> None:
        command = {**message.facts}
        name, number = command.pop("command"), command.pop("number")
        try:
            answer = self.commands[name](payload=message.payload, **command)
            reply = answer if isinstance(answer, Message) else Message({})
            self._send({"event": "answer", "number": number, **reply.facts}, reply.payload)
        except LwmError as error:
            self._send({"event": "answer", "number": number, "error": str(error)})

    def _send(self, event: dict[str, Any], payload: bytes = b"") -> None:
        pipe.send(self.connection, Message(event, payload))

    # -- commands ----------------------------------------------------------------------------------------------------

    def _ping(self, payload: bytes) -> None:
        """The heartbeat: that it is answered at all is the answer."""

    def _open(
        self,
        payload: bytes,
        world: str,
        slot: int,
        room: str,
        frame_id: int,
        seed: int | None = None,
        kind: str = "seed",
        temperature: float | None = None,
    ) -> Message:
        """Give a slot to a room, or another start to its room, and announce its first frame.

        The answer's `warning` says, of a picture that the world does not know, how far it is; else it is None.

        Args:
            kind: "seed" begins a stream of episodes (None: goes on to the next one), "snapshot" continues the payload,
                "picture" starts from the payload, the bytes of one frame.
            frame_id: of the first frame; a later one when the room has shown more meanwhile.
        """
        hosted = self.worlds[world]
        hosted.grow(slot + 1)
        engine = hosted.engine
        if kind == "snapshot":
            engine.set_state(payload, slot)
        else:
            self._reset(engine, slot, seed, np.frombuffer(payload, np.uint8) if kind == "picture" else None)
        own = engine.model.spec.temperature
        tenant = Tenant(room, own if temperature is None else temperature, frame_id=frame_id - 1)
        before = hosted.tenants.get(slot)
        if before is not None and before.room == room:
            tenant.frame_id = max(tenant.frame_id, before.frame_id)
        else:
            hosted.turns.remove(slot)
        hosted.tenants[slot] = tenant
        self._publish(hosted, slot, self._first_row(hosted, slot))
        self._announce(world, [slot], 0.0)
        shown = engine.frames[slot][None].cpu() if kind == "picture" else None
        return Message({"warning": None if shown is None else familiar.unfamiliar(engine.model, shown)})

    def _reset(self, engine: Engine, slot: int, seed: int | None, picture: np.ndarray | None) -> None:
        mask = np.zeros(engine.num_envs, bool)
        mask[slot] = True
        prompts = None
        if picture is not None:
            frames = np.zeros((engine.num_envs, 1, *engine.model.spec.frame_size, 3), np.uint8)
            frames[slot, 0] = picture.reshape(frames.shape[2:])
            prompts = inputs.check_prompts({"frames": frames}, engine.model.spec, engine.num_envs)
        engine.reset(mask, [seed if number == slot else None for number in range(engine.num_envs)], prompts)

    def _close(self, payload: bytes, world: str, slot: int) -> None:
        self.worlds[world].tenants.pop(slot, None)
        self.worlds[world].turns.remove(slot)

    def _run(self, payload: bytes, world: str, slot: int, running: bool) -> None:
        self._tenant(world, slot)
        turns = self.worlds[world].turns
        if running:
            turns.add(slot, time.monotonic())
        else:
            turns.remove(slot)

    def _step(self, payload: bytes, world: str, slots: list[int]) -> None:
        """One step of these rooms, whoever's turn it is."""
        for slot in slots:
            self._tenant(world, slot)
        self._advance(world, slots)
        self._send_snapshots(world, slots)

    def _snapshot(self, payload: bytes, world: str, slot: int) -> Message:
        tenant = self._tenant(world, slot)
        return Message({"frame_id": tenant.frame_id}, self.worlds[world].engine.get_state(slot))

    def _temperature(self, payload: bytes, world: str, slot: int, value: float | None) -> None:
        own = self.worlds[world].engine.model.spec.temperature
        self._tenant(world, slot).temperature = own if value is None else value

    def _tenant(self, world: str, slot: int) -> Tenant:
        tenant = self.worlds[world].tenants.get(slot)
        if tenant is None:
            raise WrongOrder(f"slot {slot} of {world} has no room. Open one in it first.")
        return tenant

    # -- ticks -------------------------------------------------------------------------------------------------------

    def _actions(self, hosted: Hosted, slots: list[int]) -> tuple[torch.Tensor, np.ndarray]:
        """Actions for all slots of the engine, zero but for `slots`, and the sequence numbers of these."""
        actions, seqs = hosted.table.read_actions(slots)
        everyone = np.zeros((hosted.engine.num_envs, *actions.shape[1:]), actions.dtype)
        everyone[slots] = actions
        return torch.from_numpy(everyone), seqs

    def _advance(self, world: str, slots: list[int], late: float = 0.0) -> None:
        """One step of these slots, late by a share of the period; those whose episode has ended begin their next one
        instead. As one batch for each temperature among them."""
        begin, hosted = time.perf_counter(), self.worlds[world]
        renewed = [slot for slot in slots if hosted.engine.ended[slot]]
        for slot in renewed:
            self._reset(hosted.engine, slot, None, None)
            self._publish(hosted, slot, self._first_row(hosted, slot))
        groups: dict[float, list[int]] = {}
        for slot in slots:
            if slot not in renewed:
                groups.setdefault(hosted.tenants[slot].temperature, []).append(slot)
        for temperature, group in groups.items():
            self._advance_group(hosted, group, temperature)
        self._announce(world, slots, 1000 * (time.perf_counter() - begin), late)

    def _advance_group(self, hosted: Hosted, slots: list[int], temperature: float) -> None:
        engine = hosted.engine
        active = np.zeros(engine.num_envs, bool)
        active[slots] = True
        actions, seqs = self._actions(hosted, slots)
        engine.temperature = temperature
        transition = engine.step(actions, active)
        rewards, terminations, infos = facts.read_transition(transition)
        truncations = infos["error"] | (engine.steps >= engine.model.spec.max_episode_steps)
        engine.ended = np.where(active, terminations | truncations, engine.ended)
        flags = TERMINATED * terminations + TRUNCATED * truncations
        frames = transition.frames.cpu().numpy()
        for slot, acked in zip(slots, seqs, strict=True):
            numbers = (rewards[slot], float(infos["surprise"][slot]), frames[slot])
            self._publish(hosted, slot, Row(0, int(flags[slot]), acked, *numbers))

    def _first_row(self, hosted: Hosted, slot: int) -> Row:
        """The frame that a slot's episode begins with, or goes on from."""
        acked = hosted.table.read_actions([slot])[1][0]
        return Row(0, FIRST, acked, np.zeros(acked.shape), 0.0, hosted.engine.frames[slot].cpu().numpy())

    def _publish(self, hosted: Hosted, slot: int, row: Row) -> None:
        """Write a row under the next frame id of its tenant."""
        tenant = hosted.tenants[slot]
        tenant.frame_id += 1
        hosted.table.write(slot, row._replace(frame_id=tenant.frame_id))

    def _announce(self, world: str, slots: list[int], step_ms: float, late: float = 0.0) -> None:
        tenants = self.worlds[world].tenants
        frames = [[slot, tenants[slot].room] for slot in slots]
        self._send({"event": "frames", "world": world, "frames": frames, "step_ms": step_ms, "late": late})

    def _send_snapshots(self, world: str, slots: list[int]) -> None:
        hosted, now = self.worlds[world], time.monotonic()
        for slot in slots:
            tenant = hosted.tenants[slot]
            if now >= tenant.snapshot_due:
                tenant.snapshot_due = next_snapshot(slot, now)
                facts = {"event": "snapshot", "room": tenant.room, "frame_id": tenant.frame_id}
                self._send(facts, hosted.engine.get_state(slot))


def main(connection: Connection, worlds: list[dict[str, Any]], options: dict[str, Any]) -> None:
    """What the spawned process runs.

    Args:
        worlds: id, folder, num_slots, table (the name of the shared memory) and fps of each.
        options: device, backend, threads, log_level.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the web process decides
    logging.basicConfig(level=options["log_level"], format="%(levelname)s %(name)s: %(message)s")
    torch.set_num_threads(options["threads"])
    try:
        process = EngineProcess(connection, worlds, options)
        pipe.send(connection, Message({"event": "ready", "costs": process.warm_up()}))
        process.serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the web process is gone
    except LwmError as error:
        pipe.send(connection, Message({"event": "failed", "error": str(error)}))

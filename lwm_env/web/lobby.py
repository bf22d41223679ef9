"""All rooms of a server: lets people in while there is room, keeps the engine's slots in step with them, and tidies up.

One event loop, so what has no `await` in it happens at once; what changes a slot of the engine holds the room's lock.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lwm_env.errors import InvalidInput, LwmError, StorageError, UnknownWorld, WrongOrder
from lwm_env.web import protocol, room_files
from lwm_env.web.metrics import Metrics
from lwm_env.web.pipe import Message
from lwm_env.web.protocol import Control, Pause, Restart, Rewind, SetTemperature
from lwm_env.web.rooms import Clock, Forbidden, Frame, PlayedBy, Room, RoomState, Seat, SeatState, Viewer, check_action
from lwm_env.web.settings import Settings
from lwm_env.web.supervisor import EngineLost, PlayedWorld, Refused, Supervisor

TIDY_SECONDS = 0.25
PREVIEW_SECONDS = 0.15  # between two frames of a gallery picture
PREVIEW_IDLE_SECONDS = 10.0
RETRY_SECONDS = 5  # what those are told who cannot come in now

log = logging.getLogger("lwm.lobby")


class Busy(LwmError):
    """No room can be opened now."""


class NoSuchRoom(LwmError):
    """There is none of that name, or not any more."""


class Lobby:
    """The rooms of a server, by id."""

    def __init__(self, worlds: dict[str, PlayedWorld], settings: Settings, metrics: Metrics) -> None:
        self.worlds, self.settings, self.metrics = worlds, settings, metrics
        self.rooms: dict[str, Room] = {}
        self.draining = False
        self.supervisor = Supervisor(worlds, settings, self._on_event, self._reopen_all)
        self._previews: dict[str, Room] = {}
        self._preview_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def ready(self) -> bool:
        return self.supervisor.healthy and not self.draining

    async def run(self) -> None:
        """The engine, and the timers of rooms and seats, until cancelled or until no engine can be had."""
        if self.settings.state_dir:
            self._load(room_files.read_all(self.settings.state_dir, self.worlds))
        async with asyncio.TaskGroup() as tasks:
            tidying = tasks.create_task(self._tidy_always())
            await self.supervisor.run()
            tidying.cancel()

    # -- coming and going --------------------------------------------------------------------------------------------

    def find(self, room_id: str) -> Room:
        room = self.rooms.get(room_id)
        if room is None:
            raise NoSuchRoom(f"there is no room {room_id!r:.40}. It may have been closed; create one.")
        return room

    async def create(
        self,
        world_id: str,
        *,
        seed: int | None = None,
        temperature: float | None = None,
        clock: Clock = "realtime",
        public: bool = False,
        played_by: Mapping[str, PlayedBy] | None = None,
        snapshot: bytes | None = None,
    ) -> tuple[Room, str]:
        """A new room and its owner's token.

        Args:
            snapshot: to go on from; by default an episode of the seed.

        Raises:
            UnknownWorld, InvalidInput: what was asked for does not exist.
            Busy: the server is full. EngineLost: it is being started. Refused: the snapshot is not of this world.
        """
        if world_id not in self.worlds:
            raise UnknownWorld(f"no world {world_id!r:.60} here; there are {', '.join(self.worlds)}.")
        world = self.worlds[world_id]
        room = Room(
            world,
            seed=secrets.randbelow(1_000_000) if seed is None else seed,
            temperature=temperature,
            clock=clock,
            public=public,
            played_by=played_by,
            num_snapshots=max(2, round(self.settings.rewind_seconds)),
        )
        if snapshot is not None:
            room.snapshots.append((0, snapshot))
        async with room.lock:
            await self._open(room)
        return room, room.owner.renew()

    def reserve(self, room: Room, player: str | None) -> tuple[Seat, str]:
        """A seat that waits for its player, and the token to take it with; see `Room.reserve`."""
        self._admit_nobody_while_draining()
        seat, token = room.reserve(player, time.monotonic() + self.settings.reserve_seconds)
        room.used_at = time.monotonic()
        room.tell({"type": "room", **room.describe()})
        return seat, token

    async def enter(self, room: Room, token: str | None, viewer: Viewer) -> str | None:
        """Let a connection in, into the seat of its token or among the spectators; the seat's new token.

        Raises:
            Forbidden: the token is of no seat. Busy, EngineLost: the room sleeps and cannot be woken now.
        """
        self._admit_nobody_while_draining()
        if token is not None and not any(seat.secret.fits(token) for seat in room.seats):
            self.metrics.rejected.labels("token").inc()
            raise Forbidden("the token is of no seat in this room. Join it again.")
        if sum(len(room.viewers) for room in self.rooms.values()) >= self.settings.max_viewers:
            self._refuse("viewers", f"{self.settings.max_viewers} people are here already")
        await self._wake(room)
        if not self._is_busy(room):
            self._check_load(room)
        renewed = None
        if token is not None:
            viewer.seat, renewed, before = room.take(token, viewer)
            if before is not None:
                before.seat = None
                before.close(protocol.REPLACED, "this seat was taken over by a newer connection")
        room.viewers.add(viewer)
        room.used_at = time.monotonic()
        self._settle(room)
        return renewed

    def leave(self, room: Room, viewer: Viewer) -> None:
        """A connection is gone; its seat waits for a while."""
        room.viewers.discard(viewer)
        seat, viewer.seat = viewer.seat, None
        if seat is not None and seat.viewer is viewer:
            seat.viewer, seat.state = None, SeatState.DROPPED
            seat.deadline = time.monotonic() + self.settings.drop_seconds
            if room.slot is not None and not self.draining:
                self.supervisor.tables[room.world.spec.id].act(room.slot, seat.index, 0)
        room.used_at = time.monotonic()
        room.tell({"type": "room", **room.describe()})

    async def close(self, room: Room) -> None:
        """Forget a room."""
        async with room.lock:
            self.rooms.pop(room.id, None)
            room.state = RoomState.CLOSED
            for viewer in list(room.viewers):
                viewer.close(protocol.NO_ROOM, "the room was closed")
            self._free_slot(room)
        if self.settings.state_dir:
            await asyncio.to_thread(room_files.remove, self.settings.state_dir, room.id)

    def _admit_nobody_while_draining(self) -> None:
        if self.draining:
            raise Busy("the server is being stopped. Try again in a moment.")

    # -- what people do ----------------------------------------------------------------------------------------------

    def act(self, room: Room, seat: Seat, action: int | list[float], seq: int) -> None:
        """Hold an action from the next step on."""
        checked = check_action(action, room.world)
        room.used_at = time.monotonic()
        if seat.sent_at is None:
            seat.sent_at = seq, room.used_at
        if room.slot is not None:
            self.supervisor.tables[room.world.spec.id].act(room.slot, seat.index, checked, seq)

    async def control(self, room: Room, message: Control) -> None:
        """Do what somebody in a seat asks for.

        Raises:
            EngineLost, Refused, WrongOrder: it could not be done.
        """
        match message:
            case Pause(paused=paused):
                room.held = paused
            case Restart(seed=seed):
                await self.restart(room, seed)
            case Rewind(frame=frame_id):
                snapshot = room.snapshot_before(frame_id)
                if snapshot is None:
                    raise WrongOrder("there is nothing to rewind to yet. Play for a second first.")
                await self._start_over(room, snapshot, kind="snapshot")
            case SetTemperature(value=value):
                room.temperature = value
                await self._call(room, "temperature", value=value)
        room.used_at = time.monotonic()
        self._settle(room)

    async def restart(self, room: Room, seed: int | None) -> None:
        """Begin an episode: the first of a seed, or the next one of the room's."""
        room.seed = room.seed if seed is None else seed
        await self._start_over(room, kind="seed", seed=seed)

    async def start_from(self, room: Room, picture: np.ndarray) -> None:
        """Begin an episode at a picture, uint8 (H, W, 3) in the world's size."""
        await self._start_over(room, picture.tobytes(), kind="picture", seed=room.seed)

    async def restore(self, room: Room, snapshot: bytes) -> None:
        """Go on from a snapshot; Refused when it is not of this world or altered."""
        await self._start_over(room, snapshot, kind="snapshot")

    async def snapshot(self, room: Room) -> bytes:
        """The room's world as bytes, as `LwmEnv.get_state` gives them."""
        async with room.lock:
            if room.state is RoomState.SNAPSHOTTED:
                return room.snapshots[-1][1]
            return (await self._call(room, "snapshot")).payload

    async def step(self, orders: Sequence[tuple[Room, Mapping[str, Any]]]) -> list[Frame]:
        """One step of rooms without a clock, those of one world as one batch; the frames that came of it.

        Raises:
            InvalidInput: an action is missing, unknown or out of range, or a room comes twice. Nothing was stepped.
            WrongOrder: a room has a clock of its own. EngineLost, Busy.
        """
        if len({room.id for room, _ in orders}) < len(orders):
            raise InvalidInput("a room came twice in one batch. Send its second step afterwards.")
        checked = [(room, self._joint(room, actions)) for room, actions in orders]
        batches: dict[str, list[int]] = {}
        async with contextlib.AsyncExitStack() as locks:
            for room in sorted((room for room, _ in checked), key=lambda room: room.id):
                await self._wake(room)
                await locks.enter_async_context(room.lock)
            for room, actions in checked:
                world_id = room.world.spec.id
                batches.setdefault(world_id, []).append(room.slot)
                for player, action in actions.items():
                    self.supervisor.tables[world_id].act(room.slot, player, action)
                room.used_at = time.monotonic()
            for world_id, slots in batches.items():
                await self.supervisor.call("step", world=world_id, slots=slots)
        return [room.frame for room, _ in checked]

    def _joint(self, room: Room, actions: Mapping[str, Any]) -> dict[int, int | list[float]]:
        if room.clock != "manual":
            raise WrongOrder("this room has a clock of its own. Create one with clock=manual to step it.")
        wanted = {seat.player: seat.index for seat in room.seats if seat.played_by == "human"}
        if set(actions) != set(wanted):
            raise InvalidInput(f"actions for {sorted(actions)} came; one for each of {sorted(wanted)} is needed.")
        return {wanted[player]: check_action(action, room.world) for player, action in actions.items()}

    async def preview(self, world_id: str) -> bytes:
        """A JPEG of a world that dreams on while somebody looks at the gallery."""
        async with self._preview_lock:
            room = self._previews.get(world_id)
            if room is None:
                players = dict.fromkeys(self.worlds[world_id].spec.players, "sticky")
                room, _ = await self.create(world_id, clock="manual", played_by=players)
                room.hidden = True
                self._previews[world_id] = room
        if time.monotonic() - room.used_at >= PREVIEW_SECONDS and not room.lock.locked():
            await self.step([(room, {})])
        return room.frame.jpeg

    # -- slots of the engine -----------------------------------------------------------------------------------------

    @property
    def load(self) -> float:
        """The share of the engine's time that the rooms in which people are may be expected to take."""
        return sum(self._cost(room.world) for room in self.rooms.values() if self._is_busy(room))

    def _is_busy(self, room: Room) -> bool:
        lately = time.monotonic() - room.used_at < self.settings.pause_seconds
        return room.slot is not None and room.clock == "realtime" and (bool(room.viewers) or lately)

    def _cost(self, world: PlayedWorld) -> float:
        return self.supervisor.costs_ms[world.spec.id] * world.fps / 1000

    def _holding(self) -> list[Room]:
        return [room for room in self.rooms.values() if room.slot is not None]

    def _take_slot(self, room: Room) -> None:
        """Raises Busy unless the server has time and place for one more room."""
        self._admit_nobody_while_draining()
        if not self.supervisor.ready:
            raise EngineLost("the engine is being started. Try again in a few seconds.")
        self._check_load(room)
        taken = {other.slot for other in self._holding() if other.world is room.world}
        free = [slot for slot in range(self.settings.max_rooms) if slot not in taken]
        if not free:
            self._refuse("slots", f"all {self.settings.max_rooms} rooms of {room.world.spec.id} are taken")
        room.slot = free[0]
        self.rooms[room.id] = room  # before any await: the slot counts as taken from now on

    def _check_load(self, room: Room) -> None:
        """Raises Busy when people in this room too would slow the others down; a first room always may."""
        load, allowed = self.load, self.settings.max_load
        if room.clock == "realtime" and load > 0 and load + self._cost(room.world) > allowed:
            self._refuse("load", f"the rooms here take {load:.0%} of the engine's time, {allowed:.0%} are allowed")

    def _refuse(self, reason: str, told: str) -> None:
        self.metrics.rejected.labels(reason).inc()
        raise Busy(f"{told}. Try again in a while.")

    def _free_slot(self, room: Room) -> None:
        if room.slot is not None:
            self._later(self._call(room, "close"))
            room.slot = None

    async def _open(self, room: Room) -> None:
        """Give a room a slot, and go on from its last snapshot or begin with its seed. The room's lock is held."""
        known = room.id in self.rooms
        self._take_slot(room)
        before, room.state = room.state, RoomState.WARMING
        try:
            self.supervisor.tables[room.world.spec.id].clear(room.slot)
            await self._fill(room)
        except BaseException:
            room.slot, room.state = None, before
            if not known:
                del self.rooms[room.id]
            raise
        room.state = RoomState.PAUSED
        self._settle(room)

    async def _fill(self, room: Room) -> None:
        if room.snapshots:
            await self._start(room, room.snapshots[-1][1], kind="snapshot")
        else:
            await self._start(room, kind="seed", seed=room.seed)

    async def _start(self, room: Room, payload: bytes = b"", /, **start: Any) -> None:
        arguments = {"room": room.id, "frame_id": room.frame_id + 1, "temperature": room.temperature}
        await self._call(room, "open", payload, **arguments, **start)

    async def _start_over(self, room: Room, payload: bytes = b"", /, **start: Any) -> None:
        """Another start in the slot that a room has."""
        await self._wake(room)
        async with room.lock:
            room.used_at = time.monotonic()
            await self._start(room, payload, **start)
            now = await self._call(room, "snapshot")
            room.snapshots.append((now.facts["frame_id"], now.payload))

    async def _call(self, room: Room, command: str, payload: bytes = b"", /, **arguments: Any) -> Message:
        if room.slot is None:
            raise EngineLost("the room holds no slot of the engine now. Try again.")
        return await self.supervisor.call(command, payload, world=room.world.spec.id, slot=room.slot, **arguments)

    async def _wake(self, room: Room) -> None:
        async with room.lock:
            if room.state is RoomState.SNAPSHOTTED:
                await self._open(room)

    async def _sleep(self, room: Room) -> None:
        """Keep a room as a snapshot and free its slot."""
        async with room.lock:
            if room.slot is None or room.state is RoomState.CLOSED:
                return
            with contextlib.suppress(EngineLost):  # then the last snapshot has to do
                room.snapshots.append((room.frame_id, (await self._call(room, "snapshot")).payload))
            if not room.snapshots:
                return
            self._free_slot(room)
            room.state = RoomState.SNAPSHOTTED
        if self.settings.state_dir:
            await asyncio.to_thread(room_files.write, self.settings.state_dir, room)

    def _settle(self, room: Room) -> None:
        """Let the engine's clock step a room, or not, as it should be now; and tell those who watch."""
        if room.slot is not None and room.state in (RoomState.RUNNING, RoomState.PAUSED):
            idle = not room.has_player and time.monotonic() - room.used_at >= self.settings.pause_seconds
            running = not (room.held or idle) and (room.clock == "manual" or bool(room.viewers))
            state = RoomState.RUNNING if running else RoomState.PAUSED
            if state is not room.state:
                room.state = state
                if room.clock == "realtime":
                    self._later(self._call(room, "run", running=running))
        room.tell({"type": "room", **room.describe()})

    async def _reopen_all(self) -> None:
        """A new engine has come up: put every room that holds a slot back into it."""
        for room in self._holding():
            async with room.lock:
                if room.slot is None:
                    continue
                try:
                    await self._fill(room)
                except Refused as error:
                    log.error("a room of %s could not be restored: %s", room.world.spec.id, error)
                    self._later(self.close(room))
                    continue
                room.state = RoomState.PAUSED
                self._settle(room)

    def _later(self, work: Any) -> None:
        """Do something for the engine without waiting; when it is lost meanwhile, its successor is told anew."""

        async def attempt() -> None:
            with contextlib.suppress(EngineLost, Refused):
                await work

        task = asyncio.get_running_loop().create_task(attempt())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what the engine tells ---------------------------------------------------------------------------------------

    def _on_event(self, message: Message) -> None:
        facts = message.facts
        if facts["event"] == "frames":
            self._on_frames(facts["world"], facts["frames"], facts["step_ms"])
        elif facts["event"] == "snapshot" and facts["room"] in self.rooms:
            self.rooms[facts["room"]].snapshots.append((facts["frame_id"], message.payload))

    def _on_frames(self, world_id: str, frames: list[list[Any]], step_ms: float) -> None:
        if step_ms:
            self.metrics.step.labels(world_id).observe(step_ms / 1000)
            costs = self.supervisor.costs_ms
            costs[world_id] += 0.02 * (step_ms / len(frames) - costs[world_id])
        for slot, room_id in frames:
            room = self.rooms.get(room_id)
            row = self.supervisor.tables[world_id].read(slot)
            if room is None or room.slot != slot or row is None or row.frame_id == room.frame_id:
                continue
            with self.metrics.encode.time():
                room.show(row, row.flags)
            self._after_frame(room)

    def _after_frame(self, room: Room) -> None:
        """Note how long actions took, and let the seats that nobody sits in act."""
        now, row = time.monotonic(), room.frame.row
        for seat in room.seats:
            if seat.sent_at is not None and row.acked[seat.index] >= seat.sent_at[0]:
                self.metrics.latency.observe(now - seat.sent_at[1])
                seat.sent_at = None
            if seat.stand_in is not None:
                action = seat.stand_in.act()
                self.supervisor.tables[room.world.spec.id].act(room.slot, seat.index, action)

    # -- timers ------------------------------------------------------------------------------------------------------

    async def _tidy_always(self) -> None:
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            for room in list(self.rooms.values()):
                self._tidy(room)
            self._count()

    def _tidy(self, room: Room) -> None:
        now = time.monotonic()
        expired = [seat for seat in room.seats if seat.expire(now)]
        if expired:
            room.tell({"type": "room", **room.describe()})
        if room.has_player:
            room.used_at = now
            return
        idle = now - room.used_at
        if room.hidden:
            if idle >= PREVIEW_IDLE_SECONDS:
                self._previews.pop(room.world.spec.id, None)
                self._later(self.close(room))
        elif idle >= self.settings.close_seconds:
            self._later(self.close(room))
        elif idle >= self.settings.snapshot_seconds and room.slot is not None and not room.lock.locked():
            self._later(self._sleep(room))
        elif idle >= self.settings.pause_seconds and room.state is RoomState.RUNNING and room.clock == "realtime":
            self._settle(room)

    def _count(self) -> None:
        visible = [room for room in self.rooms.values() if not room.hidden]
        for state in RoomState:
            self.metrics.rooms.labels(state.value).set(sum(room.state is state for room in visible))
        for state in SeatState:
            seats = [seat for room in visible for seat in room.seats if seat.played_by == "human"]
            self.metrics.seats.labels(state.value).set(sum(seat.state is state for seat in seats))
        for world_id in self.worlds:
            self.metrics.slots.labels(world_id).set(sum(r.world.spec.id == world_id for r in self._holding()))
        self.metrics.viewers.set(sum(len(room.viewers) for room in visible))
        self.metrics.load.set(self.load)
        self.metrics.ready.set(self.supervisor.healthy)
        self.metrics.engine_memory.set(self.supervisor.memory_bytes)
        self.metrics.restarts.set(self.supervisor.restarts)

    # -- stopping and going on ---------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Let nobody in any more, keep every room as a snapshot, and send everybody away."""
        self.draining = True
        for room in self.rooms.values():
            room.tell({"type": "bye", "reason": "the server is being stopped"})
        rooms = [room for room in self.rooms.values() if not room.hidden]
        for outcome in await asyncio.gather(*map(self._sleep, rooms), return_exceptions=True):
            if isinstance(outcome, StorageError):
                log.error("%s", outcome)
        for room in self.rooms.values():
            for viewer in list(room.viewers):
                viewer.close(protocol.GOING_AWAY, "the server is being stopped")

    def _load(self, rooms: list[Room]) -> None:
        """Take up rooms that an earlier server left; their players have a while to come back."""
        for room in rooms:
            room.state = RoomState.SNAPSHOTTED
            for seat in room.seats:
                if seat.secret.hashed:
                    seat.state = SeatState.DROPPED
                    seat.deadline = time.monotonic() + self.settings.drop_seconds
            self.rooms[room.id] = room

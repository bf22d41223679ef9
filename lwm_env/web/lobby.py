"""What people do in the rooms of a server: come and go, act, turn back time."""

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import numpy as np

from lwm_env import opponents
from lwm_env.errors import LwmError, StorageError, UnknownWorld, WrongOrder
from lwm_env.web import protocol, room_files, stepping
from lwm_env.web.hosting import Hosting
from lwm_env.web.metrics import Metrics
from lwm_env.web.protocol import Control, Pause, Restart, Rewind, SetTemperature
from lwm_env.web.rooms import Clock, Frame, PlayedBy, Room, RoomState, Seat, SeatState, Viewer, check_action
from lwm_env.web.settings import Settings
from lwm_env.web.supervisor import PlayedWorld
from lwm_env.web.timers import Timers

PREVIEW_SECONDS = 0.15  # between two frames of a gallery picture
RETRY_SECONDS = 5  # what those are told who cannot come in now

log = logging.getLogger("lwm.lobby")


class NoSuchRoom(LwmError):
    """There is none of that name, or not any more."""


class Lobby:
    """The rooms of a server, by id."""

    def __init__(self, worlds: dict[str, PlayedWorld], settings: Settings, metrics: Metrics) -> None:
        self.worlds, self.settings, self.metrics = worlds, settings, metrics
        self.hosting = Hosting(worlds, settings, metrics)
        self.rooms = self.hosting.rooms
        self._timers = Timers(
            self.hosting, lambda room: self._later(self.close(room)), lambda room: self._later(self.hosting.sleep(room))
        )
        self._preview_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def ready(self) -> bool:
        """Whether rooms can be played: at least one engine is heard from, and the server goes on."""
        return any(engine.healthy for engine in self.hosting.engines) and not self.hosting.draining

    async def run(self) -> None:
        """The engines, and the timers of rooms and seats, until cancelled or until an engine cannot be had at all."""
        if self.settings.state_dir:
            self._load(room_files.read_all(self.settings.state_dir, self.worlds))
        async with asyncio.TaskGroup() as tasks:
            tidying = tasks.create_task(self._timers.run())
            engines = [tasks.create_task(engine.run()) for engine in self.hosting.engines]
            await asyncio.wait(engines, return_when=asyncio.FIRST_COMPLETED)
            for task in (tidying, *engines):
                task.cancel()

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
        room.id = self.hosting.new_id()
        if snapshot is not None:
            room.snapshots.append((0, snapshot))
        async with room.lock:
            await self.hosting.open(room)
        return room, room.owner.renew()

    def reserve(self, room: Room, player: str | None) -> tuple[Seat, str]:
        """A seat that waits for its player, and the token to take it with; see `Room.reserve`."""
        self.hosting.admit_nobody_while_draining()
        seat, token = room.reserve(player, time.monotonic() + self.settings.reserve_seconds)
        room.used_at = time.monotonic()
        room.tell({"type": "room", **room.describe()})
        return seat, token

    def give(self, room: Room, player: str, played_by: PlayedBy) -> None:
        """Let a free seat be played by people, nobody or a bot from the next step on; raises as `Room.give`."""
        seat = room.give(player, played_by)
        if room.slot is not None:
            self.hosting.table(room).rest(room.slot, seat.index)
            self.hosting.let_bots_act(room)
        room.used_at = time.monotonic()
        self.hosting.settle(room)

    async def enter(self, room: Room, token: str | None, viewer: Viewer) -> str | None:
        """Let a connection in, into the seat of its token or among the spectators; the seat's new token.

        Raises:
            Forbidden: the token is of no seat. Busy, EngineLost: the room sleeps and cannot be woken now.
        """
        self.hosting.admit_nobody_while_draining()
        if token is not None:
            room.seat_of(token)  # before anything changes
        if sum(len(room.viewers) for room in self.rooms.values()) >= self.settings.max_viewers:
            self.hosting.refuse("viewers", f"{self.settings.max_viewers} people are here already")
        await self.hosting.wake(room)
        if not self.hosting.is_busy(room):
            self.hosting.check_load(room)
        renewed = None
        if token is not None:
            viewer.seat, renewed, before = room.take(token, viewer)
            viewer.seat.sent_at = None
            if room.slot is not None:
                self.hosting.table(room).rest(room.slot, viewer.seat.index)  # its player counts from the beginning
            if before is not None:
                before.seat = None
                before.close(protocol.REPLACED, "this seat was taken over by a newer connection")
        room.viewers.add(viewer)
        room.used_at = time.monotonic()
        self.hosting.settle(room)
        return renewed

    def leave(self, room: Room, viewer: Viewer) -> None:
        """A connection is gone; its seat waits for a while."""
        room.viewers.discard(viewer)
        seat, viewer.seat = viewer.seat, None
        if seat is not None and seat.viewer is viewer:
            seat.viewer, seat.state = None, SeatState.DROPPED
            seat.deadline = time.monotonic() + self.settings.drop_seconds
            if room.slot is not None and not self.hosting.draining:
                self.hosting.table(room).rest(room.slot, seat.index)
        room.used_at = time.monotonic()
        room.tell({"type": "room", **room.describe()})

    async def close(self, room: Room) -> None:
        """Forget a room."""
        async with room.lock:
            self.rooms.pop(room.id, None)
            room.state = RoomState.CLOSED
            for viewer in list(room.viewers):
                viewer.close(protocol.NO_ROOM, "the room was closed")
            self.hosting.release(room)
        if self.settings.state_dir:
            await asyncio.to_thread(room_files.remove, self.settings.state_dir, room.id)

    # -- what people do ----------------------------------------------------------------------------------------------

    def act(self, room: Room, seat: Seat, action: int | list[float], seq: int) -> None:
        """Hold an action from the next step on."""
        checked = check_action(action, room.world)
        room.used_at = time.monotonic()
        if seat.sent_at is None:
            seat.sent_at = seq, room.used_at
        if room.slot is not None:
            self.hosting.table(room).act(room.slot, seat.index, checked, seq)

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
                await self.hosting.start_over(room, snapshot, kind="snapshot")
            case SetTemperature(value=value):
                room.temperature = value
                await self.hosting.call(room, "temperature", value=value)
        room.used_at = time.monotonic()
        self.hosting.settle(room)

    async def restart(self, room: Room, seed: int | None) -> None:
        """Begin an episode: the first of a seed, or the next one of the room's."""
        room.seed = room.seed if seed is None else seed
        for seat in room.seats:
            if seat.bot is not None and seed is not None:
                seat.bot.reset(seed + seat.index)
        await self.hosting.start_over(room, kind="seed", seed=seed)

    async def start_from(self, room: Room, picture: np.ndarray) -> str | None:
        """Begin an episode at a picture, uint8 (H, W, 3) in the world's size; a warning if that is not known to it."""
        answer = await self.hosting.start_over(room, picture.tobytes(), kind="picture", seed=room.seed)
        return answer.facts.get("warning")

    async def restore(self, room: Room, snapshot: bytes) -> None:
        """Go on from a snapshot; Refused when it is not of this world or altered."""
        await self.hosting.start_over(room, snapshot, kind="snapshot")

    async def snapshot(self, room: Room) -> bytes:
        """The room's world as bytes, as `LwmEnv.get_state` gives them."""
        async with room.lock:
            if room.state is RoomState.SNAPSHOTTED:
                return room.snapshots[-1][1]
            return (await self.hosting.call(room, "snapshot")).payload

    async def step(self, orders: Sequence[tuple[Room, Mapping[str, Any]]]) -> list[Frame]:
        """One step of rooms without a clock; see `stepping.step`."""
        return await stepping.step(self.hosting, orders)

    async def preview(self, world_id: str) -> bytes:
        """A JPEG of a world that dreams on while somebody looks at the gallery."""
        async with self._preview_lock:
            room = self.hosting.previews.get(world_id)
            if room is None:
                spec = self.worlds[world_id].spec
                players = dict.fromkeys(spec.players, opponents.names_for(spec)[0])
                room, _ = await self.create(world_id, clock="manual", played_by=players)
                room.hidden = True
                self.hosting.previews[world_id] = room
        if time.monotonic() - room.used_at >= PREVIEW_SECONDS and not room.lock.locked():
            await self.step([(room, {})])
        return room.frame.jpeg

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something without waiting; an error is logged."""

        async def attempt() -> None:
            try:
                await work
            except LwmError as error:
                log.warning("%s", error)

        task = asyncio.get_running_loop().create_task(attempt())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- stopping and going on ---------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Let nobody in any more, keep every room as a snapshot, and send everybody away."""
        self.hosting.draining = True
        for room in self.rooms.values():
            room.tell({"type": "bye", "reason": "the server is being stopped"})
        rooms = [room for room in self.rooms.values() if not room.hidden]
        for outcome in await asyncio.gather(*map(self.hosting.sleep, rooms), return_exceptions=True):
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

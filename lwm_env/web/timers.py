"""What time does to rooms and seats: reservations end, rooms without people pause, sleep and are closed."""

import asyncio
import time
from collections.abc import Callable

from lwm_env.web.hosting import Hosting
from lwm_env.web.rooms import Room, RoomState, SeatState
from lwm_env.web.shedding import Shedding

TIDY_SECONDS = 0.25
PREVIEW_IDLE_SECONDS = 10.0


class Timers:
    """Looks at every room a few times a second.

    Args:
        close, sleep: begin to do so with a room, without waiting for it.
    """

    def __init__(self, hosting: Hosting, close: Callable[[Room], None], sleep: Callable[[Room], None]) -> None:
        self.hosting, self._close, self._sleep = hosting, close, sleep
        self._shedding = Shedding(hosting, sleep)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            for room in list(self.hosting.rooms.values()):
                self.tidy(room)
            self.hosting.frame_cost.settle()
            self._shedding.look()
            self.count()

    def tidy(self, room: Room) -> None:
        now = time.monotonic()
        if not self.hosting.engine(room).ready:  # nobody can come back now, so nobody's time runs out
            room.used_at = now
            for seat in room.seats:
                seat.deadline += TIDY_SECONDS
            return
        expired = [seat for seat in room.seats if seat.expire(now)]
        if expired:
            room.tell({"type": "room", **room.describe()})
        if room.has_player:
            room.used_at = now
            return
        idle = now - room.used_at
        if room.hidden:
            if idle >= PREVIEW_IDLE_SECONDS:
                self.hosting.previews.pop(room.world.spec.id, None)
                self._close(room)
        elif idle >= self.hosting.settings.close_seconds:
            self._close(room)
        elif idle >= self.hosting.settings.snapshot_seconds and room.slot is not None and not room.lock.locked():
            self._sleep(room)
        elif (
            idle >= self.hosting.settings.pause_seconds and room.state is RoomState.RUNNING and room.clock == "realtime"
        ):
            self.hosting.settle(room)

    def count(self) -> None:
        """Tell the metrics how things stand."""
        metrics = self.hosting.metrics
        visible = [room for room in self.hosting.rooms.values() if not room.hidden]
        for state in RoomState:
            metrics.rooms.labels(state.value).set(sum(room.state is state for room in visible))
        for state in SeatState:
            seats = [seat for room in visible for seat in room.seats if seat.played_by == "human"]
            metrics.seats.labels(state.value).set(sum(seat.state is state for seat in seats))
        held = [room for engine in self.hosting.engines for room in self.hosting.holding(engine)]
        for world_id in self.hosting.engines[0].worlds:
            metrics.slots.labels(world_id).set(sum(room.world.spec.id == world_id for room in held))
        metrics.viewers.set(sum(len(room.viewers) for room in visible))
        for index, engine in enumerate(self.hosting.engines):
            metrics.load.labels(index).set(self.hosting.load(engine))
            metrics.ready.labels(index).set(engine.healthy)
            metrics.engine_memory.labels(index).set(engine.memory_bytes)
            metrics.restarts.labels(index).set(engine.restarts)

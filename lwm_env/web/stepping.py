"""One step of rooms whose clock is manual, on request."""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lwm_env.errors import InvalidInput, WrongOrder
from lwm_env.web.hosting import Hosting
from lwm_env.web.rooms import Frame, Room, check_action
from lwm_env.web.supervisor import Supervisor


async def step(hosting: Hosting, orders: Sequence[tuple[Room, Mapping[str, Any]]]) -> list[Frame]:
    """One step of each room, those of one world in one engine as one batch; the frames that came of it.

    Args:
        orders: rooms, and the action of each of their players whom people play.

    Raises:
        InvalidInput: an action is missing, unknown or out of range, or a room comes twice. Nothing was stepped.
        WrongOrder: a room has a clock of its own. EngineLost, Busy.
    """
    if len({room.id for room, _ in orders}) < len(orders):
        raise InvalidInput("a room came twice in one batch. Send its second step afterwards.")
    checked = [(room, _joint(room, actions)) for room, actions in orders]
    batches: dict[tuple[Supervisor, str], list[int | None]] = {}
    async with contextlib.AsyncExitStack() as locks:
        for room in sorted((room for room, _ in checked), key=lambda room: room.id):
            await hosting.wake(room)
            await locks.enter_async_context(room.lock)
        for room, actions in checked:
            batches.setdefault((hosting.engine(room), room.world.spec.id), []).append(room.slot)
            for player, action in actions.items():
                hosting.table(room).act(room.slot, player, action)
            room.used_at = time.monotonic()
        calls = [engine.call("step", world=world_id, slots=slots) for (engine, world_id), slots in batches.items()]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
    return [room.frame for room, _ in checked]


def _joint(room: Room, actions: Mapping[str, Any]) -> dict[int, int | list[float]]:
    """Checked actions by seat."""
    if room.clock != "manual":
        raise WrongOrder("this room has a clock of its own. Create one with clock=manual to step it.")
    wanted = {seat.player: seat.index for seat in room.seats if seat.played_by == "human"}
    if set(actions) != set(wanted):
        raise InvalidInput(f"actions for {sorted(actions)} came; one for each of {sorted(wanted)} is needed.")
    return {wanted[player]: check_action(action, room.world) for player, action in actions.items()}

"""What the engine process has of each world and of each room in it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lwm_env.engine import Engine
from lwm_env.web.slot_table import SlotTable
from lwm_env.web.turns import Turns

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # slots that an engine has: shapes, and CUDA graphs, for few sizes


def bucket(num_slots: int) -> int:
    """The size of an engine that holds so many slots."""
    return next(size for size in BUCKETS if size >= num_slots)


@dataclass
class Tenant:
    """What the engine process knows of a room."""

    room: str
    temperature: float
    frame_id: int = 0
    snapshot_at: float = 0.0


@dataclass
class Hosted:
    """One world: its engine, its shared memory, its tenants by slot, and whose turn it is."""

    engine: Engine
    table: SlotTable
    turns: Turns
    open: Callable[[int], Engine]  # an engine of so many slots
    tenants: dict[int, Tenant] = field(default_factory=dict)

    def grow(self, num_slots: int) -> None:
        """An engine of the next bucket that holds so many slots, with the same worlds in it."""
        if num_slots <= self.engine.num_envs:
            return
        larger = self.open(bucket(num_slots))
        for slot in np.flatnonzero(self.engine.ready):
            larger.set_state(self.engine.get_state(int(slot)), int(slot))
        larger.ended[: self.engine.num_envs] = self.engine.ended
        self.engine = larger

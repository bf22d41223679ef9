"""What the engine process has of each world and of each room in it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lwm_env.engine import Engine
from lwm_env.web.slot_table import SlotTable
from lwm_env.web.turns import Turns

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # slots that an engine has: shapes, and CUDA graphs, for few sizes

SNAPSHOT_SECONDS = 1.0  # between two of a running room; what a crash costs at most, and the grain of rewinding
PHASE = 0.618034  # of these, from one slot to the next: by the golden ratio any number of slots is spread evenly


def bucket(num_slots: int) -> int:
    """The size of an engine that holds so many slots."""
    return next(size for size in BUCKETS if size >= num_slots)


def next_snapshot(slot: int, now: float) -> float:
    """When a slot's next snapshot is due. Each slot has moments of its own, so that rooms which are stepped together do
    not send theirs together: many at once lie in the web process's heap all at the same time."""
    phase = slot * PHASE % 1 * SNAPSHOT_SECONDS
    return now + SNAPSHOT_SECONDS - (now - phase) % SNAPSHOT_SECONDS


@dataclass
class Tenant:
    """What the engine process knows of a room."""

    room: str
    temperature: float
    frame_id: int = 0
    snapshot_due: float = 0.0


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

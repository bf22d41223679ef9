"""Actions in and frames out, in memory that both processes share. The web process owns it and outlives the engine.

Shapes: S slots of a world, P players, A action numbers (1 for a discrete world).
"""

from multiprocessing.shared_memory import SharedMemory
from typing import NamedTuple

import numpy as np

from lwm_env.spec import DiscreteActions, WorldSpec


class Row(NamedTuple):
    """A frame of a slot and what belongs to it, copied."""

    frame_id: int
    flags: int
    acked: np.ndarray  # uint32 (P,), the last action of each player that the frame shows
    rewards: np.ndarray  # float32 (P,)
    surprise: float
    frame: np.ndarray  # uint8 (H, W, 3)


class SlotTable:
    """The slots of one world. Actions have one writer (web) and frames another (engine); neither waits for the other.

    Args:
        name: of the memory to attach to; None makes new memory, which `close` then removes.
    """

    def __init__(self, spec: WorldSpec, num_slots: int, name: str | None = None) -> None:
        players = len(spec.players)
        self._discrete = isinstance(spec.actions, DiscreteActions)
        self._neutral = 0 if self._discrete else np.clip(0, spec.actions.low, spec.actions.high)
        columns = [
            ("actions", "<f4", (players, 1 if self._discrete else spec.actions.dim)),
            ("seqs", "<u4", (players,)),
            ("lock", "<u4"),  # odd while a row is written
            ("frame_id", "<u4"),
            ("flags", "<u4"),
            ("acked", "<u4", (players,)),
            ("rewards", "<f4", (players,)),
            ("surprise", "<f4"),
            ("frame", "u1", (*spec.frame_size, 3)),
        ]
        layout = np.dtype(columns, align=True)
        self._owner = name is None
        self._memory = SharedMemory(name, create=self._owner, size=num_slots * layout.itemsize)
        self._rows: np.ndarray | None = np.ndarray(num_slots, layout, self._memory.buf)

    @property
    def name(self) -> str:
        return self._memory.name

    def rest(self, slot: int, player: int | slice = slice(None)) -> None:
        """The neutral action and nothing to acknowledge, for one player or for all."""
        self._rows["actions"][slot, player], self._rows["seqs"][slot, player] = self._neutral, 0

    def act(self, slot: int, player: int, action: int | list[float], seq: int | None = None) -> None:
        """Hold an action from the next step on; `seq` is what its frame acknowledges (None: what it did before)."""
        self._rows["actions"][slot, player] = action
        if seq is not None:
            self._rows["seqs"][slot, player] = seq  # after the action: never acknowledge what was not applied

    def read_actions(self, slots: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The held actions, int64 (n, P) or float32 (n, P, A), and their sequence numbers, uint32 (n, P)."""
        seqs = self._rows["seqs"][slots]
        actions = self._rows["actions"][slots]
        return (actions[..., 0].astype(np.int64) if self._discrete else actions), seqs

    def write(self, slot: int, row: Row) -> None:
        rows = self._rows
        rows["lock"][slot] |= 1
        for field, value in row._asdict().items():
            rows[field][slot] = value
        rows["lock"][slot] += 1

    def read(self, slot: int) -> Row | None:
        """The newest frame of a slot; None while it is being written, since then a newer one is announced soon."""
        rows = self._rows
        before = int(rows["lock"][slot])
        numbers = (int(rows["frame_id"][slot]), int(rows["flags"][slot]))
        arrays = (rows["acked"][slot].copy(), rows["rewards"][slot].copy())
        row = Row(*numbers, *arrays, float(rows["surprise"][slot]), rows["frame"][slot].copy())
        return row if before % 2 == 0 and before == rows["lock"][slot] else None

    def close(self) -> None:
        """Let go of the memory; the process that made it removes it."""
        self._rows = None
        self._memory.close()
        if self._owner:
            self._memory.unlink()

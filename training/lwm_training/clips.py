"""A batch of short stretches of real play: what every model is trained and evaluated on."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


def nearest_rewards(rewards: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Rewards of a game, each as the nearest of the values that its world tells apart; float32, the same shape."""
    values = np.asarray(values, np.float32)
    return values[np.abs(rewards[..., None] - values).argmin(-1)]


@dataclass(frozen=True)
class Clips:
    """B stretches of T steps. `valid[b, t]` is False from the step that crosses an episode's end on.

    observations: uint8 (B, T + 1, H, W, 3); actions: (B, T, P) int64 or (B, T, P, A) float32 for P players;
    rewards: float32 (B, T, P); terminations: bool (B, T), true on the step whose next frame ends the episode;
    valid: bool (B, T), whether step t belongs to the episode that the stretch began in;
    sightings: float32 (B, T, M + 1), the motion by registration, of two numbers or what a flow has, with a lattice what
        each of its motions costs, and whether it is sure; if asked for.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    valid: np.ndarray
    sightings: np.ndarray | None = None

    def __getitem__(self, rows: slice | np.ndarray) -> "Clips":
        arrays = [getattr(self, field.name) for field in fields(self)]
        return Clips(*(None if array is None else array[rows] for array in arrays))

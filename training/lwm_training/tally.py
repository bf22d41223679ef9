"""Figures pooled over clips, with bootstrap intervals over clips.

Shapes: B clips, S steps, R resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Tally:
    """Two sums for every clip and step; their ratio over all clips is the pooled figure.

    steps: the S horizons, counted from 1; totals, counts: float64 (B, S), 0 where a clip has nothing to say.
    """

    steps: tuple[int, ...]
    totals: np.ndarray
    counts: np.ndarray

    def ratio(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Sum of totals over sum of counts, each clip counted `weights` (R, B) times: (R, S), or (S,) of all clips
        once. NaN where nothing was counted."""
        if weights is None:
            return self.ratio(np.ones((1, len(self.totals))))[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            return (weights @ self.totals) / (weights @ self.counts)

    def at(self, steps: Sequence[int]) -> "Tally":
        """The same for some of the steps."""
        columns = [self.steps.index(step) for step in steps]
        return Tally(tuple(steps), self.totals[:, columns], self.counts[:, columns])


def join(parts: Sequence[Tally]) -> Tally:
    """One tally of the clips of several; all must have the same steps."""
    totals, counts = (np.concatenate([getattr(part, name) for part in parts]) for name in ("totals", "counts"))
    return Tally(parts[0].steps, totals, counts)


def resampling(num_clips: int, seed: int) -> np.ndarray:
    """How often each clip is drawn in each bootstrap resample: float64 (R, B)."""
    draws = np.random.default_rng(seed).multinomial(num_clips, np.full(num_clips, 1 / num_clips), size=RESAMPLES)
    return draws.astype(np.float64)


def interval(statistic: Callable[[np.ndarray], np.ndarray], weights: np.ndarray) -> np.ndarray:
    """A statistic with its 95 % bootstrap interval.

    Args:
        statistic: maps weights (R, B) to values (R, S).
        weights: from `resampling`.

    Returns:
        (S, 3): value, low, high; NaN where the statistic is not defined.
    """
    value = statistic(np.ones((1, weights.shape[1])))[0]
    resampled = statistic(weights)
    bounds = np.full((2, len(value)), np.nan)
    for column, values in enumerate(resampled.T):
        defined = values[~np.isnan(values)]
        if len(defined) and not np.isnan(value[column]):
            bounds[:, column] = np.quantile(defined, [0.025, 0.975], method="nearest")  # no mean of infinities
    return np.stack([value, *bounds], 1)

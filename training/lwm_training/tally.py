"""Figures pooled over clips, with bootstrap intervals over clips.

Shapes: B clips, S steps, R resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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


class Sums:
    """Totals and counts as they come in; steps that are not valid count nothing, those that it is not known of do."""

    def __init__(self, valid: Tensor, steps: Sequence[int] | None = None) -> None:
        """`valid` (B, S) is of the steps from 1 on, or of `steps`."""
        steps = range(1, valid.shape[1] + 1) if steps is None else steps
        self._valid, self._columns = dict(zip(steps, valid.double().unbind(1), strict=True)), {}
        self._all = torch.ones(len(valid), dtype=torch.float64)

    def add(self, name: str, step: int, totals: Tensor, counts: Tensor) -> None:
        shown = self._valid.get(step, self._all)
        columns = [torch.where(shown > 0, values.double(), 0.0).numpy() for values in (totals, counts)]
        self._columns.setdefault(name, {})[step] = columns

    def tallies(self) -> dict[str, Tally]:
        return {
            name: Tally(tuple(steps), *(np.stack(arrays, 1) for arrays in zip(*steps.values(), strict=True)))
            for name, steps in self._columns.items()
        }


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

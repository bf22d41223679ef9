"""Are rewards and endings dreamed when they really happen? Matching of events within a tolerance, open loop.

A dreamed env ends at the first step whose end probability reaches the threshold: what is predicted after it never
happens. What is predicted after the real episode's end (and the tolerance) cannot be judged, and does not count.

Shapes: B clips, T steps, P players.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 2  # steps
THRESHOLDS = np.linspace(0.01, 0.99, 99)


@dataclass(frozen=True)
class Happenings:
    """What was predicted and what was real after the context.

    end_probs: float (B, T); rewards: float (B, T, P), the predicted ones; real_rewards: float (B, T, P);
    real_ends: bool (B, T); valid: bool (B, T), as in `Clips`.
    """

    end_probs: np.ndarray
    rewards: np.ndarray
    real_rewards: np.ndarray
    real_ends: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Counts:
    """Per clip (B,): events found, false (predicted, not real) and missed, and the frames that were judged."""

    found: np.ndarray
    false: np.ndarray
    missed: np.ndarray
    frames: np.ndarray

    def scores(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Precision, recall, F1 and false events per 1,000 frames with clips counted `weights` (R, B) times: (R, 4),
        or (4,) of all clips once. NaN where nothing was predicted, nothing happened, neither, no frame was judged."""
        if weights is None:
            return self.scores(np.ones((1, len(self.found))))[0]
        found, false, missed, frames = (weights @ x for x in (self.found, self.false, self.missed, self.frames))
        with np.errstate(divide="ignore", invalid="ignore"):
            precision, recall = found / (found + false), found / (found + missed)
            return np.stack([precision, recall, 2 * found / (2 * found + false + missed), 1000 * false / frames], 1)


def match(predicted: Sequence[int], real: Sequence[int], tolerance: int = TOLERANCE) -> int:
    """How many predicted steps lie within `tolerance` of a real one, each used once; both ascending."""
    left, found = list(real), 0
    for step in predicted:
        near = next((other for other in left if abs(other - step) <= tolerance), None)
        if near is not None:
            left.remove(near)
            found += 1
    return found


def count_ends(happenings: Happenings, threshold: float) -> Counts:
    """Terminations: at most one predicted and one real in each clip."""
    rows = []
    for clip in range(len(happenings.valid)):
        first, last = _first_end(happenings, clip, threshold), _last_judged(happenings, clip)
        predicted = [first] if first <= last else []
        real = np.flatnonzero(happenings.real_ends[clip] & happenings.valid[clip])[:1].tolist()
        rows.append((*_compare(predicted, real), min(first, last) + 1))
    return Counts(*np.array(rows, np.float64).reshape(-1, 4).T)


def count_rewards(happenings: Happenings, threshold: float, neutral: float) -> Counts:
    """Rewards other than `neutral`, per player and value, up to the first predicted end."""
    rows = []
    values = np.setdiff1d(np.concatenate([happenings.rewards.ravel(), happenings.real_rewards.ravel()]), [neutral])
    for clip in range(len(happenings.valid)):
        last = min(_first_end(happenings, clip, threshold), _last_judged(happenings, clip))
        total = np.zeros(3)
        for player in range(happenings.rewards.shape[2]):
            for value in values:
                predicted = np.flatnonzero(happenings.rewards[clip, : last + 1, player] == value)
                real = (happenings.real_rewards[clip, :, player] == value) & happenings.valid[clip]
                total += _compare(predicted.tolist(), np.flatnonzero(real).tolist())
        rows.append((*total, last + 1))
    return Counts(*np.array(rows, np.float64).reshape(-1, 4).T)


def outcomes(happenings: Happenings, threshold: float, neutral: float) -> dict[str, np.ndarray]:
    """What has come of each clip by each step, whenever it came: `rewarded` and `ended` in the dream, `rewarded_real`
    and `ended_real`, 0 or 1, float64 (B, T). A reward is any but `neutral`, of any player; after an end none comes.

    Events that are found step by step ask for the very future that came. Whether a dream is a world to learn in, these
    tell: does as much come of the same actions?
    """
    over = np.cumsum(happenings.end_probs >= threshold, 1) > 0
    running = np.pad(~over[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    happened = {
        "rewarded": (happenings.rewards != neutral).any(2) & running,
        "rewarded_real": (happenings.real_rewards != neutral).any(2) & happenings.valid,
        "ended": over,
        "ended_real": happenings.real_ends & happenings.valid,
    }
    return {name: (np.cumsum(steps, 1) > 0).astype(np.float64) for name, steps in happened.items()}


def best_threshold(happenings: Happenings) -> tuple[float, float]:
    """The end threshold with the highest F1 (the middle one of several), and that F1; NaN without any event."""
    scores = np.array([count_ends(happenings, threshold).scores()[2] for threshold in THRESHOLDS])
    if np.isnan(scores).all():
        return 0.5, float("nan")
    best = np.flatnonzero(scores >= np.nanmax(scores) - 1e-9)
    return round(float(THRESHOLDS[best[len(best) // 2]]), 2), float(np.nanmax(scores))


def _compare(predicted: list[int], real: list[int]) -> tuple[int, int, int]:
    found = match(predicted, real)
    return found, len(predicted) - found, len(real) - found


def _first_end(happenings: Happenings, clip: int, threshold: float) -> int:
    """The step at which the dreamed env ends; T if it does not."""
    over = np.flatnonzero(happenings.end_probs[clip] >= threshold)
    return int(over[0]) if len(over) else len(happenings.end_probs[clip])


def _last_judged(happenings: Happenings, clip: int) -> int:
    """The last step whose prediction can be judged: the clip's last, or a little after a real end."""
    length = len(happenings.valid[clip])
    last = int(happenings.valid[clip].sum()) - 1
    ended = last >= 0 and bool(happenings.real_ends[clip, last])
    return min(last + TOLERANCE * ended, length - 1)

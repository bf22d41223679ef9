"""What a policy keeps of its return when it leaves the dream: ratios, with bootstrap intervals.

Shapes: S seeds, E episodes of each, D draws of the bootstrap.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict

DRAWS = 4000
SEED = 0  # of the draws


class Figure(BaseModel):
    """A value and its 95 % interval; null where there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    value: float | None
    low: float | None = None
    high: float | None = None


def bootstrap(returns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means (D,) of returns (S, E) whose seeds, and then the episodes of each, are drawn anew with replacement.

    Of few seeds such an interval is a little too narrow: three have only ten ways to be drawn.
    """
    num_seeds, num_episodes = returns.shape
    seeds = rng.integers(num_seeds, size=(DRAWS, num_seeds, 1))
    episodes = rng.integers(num_episodes, size=(DRAWS, num_seeds, num_episodes))
    return returns[seeds, episodes].mean((1, 2))


def mean_return(returns: np.ndarray) -> Figure:
    """The mean of returns (S, E)."""
    return _figure(returns.mean(), bootstrap(returns, np.random.default_rng(SEED)))


def transfer_ratio(random: np.ndarray, real: np.ndarray, dream: np.ndarray) -> Figure:
    """`(dream - random) / (real - random)` of mean returns in the real game.

    Args:
        random, real, dream: returns (S, E) of random actions, of policies trained in the real game, in the dream.

    Returns:
        1 where the dream teaches what the real game teaches, 0 where it teaches nothing. The value is null where
        training in the real game gained nothing, the interval where 2.5 % of the draws say so.
    """
    rng = np.random.default_rng(SEED)
    base, best, got = (bootstrap(each, rng) for each in (random, real, dream))
    return _ratio(dream.mean() - random.mean(), real.mean() - random.mean(), got - base, best - base)


def dream_over_real(in_dream: np.ndarray, in_real: np.ndarray) -> Figure:
    """The return (S, E) that policies have in the dream over the one they have in the real game: above 1 they exploit
    the dream. Null where the real return is not positive; see `dream_minus_real`."""
    rng = np.random.default_rng(SEED)
    draws = bootstrap(in_dream, rng), bootstrap(in_real, rng)
    return _ratio(in_dream.mean(), in_real.mean(), *draws)


def dream_minus_real(in_dream: np.ndarray, in_real: np.ndarray) -> Figure:
    """The return (S, E) that policies have in the dream, less the one they have in the real game."""
    rng = np.random.default_rng(SEED)
    return _figure(in_dream.mean() - in_real.mean(), bootstrap(in_dream, rng) - bootstrap(in_real, rng))


def _ratio(above: float, below: float, above_draws: np.ndarray, below_draws: np.ndarray) -> Figure:
    if below <= 0:
        return Figure(value=None)
    good = below_draws > 0
    if good.mean() <= 0.975:
        return Figure(value=float(above / below))
    return _figure(above / below, above_draws[good] / below_draws[good])


def _figure(value: float, draws: np.ndarray) -> Figure:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Figure(value=float(value), low=float(low), high=float(high))

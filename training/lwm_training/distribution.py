"""How far dreamed play is from real play as a whole: distances of sets of descriptors, beside what two halves of real
play are apart.

Shapes: N and M descriptors of D numbers; B clips of K descriptors each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lwm_env.errors import InvalidInput

SPLITS = 16
Distance = Callable[[np.ndarray, np.ndarray], float]


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of two sets as if each were Gaussian: |mean difference|² + tr(A + B - 2 (AB)^½).

    The trace of the root is the sum of the roots of the eigenvalues of A^½ B A^½, which is symmetric: no general matrix
    root is taken, and rounding cannot make it complex.

    Args:
        x, y: (N, D) and (M, D), at least two each.

    Raises:
        InvalidInput: too few, or of different D.
    """
    _check(x, y)
    x, y = x.astype(np.float64), y.astype(np.float64)
    first, second = (np.atleast_2d(np.cov(each, rowvar=False)) for each in (x, y))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    gap = np.square(x.mean(0) - y.mean(0)).sum()
    return max(0.0, float(gap + np.trace(first) + np.trace(second) - 2 * overlap))


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy with the kernel (x·y / D + 1)³, unbiased: about 0, often below it, for sets of
    one distribution.

    Raises:
        InvalidInput: as `frechet`.

    Source: Binkowski, Sutherland, Arbel and Gretton, 2018, arXiv:1801.01401.
    """
    _check(x, y)
    x, y = x.astype(np.float64), y.astype(np.float64)
    own = [(_kernel(each, each).sum() - _kernel_diagonal(each)) / (len(each) * (len(each) - 1)) for each in (x, y)]
    return float(sum(own) - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_diagonal(x: np.ndarray) -> float:
    return ((np.square(x).sum(1) / x.shape[1] + 1) ** 3).sum()


def _check(x: np.ndarray, y: np.ndarray) -> None:
    if min(len(x), len(y)) < 2 or x.ndim != 2 or x.shape[1:] != y.shape[1:]:
        raise InvalidInput(f"Two sets (N, D), (M, D) of at least two are needed, got {x.shape} and {y.shape}.")


@dataclass(frozen=True)
class AgainstFloor:
    """dreamed: the mean distance of half of the dreams from real clips of the other half; floor: of half of the real
    clips from the other half; num_clips: in both halves."""

    dreamed: float
    floor: float
    num_clips: int


def against_floor(dreamed: np.ndarray, real: np.ndarray, distance: Distance, seed: int) -> AgainstFloor | None:
    """A distance beside its floor, both between as many clips, which no context is shared by: means over random splits.

    Args:
        dreamed, real: (B, K, D), clip by clip; a descriptor with NaN is left out, and a clip without any.

    Returns:
        None where fewer than four clips are left.
    """
    usable = [(~np.isnan(each).any(2)) for each in (dreamed, real)]
    clips = np.flatnonzero(usable[0].any(1) & usable[1].any(1))
    if len(clips) < 4:
        return None
    rng, half = np.random.default_rng(seed), len(clips) // 2
    distances = []
    for _ in range(SPLITS):
        order = rng.permutation(clips)
        one, other = order[:half], order[half : 2 * half]
        reference = real[other][usable[1][other]]
        halves = dreamed[one][usable[0][one]], real[one][usable[1][one]]
        if min(map(len, (reference, *halves))) < 2:
            return None
        distances.append([distance(each, reference) for each in halves])
    ours, floor = np.mean(distances, 0)
    return AgainstFloor(float(ours), float(floor), 2 * half)

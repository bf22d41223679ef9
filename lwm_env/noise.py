"""Randomness as a function of (seed, episode, step): no generator whose order of use could matter.

The hash is the finaliser of splitmix64 (Steele, Lea and Flood, 2014, doi:10.1145/2660193.2660195), in Python integers
for one key and in torch int64 (whose multiplication wraps) for many numbers. Logarithms are taken in float64 and
rounded to float32, so that a vectorised and a scalar loop, or a CPU and a GPU, agree.

Shapes: N worlds, D numbers a step.
"""

import hashlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def fold_seed(seed: int) -> int:
    """A seed of any size >= 0 as an int64; seeds below 2^63 stay what they are."""
    if seed < 1 << 63:
        return seed
    digest = hashlib.blake2b(seed.to_bytes((seed.bit_length() + 7) // 8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def episode_key(seed: int, episode: int) -> int:
    """The int64 that all randomness of one episode comes from."""
    return _signed(_mix(_mix(seed + _GOLDEN) ^ _mix((episode + 1) * _FIRST)))


def choose(key: int, count: int) -> int:
    """One of `count` things, evenly; the same for the same key, independent of `gumbel` of that key."""
    return _mix(key ^ _SECOND) % count


def _mix_tensor(value: Tensor) -> Tensor:
    value = (value ^ ((value >> 30) & ((1 << 34) - 1))) * _signed(_FIRST)
    value = (value ^ ((value >> 27) & ((1 << 37) - 1))) * _signed(_SECOND)
    return value ^ ((value >> 31) & ((1 << 33) - 1))


def gumbel(keys: Tensor, steps: Tensor, dim: int) -> Tensor:
    """Standard Gumbel numbers, float32 (N, D), of the same arguments as `uniform`."""
    return uniform(keys, steps, dim).log_().neg_().log_().neg_().float()


def uniform(keys: Tensor, steps: Tensor, dim: int) -> Tensor:
    """Numbers between 0 and 1, never these themselves, float64 (N, D).

    Args:
        keys: int64 (N,), each from `episode_key`.
        steps: int64 (N,), the number of steps taken since the reset.
        dim: how many numbers each world needs.
    """
    counters = _mix_tensor(keys + (steps + 1) * _signed(_GOLDEN))
    half = (dim + 1) // 2  # a hash of 64 bits gives two numbers of 32
    bits = _mix_tensor(counters[:, None] + torch.arange(half, device=keys.device) * _signed(_GOLDEN))
    halves = torch.cat([bits & 0xFFFFFFFF, (bits >> 32) & 0xFFFFFFFF], 1)[:, :dim]
    return (halves.double() + 0.5) * 2.0**-32

"""Batches that were seen lately, to learn from many times."""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")  # a named tuple of tensors (B, ...), and of more such tuples


class Replay:
    """What was found in frames, where finding it costs more than learning from it. What was found by younger weights
    stays as it is until newer batches replace it.

    Of each shape of a batch, `size` are remembered, in tensors that are there from the beginning: small ones that are
    kept between the large ones of every step would leave the heap in pieces, gigabytes within minutes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen: dict[tuple[torch.Size, ...], tuple[list[Tensor], int]] = {}

    def mix(self, batch: T, generator: torch.Generator, others: int = 7) -> T:
        """Remember a batch, and return it with some others of its shape."""
        leaves = list(_leaves(batch))
        shape = tuple(leaf.shape for leaf in leaves)
        rings, count = self._seen.get(shape) or ([leaf.new_empty(self._size, *leaf.shape) for leaf in leaves], 0)
        chosen = torch.randperm(min(count, self._size), generator=generator)[:others].to(leaves[0].device)
        mixed = [torch.cat([leaf, ring[chosen].flatten(0, 1)]) for leaf, ring in zip(leaves, rings, strict=True)]
        for leaf, ring in zip(leaves, rings, strict=True):
            ring[count % self._size] = leaf.detach()
        self._seen[shape] = rings, count + 1
        return _built(batch, iter(mixed))


def _leaves(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    else:
        for part in batch:
            yield from _leaves(part)


def _built(like: Any, leaves: Iterator[Tensor]) -> Any:
    return next(leaves) if isinstance(like, Tensor) else type(like)(*(_built(part, leaves) for part in like))

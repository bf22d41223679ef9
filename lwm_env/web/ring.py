"""What was seen lately, in memory of its own.

Snapshots and pictures live for a minute. In malloc's heap they leave holes that nothing fits, and the process grows
although it keeps no more than before: by 23 MiB an hour with 12 rooms, as measured. So they are copied into a mapping
of each room, which is written round and round and goes back to the system as a whole. Where an entry lies is kept in an
array, since small objects that live for a minute leave holes as well.
"""

import math
import mmap
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

SLACK = 16  # a mapping has 1/16 more than its entries need, since they differ in length


class Ring(Sequence[tuple[int, bytes]]):
    """The last entries that were appended, oldest first; an entry is a number and bytes, given out as a copy.

    Args:
        num_kept: how many, at least 1; the oldest goes when one more comes.
    """

    def __init__(self, num_kept: int) -> None:
        self.num_kept = num_kept
        self._memory: mmap.mmap | None = None
        self._places = np.zeros((num_kept, 3), np.int64)  # number, start and length; the oldest is the `_first`
        self._first, self._count = 0, 0

    @property
    def num_bytes(self) -> int:
        """Of the mapping."""
        return 0 if self._memory is None else len(self._memory)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number, start, length = self._place(range(self._count)[index])
        assert self._memory is not None
        return number, self._memory[start : start + length]

    def append(self, entry: tuple[int, bytes]) -> None:
        number, data = entry
        if self._count == self.num_kept:
            self._first, self._count = (self._first + 1) % self.num_kept, self._count - 1
        start = self._free_place(len(data))
        if start is None:
            start = self._grow(len(data))
        assert self._memory is not None
        self._memory[start : start + len(data)] = data
        self._places[(self._first + self._count) % self.num_kept] = number, start, len(data)
        self._count += 1

    def pop(self) -> tuple[int, bytes]:
        """Forget the newest entry; gives it."""
        newest = self[-1]
        self._count -= 1
        return newest

    def clear(self) -> None:
        """Forget all, and give the memory back."""
        self._count = 0
        self._memory = None

    def _place(self, index: int) -> list[int]:
        """Number, start and length of an entry, counted from the oldest."""
        return self._places[(self._first + index) % self.num_kept].tolist()

    def _free_place(self, length: int) -> int | None:
        """Where so many bytes fit behind the newest entry, or at the beginning; None where they do not."""
        if self._memory is None or not self._count:
            return 0 if self._memory is not None and length <= len(self._memory) else None
        (_, oldest, _), (_, start, newest) = self._place(0), self._place(self._count - 1)
        end = start + newest
        if end <= oldest:  # it has begun again, and the oldest entry is next
            return end if end + length <= oldest else None
        if end + length <= self.num_bytes:
            return end
        return 0 if length <= oldest else None

    def _grow(self, length: int) -> int:
        """Move into a mapping for as many entries as there may be, as long as this one and those so far are in the
        mean; its first free place."""
        places = [self._place(index) for index in range(self._count)]
        held = sum(size for _, _, size in places) + length
        needed = max(math.ceil(held / (len(self) + 1) * self.num_kept), self.num_bytes)
        before, self._memory, end = self._memory, _map(needed + needed // SLACK + 1), 0
        for index, (number, start, size) in enumerate(places):
            self._memory[end : end + size] = before[start : start + size]  # one by one: the heap holds no second copy
            self._places[(self._first + index) % self.num_kept] = number, end, size
            end += size
        return end


def _map(num_bytes: int) -> mmap.mmap:
    """Memory that is taken as it is written to."""
    if sys.platform == "win32":
        return mmap.mmap(-1, num_bytes)
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

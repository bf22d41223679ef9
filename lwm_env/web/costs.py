"""What a step of several rooms costs, learned from those that were made; admission reckons with it."""

import time
from collections.abc import Mapping

SHARED, OWN = 0.02, 0.05  # how much one step changes what is believed: of every batch, and of one of its size
FORGET_SECONDS = 4.0  # in which half of a lateness is forgotten
FRAME_MS = 1.0  # of the web process for a frame to one player, until it is measured
MEASURED_FRAMES = 10  # between two looks at the clock of this process


class BatchCosts:
    """Milliseconds of a step by the number of rooms in it, and how late steps begin.

    Args:
        measured: milliseconds by number of rooms, of some sizes; others are reckoned from those next to them.
        size: rooms in one step at most.
    """

    def __init__(self, measured: Mapping[int, float], size: int = 1) -> None:
        self.size = size
        self._measured = dict(measured)
        self._late, self._late_at = 0.0, time.monotonic()

    def of(self, num_rooms: int) -> float:
        """Milliseconds of a step of so many rooms; 0 while nothing was measured."""
        known = self._measured
        if not known or num_rooms == 0:
            return 0.0
        if num_rooms in known:
            return known[num_rooms]
        below = max((size for size in known if size < num_rooms), default=0)
        above = min((size for size in known if size > num_rooms), default=None)
        if above is None:
            return known[below] * num_rooms / below
        low = known[below] if below else 0.0
        return low + (known[above] - low) * (num_rooms - below) / (above - below)

    def observe(self, num_rooms: int, milliseconds: float) -> None:
        """A step was made. What slows it down slows down batches of other sizes too."""
        scale = milliseconds / self.of(num_rooms) if self._measured and self.of(num_rooms) else 1.0
        for size in self._measured:
            self._measured[size] *= 1 + SHARED * (scale - 1)
        before = self._measured.get(num_rooms, milliseconds)
        self._measured[num_rooms] = before + OWN * (milliseconds - before)

    def per_period(self, num_rooms: int) -> float:
        """Milliseconds that one step of each of so many rooms takes, in as few batches of even sizes as can be."""
        if num_rooms == 0:
            return 0.0
        batches = -(-num_rooms // self.size)
        small, larger = divmod(num_rooms, batches)
        return (batches - larger) * self.of(small) + (larger * self.of(small + 1) if larger else 0.0)

    def observe_lateness(self, share: float) -> None:
        """A step began late, by a share of its period."""
        before = self.lateness
        self._late, self._late_at = before + OWN * (share - before), time.monotonic()

    @property
    def lateness(self) -> float:
        """How late steps begin, in periods, on average; forgotten while none is made."""
        return self._late * 0.5 ** ((time.monotonic() - self._late_at) / FORGET_SECONDS)


class FrameCost:
    """Milliseconds of a core that this process takes for each frame of a room: pictures, sockets, all that it does."""

    def __init__(self) -> None:
        self.milliseconds = FRAME_MS
        self._frames, self._used = 0, time.process_time()

    def count(self) -> None:
        """A frame was shown."""
        self._frames += 1

    def settle(self) -> None:
        """Learn from the frames since the last time; with few of them, when it did other things, nothing."""
        now = time.process_time()
        if self._frames >= MEASURED_FRAMES:
            self.milliseconds += OWN * (1000 * (now - self._used) / self._frames - self.milliseconds)
        self._frames, self._used = 0, now

"""Whose turn it is: rooms of a world are due one after another over the period of a step, and stepped a few at a time.

An action waits for the next step of its room and for the batch that it is in. In one batch of all rooms it waits for
all of them; in several batches spread over the period for its own alone, at the same cost, and the web process has
pictures to encode all the time instead of all at once.
"""

GATHERED = 0.45  # of a period, that a room is stepped early to fill up a batch; always the same, so frames stay even
FORGIVEN = 0.25  # of a period, that a late room makes up for; beyond it the rate falls and the latency does not grow


class Turns:
    """When each room that runs is due next, by slot. Times are seconds of one clock.

    Args:
        period: between two steps of a room.
        size: how many are stepped at once at most.
        spread: whether turns are spread over the period; else all rooms are due at the same time.
    """

    def __init__(self, period: float, size: int, spread: bool = True) -> None:
        self.period, self.size, self.spread = period, size, spread
        self._due: dict[int, float] = {}

    def __contains__(self, slot: int) -> bool:
        return slot in self._due

    @property
    def next_due(self) -> float:
        """When somebody is due; infinite while nobody runs."""
        return min(self._due.values(), default=float("inf"))

    def add(self, slot: int, now: float) -> None:
        """Let a slot run, from within a period on: in the middle of the longest time in which nobody is due."""
        if slot in self._due:
            return
        phases = sorted((due - now) % self.period for due in self._due.values())
        if not phases:
            phase = 0.0
        elif not self.spread:
            phase = phases[0]
        else:
            gaps = [
                after - before for before, after in zip(phases, [*phases[1:], phases[0] + self.period], strict=True)
            ]
            widest = max(range(len(gaps)), key=gaps.__getitem__)
            phase = (phases[widest] + gaps[widest] / 2) % self.period
        self._due[slot] = now + phase

    def remove(self, slot: int) -> None:
        """Let a slot rest; one that does already may."""
        self._due.pop(slot, None)

    def take(self, now: float) -> tuple[list[int], float]:
        """The slots to step now, ascending, and how late the first of them is; none when nobody is due.

        Their next turn is planned with it.
        """
        waiting = sorted(self._due, key=self._due.__getitem__)
        if not waiting or self._due[waiting[0]] > now:
            return [], 0.0
        late = now - self._due[waiting[0]]
        until = now + GATHERED * self.period
        chosen = [slot for slot in waiting[: self.size] if self._due[slot] <= until]
        # Put back at the end of the queue: of those who are due at the same time the one stepped last is last.
        for slot in chosen:
            self._due[slot] = max(self._due.pop(slot), now - FORGIVEN * self.period) + self.period
        return sorted(chosen), late

"""How many cores this process may use."""

import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")


def physical_cores() -> int:
    """Cores that this process may run on; two hardware threads of one core count once where the system tells."""
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    try:
        siblings = {(TOPOLOGY / f"cpu{number}/topology/thread_siblings_list").read_text() for number in allowed}
    except OSError:
        return len(allowed)
    return len(siblings)


def threads_of_engine(threads: int | None, engines: int) -> int:
    """Threads that each engine of a server computes with: as asked for, or a core each.

    With three cores and more one is left to the web process; with two it takes a tenth of one, too little to keep it.
    """
    cores = physical_cores()
    return threads or max(1, (cores if cores < 3 else cores - 1) // engines)

"""How many cores this process may use."""

import contextlib
import os
from pathlib import Path

SYSTEM = Path("/sys")
MOST_THREADS = 8  # of an engine that is not told; Python's lock is held between operations, more engines do more


def physical_cores(system: Path = SYSTEM) -> int:
    """Cores that this process may run on, at least 1; on Linux, two hardware threads of one core count once and a
    container's share counts.

    Args:
        system: where sysfs is.
    """
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = len(allowed)
    with contextlib.suppress(OSError):
        lists = (system / f"devices/system/cpu/cpu{number}/topology/thread_siblings_list" for number in allowed)
        cores = len({path.read_text() for path in lists})
    with contextlib.suppress(OSError, ValueError):  # no limit: "max 100000"
        quota, period = map(int, (system / "fs/cgroup/cpu.max").read_text().split())
        cores = min(cores, quota // period)
    return max(1, cores)


def threads_of_engine(threads: int | None, engines: int) -> int:
    """Threads that each engine of a server computes with: as asked for, or a core each up to `MOST_THREADS`.

    With three cores and more one is left to the web process; with two it takes a tenth of one, too little to keep it.
    """
    cores = physical_cores()
    return threads or min(MOST_THREADS, max(1, (cores if cores < 3 else cores - 1) // engines))

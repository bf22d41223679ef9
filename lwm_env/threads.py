"""The threads that share the chunks of a step on a CPU.

Torch and ONNX Runtime let go of Python's lock inside an operation, so threads are enough; processes would add copies of
every frame. `lwm bench` tells what two cores make of it.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Result = TypeVar("Result")

_pool: ThreadPoolExecutor | None = None


def _forget() -> None:
    """A forked child has none of its parent's threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)


def _helpers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="lwm-chunk")
    return _pool


@contextmanager
def one_thread(device: torch.device) -> Iterator[int]:
    """Two threads on small convolutions cost more than they give, and bytes must not depend on the caller's setting.

    Yields how many threads the caller allows: as many workers may compute, each with one thread.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def share(work: Callable[[int], Result], count: int, num_threads: int) -> list[Result]:
    """`[work(0), ..., work(count - 1)]` by the caller and up to `num_threads - 1` helpers, each on one torch thread.

    To be called within `one_thread`. An exception of `work` is raised once all threads have stopped.
    """
    if min(count, num_threads) < 2:
        return [work(index) for index in range(count)]
    waiting, results = deque(range(count)), [None] * count

    def take() -> int | None:
        try:
            return waiting.popleft()
        except IndexError:
            return None

    def run() -> None:
        try:
            while (index := take()) is not None:
                results[index] = work(index)
        except BaseException:
            waiting.clear()
            raise

    def help_out() -> None:
        torch.set_num_threads(1)  # a setting of the thread
        run()

    helpers = [_helpers().submit(help_out) for _ in range(min(count, num_threads) - 1)]
    try:
        run()
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
        errors = [error for helper in begun if (error := helper.exception())]
    if errors:
        raise errors[0]
    return results

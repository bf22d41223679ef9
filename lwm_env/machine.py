"""What a machine can do at most, measured here and now: multiply matrices, move memory; and its name in words."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BEST_OF = 5


def name_of(device: torch.device) -> str:
    """The machine in words."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return (
            f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, torch {torch.__version__}"
        )
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    return f"{os.cpu_count()} cores of {model}, {platform.system()}, torch {torch.__version__}"


def load_average() -> float | None:
    """Runnable processes over the last minute: a measurement on a busy machine says little."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fastest(work: Callable[[], Any], device: torch.device, times: int = BEST_OF) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    work()
    wait_for(device)
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        wait_for(device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def limits(device: torch.device) -> dict[str, float]:
    """GFLOP/s of fp32 matrix products (as convolutions get them: TF32 on CUDA is told apart) and GB/s of a copy.

    On a CPU with as many threads as torch has; a copy reads and writes, so its bytes count twice.
    """
    cuda = device.type == "cuda"
    side, length = (8192, 1 << 28) if cuda else (1024, 1 << 25)
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    source = torch.randn(length, device=device)
    target = torch.empty_like(source)
    found = {"gemm_gflops": 2e-9 * side**3 / fastest(lambda: a @ b, device)}
    found["copy_gb_per_second"] = 8e-9 * length / fastest(lambda: target.copy_(source), device)
    if cuda:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            found["gemm_tf32_gflops"] = 2e-9 * side**3 / fastest(lambda: a @ b, device)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    else:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            found["gemm_one_core_gflops"] = 2e-9 * side**3 / fastest(lambda: a @ b, device)
        finally:
            torch.set_num_threads(threads)
    return {name: round(value, 1) for name, value in found.items()}


def peak_memory_bytes(device: torch.device) -> int | None:
    """Of the device since the last `reset_peak_memory`; on a CPU of the process since it began, None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of `peak_memory_bytes`, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


# GFLOP/s of fp32 at boost clock and GB/s of memory, as NVIDIA states them.
CARDS = {"RTX 4090": (82_600.0, 1008.0), "RTX 3060": (12_700.0, 360.0)}
REACHED = 0.85  # of what is stated, assumed
FORMULA = (
    "projected, not measured: rate here * min(card GFLOP/s / gemm_gflops here, card GB/s / copy_gb_per_second here), "
    f"where a card reaches {REACHED} of the fp32 GFLOP/s and GB/s that NVIDIA states; launches cost the same"
)


def project(rate: float, found: dict[str, float], card: str) -> float:
    """A rate (per second) measured on a GPU with the limits `found`, carried over to a card by `FORMULA`."""
    gflops, gb_per_second = CARDS[card]
    ratios = (gflops / found["gemm_gflops"], gb_per_second / found["copy_gb_per_second"])
    return rate * REACHED * min(ratios)

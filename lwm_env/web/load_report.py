"""What a load test came to: figures of all clients together, memory over time, as JSON, lines and a table."""

import asyncio
import contextlib
import json
import os
import platform
import re
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lwm_env import __version__
from lwm_env.errors import InvalidInput, StorageError

SAMPLES = 240  # of the metrics in a run, about
MIN_SAMPLE_SECONDS = 1.0
METRICS = (
    "process_resident_memory_bytes", "process_open_fds", "lwm_engine_memory_bytes", "lwm_engine_restarts",
    "lwm_frames_sent_total", "lwm_frames_dropped_total",
)  # fmt: skip
Report = dict[str, Any]


@dataclass
class Tally:
    """What one client saw."""

    arrivals: list[float] = field(default_factory=list)  # seconds
    latencies: list[float] = field(default_factory=list)  # seconds from an action to the frame that shows it
    frame_ids: list[int] = field(default_factory=list)
    stale: int = 0  # frames older than a second when they came

    @property
    def rate(self) -> float:
        return (len(self.arrivals) - 1) / (self.arrivals[-1] - self.arrivals[0]) if len(self.arrivals) > 1 else 0.0


class Sampler:
    """Reads the server's metrics again and again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.samples: list[dict[str, float]] = []  # with "seconds" since the first one

    async def run(self, delay: float, seconds: float) -> None:
        """A sample after the delay, and then until cancelled."""
        await asyncio.sleep(delay)
        while True:
            await self.take()
            await asyncio.sleep(max(MIN_SAMPLE_SECONDS, seconds / SAMPLES))

    async def take(self) -> None:
        """One sample; the values of several engines are added up."""
        now, found = time.monotonic(), await asyncio.to_thread(self._read)
        self._began = now if not self.samples else self._began
        self.samples.append({"seconds": now - self._began, **found})

    def _read(self) -> dict[str, float]:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            return parse_metrics(answer.read().decode())


def parse_metrics(text: str) -> dict[str, float]:
    """The `METRICS` of a text as Prometheus reads it, over all labels added up."""
    sums = dict.fromkeys(METRICS, 0.0)
    for name, value in re.findall(rf"^({'|'.join(METRICS)})(?:{{.*}})? (\S+)$", text, flags=re.MULTILINE):
        sums[name] += float(value)
    return sums


def slope_mib_per_hour(samples: Sequence[dict[str, float]], name: str) -> float | None:
    """How fast a memory grows, by least squares over the samples after the first quarter; None with less than 8."""
    rest = samples[len(samples) // 4 :]
    if len(samples) < 8:
        return None
    slope = np.polyfit([s["seconds"] for s in rest], [s[name] for s in rest], 1)[0]
    return round(float(slope) * 3600 / 2**20, 2)


def summarise(
    spec: dict[str, Any], tallies: list[Tally], stalled: int, refused: int, seconds: float, samples: list[dict]
) -> Report:
    """The figures of all clients who read; `samples` as `Sampler` has them, at least one."""
    reading = tallies[stalled:] or tallies
    gaps = np.concatenate([np.diff(tally.arrivals) for tally in reading]) * 1000
    latencies = np.concatenate([tally.latencies for tally in reading]) * 1000
    rates = [tally.rate for tally in reading]
    shown = sum(len(tally.frame_ids) for tally in reading)
    made = sum(tally.frame_ids[-1] - tally.frame_ids[0] + 1 for tally in reading if tally.frame_ids)
    first, last = samples[0], samples[-1]

    def quantile(values: np.ndarray, share: float) -> float | None:
        return round(float(np.quantile(values, share)), 1) if len(values) else None

    def megabytes(name: str) -> list[float]:
        return [round(sample[name] / 1e6, 1) for sample in (first, last)]

    web, engine = "process_resident_memory_bytes", "lwm_engine_memory_bytes"
    return {
        "world": spec["id"],
        "steps_per_second": spec["fps"],
        "clients": len(tallies),
        "stalled": stalled,
        "refused": refused,
        "seconds": seconds,
        "rate_mean": round(float(np.mean(rates)), 2),
        "rate_min": round(float(np.min(rates)), 2),
        "interframe_ms_p50": quantile(gaps, 0.5),
        "interframe_ms_p95": quantile(gaps, 0.95),
        "action_to_frame_ms_p50": quantile(latencies, 0.5),
        "action_to_frame_ms_p95": quantile(latencies, 0.95),
        "frames_left_out": made - shown,
        "frames_made": made,
        "stale_frames_of_a_stalled_client": max((tally.stale for tally in tallies[:stalled]), default=0),
        "engine_restarts": int(last["lwm_engine_restarts"]),
        "web_memory_mb": megabytes(web),
        "engine_memory_mb": megabytes(engine),
        "web_memory_mib_per_hour": slope_mib_per_hour(samples, web),
        "engine_memory_mib_per_hour": slope_mib_per_hour(samples, engine),
        "open_files": [int(sample["process_open_fds"]) for sample in (first, last)],
    }


def describe_machine() -> Report:
    """Where the clients ran, before they did: a server that was started for the test shares it with them."""
    cpuinfo, model = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        model = next(iter(re.findall(r"model name\s*: (.*)", cpuinfo.read_text())), model)
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    facts = {"cpu_count": os.cpu_count(), "cpu": model, "system": platform.system(), "load_average_before": load}
    return {"lwm_env": __version__, **facts}


def as_lines(report: Report) -> str:
    """The report as lines of name and value; memory at the beginning and at the end."""
    told = {name: value for name, value in report.items() if name != "samples"}
    width = max(map(len, told))
    return "\n".join(f"{name:{width}}  {value}" for name, value in told.items())


COLUMNS = {
    "rooms": lambda r: f"{r['clients']}",
    "steps/s": lambda r: f"{r['steps_per_second']:g}",
    "minutes": lambda r: f"{r['seconds'] / 60:.1f}",
    "visitors (refused)": lambda r: f"{r.get('visits', 0)} ({r.get('visits_refused', 0)})",
    "frames/s of a client, mean (least)": lambda r: f"{r['rate_mean']} ({r['rate_min']})",
    "action to frame p50 / p95": lambda r: f"{r['action_to_frame_ms_p50']} / {r['action_to_frame_ms_p95']} ms",
    "frames left out": lambda r: f"{r['frames_left_out']} of {r['frames_made']}",
    "web process, first and last": lambda r: "{} → {} MB".format(*r["web_memory_mb"]),
    "engines, first and last": lambda r: "{} → {} MB".format(*r["engine_memory_mb"]),
    "growth": lambda r: f"{r['web_memory_mib_per_hour']} / {r['engine_memory_mib_per_hour']} MiB an hour",
    "engines replaced": lambda r: f"{r['engine_restarts']}",
}


def as_table(report: Report) -> str:
    """A Markdown table of one run."""
    cells = [show(report) for show in COLUMNS.values()]
    return f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n| {' | '.join(cells)} |"


def check_path(path: Path) -> None:
    """Tell before the test what would fail after it.

    Raises:
        InvalidInput: not a .json in a folder that exists.
    """
    if path.suffix != ".json" or not path.parent.is_dir():
        raise InvalidInput(f"--report {path} must be a .json in a folder that exists; a .md is written beside it.")


def write(report: Report, path: Path, command: str) -> None:
    """The report as JSON, and the table with what was run as Markdown beside it.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    machine = f"{report['cpu_count']} cores of {report['cpu']}, {report['system']}"
    load = f"load average before: {report['load_average_before']}, clients on the same machine"
    text = f"`{command}`\n\n{report['world']}, {machine}; {load}; lwm-env {report['lwm_env']}.\n\n{as_table(report)}\n"
    try:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}. Name another place.") from error

"""`lwm bench --serving`: how many rooms a core or a GPU can hold at a world's rate, and what a minute of one costs.

Measured are the parts that take the time: a batched step with its pictures on the host, the JPEG of a picture, the
snapshot of a room. Sockets and the web process's own Python are not in it: `lwm loadtest` measures a whole server.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from lwm_env import machine
from lwm_env.engine import Engine
from lwm_env.envs.loading import choose_device

Report = dict[str, Any]
Rows = list[dict[str, float]]  # num_rooms, step_ms
SNAPSHOTS_PER_SECOND = 1.0  # of a room; the engine process keeps one each second
FORMULAS = {
    "room": "engine = fps * step(n) / n + snapshot, web = fps * jpeg; in seconds of a core or GPU per second of play",
    "rooms": (
        "CPU: rooms per core = max_load / (engine + web), machine = cores * that; GPU: machine = max_load / engine; "
        "never more than max_load / web, since one web process serves all of them. n is the largest measured batch "
        "that fits; fewer rooms than one are none"
    ),
    "cents": "cents per minute of a room = 100 * price per hour / 60 / rooms of the machine; of a player: / players",
}


def measure(
    open_engine: Callable[[int], Engine],
    steps: Callable[[Engine, float], np.ndarray],
    device: str,
    sizes: list[int],
    seconds: float,
    fps: float | None,
    max_load: float,
) -> Report:
    """What a room of a world costs on a device; on a CPU with one thread, so of one core.

    Args:
        open_engine: an engine of so many slots.
        steps: seconds of each step, pictures on the host, of a run of so many seconds.
        sizes: batches, ascending; those after the first that is too slow are left out.
        fps: steps per second of a room; None takes the world's own.
    """
    chosen, threads = choose_device(device), torch.get_num_threads()
    rows: Rows = []
    torch.set_num_threads(1 if chosen.type == "cpu" else threads)
    try:
        single = open_engine(sizes[0])
        spec = single.model.spec
        rate = fps or spec.render_fps
        for size in sizes:
            engine = single if size == sizes[0] else open_engine(size)
            rows.append({"num_rooms": size, "step_ms": round(1e3 * float(np.median(steps(engine, seconds))), 4)})
            if rows[-1]["step_ms"] * rate > 1e3 * max_load:
                break
        jpeg_ms, snapshot_ms = _encode_ms(single), 1e3 * min(_seconds(lambda: single.get_state(0)))
    finally:
        torch.set_num_threads(threads)
    return {
        "device": str(chosen), "machine": machine.name_of(chosen), "load_average": machine.load_average(),
        "fps": rate, "players": len(spec.players), "max_load": max_load, "batches": rows,
        "jpeg_ms": round(jpeg_ms, 4), "snapshot_ms": round(snapshot_ms, 4),
    }  # fmt: skip


def _seconds(work: Callable[[], Any], times: int = 20) -> Iterator[float]:
    for _ in range(times):
        begin = time.perf_counter()
        work()
        yield time.perf_counter() - begin


def _encode_ms(engine: Engine) -> float:
    from lwm_env.web.pictures import encode_jpeg

    frame = engine.frames[0].cpu().numpy()
    return 1e3 * float(np.median(list(_seconds(lambda: encode_jpeg(frame)))))


def add_rooms(run: Report, cores: int | None, price_per_hour: float | None) -> None:
    """The rooms and the cost that follow from what was measured, by `FORMULAS`."""
    fps, max_load, on_cpu = run["fps"], run["max_load"], run["device"] == "cpu"
    web = fps * run["jpeg_ms"] / 1e3
    chosen = 0.0  # rooms of one core or GPU
    for row in run["batches"]:
        engine = fps * row["step_ms"] / row["num_rooms"] / 1e3 + SNAPSHOTS_PER_SECOND * run["snapshot_ms"] / 1e3
        rooms = max_load / (engine + web if on_cpu else engine)
        if rooms >= row["num_rooms"] or not chosen:
            chosen = rooms
    run["cores"] = cores or os.cpu_count() or 1
    run["rooms_per_core" if on_cpu else "rooms_per_gpu"] = round(chosen, 2)
    run["rooms_of_one_web_process"] = round(max_load / web, 1)
    run["rooms"] = math.floor(min(chosen * run["cores"] if on_cpu else chosen, max_load / web))
    if price_per_hour is not None:
        cents = 100 * price_per_hour / 60 / run["rooms"] if run["rooms"] else None
        run["price_per_hour"] = price_per_hour
        run["cents_per_minute_of_a_room"] = cents
        run["cents_per_minute_of_a_player"] = None if cents is None else cents / run["players"]


def as_text(report: Report) -> str:
    """The report for reading."""
    lines = [f"{report['world']}: rooms at their own pace"]
    for run in report["runs"]:
        unit = "core" if run["device"] == "cpu" else "gpu"
        steps = ", ".join(f"{row['num_rooms']}: {row['step_ms']:.2f} ms" for row in run["batches"])
        lines += [
            f"{run['device']}, {run['backend']}: {run['machine']}; load average {run['load_average']}",
            f"  a step      of rooms {steps}",
            f"  beside it   {run['jpeg_ms']:.3f} ms a JPEG, {run['snapshot_ms']:.2f} ms a snapshot",
            f"  rooms       {run[f'rooms_per_{unit}']:.1f} per {unit} at {run['fps']:g} steps/s and a load of at most "
            f"{run['max_load']:g}",
            f"  machine     {run['rooms']} rooms on "
            f"{run['cores'] if unit == 'core' else 1} {unit}{'s' if unit == 'core' and run['cores'] > 1 else ''}; "
            f"one web process encodes for {run['rooms_of_one_web_process']:.0f}",
        ]
        if run.get("cents_per_minute_of_a_room") is not None:
            lines.append(
                f"  cost        {run['cents_per_minute_of_a_room']:.5f} cents a minute and room, "
                f"{run['cents_per_minute_of_a_player']:.5f} a minute and player, at {run['price_per_hour']:g} an hour"
            )
        elif "price_per_hour" in run:
            lines.append("  cost        none: not one room keeps its pace here")
    return "\n".join([*lines, *(f"{name}: {formula}" for name, formula in FORMULAS.items())])

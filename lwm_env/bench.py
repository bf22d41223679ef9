"""`lwm bench`: how fast a world steps here, and what share of the machine's own measured limit that is.

A frame at batch 1 is timed until its picture and its numbers are on the host, as a player or an agent gets them; larger
batches until the numbers are, while the pictures stay on the device.
"""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from lwm_env import __version__, bench_serving, machine, worlds
from lwm_env.card import work_of_a_frame
from lwm_env.engine import Engine
from lwm_env.envs.facts import read_transition
from lwm_env.envs.loading import choose_device, load_world, open_engine
from lwm_env.errors import InvalidInput, StorageError
from lwm_env.presets import PRESETS, preset
from lwm_env.resident import Resident
from lwm_env.spec import DiscreteActions, RealSource, WorldSpec
from lwm_env.world_model import Prompts, WorldModel

WARM_UP_STEPS = 3
Report = dict[str, Any]


@click.command()
@click.argument("world", default="LWM-Platformer-v0")
@click.option("--preset", "size", type=click.Choice(list(PRESETS)), help="Random weights of this size; no WORLD.")
@click.option("--frame-size", metavar="HxW", help="Of the preset, instead of its own.")
@click.option("--device", "devices", multiple=True, default=["auto"], show_default=True, help="May be repeated.")
@click.option("--backend", "backends", multiple=True, default=["torch"], show_default=True, help="May be repeated.")
@click.option("--batches", default="1,4,16,64", show_default=True, help="Numbers of worlds stepped together.")
@click.option("--seconds", type=click.FloatRange(min=0.01), default=5.0, show_default=True, help="Of each measurement.")
@click.option("--out", type=click.Path(path_type=Path), help="A .json for the report; a .png beside it for the plot.")
@click.option("--json", "as_json", is_flag=True, help="The report on stdout.")
@click.option("--serving", is_flag=True, help="Instead, rooms per core or GPU and what a minute costs; see below.")
@click.option("--price-per-hour", type=click.FloatRange(0, min_open=True), help="Of --serving: dollars of the machine.")
@click.option("--cores", type=click.IntRange(1), help="Of --serving: that the price is for; by default this machine's.")
@click.option("--fps", type=click.FloatRange(1, 240), help="Of --serving: steps per second; by default the world's.")
@click.option("--max-load", type=click.FloatRange(0.01, 1), default=0.85, show_default=True, help="Of --serving.")
def bench(
    world: str, size: str | None, frame_size: str | None, devices: tuple[str, ...], backends: tuple[str, ...],
    batches: str, seconds: float, out: Path | None, as_json: bool, serving: bool, **prices: Any,
) -> None:  # fmt: skip
    """Measure WORLD (an id or a folder): frames/s at batch 1, env-steps/s over batch sizes, memory.

    With --serving: how many rooms keep the world's pace on a core (one thread) or a GPU, and, for a --price-per-hour,
    cents per minute of a room and of a player. The formulas are printed with it.
    """
    sizes = _parse_batches(batches)
    if frame_size and not size:
        raise click.UsageError("--frame-size belongs to --preset; a world has the size it was trained on.")
    if out is not None and (out.suffix != ".json" or not out.parent.is_dir()):
        raise InvalidInput(f"--out {out} must be a .json in a folder that exists.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(_in_a_child(random_world, size, frame_size, Path(temporary) / "w") if size else worlds.find(world))
        report = describe(folder)
        if serving:
            report["runs"] = [_serve(folder, d, b, sizes, seconds, **prices) for d in devices for b in backends]
        else:
            report["runs"] = [measure(folder, d, b, sizes, seconds) for d in devices for b in backends]
    if serving:
        _tell_serving(report, out, as_json)
        return
    add_shares(report)
    if out is not None:
        _write(report, out)
    click.echo(json.dumps(report) if as_json else as_text(report))


def _parse_batches(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InvalidInput(
            f"--batches {text!r:.60} was given; it is a list of integers of at least 1, such as 1,16,64."
        )
    return sorted({int(part) for part in parts})


def _in_a_child(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a call in another process, whose memory is not counted here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def random_world(size: str, frame_size: str | None, folder: Path) -> Path:
    """The folder of a world of a preset with random weights, nine actions and one prompt of noise."""
    changes = {}
    if frame_size:
        height, _, width = frame_size.partition("x")
        if not (height.isdecimal() and width.isdecimal()):
            raise InvalidInput(f"--frame-size {frame_size!r:.30} was given; it is HEIGHTxWIDTH, such as 288x512.")
        changes["frame_size"] = (int(height), int(width))
    config = preset(size, **changes)
    actions = DiscreteActions(meanings=("NOOP",) * 9, source_actions=tuple(range(9)))
    spec = WorldSpec(
        id=f"LWM-Bench-{size}-v0", description=f"Random weights of the preset {size}.", frame_size=config.frame_size,
        actions=actions, reward_values=(0.0, 1.0), real=RealSource(source="none"),
    )  # fmt: skip
    model = WorldModel(config, spec)
    noise = torch.randint(0, 256, (1, 4, *config.frame_size, 3), dtype=torch.uint8)
    model.prompts = Prompts(noise, torch.zeros(1, 3, 1, dtype=torch.int64))
    model.save(folder, provenance={"data": "random weights of lwm bench"})
    return folder


def describe(folder: str) -> Report:
    """What is measured: the world, its size, and the work of a frame by torch's own counter."""
    manifest, model = worlds.read_manifest(Path(folder)), load_world(folder, torch.device("cpu"))
    flops, state_bytes = work_of_a_frame(model)
    return {
        "lwm_env": __version__,
        "world": manifest.spec.id,
        "preset": manifest.model.get("preset"),
        "frame_size": list(manifest.spec.frame_size),
        "weights_sha256": model.weights_hash,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "flops_per_frame": flops,
        "state_bytes_per_world": state_bytes,
    }


def measure(folder: str, device: str, backend: str, sizes: list[int], seconds: float) -> Report:
    """One backend on one device: the machine's limits, then batch 1, then every batch size."""
    chosen = choose_device(device)
    run: Report = {"device": str(chosen), "backend": backend, "machine": machine.name_of(chosen)}
    run["torch_threads"], run["load_average_before"] = torch.get_num_threads(), machine.load_average()
    run["limits"] = machine.limits(chosen)
    single = _open(folder, 1, device, backend)
    run["single"] = _latency(single, seconds)
    if isinstance(single.batch, Resident):
        run["single"]["graph"] = single.batch.graph
        single.batch = Resident(single.model, 1, graph=False)
        run["single_eager"] = _latency(single, seconds)
    run["batches"] = []
    del single
    for num_envs in sizes:
        machine.reset_peak_memory(chosen)
        rate = _throughput(_open(folder, num_envs, device, backend), seconds)
        row = {"num_envs": num_envs, "env_steps_per_second": rate}
        run["batches"].append({**row, "peak_memory_bytes": machine.peak_memory_bytes(chosen)})
    run["load_average_after"] = machine.load_average()
    return run


def _serve(
    folder: str, device: str, backend: str, sizes: list[int], seconds: float,
    price_per_hour: float | None, cores: int | None, fps: float | None, max_load: float,
) -> Report:  # fmt: skip
    run = bench_serving.measure(
        lambda slots: _open(folder, slots, device, backend),
        lambda engine, duration: _steps(engine, duration, to_host=True),
        device, sizes, seconds, fps, max_load,
    )  # fmt: skip
    bench_serving.add_rooms(run, cores, price_per_hour)
    return {"backend": backend, **run}


def _tell_serving(report: Report, out: Path | None, as_json: bool) -> None:
    report["formulas"] = bench_serving.FORMULAS
    if out is not None:
        _write_json(report, out)
    click.echo(json.dumps(report) if as_json else bench_serving.as_text(report))


def _open(folder: str, num_envs: int, device: str, backend: str) -> Engine:
    modes = {"render_mode": None, "backend": backend, "output": "numpy"}
    return open_engine(folder, num_envs, device, None, modes)


def _steps(engine: Engine, seconds: float, to_host: bool) -> np.ndarray:
    """Seconds of each step of a run of at least `seconds` and at least 3 steps, without those of the warm-up."""
    spec, rng, taken = engine.model.spec, np.random.default_rng(0), []
    shape = (engine.num_envs, len(spec.players))
    engine.reset(np.ones(engine.num_envs, bool), list(range(engine.num_envs)))
    while len(taken) < WARM_UP_STEPS + 3 or sum(taken[WARM_UP_STEPS:]) < seconds:
        if isinstance(spec.actions, DiscreteActions):
            actions = torch.from_numpy(rng.integers(0, spec.actions.dim, shape))
        else:
            actions = torch.from_numpy(
                rng.uniform(spec.actions.low, spec.actions.high, (*shape, spec.actions.dim))
            ).float()
        begin = time.perf_counter()
        transition = engine.step(actions)
        read_transition(transition)
        if to_host:
            transition.frames.cpu()
        taken.append(time.perf_counter() - begin)
    return np.array(taken[WARM_UP_STEPS:])


def _latency(engine: Engine, seconds: float) -> Report:
    taken = _steps(engine, seconds, to_host=True)
    p50, p99 = np.percentile(taken, [50, 99]) * 1e3
    return {
        "frames": len(taken),
        "frames_per_second": round(len(taken) / taken.sum(), 2),
        "fastest_ms": round(taken.min() * 1e3, 3),
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
    }


def _throughput(engine: Engine, seconds: float) -> float:
    taken = _steps(engine, seconds, to_host=False)
    return round(engine.num_envs * len(taken) / taken.sum(), 2)


def add_shares(report: Report) -> None:
    """What share of the measured limits each run reaches; for CUDA what that would be on other cards."""
    work, weights = report["flops_per_frame"] * 1e-9, report["parameters"] * 4e-9
    for run in report["runs"]:
        limits, single = run["limits"], run["single"]["frames_per_second"]
        best = max(run["batches"], key=lambda row: row["env_steps_per_second"])
        cores = limits.get("gemm_one_core_gflops", limits["gemm_gflops"])
        run["share"] = {
            "single_of_gemm": round(single * work / cores, 4),  # a single world is computed by one core
            "single_of_bandwidth": round(single * weights / limits["copy_gb_per_second"], 4),  # weights once a frame
            "best_batch_of_gemm": round(best["env_steps_per_second"] * work / limits["gemm_gflops"], 4),
            "best_batch": best["num_envs"],
        }
        if run["device"].startswith("cuda"):
            rates = {"frames_per_second": single, "env_steps_per_second": best["env_steps_per_second"]}
            cards = {
                card: {name: round(machine.project(rate, limits, card), 1) for name, rate in rates.items()}
                for card in machine.CARDS
            }
            run["projected"] = {"formula": machine.FORMULA, **cards}


def _write(report: Report, out: Path) -> None:
    from lwm_env.bench_plot import plot

    _write_json(report, out)
    try:
        drawn = plot(report, out.with_suffix(".png"))
    except OSError as error:
        raise _unwritten(out.with_suffix(".png"), error) from error
    if not drawn:
        click.echo('no plot: it needs matplotlib, pip install "lwm-env[train]"', err=True)


def _write_json(report: Report, out: Path) -> None:
    try:
        out.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise _unwritten(out, error) from error


def _unwritten(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} could not be written: {error}. Make room or name another place.")


def as_text(report: Report) -> str:
    """The report for reading."""
    height, width = report["frame_size"]
    lines = [
        f"{report['world']} ({report['preset']}, {width}x{height}): {report['parameters'] / 1e6:.2f} M parameters, "
        f"{report['flops_per_frame'] / 1e6:.0f} MFLOP a frame"
    ]
    for run in report["runs"]:
        single, share = run["single"], run["share"]
        lines += [
            f"{run['device']}, {run['backend']}: {run['machine']}; load {run['load_average_before']}",
            f"  limits      {', '.join(f'{name} {value:g}' for name, value in run['limits'].items())}",
            f"  batch 1     {single['frames_per_second']:.1f} frames/s, p50 {single['p50_ms']:.2f} ms, p99 "
            f"{single['p99_ms']:.2f} ms, {share['single_of_gemm']:.0%} of the GEMM limit",
        ]
        if "single_eager" in run:
            lines.append(f"  no graph    {run['single_eager']['frames_per_second']:.1f} frames/s")
        for row in run["batches"]:
            memory = row["peak_memory_bytes"]
            shown = "" if memory is None else f", peak {memory / 2**20:.0f} MiB"
            lines.append(f"  {row['num_envs']:5} worlds {row['env_steps_per_second']:10.1f} env-steps/s{shown}")
        for card in machine.CARDS if "projected" in run else ():
            rates = run["projected"][card]
            shown = f"{rates['frames_per_second']} frames/s, {rates['env_steps_per_second']} env-steps/s"
            lines.append(f"  {card}, projected: {shown}")
    return "\n".join(lines)

"""`lwm evaluate`: dream held-out clips of the real game, measure, and write a report."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from lwm_env.errors import InvalidInput
from lwm_training.teacher_report import with_teacher

if TYPE_CHECKING:
    from lwm_env.world_model import WorldModel
    from lwm_training.evaluate import Tools
    from lwm_training.full_evaluation import Full
    from lwm_training.held_out import HeldOut, Wanted
    from lwm_training.report import Protocol
    from lwm_training.rollout import Sampling

CALIBRATION_SEEDS = 500_000  # added to the seed, so that a threshold is never chosen on the clips of a report


@click.command()
@click.argument("world")
@click.option("--clips", type=click.IntRange(1, 100_000), default=256, show_default=True, help="How many.")
@click.option("--horizon", type=click.IntRange(1, 10_000), default=60, show_default=True, help="Steps to dream.")
@click.option("--context", type=click.IntRange(1, 1000), default=8, show_default=True, help="Real frames given.")
@click.option("--seed", type=click.IntRange(0, CALIBRATION_SEEDS - 1), default=0, show_default=True)
@click.option("--split", default="validation", show_default=True, help="Whose levels.")
@click.option("--store", type=click.Path(path_type=Path), help="Take recorded clips (lwm collect) instead of playing.")
@click.option("--policy", help="Who plays; as in lwm collect. By default the world's script, or sticky.")
@click.option("--temperature", type=click.FloatRange(min=0), help="Of the sampling; the world's own by default.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--full", is_flag=True, help="Also a minute of dreaming, walks there and back, films; takes longer.")
@click.option("--long-clips", type=click.IntRange(4, 100_000), default=64, show_default=True, help="Of --full.")
@click.option(
    "--long-horizon", type=click.IntRange(61, 10_000), default=900, show_default=True, help="Of --full, steps."
)
@click.option("--idm", type=click.Path(path_type=Path, dir_okay=False), help="Another net than the world's own.")
@click.option("--i3d", type=click.Path(path_type=Path, dir_okay=False), help="A TorchScript file of I3D, for fvd_i3d.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for report.json and report/.")
@click.option("--calibrate", is_flag=True, help="Only find the termination threshold, on other clips.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@with_teacher
def evaluate(world: str, out: Path | None, calibrate: bool, as_json: bool, **options) -> None:
    """Measure WORLD (an id or a folder) against the real game, on levels it was not trained on.

    The report goes to the world's folder: report.json, and report/ with a page, plots and clips. Obedience and
    distances need the world's inverse-dynamics net: lwm idm WORLD.
    """
    from lwm_env import worlds
    from lwm_training.held_out import Wanted

    if options["full"] and options["store"] is not None:
        raise InvalidInput("--full plays the real game for longer than recorded clips last. Leave out --store.")
    folder = worlds.find(world)
    model = _load(folder, options["device"])
    if options["temperature"] is None:
        options["temperature"] = model.spec.temperature
    wanted = Wanted(
        num_clips=options["clips"],
        context=options["context"],
        truth=_truth(options["horizon"]),
        horizon=options["horizon"],
        policy=options["policy"] or ("script" if model.spec.script else "sticky"),
        seed=options["seed"] + CALIBRATION_SEEDS * calibrate,
    )
    if calibrate:
        _calibrate(model, wanted, options, as_json)
    else:
        _report(model, wanted, options, (folder, folder if out is None else out), as_json)


def _truth(horizon: int) -> int:
    from lwm_training.evaluate import TRUTH

    return min(horizon, TRUTH)


def _load(folder: Path, device: str) -> "WorldModel":
    import torch

    from lwm_env.world_model import WorldModel

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"--device {device} is not available here. Take auto, cpu or cuda.") from error
    return WorldModel.load(folder, chosen)


def _clips(model: "WorldModel", wanted: "Wanted", options: dict, tools: "Tools | None" = None) -> "HeldOut":
    from lwm_training.evaluate import Tools
    from lwm_training.full_evaluation import play
    from lwm_training.held_out import stored_clips

    if options["store"] is not None:
        return stored_clips(options["store"], model.spec, wanted)
    return play(model, options["split"], wanted, tools or Tools())[0]


def _tools(model: "WorldModel", folder: Path, options: dict) -> tuple["Tools", str | None, tuple[str, ...]]:
    """The nets that are there, the sha256 of the world's own, and what is to be told of one that is not."""
    from lwm_training import inverse_dynamics
    from lwm_training.evaluate import Tools
    from lwm_training.i3d import I3D

    device, path = model.reward_values.device, options["idm"] or folder / inverse_dynamics.FILE
    features = I3D(options["i3d"], device) if options["i3d"] else None
    if not path.is_file() and not options["idm"]:
        told = (
            f"Obedience (idm) and distances (fd_idm) need {path.name} in the world's folder. Make it: lwm idm {folder}"
        )
        return Tools(features=features), None, (told.replace(str(folder), model.spec.id),)
    net, digest = inverse_dynamics.load(path, model.spec, device)
    return Tools(net, features), digest, ()


def _calibrate(model: "WorldModel", wanted: "Wanted", options: dict, as_json: bool) -> None:
    from lwm_training.evaluate import calibrate_threshold
    from lwm_training.rollout import Sampling

    if model.spec.draws_ends(options["temperature"]):
        raise InvalidInput(f"{model.spec.id} draws its ends but at temperature 0. Add --temperature 0.")
    held_out = _clips(model, wanted, options)
    sampling = Sampling(options["temperature"], wanted.seed)
    with tqdm(total=wanted.num_clips * wanted.truth, desc="dreaming", unit="frame", disable=None) as bar:
        threshold, f1 = calibrate_threshold(model, held_out, sampling, bar.update)
    if f1 != f1:
        raise InvalidInput(f"Nothing ended in {wanted.num_clips} clips, real or dreamed. Take more with --clips.")
    if as_json:
        click.echo(json.dumps({"world": model.spec.id, "termination_threshold": threshold, "f1": round(f1, 4)}))
        return
    now = model.spec.termination_threshold
    click.echo(f"termination_threshold {threshold} (F1 {f1:.3f} on {wanted.num_clips} clips; the world has {now})")


def _report(model: "WorldModel", wanted: "Wanted", options: dict, folders: tuple[Path, Path], as_json: bool) -> None:
    from lwm_training import report as reports
    from lwm_training.evaluate import CONTROL, measure
    from lwm_training.report_page import check_output, write_report
    from lwm_training.report_pictures import check_matplotlib
    from lwm_training.rollout import Sampling

    folder, out = folders
    check_matplotlib()
    check_output(out)
    tools, digest, notes = _tools(model, folder, options)
    begin = time.perf_counter()
    held_out = _clips(model, wanted, options, tools)
    played = time.perf_counter()
    sampling = Sampling(options["temperature"], wanted.seed)
    num_frames = wanted.num_clips * (wanted.horizon + min(CONTROL, wanted.truth))
    with tqdm(total=num_frames, desc="dreaming", unit="frame", disable=None) as bar:
        measured = measure(model, held_out, sampling, bar.update, tools)
    seconds = {"playing": played - begin, "dreaming": time.perf_counter() - played}
    more, films = reports.More(notes=notes), ()
    if options["full"]:
        full = _full(model, wanted, options, sampling, tools)
        more, films = reports.More(full.long, full.walks, (*notes, *full.notes)), full.films
        seconds["full"] = time.perf_counter() - begin - sum(seconds.values())
    identity = {"world": model.spec.id, "weights": model.weights_hash, "device": str(model.reward_values.device)}
    report = reports.build(measured, _protocol(model, wanted, held_out, options, digest), identity, seconds, more)
    page = write_report(out, report, measured.showcase, model.spec.render_fps, films)
    click.echo(json.dumps(report.model_dump(mode="json"), allow_nan=False) if as_json else reports.as_table(report))
    for note in more.notes:
        click.echo(note, err=True)
    click.echo(f"report: {page}", err=True)


def _full(model: "WorldModel", wanted: "Wanted", options: dict, sampling: "Sampling", tools: "Tools") -> "Full":
    from dataclasses import replace

    from lwm_training.evaluate import TRUTH
    from lwm_training.full_evaluation import measure_full

    long = replace(wanted, num_clips=options["long_clips"], truth=TRUTH, horizon=options["long_horizon"])
    return measure_full(model, options["split"], long, sampling, tools)


def _protocol(
    model: "WorldModel", wanted: "Wanted", held_out: "HeldOut", options: dict, digest: str | None
) -> "Protocol":
    from lwm_training.report import Protocol

    played = options["store"] is None
    return Protocol(
        source=model.spec.real.source if played else str(options["store"]),
        split=held_out.split,
        policy=wanted.policy if played else None,
        seed=wanted.seed,
        num_clips=len(held_out),
        context=wanted.context,
        horizon=wanted.horizon,
        temperature=options["temperature"],
        termination_threshold=model.spec.termination_threshold,
        draw_ends=model.spec.draw_ends,
        long_clips=options["long_clips"] if options["full"] else None,
        idm=digest,
        i3d=None if options["i3d"] is None else options["i3d"].name,
    )

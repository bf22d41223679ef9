"""`lwm export`: a world's step as one file for other runtimes."""

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lwm_env.errors import ConfigMismatch, InvalidInput

if TYPE_CHECKING:
    from lwm_env.export.onnx_file import Facts
    from lwm_env.export.quantize import Check
    from lwm_env.world_model import WorldModel


@click.command()
@click.argument("world")
@click.option("--to", "target", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="The format.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The file; FOLDER-NAME.onnx by default.")
@click.option("--batch", type=click.IntRange(1, 65536), default=1, show_default=True, help="Worlds in a step, fixed.")
@click.option("--greedy", is_flag=True, help="No noise input: always the likeliest tokens, as temperature 0 takes.")
@click.option("--int8", is_flag=True, help="Int8 convolutions and linear layers, refused if dreams get worse.")
@click.option("--clips", type=click.Path(path_type=Path), help="An .npz of real clips that --int8 is judged by.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def export(
    world: str, target: str, out: Path | None, batch: int, greedy: bool, int8: bool, clips: Path | None, as_json: bool
) -> None:
    """Write one step of WORLD (an id or a folder) as one ONNX file: state, action, noise in; new state, frame out.

    With --int8 the pooled PSNR to the real frames of --clips over 60 steps may drop by less than 0.3 dB. The prompts
    are too short to judge by: over their 4 steps a drop looked a quarter of what real clips showed over 15.
    """
    from lwm_env import worlds
    from lwm_env.export import onnx_file
    from lwm_env.export.graph import export_step
    from lwm_env.export.onnx_file import Facts
    from lwm_env.world_model import WorldModel

    if clips is not None and not int8:
        raise click.UsageError("--clips is what --int8 is judged by. Add --int8, or leave --clips out.")
    if int8 and clips is None:
        raise click.UsageError("--int8 is judged by real play. Give --clips FILE.npz, see docs/onnx.md.")
    folder = worlds.find(world)
    out = out or Path(f"{folder.resolve().name}{'-int8' if int8 else ''}.onnx")
    onnx_file.make_folder(out.absolute().parent)
    model = WorldModel.load(folder)
    facts = Facts.of(
        model, batch=batch, temperature="none" if greedy else "noise", precision="int8" if int8 else "float32"
    )
    check = None
    if int8 and clips:
        data, check = _int8(model, facts, clips)
    else:
        data = onnx_file.stamp(export_step(model, batch, not greedy), facts)
    onnx_file.write(out, data)
    row = {"file": str(out), "bytes": len(data), **asdict(facts), "int8": asdict(check) if check else None}
    click.echo(json.dumps(row) if as_json else f"{out}: {facts.world}, {facts.precision}, {len(data) / 1e6:.1f} MB")
    if check and not as_json:
        click.echo(str(check))


def _int8(model: "WorldModel", facts: "Facts", clips: Path) -> tuple[bytes, "Check"]:
    """The bytes of an accepted int8 file, and what it was judged by."""
    from lwm_env.export import onnx_file, quantize
    from lwm_env.export.graph import export_step
    from lwm_env.export.onnx_world import OnnxWorld

    if facts.batch != 1:
        raise InvalidInput(f"--int8 is calibrated and judged for one world at a time, got --batch {facts.batch}.")
    if model.prompts is None:
        raise ConfigMismatch(f"{facts.world} has no prompts to calibrate int8 on. Export without --int8.")
    judged = quantize.read_clips(clips, model.spec)
    if judged.frames.shape[1] <= quantize.STEPS:
        raise InvalidInput(
            f"{clips} has clips of {judged.frames.shape[1]} frames; {quantize.STEPS + 1} at least are needed: a "
            f"context and {quantize.STEPS} steps."
        )
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("float32.onnx", "int8.onnx")]
        plain = replace(facts, precision="float32")
        onnx_file.write(files[0], onnx_file.stamp(export_step(model, 1, facts.temperature == "noise"), plain))
        float32 = OnnxWorld(model, files[0], 1)
        data = onnx_file.stamp(quantize.quantize(float32, model.prompts), facts)
        onnx_file.write(files[1], data)
        check = quantize.compare(float32, OnnxWorld(model, files[1], 1), judged)
    quantize.accept(check)
    return data, check

"""`lwm collect` and `lwm data ...`: record, look at, check and exchange data sets."""

import json
from pathlib import Path
from typing import Any

import click

from lwm_env.errors import CorruptFile, InvalidInput, StorageError
from lwm_training.command_parts import lines as _lines
from lwm_training.command_parts import spec_of as _spec
from lwm_training.commands_render import render


class FrameSize(click.ParamType):
    """`64`, or `64x96` for height x width."""

    name = "H[xW]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        height, _, width = str(value).partition("x")
        if not height.isdecimal() or not (width or height).isdecimal():
            self.fail(f"{value!r} is no frame size; write 64 or 64x96 (height x width).", param, ctx)
        return int(height), int(width or height)


class Option(click.ParamType):
    """`key=value` with a JSON value or a bare word."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        key, equals, text = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not of the form key=value.", param, ctx)
        try:
            return key, json.loads(text)
        except ValueError:
            return key, text


@click.command()
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the data set.")
@click.option("--frames", type=click.IntRange(min=1), required=True, help="Frames that it shall hold in the end.")
@click.option("--num-envs", type=click.IntRange(min=1), default=64, show_default=True, help="Copies played at once.")
@click.option("--policy", default="sticky", show_default=True, help="random, sticky[:P[:W,W]], sb3:PATH, mix:A*P+B*P.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--split", default="train", show_default=True, help="Of a world: whose levels.")
@click.option("-o", "--option", "options", type=Option(), multiple=True, help="Of the game; may be repeated.")
@click.option("--split-options", type=Option(), multiple=True, help="More of them, those that choose the levels.")
@click.option("--frame-size", type=FrameSize(), metavar="H[xW]", help="Resize the frames; a world has its own size.")
@click.option("--max-episode-steps", type=click.IntRange(min=1), help="Truncate there; a world has its own limit.")
@click.option("--view", type=click.Choice(["auto", "observation", "render"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--dry-run", is_flag=True, help="Play a little, write nothing, show what would be done.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def collect(source: str, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Record episodes of SOURCE, or go on recording into a folder that holds some.

    SOURCE is envpool:ID, gymnasium:ID, pettingzoo:ID or a bare id (CoinrunEasy-v0); a world (LWM-Platformer-v0 or its
    folder) or the recipe of one (platformer.toml) stands for its real game.
    """
    from lwm_training.collect import collect_with_bar, estimate

    plan = _plan(source, given)
    if dry_run:
        facts = estimate(plan)
        click.echo(json.dumps(facts) if as_json else _told_plan(facts))
        return
    facts = collect_with_bar(plan)
    click.echo(json.dumps(facts) if as_json else _lines(facts))
    if not as_json:
        click.echo(f"next: lwm data sheet {plan.out} --out sheet.png", err=True)


@click.group()
def data() -> None:
    """Look at, check, import and export recorded episodes."""


data.add_command(render)
_FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@data.command()
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def info(folder: Path, as_json: bool) -> None:
    """What the data set in FOLDER holds."""
    from lwm_training.data_facts import data_facts

    facts = data_facts(folder)
    click.echo(json.dumps(facts) if as_json else _lines(facts))


@data.command()
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def verify(folder: Path, as_json: bool) -> None:
    """Check every byte of the data set in FOLDER; exit code 1 if one is not what was written."""
    from lwm_training.episodes import verify as check

    problems = check(folder)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "ok": not problems, "problems": problems}))
    if problems:
        raise CorruptFile("\n".join([f"{folder} is damaged.", *problems]))
    if not as_json:
        click.echo(f"{folder} is intact.")


@data.command()
@_FOLDER
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="A .png or .jpg to write.")
@click.option("--rows", type=click.IntRange(min=1), default=8, show_default=True, help="Episodes.")
@click.option("--columns", type=click.IntRange(min=1), default=10, show_default=True, help="Frames of each.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which episodes.")
def sheet(folder: Path, out: Path, rows: int, columns: int, seed: int) -> None:
    """Write a picture of random episodes of FOLDER."""
    from lwm_training.contact_sheet import contact_sheet
    from lwm_training.episodes import EpisodeStore

    with EpisodeStore(folder) as store:
        picture = contact_sheet(store, rows, columns, seed)
    try:
        picture.save(out)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror or error}.") from error
    except ValueError as error:
        raise InvalidInput(f"{out}: {error}. Name a .png or .jpg file.") from error
    click.echo(str(out))


@data.command("import-minari")
@click.argument("dataset")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the data set.")
@click.option("--frame-size", type=FrameSize(), metavar="H[xW]", help="Resize the frames.")
def import_minari(dataset: str, out: Path, frame_size: tuple[int, int] | None) -> None:
    """Turn a local Minari DATASET (id or folder) with image observations into one of ours."""
    from lwm_training.interchange import import_minari

    click.echo(_lines(import_minari(dataset, out, frame_size)))


@data.command("export-minari")
@_FOLDER
@click.argument("dataset_id")
@click.option("--author", help="Noted in its metadata.")
def export_minari(folder: Path, dataset_id: str, author: str | None) -> None:
    """Write FOLDER as the local Minari data set DATASET_ID (namespace/game/name-v0), lossless."""
    from lwm_training.interchange import export_minari

    click.echo(_lines(export_minari(folder, dataset_id, author)))


def _plan(source: str, given: dict[str, Any]) -> Any:
    from lwm_training.collect import CollectPlan
    from lwm_training.source import SourceConfig

    config = SourceConfig(
        frame_size=given.pop("frame_size"),
        max_episode_steps=given.pop("max_episode_steps"),
        num_threads=given.pop("threads"),
        view=given.pop("view"),
    )
    options = dict((*given.pop("options"), *given.pop("split_options")))
    spec = _spec(source)
    if spec and (options or config.frame_size or config.max_episode_steps or config.view != "auto"):
        raise click.UsageError(
            "A world has its own options, frame size, limit and view; to choose others, name its game."
        )
    return CollectPlan(source=spec or source, options=options, config=config, **given)


def _told_plan(facts: dict[str, Any]) -> str:
    needs = f"{facts['expected_bytes'] / 1e6:.1f} MB expected ({facts['raw_bytes'] / 1e6:.0f} MB raw)"
    seconds = facts["frames"] / facts["sampled_frames_per_second"]
    told = {
        **{key: value for key, value in facts.items() if not key.endswith("_bytes")},
        "disk": f"{needs}, {facts['free_bytes'] / 1e9:.1f} GB free",
        "time": f"about {seconds:.0f} s, by a short trial",
    }
    return _lines(told)

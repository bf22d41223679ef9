"""`lwm new`: a world of any game in one command."""

import json
from pathlib import Path
from typing import Any

import click

from lwm_training.commands_data import FrameSize, Option


@click.command()
@click.argument("source", metavar="ENV_ID")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of all of it [runs/NAME].")
@click.option("--name", help="The world is called LWM-NAME-v0 [from ENV_ID].")
@click.option("--minutes", type=click.FloatRange(min=0.01), default=40.0, show_default=True, help="Of training.")
@click.option("--frames", type=click.IntRange(min=100), default=50_000, show_default=True, help="To record.")
@click.option("--clips", type=click.IntRange(1, 100_000), default=64, show_default=True, help="To evaluate on.")
@click.option("--frame-size", type=FrameSize(), default="64", show_default=True, metavar="H[xW]", help="Of the world.")
@click.option("--camera/--no-camera", default=None, help="Whether the picture scrolls [found by looking].")
@click.option("--option", "options", type=Option(), multiple=True, help="Of the game; may be repeated.")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe: train.batch_size=8.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--dry-run", is_flag=True, help="Only write the recipe.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def new(ctx: click.Context, source: str, out: Path | None, as_json: bool, dry_run: bool, **given: Any) -> None:
    """Make a playable world of the game ENV_ID: recipe, recording, training, evaluation, installation.

    ENV_ID is an id of Gymnasium, EnvPool or PettingZoo as in `lwm collect`, or my_module:MyGame-v0 for a game of your
    own in the working directory. The same command again goes on where it was stopped. Between two phases you may edit
    OUT/RECIPE.toml: what comes after is done anew, and training goes on from its last checkpoint.
    """
    from lwm_training.new_world import RECIPE, NewWorld, Wishes, check_extras
    from lwm_training.propose import world_name

    out = out or Path("runs") / (given["name"] or world_name(source)).lower()
    given["options"] = dict(given["options"])
    making = NewWorld(Wishes(source=source, out=out, **given), lambda text: click.echo(text, err=True))
    check_extras()
    world_id = making.write_recipe().world.id
    if dry_run:
        click.echo(json.dumps({"world": world_id, "recipe": str(out / RECIPE)}) if as_json else str(out / RECIPE))
        return
    making.collect()
    world = making.train()
    making.evaluate(lambda folder, clips, context: _measure(ctx, folder, clips, context, given["device"]))
    target = making.register()
    if as_json:
        click.echo(json.dumps({"world": world_id, "folder": str(world), "installed": str(target)}))
        return
    several = len(making.recipe().world.players) > 1
    python = f'lwm_env.parallel_env("{world_id}")' if several else f'gym.make("{world_id}")  # after import lwm_env'
    click.echo(f"{world_id} is installed in {target}\nreport: {world / 'report' / 'index.html'}")
    click.echo(f"play it: lwm play {world_id}\nin Python: {python}")


def _measure(ctx: click.Context, folder: Path, clips: int, context: int, device: str) -> None:
    """`lwm evaluate`, its table on stderr: stdout is for what we made."""
    import contextlib
    import sys

    from lwm_training.commands_evaluate import evaluate

    with contextlib.redirect_stdout(sys.stderr):
        ctx.invoke(evaluate, world=str(folder), clips=clips, context=context, device=device)

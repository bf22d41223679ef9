"""`lwm train`: from a recipe to a world."""

import json
import os
from pathlib import Path

import click


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the run [runs/RECIPE].")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe: train.batch_size=8.")
@click.option("--from", "base", metavar="WORLD", help="Begin with its weights: fine-tuning. As -o train.start=WORLD.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--resume/--no-resume", default=True, show_default=True, help="Go on from the run's last checkpoint.")
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and stop.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def train(recipe: Path, out: Path | None, overrides: tuple[str, ...], base: str | None, **options) -> None:
    """Train a world from RECIPE, a TOML file such as those in training/recipes.

    The run may be stopped and started again. Several devices: `accelerate launch -m lwm_env.cli train RECIPE`, or
    `torchrun --nproc-per-node 2 -m lwm_env.cli train RECIPE`.
    """
    from lwm_training.recipe import load_recipe

    loaded = load_recipe(recipe, (*overrides, *([f"train.start={json.dumps(base)}"] if base else ())))
    out = out or Path("runs") / recipe.stem
    if options["dry_run"]:
        click.echo(json.dumps(json.loads(loaded.to_json()), indent=2))
        return
    from lwm_training.train import train_world

    world = train_world(loaded, out, options["device"], options["resume"])
    if os.environ.get("RANK", "0") != "0":  # torchrun starts several of us; one speaks
        return
    if options["as_json"]:
        click.echo(json.dumps({"world": str(world)}))
    else:
        click.echo(f"{world}\nMeasure it with: lwm evaluate {world}")

"""`lwm idm`: train the net that names the action between frames, with which `lwm evaluate` measures obedience."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from lwm_env.errors import InvalidInput

if TYPE_CHECKING:
    from lwm_env.spec import WorldSpec
    from lwm_training.recipe import Data


@click.command()
@click.argument("world")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The file; by default in the world.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=4.0, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), help="Stop after so many, if the minutes are not over before.")
@click.option("--policy", help="Who plays; as in lwm collect. By default the recipe's, or sticky.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def idm(
    world: str, out: Path | None, minutes: float, steps: int | None, policy: str | None, seed: int, as_json: bool
) -> None:
    """Train the inverse-dynamics net of WORLD (an id, a folder or a recipe) on its real game, training levels.

    It goes to idm.safetensors in the world's folder, where `lwm evaluate` looks for it; it outlives new weights.
    """
    from lwm_training import inverse_dynamics
    from lwm_training.train_idm import Lesson, train_idm

    spec, data, folder = _read(world)
    if out is None and folder is None:
        raise InvalidInput(f"{world} is a recipe, not a world with a folder. Name a file with --out.")
    out = out or folder / inverse_dynamics.FILE
    data = data.model_copy(update={"policy": policy}) if policy else data
    with tqdm(total=100, desc="training", unit="%", bar_format="{l_bar}{bar}| {postfix}", disable=None) as bar:

        def show(share: float, loss: float) -> None:
            bar.update(100 * share - bar.n)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)

        net, done = train_idm(spec, data, Lesson(minutes, steps, seed), show)
    facts = {"world": spec.id, "source": spec.real.source, "policy": data.policy, "steps": str(done), "seed": str(seed)}
    inverse_dynamics.save(net, out, facts)
    size = out.stat().st_size
    if as_json:
        click.echo(json.dumps({**facts, "steps": done, "seed": seed, "path": str(out), "bytes": size}))
        return
    click.echo(f"{out}: {size / 1e6:.2f} MB, {done} steps")
    click.echo(f"next: lwm evaluate {spec.id if world.endswith('.toml') else world}", err=True)


def _read(world: str) -> tuple["WorldSpec", "Data", Path | None]:
    from lwm_training.recipe import Data, load_recipe

    if world.endswith(".toml"):
        recipe = load_recipe(world)
        return recipe.world, recipe.data, None
    from lwm_env import worlds

    folder = worlds.find(world)
    return worlds.read_spec(folder), Data(), folder

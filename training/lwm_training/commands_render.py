"""`lwm data render`: what a teacher renders, as a data set to train on."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lwm_training.command_parts import lines, spec_of

if TYPE_CHECKING:
    from lwm_env.spec import WorldSpec

_OPTIONS = (
    click.option("--episodes", type=click.IntRange(min=1), default=100, show_default=True, help="To render in all."),
    click.option(
        "--starts", type=click.Path(path_type=Path, file_okay=False), help="Pictures that episodes begin from."
    ),
    click.option("--chunks", type=click.IntRange(min=1), default=4, show_default=True, help="Of frames in an episode."),
    click.option("--render-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Starts and actions."),
    click.option("--prompt", default="", help="What the teacher is told about the pictures."),
    click.option("--speed", type=click.FloatRange(min=0), default=0.2, show_default=True, help="Of its actions."),
    click.option("--policy", default="sticky", show_default=True, help="Who plays a world; as in lwm collect."),
    click.option("--python", type=click.Path(path_type=Path), help="The interpreter of the teacher's environment."),
    click.option("--licence", "licences", type=(str, str), multiple=True, help="Of clips: pictures CC0."),
    click.option("--accept-license", "accepted", multiple=True, metavar="NAME", help="After its terms are printed."),
)


def rendering_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of everything that renders."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("teacher")
@click.option("--world", required=True, help="A recipe, or a world: whose frames and actions are rendered.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the data set.")
@rendering_options
def render(teacher: str, world: str, out: Path, **options: Any) -> None:
    """Record what TEACHER renders: clips:FOLDER, world:ID, gamecraft:CHECKOUT, matrix-game-2:CHECKOUT, worker:SCRIPT.

    What was interrupted goes on after its last whole episode; docs/distill.md tells more.
    """
    spec = spec_of(world)
    if spec is None:
        raise click.BadParameter(f"{world!r} is neither a recipe (.toml) nor a world.", param_hint="--world")
    click.echo(lines(render_teacher(teacher, spec, out, options)))


def render_teacher(teacher: str, spec: "WorldSpec", out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Render by the options of `rendering_options`, with a bar; the terms of a licence go to stderr first."""
    from tqdm import tqdm

    from lwm_training.teachers import render as render_episodes
    from lwm_training.teachers.opening import Rendering, open_teacher

    given = {name: options[name] for name in ("starts", "chunks", "prompt", "speed", "policy", "accepted")}
    given |= {"python": options["python"]} if options["python"] else {}
    rendering = Rendering(seed=options["render_seed"], licences=dict(options["licences"]), **given)
    opened = open_teacher(teacher, spec, rendering, lambda text: click.echo(text, err=True))
    try:
        with tqdm(total=options["episodes"], unit="episode", disable=None, desc="render") as bar:
            return render_episodes(opened, spec, out, options["episodes"], bar.update)
    finally:
        opened.close()

"""`lwm distill`: from a teacher to a smaller student."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lwm_training.commands_render import rendering_options

if TYPE_CHECKING:
    from lwm_training.recipe import Recipe


@click.command()
@click.argument("teacher")
@click.argument("student_preset")
@click.option("--recipe", type=click.Path(path_type=Path, dir_okay=False), help="Its world, data and stages instead.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the run [runs/distill-ID].")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe: train.batch_size=8.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--resume/--no-resume", default=True, show_default=True, help="Go on from the run's last checkpoint.")
@click.option("--control", is_flag=True, help="Train the same student without the teacher, to compare with.")
@click.option("--steps-of", metavar="STUDENT", help="With --control: as many steps of each stage as this world took.")
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and stop.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@rendering_options
def distill(teacher: str, student_preset: str, **options: Any) -> None:
    """Distil TEACHER, a world by id or folder, into a student of the size STUDENT_PRESET (see `lwm presets`).

    The student learns from real play and from what the teacher predicts: on real frames, and on those that the student
    itself has dreamed. The run may be stopped and started again, as that of `lwm train`; docs/distill.md tells more.

    A teacher that renders clips (clips:FOLDER, gamecraft:CHECKOUT and so on, see `lwm data render`) is recorded into
    OUT/clips first, and needs a --recipe; the options of rendering are for it alone.
    """
    from lwm_training.distill_recipe import distill_recipe, rendered_recipe, without_teacher
    from lwm_training.teachers.opening import renders

    if renders(teacher):
        recipe = rendered_recipe(student_preset, options["recipe"], options["overrides"])
        _train_on_clips(recipe, teacher, options["out"] or Path("runs") / f"distill-{recipe.world.id}", options)
        return
    recipe = distill_recipe(teacher, student_preset, options["recipe"], options["overrides"])
    if options["steps_of"] and not options["control"]:
        raise click.UsageError("--steps-of is for --control.")
    if options["control"]:
        recipe = without_teacher(recipe, options["steps_of"])
    if options["dry_run"]:
        click.echo(json.dumps(json.loads(recipe.to_json()), indent=2))
        return
    kind = "control" if options["control"] else "distill"
    out = options["out"] or Path("runs") / f"{kind}-{recipe.world.id}-{student_preset}"
    _train(recipe, teacher, out, options)


def _train_on_clips(recipe: "Recipe", teacher: str, out: Path, options: dict[str, Any]) -> None:
    from lwm_training.commands_render import render_teacher
    from lwm_training.distill_recipe import on_clips
    from lwm_training.train import train_world

    if options["control"]:
        raise click.UsageError("A student of rendered clips has no other data, so that there is no --control.")
    recipe = on_clips(recipe, out / "clips")
    if options["dry_run"]:
        click.echo(json.dumps(json.loads(recipe.to_json()), indent=2))
        return
    if os.environ.get("RANK", "0") != "0":
        raise click.UsageError(
            "Render with one process first (lwm data render), then `torchrun ... train` on the clips."
        )
    rendered = render_teacher(teacher, recipe.world, out / "clips", options)
    world = train_world(recipe, out, options["device"], options["resume"])
    if options["as_json"]:
        click.echo(json.dumps({"world": str(world), "clips": rendered}))
    else:
        click.echo(f"{world}\nlearned from {rendered['episodes']} episodes that {teacher} rendered")


def _train(recipe: "Recipe", teacher: str, out: Path, options: dict[str, Any]) -> None:
    from lwm_env.world_model import WorldModel
    from lwm_training.train import train_world

    world = train_world(recipe, out, options["device"], options["resume"])
    if os.environ.get("RANK", "0") != "0":  # torchrun starts several of us; one speaks
        return
    sizes = [sum(p.numel() for p in WorldModel.load(name).parameters()) for name in (teacher, world)]
    facts = {"world": str(world), "teacher_parameters": sizes[0], "student_parameters": sizes[1]}
    if options["as_json"]:
        click.echo(json.dumps(facts))
        return
    click.echo(f"{world}\nThe teacher has {sizes[0] / sizes[1]:.1f} times its {sizes[1] / 1e6:.2f} M parameters.")
    click.echo(f"Measure both with: lwm evaluate {world} --teacher {teacher}")

"""The recipe of a distillation: the teacher's world, real play, and stages for a student of another size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lwm_env import worlds
from lwm_env.errors import ConfigMismatch
from lwm_env.presets import PARTS, PRESETS
from lwm_env.worlds import Manifest
from lwm_training.recipe import Data, Recipe, Stage, check_document, read_document
from lwm_training.stages import is_of_teacher

# First what the real frames lead to, then, more and more, where the student's own dreams lead.
STAGES: tuple[dict[str, Any], ...] = (
    {"name": "tokenizer", "trains": "tokenizer", "minutes": 12, "learning_rate": 3e-3, "warmup": 100},
    {"name": "camera", "trains": "camera", "minutes": 30, "learning_rate": 1.5e-3, "warmup": 200, "batch_size": 64,
     "unroll": 15, "context": 8, "loss": {"place": 0.4}},
    {"name": "offline", "trains": "dynamics", "minutes": 10, "learning_rate": 1.5e-3, "warmup": 50, "decay": False,
     "unroll": 2, "context": 6, "loss": {"on_policy": 0.0}},
    {"name": "relabel-8", "trains": "dynamics", "minutes": 30, "learning_rate": 1.2e-3, "warmup": 50, "decay": False,
     "unroll": 8, "context": 8, "loss": {"on_policy": 0.5}},
    {"name": "relabel-16", "trains": "dynamics", "minutes": 30, "learning_rate": 1e-3, "warmup": 50, "batch_size": 8,
     "unroll": 16, "context": 8, "loss": {"on_policy": 0.8}},
)  # fmt: skip


def distill_recipe(teacher: str, preset: str, path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """What `lwm distill` runs.

    Args:
        teacher: a world, by id or folder.
        preset: the student's size.
        path: a recipe to distil with instead: its world, data and stages, with that teacher and that size.
        overrides: as for `load_recipe`.

    Raises:
        UnknownWorld: no such teacher.
        ConfigMismatch: the recipe does not fit, or the teacher does not tell what it learned from and none was given.
    """
    manifest = worlds.read_manifest(worlds.find(teacher))
    if path is None:
        document, where = _from_teacher(manifest), f"made from the teacher {teacher}"
    else:
        document, where = read_document(path), str(path)
    if isinstance(document.setdefault("model", {}), dict):  # what is no table is told by the check
        document["model"]["preset"] = preset
    if isinstance(document.setdefault("distill", {}), dict):
        document["distill"]["teacher"] = teacher
    recipe = check_document(document, where, overrides)
    return recipe if path is not None or recipe.distill.take else _taking(recipe, manifest)


def rendered_recipe(preset: str, path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a student that learns from rendered clips; raises as `distill_recipe`."""
    if path is None:
        raise ConfigMismatch(
            "A teacher that renders clips does not tell its world: the actions, rewards and frame size of the student. "
            "Name a recipe that does: lwm distill TEACHER PRESET --recipe RECIPE"
        )
    document = read_document(path)
    if isinstance(document.setdefault("model", {}), dict):
        document["model"]["preset"] = preset
    return check_document(document, str(path), overrides)


def on_clips(recipe: Recipe, folder: Path) -> Recipe:
    """The same learned from the recordings in a folder."""
    return recipe.model_copy(update={"data": Data(kind="store", path=str(folder))})


def without_teacher(recipe: Recipe, student: str | None = None) -> Recipe:
    """The same student learning from the same real play without the teacher: what a distillation is to be compared
    with. What the student would have taken from the teacher, it learns in stages of their own.

    Args:
        student: a world, by id or folder; stages end after as many steps as those of the same name took for it.

    Raises:
        UnknownWorld: no such student. ConfigMismatch: its `world.json` does not tell its stages.
    """
    taken = [_stage(name) for name in recipe.distill.take] if recipe.distill else []
    steps = {} if student is None else _steps_of(student)
    stages = []
    for stage in (*taken, *recipe.train.stages):
        own = {name: weight for name, weight in stage.loss.items() if not is_of_teacher(name)}
        ends = {"steps": steps[stage.name], "minutes": None} if stage.name in steps else {}
        stages.append(stage.model_copy(update={"loss": own, **ends}))
    train = recipe.train.model_copy(update={"stages": tuple(stages)})
    return recipe.model_copy(update={"train": train, "distill": None})


def _steps_of(student: str) -> dict[str, int]:
    stages = worlds.read_manifest(worlds.find(student)).provenance.get("stages")
    if not stages:
        raise ConfigMismatch(f"{student} does not tell how many steps its stages took. Leave out --steps-of.")
    return {stage["name"]: stage["steps"] for stage in stages}


def _stage(trains: str) -> Stage:
    return next(Stage(**stage) for stage in STAGES if stage["trains"] == trains)


def _from_teacher(manifest: Manifest) -> dict[str, Any]:
    recipe = manifest.provenance.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("data"), dict):
        raise ConfigMismatch(
            f"{manifest.spec.id} does not tell what data it learned from, which its student needs as well. "
            f"Name a recipe: lwm distill TEACHER PRESET --recipe RECIPE"
        )
    data = {key: value for key, value in recipe["data"].items() if value is not None}
    train = {"seed": 0, "batch_size": 16, "checkpoint_minutes": 3, "stages": [dict(stage) for stage in STAGES]}
    lattice = manifest.model.get("camera", {}).get("lattice", 0.0)  # the game's, so the student's too
    return {
        "world": manifest.spec.model_dump(mode="json", exclude_none=True),
        "model": {"overrides": {"camera.lattice": lattice} if lattice else {}},
        "data": data,
        "train": train,
    }


def _taking(recipe: Recipe, manifest: Manifest) -> Recipe:
    """The recipe whose student takes the teacher's tokenizer and camera where their shapes are alike, and then does not
    learn them anew."""
    settings = PRESETS[recipe.model.preset].override({"frame_size": recipe.world.frame_size, **recipe.model.overrides})
    ours = settings.to_json()
    theirs = {name: vars(PARTS[name](**manifest.model.get(name, {}))) for name in ("tokenizer", "camera")}
    take = tuple(name for name, setting in theirs.items() if setting == ours[name])
    stages = tuple(stage for stage in recipe.train.stages if stage.name not in take)
    train = recipe.train.model_copy(update={"stages": stages})
    distill = recipe.distill.model_copy(update={"take": take})
    return recipe.model_copy(update={"train": train, "distill": distill})

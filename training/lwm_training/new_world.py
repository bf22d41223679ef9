"""`lwm new`: from the id of a game to a world that can be played, in phases of which each is done once.

OUT/RECIPE.toml   what the world is, to be edited      OUT/data      recorded play
OUT/training      the run of `lwm train`               OUT/progress.json   which phases are done
"""

import hashlib
import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lwm_env import worlds
from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, StorageError, missing_extra
from lwm_env.presets import preset
from lwm_env.world_model import WorldModel
from lwm_env.worlds.install import check_id, install_world
from lwm_env.worlds.storage import replace_file
from lwm_training import propose
from lwm_training.recipe import Recipe, load_recipe
from lwm_training.sources import resolve

RECIPE, DATA, TRAINING, PROGRESS = "RECIPE.toml", "data", "training", "progress.json"
MODULES = {"data": ("h5py", "hdf5plugin", "cv2"), "train": ("accelerate", "tensorboard", "matplotlib")}  # by extra
NOT_PLAYED = {
    "id", "description", "render_fps", "temperature", "termination_threshold", "draw_ends", "points_to_win",
    "reward_values",
}  # fmt: skip
CALIBRATION_SEED = 500_000  # the threshold is not chosen on the clips of the report

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user asked for; the first five are written into the recipe and stand there from then on."""

    source: str
    out: Path
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of the game
    frame_size: tuple[int, int] = (64, 64)
    minutes: float = 40.0  # of training
    camera: bool | None = None  # None: if the picture scrolls
    frames: int = 50_000  # to record
    clips: int = 64  # to evaluate on
    device: str = "auto"
    overrides: tuple[str, ...] = ()  # of the recipe, as in `lwm train -o`


def check_extras() -> None:
    """MissingExtra for what a later phase would stop at."""
    for extra, modules in MODULES.items():
        for module in modules:
            if importlib.util.find_spec(module) is None:
                raise missing_extra(module, extra)


class NewWorld:
    """The phases of one folder. Calling a phase that is done tells what it gave, and does nothing."""

    def __init__(self, wishes: Wishes, tell: Callable[[str], None]) -> None:
        self.wishes, self.tell = wishes, tell
        self.out = wishes.out
        self._done: dict[str, dict[str, Any]] = _read_progress(self.out / PROGRESS)

    # -- phases ------------------------------------------------------------------------------------------------------

    def write_recipe(self) -> Recipe:
        """Play the game a little and write RECIPE.toml, if it is not there."""
        wishes, path = self.wishes, self.out / RECIPE
        library, game = resolve(wishes.source)
        if path.exists():
            recipe = self.recipe()
            known = recipe.world.real.source
            if known != f"{library}:{game}":
                raise ConfigMismatch(f"{path} is a recipe for {known}, not for {library}:{game}. Choose another --out.")
            check_id(recipe.world.id)
            self.tell(f"recipe: {path} is there and stands; edit it, or remove it to have it written anew")
            return recipe
        from lwm_training.probe import probe

        world_id = f"LWM-{wishes.name or propose.world_name(wishes.source)}-v0"
        check_id(world_id)
        preset("nano", frame_size=wishes.frame_size)  # its error names the sizes that do
        self.tell(f"recipe: playing {library}:{game} a little")
        found = probe(f"{library}:{game}", wishes.options, wishes.frame_size)
        text = propose.recipe_text(found, world_id, (self.out / DATA).as_posix(), wishes.minutes, wishes.camera)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            replace_file(path, text.encode())
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror or error}. Choose another --out.") from error
        self.tell(f"recipe: {path} written, yours to edit")
        return self.recipe()

    def collect(self) -> None:
        """Record play until there are as many frames as asked for; then add rewards that the probe did not meet."""
        recipe, wishes = self.recipe(), self.wishes
        if recipe.data.kind == "stream":
            self.tell("collect: nothing is recorded, since the recipe's data are streamed")
            return
        played = recipe.world.model_dump(mode="json", exclude=NOT_PLAYED)
        key = _digest([played, recipe.data.policy, recipe.train.seed, wishes.frames])
        if self._is_done("collect", key):
            return
        from lwm_training.collect import CollectPlan, collect_with_bar

        plan = CollectPlan(
            source=recipe.world,
            out=self.out / DATA,
            frames=wishes.frames,
            num_envs=recipe.data.num_envs,
            policy=recipe.data.policy,
            seed=recipe.train.seed,
        )
        self.tell(f"collect: {wishes.frames} frames into {plan.out}")
        facts = collect_with_bar(plan)
        self._add_rewards(recipe)
        self._note("collect", key, {"frames": facts["frames"]})

    def train(self) -> Path:
        """`lwm train RECIPE.toml`, from its last checkpoint on."""
        recipe, folder = self.recipe(), self.out / TRAINING
        if not self._is_done("train", recipe.hash) or not (folder / "world" / worlds.MANIFEST).exists():
            from lwm_training.train import train_world

            self.tell(f"train: {', '.join(stage.name for stage in recipe.train.chosen)}, in {folder}")
            train_world(recipe, folder, self.wishes.device)
            self._note("train", recipe.hash, {"world": f"{TRAINING}/world"})
        return folder / "world"

    def evaluate(self, report: Callable[[Path, int, int], None]) -> None:
        """Choose the threshold of an episode's end on held-out play, and let `report` measure the world on other play.

        Args:
            report: called with the world's folder, the number of clips and the frames of context.
        """
        recipe, folder = self.recipe(), self.out / TRAINING / "world"
        key = _digest([recipe.hash, self.wishes.clips])
        if self._is_done("evaluate", key):
            return
        context = min([8, *(stage.context for stage in recipe.train.stages if stage.trains != "tokenizer")])
        self.tell(f"evaluate: {self.wishes.clips} clips of play that it was not trained on")
        threshold = self._calibrate(folder, recipe.data.policy, context)
        report(folder, self.wishes.clips, context)
        self._note("evaluate", key, {"termination_threshold": threshold})

    def register(self) -> Path:
        """Install the world under its id."""
        folder = self.out / TRAINING / "world"
        target = install_world(folder)
        weights = worlds.read_manifest(folder).files["model.safetensors"].sha256
        self._note("register", weights, {"folder": str(target)})
        return target

    # -- what they share ---------------------------------------------------------------------------------------------

    def recipe(self) -> Recipe:
        """RECIPE.toml with the overrides of the command; its data are those in this folder, wherever we stand."""
        recipe = load_recipe(self.out / RECIPE, self.wishes.overrides)
        if recipe.data.kind == "stream":
            return recipe
        path = f"data.path={json.dumps(str(self.out / DATA))}"
        return load_recipe(self.out / RECIPE, [*self.wishes.overrides, path])

    def _add_rewards(self, recipe: Recipe) -> None:
        """Rewrite the line of the recipe, unless it was edited, if more was recorded than the probe had met."""
        counts = _recorded_rewards(self.out / DATA)
        known = np.array(recipe.world.reward_values)
        wanted = propose.reward_values(counts)
        new = [value for value in wanted if not np.isclose(known, value, rtol=1e-4, atol=1e-6).any()]
        if not new:
            return
        path = self.out / RECIPE
        text = path.read_text(encoding="utf-8")
        line = propose.reward_line(recipe.world.reward_values)
        if text.count(line) != 1 or len(known) > propose.MAX_REWARDS:
            self.tell(f"collect: rewards {new} were recorded that reward_values in {path} does not have; it stands")
            return
        values = wanted if len(wanted) == propose.MAX_REWARDS else sorted({*recipe.world.reward_values, *wanted})
        replace_file(path, text.replace(line, propose.reward_line(values)).encode())
        self.tell(f"collect: reward_values in {path} now has {', '.join(f'{value:g}' for value in new)} too")

    def _calibrate(self, folder: Path, policy: str, context: int) -> float:
        """Write the best threshold into world.json; without an end in the clips, or with one that finds none, it
        stays."""
        from lwm_training.evaluate import TRUTH, calibrate_threshold
        from lwm_training.held_out import Wanted, play_clips
        from lwm_training.rollout import Sampling

        model = WorldModel.load(folder)
        wanted = Wanted(
            num_clips=self.wishes.clips,
            context=context,
            truth=TRUTH,
            horizon=TRUTH,
            policy=policy,
            seed=CALIBRATION_SEED,
        )
        held_out = play_clips(model.spec, "validation", wanted, lambda _: None)
        sampling = Sampling(model.spec.temperature, wanted.seed)
        threshold, f1 = calibrate_threshold(model, held_out, sampling, lambda _: None)
        if not f1 > 0:  # NaN if nothing ended
            self.tell("evaluate: no end was foreseen in these clips; the threshold stays as it is")
            return model.spec.termination_threshold
        model.spec = model.spec.model_copy(update={"termination_threshold": threshold})
        model.save(folder, provenance=worlds.read_manifest(folder).provenance)
        self.tell(f"evaluate: termination_threshold {threshold}, F1 {f1:.2f}")
        return threshold

    def _is_done(self, phase: str, key: str) -> bool:
        """Whether it was done with the same recipe and wishes."""
        done = self._done.get(phase)
        if done and done["key"] == key:
            self.tell(f"{phase}: done before")
            return True
        if done:
            self.tell(f"{phase}: done before, but the recipe or the options are others now")
        return False

    def _note(self, phase: str, key: str, facts: dict[str, Any]) -> None:
        """A phase is done; those after it are not any more."""
        names = ("collect", "train", "evaluate", "register")
        earlier = names[: names.index(phase)]
        self._done = {name: done for name, done in self._done.items() if name in earlier}
        self._done[phase] = {"key": key, **facts}
        try:
            replace_file(self.out / PROGRESS, json.dumps(self._done, indent=1).encode())
        except OSError as error:
            raise StorageError(f"{self.out / PROGRESS} cannot be written: {error.strerror or error}.") from error


def _read_progress(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise CorruptFile(f"{path} is no JSON: {error}. Remove it; what was recorded and trained is kept.") from error
    if not isinstance(found, dict) or not all(isinstance(done, dict) and "key" in done for done in found.values()):
        raise CorruptFile(f"{path} is not what `lwm new` wrote. Remove it; what was recorded and trained is kept.")
    return found


def _recorded_rewards(folder: Path) -> dict[float, int]:
    from lwm_training.episodes import EpisodeStore

    with EpisodeStore(folder) as store:
        if not len(store):
            raise InvalidInput(f"{folder} holds no episode. Record more frames with --frames.")
        rewards = np.concatenate([store.steps(episode)["rewards"].ravel() for episode in range(len(store))])
    values, counts = np.unique(rewards, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

"""From a recipe to a world: stage by stage, resumable, on a CPU or on as many devices as accelerate started."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from lwm_env import worlds
from lwm_env.errors import ConfigMismatch, StorageError
from lwm_env.presets import PRESETS
from lwm_env.world_model import WEIGHTS, WorldModel
from lwm_training.averaging import Averaged, recompute_blocks
from lwm_training.batch import as_batch, sight_of
from lwm_training.checkpoint import Checkpoint, flatten_optimizer, load_latest, restore_optimizer, save_checkpoint
from lwm_training.guard import LossGuard, Verdict
from lwm_training.loss import LossWeights, total_error
from lwm_training.provenance import provenance
from lwm_training.recipe import Recipe, Stage
from lwm_training.stages import Objective, check_recipe, learning_rate, trained_parameters
from lwm_training.stream import open_data
from lwm_training.teacher import open_teacher, take_parts
from lwm_training.train_log import TrainLog

log = logging.getLogger(__name__)
HANDED_ON = ("licences", "restricted", "teacher", "stages", "started_from")  # of a base's provenance


@dataclass
class Progress:
    """Where a run is; saved in every checkpoint."""

    stage: int = 0
    step: int = 0  # of the stage
    seconds: float = 0.0  # of the stage
    total_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)  # finished stages: name, steps, seconds


class Run:
    """One training run in a folder: checkpoints, log_book, and at the end the world."""

    def __init__(self, recipe: Recipe, out: Path, accelerator: Accelerator) -> None:
        check_recipe(recipe, accelerator.num_processes)
        torch.manual_seed(recipe.train.seed)
        self.recipe, self.out, self.accelerator = recipe, out, accelerator
        config = PRESETS[recipe.model.preset].override(
            {"frame_size": recipe.world.frame_size, **recipe.model.overrides}
        )
        self.model = WorldModel(config, recipe.world)
        self.started_from = _start(self.model, recipe.train.start) if recipe.train.start else None
        self.teaching, self.teacher_facts = None, None  # made last: a student begins as it would without a teacher
        if recipe.distill is not None:
            self.teaching, self.teacher_facts = open_teacher(recipe.distill.teacher, self.model, accelerator.device)
            take_parts(self.model, self.teaching.teacher, recipe.distill.take)
            self.teaching = self.teaching.to(accelerator.device)
        self.model = self.model.to(accelerator.device, memory_format=torch.channels_last)
        self.averaged = Averaged(self.model, recipe.train.average) if recipe.train.average else None
        if recipe.train.recompute:
            recompute_blocks(self.model)
        self.progress, self.guard = Progress(), LossGuard()
        self.checkpoints = out / "checkpoints"

    # -- state -------------------------------------------------------------------------------------------------------

    def save(self, optimizer: torch.optim.Optimizer, log_book: TrainLog) -> None:
        if self.accelerator.is_main_process:
            tensors, facts = flatten_optimizer(optimizer)
            tensors |= {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
            if self.teaching is not None:
                tensors |= {f"teaching.{name}": tensor for name, tensor in self.teaching.state_dict().items()}
            if self.averaged is not None:
                tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.weights.items()}
            facts = {**facts, "progress": vars(self.progress), "guard": self.guard.facts(), "log": log_book.facts()}
            facts["recipe"] = self.recipe.hash
            facts["averaged"] = 0 if self.averaged is None else self.averaged.updates
            save_checkpoint(self.checkpoints, self.progress.total_steps, tensors, facts)
        self.accelerator.wait_for_everyone()

    def load(self) -> Checkpoint | None:
        """Take the weights and the place of the last checkpoint, which is returned for the optimiser's sake."""
        found = load_latest(self.checkpoints)
        if found is None:
            return None
        if found.facts["recipe"] != self.recipe.hash:
            log.warning("%s was written with another recipe; going on with the one given now.", found.path)
        self._take_weights(found)
        self.progress = Progress(**found.facts["progress"])
        return found

    def _take_weights(self, found: Checkpoint) -> None:
        try:
            self.model.load_state_dict(_beginning_with("model.", found.tensors))
            if self.teaching is not None:
                self.teaching.load_state_dict(_beginning_with("teaching.", found.tensors))
            if self.averaged is not None:
                weights = _beginning_with("averaged.", found.tensors) or self.model.state_dict()
                self.averaged.load(weights, found.facts.get("averaged", 0))
        except RuntimeError as error:
            raise ConfigMismatch(
                f"{found.path} holds a model of another shape than the recipe describes. "
                f"Resume with the recipe that it was made with, or choose another folder. ({error})"
            ) from error

    # -- stages ------------------------------------------------------------------------------------------------------

    def train(self, log_book: TrainLog, resume: bool = True) -> WorldModel:
        """All stages that are not done yet."""
        if not resume and self.checkpoints.exists() and any(self.checkpoints.iterdir()):
            raise StorageError(
                f"{self.checkpoints} holds the checkpoints of a run. Leave --no-resume out to go on with it, "
                f"choose another --out, or remove that folder."
            )
        found = self.load()
        if found:
            self.guard.restore(found.facts["guard"])
            log_book.resume(found.facts.get("log", {}), self.progress.total_steps)
        stages = self.recipe.train.chosen
        for index in range(self.progress.stage, len(stages)):
            self._stage(stages[index], log_book, found)
            found = None
        if self.averaged is not None:
            self.model.load_state_dict(self.averaged.weights)
        return self.model.eval().requires_grad_(False)

    def _stage(self, stage: Stage, log_book: TrainLog, found: Checkpoint | None) -> None:
        recipe, rank = self.recipe, self.accelerator.process_index
        self.data = open_data(recipe.world, stage.data(recipe.data), recipe.train.seed, rank)
        parameters = trained_parameters(self.model, stage, self.teaching)
        optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
        if found and self.progress.step:
            restore_optimizer(optimizer, found.tensors, found.facts)
        objective = Objective(self.model, stage, LossWeights.from_recipe(stage.loss), self.teaching)
        objective, optimizer = self.accelerator.prepare(objective, optimizer)
        started, before = time.monotonic(), self.progress.seconds
        saved = before
        bar = log_book.bar(stage, self.progress.step)
        while self._share(stage) < 1:
            losses, verdict = self._step(stage, objective, optimizer, parameters)
            if verdict is Verdict.ROLLBACK:
                self._roll_back(optimizer)
            self.progress.seconds = self._agreed(before + time.monotonic() - started)
            frames = stage.unroll * (stage.batch_size or self.recipe.train.batch_size)
            place = {"stage": stage.name, "step": self.progress.step, "total_steps": self.progress.total_steps}
            place["skipped"] = self.guard.skipped
            log_book.step(bar, place, losses, frames, self._share(stage))
            if self.progress.seconds - saved > 60 * self.recipe.train.checkpoint_minutes:  # a clock all agree on
                self.save(_plain(optimizer), log_book)
                log_book.frames(self.model, self._some_pictures(), self.progress.total_steps)
                saved = self.progress.seconds
        bar.close()
        done = {"name": stage.name, "steps": self.progress.step, "seconds": round(self.progress.seconds, 1)}
        self.progress = Progress(
            self.progress.stage + 1, 0, 0.0, self.progress.total_steps, [*self.progress.history, done]
        )
        self.save(_plain(optimizer), log_book)
        self.accelerator.free_memory()

    def _share(self, stage: Stage) -> float:
        """How much of the stage is done, by steps or by minutes."""
        if stage.steps is not None:
            return self.progress.step / stage.steps
        return self.progress.seconds / (60 * stage.minutes)

    def _agreed(self, seconds: float) -> float:
        """The first process's clock, so that all end a stage at the same step."""
        if self.accelerator.num_processes == 1:
            return seconds
        value = torch.tensor(seconds, device=self.accelerator.device)
        torch.distributed.broadcast(value, 0)
        return float(value)

    def _seen_before(self, stage: Stage) -> bool:
        """Whether what registration finds in a shard is kept, since it is asked for more often than there are steps."""
        if self.model.flows:
            return stage.trains != "tokenizer"
        if self.model.lattice is not None:  # what its motions cost takes longer than a step
            return stage.trains != "tokenizer"
        often = stage.trains in ("camera", "movers", "ahead")
        return often and self.accelerator.device.type == "cpu" and self.model.config.camera.max_motion > 0

    def _step(self, stage: Stage, objective, optimizer, parameters) -> tuple[dict[str, Tensor], Verdict]:
        """One batch; each process computes its share of it."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        seed, step = self.recipe.train.seed, self.progress.total_steps
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 64 + rank)
        context = 1 if stage.trains == "tokenizer" else self._context(stage, seed, step)
        batch = len(range(rank, stage.batch_size or self.recipe.train.batch_size, world))
        sight = sight_of(self.model) if self._seen_before(stage) else None
        clips = self.data.clips(step, batch, context - 1 + stage.unroll, context - 1, sight)
        scale = learning_rate(stage, self.progress.step, self._share(stage)) * self.guard.learning_rate_scale
        for group in optimizer.param_groups:
            group["lr"] = scale
        losses = objective(clips, context, generator)
        loss = total_error(losses, self.accelerator.unwrap_model(objective).weights)
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(parameters, 1.0)
        verdict = self.guard.check(self.accelerator.reduce(loss.detach(), "mean"), norm)
        if verdict is Verdict.STEP:
            optimizer.step()
            if self.averaged is not None:
                self.averaged.update(self.model)
        self.progress.step += 1
        self.progress.total_steps += 1
        return {**{name: value.detach() for name, value in losses.items()}, "gradient_norm": norm.detach()}, verdict

    def _some_pictures(self) -> Tensor:
        """Of the shard of the last step, so that none is played for them."""
        return as_batch(self.data.clips(self.progress.total_steps - 1, 8, 1), self.model).pixels[:, 0]

    def _context(self, stage: Stage, seed: int, step: int) -> int:
        generator = torch.Generator().manual_seed(seed * 7919 + step)
        return int(torch.randint(min(2, stage.context), stage.context + 1, (1,), generator=generator))

    def _roll_back(self, optimizer) -> None:
        """Weights and optimiser of the last checkpoint of this stage; the place in the data stays, so that it differs.

        The first stage may have none yet; its weights are finite nevertheless, since bad steps are skipped.
        """
        found = load_latest(self.checkpoints)
        if found is None or found.facts["progress"]["stage"] != self.progress.stage:
            return
        log.warning("Too many steps were not finite: back to %s at half the learning rate.", found.path)
        self._take_weights(found)
        if found.facts["progress"]["step"]:
            restore_optimizer(_plain(optimizer), found.tensors, found.facts)
        else:  # written at the end of the stage before, whose optimiser is of other parameters
            _plain(optimizer).state.clear()


def _beginning_with(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _plain(optimizer) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def make_accelerator(device: str) -> Accelerator:
    """bf16 on CUDA, float32 on a CPU, where bf16 is emulated."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigMismatch("no CUDA device is visible to torch. Train with --device cpu, or install torch for CUDA.")
    cuda = device != "cpu" and torch.cuda.is_available()
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=not cuda, mixed_precision="bf16" if cuda else "no", kwargs_handlers=[unused])


def _start(model: WorldModel, world: str) -> dict[str, Any]:
    """Take from a world the weights that have the same name and shape; returns what they were, for the provenance."""
    folder = worlds.find(world)
    manifest = worlds.verify(folder)
    given = safetensors.torch.load_file(folder / WEIGHTS)
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in given.items() if name in own and tensor.shape == own[name].shape}
    if not fitting:
        raise ConfigMismatch(
            f"train.start = {world!r} has no tensor of the same name and shape as the recipe's model. "
            f"Give the recipe the same preset, or start from another world."
        )
    model.load_state_dict({**own, **{name: tensor.float() for name, tensor in fitting.items()}})
    fresh = sorted(set(own) - set(fitting))
    if fresh:
        log.warning("%d of %d tensors start anew, %s has none of their shape: %s", len(fresh), len(own), world, fresh)
    return {
        "weights": manifest.files[WEIGHTS].sha256,
        "fresh": fresh,
        **{key: manifest.provenance.get(key) for key in HANDED_ON},
    }


def train_world(recipe: Recipe, out: Path, device: str = "auto", resume: bool = True) -> Path:
    """Run a recipe to its end and write the world to `out/world`; returns that folder.

    Raises:
        StorageError, CorruptFile, TrainingDiverged: see `lwm_training.checkpoint` and `guard`.
    """
    from lwm_training.prompts import prompt_bank

    accelerator = make_accelerator(device)
    run = Run(recipe, out, accelerator)
    main = accelerator.is_main_process
    with TrainLog(out, enabled=main, log_every=recipe.train.log_every) as log_book:
        model = run.train(log_book, resume)
    world = out / "world"
    if main:
        model.prompts = prompt_bank(recipe.world, recipe.data, recipe.train.seed)
        model.save(world, provenance=provenance(recipe, run.progress.history, run.started_from, run.teacher_facts))
    accelerator.wait_for_everyone()
    return world

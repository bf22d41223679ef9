"""From a recipe to a world: stage by stage, resumable, on a CPU or on as many devices as accelerate was launched with."""

import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from lwm_env.presets import PRESETS
from lwm_env.world_model import WorldModel
from lwm_training.checkpoint import flatten_optimizer, load_latest, restore_optimizer, save_checkpoint
from lwm_training.guard import LossGuard, Verdict
from lwm_training.loss import LossWeights, as_batch, codec_error, motion_errors, total_error, unroll_errors
from lwm_training.recipe import Recipe, Stage
from lwm_training.stream import open_data
from lwm_training.train_log import TrainLog

log = logging.getLogger(__name__)
DECAY_FROM = 0.5  # share of a stage after which the learning rate falls, to FLOOR of itself
FLOOR = 0.02


class Objective(nn.Module):
    """The losses of one stage as a module, so that accelerate can spread it over devices."""

    def __init__(self, model: WorldModel, stage: Stage, weights: LossWeights) -> None:
        super().__init__()
        self.model, self.stage, self.weights = model, stage, weights

    def forward(self, clips, context: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = as_batch(clips, self.model)
        if self.stage.trains == "tokenizer":
            return {"codec": codec_error(self.model.tokenizer, batch.pixels.flatten(0, 1), self.weights.edges).mean()}
        if self.stage.trains == "motion":
            return motion_errors(self.model, batch, context)
        return unroll_errors(self.model, batch, context, self.weights, generator)


@dataclass
class Progress:
    """Where a run is; saved in every checkpoint."""

    stage: int = 0
    step: int = 0  # of the stage
    seconds: float = 0.0  # of the stage
    total_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)  # finished stages: name, steps, seconds


def trained_parameters(model: WorldModel, stage: Stage) -> list[nn.Parameter]:
    """The parameters of a stage; the others are frozen."""
    model.requires_grad_(False)
    parts = {
        "tokenizer": [model.tokenizer],
        "motion": [model.motion],
        "dynamics": [model],
        "joint": [model],
    }[stage.trains]
    for part in parts:
        part.requires_grad_(True)
    if stage.trains == "dynamics":
        model.tokenizer.encoder.requires_grad_(False)
    if stage.trains == "motion":  # what composes the picture waits for its own stage
        for part in (model.motion.merge, model.motion.refine, model.motion.layers, model.motion.up):
            part.requires_grad_(False)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def learning_rate(stage: Stage, step: int, share: float) -> float:
    """Rises over the warm-up, holds, then falls along a cosine; `share` of the stage is done."""
    rise = min(1.0, (step + 1) / max(1, stage.warmup))
    fall = max(0.0, (share - DECAY_FROM) / (1 - DECAY_FROM))
    if not stage.decay:
        return stage.learning_rate * rise
    return stage.learning_rate * rise * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, fall))))


class Run:
    """One training run in a folder: checkpoints, log_book, and at the end the world."""

    def __init__(self, recipe: Recipe, out: Path, accelerator: Accelerator) -> None:
        torch.manual_seed(recipe.train.seed)
        self.recipe, self.out, self.accelerator = recipe, out, accelerator
        config = PRESETS[recipe.model.preset].override(
            {"frame_size": recipe.world.frame_size, **recipe.model.overrides}
        )
        self.model = WorldModel(config, recipe.world).to(accelerator.device, memory_format=torch.channels_last)
        self.data = open_data(recipe.world, recipe.data, recipe.train.seed)
        self.progress, self.guard = Progress(), LossGuard()
        self.checkpoints = out / "checkpoints"

    # -- state -------------------------------------------------------------------------------------------------------

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        if self.accelerator.is_main_process:
            tensors, facts = flatten_optimizer(optimizer)
            tensors = {**tensors, **{f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}}
            facts = {**facts, "progress": vars(self.progress), "guard": self.guard.facts(), "recipe": self.recipe.hash}
            save_checkpoint(self.checkpoints, self.progress.total_steps, tensors, facts)
        self.accelerator.wait_for_everyone()

    def load(self) -> dict[str, Any] | None:
        """Take the weights and the place of the last checkpoint; returns what the optimiser needs."""
        found = load_latest(self.checkpoints)
        if found is None:
            return None
        if found.facts["recipe"] != self.recipe.hash:
            log.warning("%s was written with another recipe; going on with the one given now.", found.path)
        weights = {name.removeprefix("model."): t for name, t in found.tensors.items() if name.startswith("model.")}
        self.model.load_state_dict(weights)
        self.progress = Progress(**found.facts["progress"])
        return {"tensors": found.tensors, "facts": found.facts}

    # -- stages ------------------------------------------------------------------------------------------------------

    def train(self, log_book: TrainLog, resume: bool = True) -> WorldModel:
        """All stages that are not done yet."""
        found = self.load() if resume else None
        if found:
            self.guard.restore(found["facts"]["guard"])
        stages = self.recipe.train.stages
        for index in range(self.progress.stage, len(stages)):
            self._stage(stages[index], log_book, found)
            found = None
        return self.model.eval().requires_grad_(False)

    def _stage(self, stage: Stage, log_book: TrainLog, found: dict[str, Any] | None) -> None:
        parameters = trained_parameters(self.model, stage)
        optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
        if found and self.progress.step:
            restore_optimizer(optimizer, found["tensors"], found["facts"])
        objective = Objective(self.model, stage, LossWeights.from_recipe(stage.loss))
        objective, optimizer = self.accelerator.prepare(objective, optimizer)
        saved = started = time.monotonic()
        before = self.progress.seconds
        bar = log_book.bar(stage, self.progress.step)
        while self._share(stage) < 1:
            losses, verdict = self._step(stage, objective, optimizer, parameters)
            if verdict is Verdict.ROLLBACK:
                self._roll_back(optimizer)
            self.progress.seconds = self._agreed(before + time.monotonic() - started)
            frames = stage.unroll * self.recipe.train.batch_size
            place = {"stage": stage.name, "step": self.progress.step, "total_steps": self.progress.total_steps}
            log_book.step(bar, place, losses, frames, self._share(stage))
            if time.monotonic() - saved > 60 * self.recipe.train.checkpoint_minutes:
                self.save(_plain(optimizer))
                log_book.frames(self.model, self._some_pictures(), self.progress.total_steps)
                saved = time.monotonic()
        bar.close()
        done = {"name": stage.name, "steps": self.progress.step, "seconds": round(self.progress.seconds, 1)}
        self.progress = Progress(
            self.progress.stage + 1, 0, 0.0, self.progress.total_steps, [*self.progress.history, done]
        )
        self.save(_plain(optimizer))
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

    def _step(self, stage: Stage, objective, optimizer, parameters) -> tuple[dict[str, Tensor], Verdict]:
        """One batch; each process computes its share of it."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        seed, step = self.recipe.train.seed, self.progress.total_steps
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 64 + rank)
        context = 1 if stage.trains == "tokenizer" else self._context(stage, seed, step)
        clips = self.data.clips(step, self.recipe.train.batch_size, context - 1 + stage.unroll, context - 1)
        scale = learning_rate(stage, self.progress.step, self._share(stage)) * self.guard.learning_rate_scale
        for group in optimizer.param_groups:
            group["lr"] = scale
        losses = objective(clips.part(rank, world), context, generator)
        loss = total_error(losses, self._weights(objective))
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(parameters, 1.0)
        verdict = self.guard.check(self.accelerator.reduce(loss.detach(), "mean"), norm)
        if verdict is Verdict.STEP:
            optimizer.step()
        self.progress.step += 1
        self.progress.total_steps += 1
        return {**{name: value.detach() for name, value in losses.items()}, "gradient_norm": norm.detach()}, verdict

    def _some_pictures(self) -> Tensor:
        return as_batch(self.data.clips(self.progress.total_steps, 8, 1), self.model).pixels[:, 0]

    def _context(self, stage: Stage, seed: int, step: int) -> int:
        generator = torch.Generator().manual_seed(seed * 7919 + step)
        return int(torch.randint(min(2, stage.context), stage.context + 1, (1,), generator=generator))

    def _weights(self, objective) -> LossWeights:
        return self.accelerator.unwrap_model(objective).weights

    def _roll_back(self, optimizer) -> None:
        """Weights and optimiser of the last checkpoint of this stage; the place in the data stays, so that it differs."""
        found = load_latest(self.checkpoints)
        if found is None or found.facts["progress"]["stage"] != self.progress.stage:
            return
        weights = {name.removeprefix("model."): t for name, t in found.tensors.items() if name.startswith("model.")}
        self.model.load_state_dict(weights)
        restore_optimizer(_plain(optimizer), found.tensors, found.facts)


def _plain(optimizer) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def make_accelerator(device: str) -> Accelerator:
    """bf16 on CUDA, float32 on a CPU, where bf16 is emulated."""
    cuda = device != "cpu" and torch.cuda.is_available()
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=not cuda, mixed_precision="bf16" if cuda else "no", kwargs_handlers=[unused])


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
        model.save(world, provenance=provenance(recipe, run.progress))
    accelerator.wait_for_everyone()
    return world


def provenance(recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """Where the weights come from, for world.json."""
    return {
        "source": recipe.world.real.source,
        "recipe": json.loads(recipe.to_json()),
        "recipe_sha256": recipe.hash,
        "stages": progress.history,
        "torch": torch.__version__,
        "teacher": None,
    }

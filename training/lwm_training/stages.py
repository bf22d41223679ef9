"""What a stage of training is: its losses, its parameters, its learning rate."""

import math
from operator import attrgetter

import torch
from torch import Tensor, nn

from lwm_env.errors import ConfigMismatch
from lwm_env.presets import PRESETS
from lwm_env.world_model import WorldModel
from lwm_training.ahead_loss import ahead_errors
from lwm_training.batch import as_batch, chosen_with, sightings
from lwm_training.camera_loss import camera_unroll
from lwm_training.event_loss import event_errors
from lwm_training.flow_loss import flow_parts, flow_unroll, turn_errors
from lwm_training.loss import LossWeights, unroll_errors
from lwm_training.mover_loss import FEW, MANY, movers_errors
from lwm_training.picture_loss import codec_error, end_error
from lwm_training.policies import Players, parse_policy
from lwm_training.recipe import Recipe, Stage
from lwm_training.replay import Replay
from lwm_training.teacher import Teaching

DECAY_FROM = 0.5  # share of a stage after which the learning rate falls, to FLOOR of itself
FLOOR = 0.02


class Objective(nn.Module):
    """The losses of one stage as a module, so that accelerate can spread it over devices."""

    def __init__(self, model: WorldModel, stage: Stage, weights: LossWeights, teaching: Teaching | None = None) -> None:
        super().__init__()
        self.model, self.stage, self.weights, self.teaching = model, stage, weights, teaching
        self.replay = Replay(FEW if stage.trains == "movers" and weights.spots else MANY)
        if teaching is not None:
            teaching.compare_tokens(model)

    def forward(self, clips, context: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = as_batch(clips, self.model)
        if self.stage.trains == "camera":
            shown = chosen_with(self.weights.shown, batch, generator) if self.weights.shown else None
            return camera_unroll(self.model, batch, context, self.stage.dreamed, self.teaching, shown)
        if self.stage.trains == "movers":
            seen = sightings(self.model, batch)
            motion = seen.motion * seen.sure[..., None]
            return movers_errors(self.model, batch, motion, context, self.replay, generator, self.weights.spots > 0)
        if self.stage.trains == "flow":
            if self.model.turns:
                return turn_errors(self.model, batch, context, self.replay, generator)
            return flow_unroll(self.model, batch, context)
        if self.stage.trains == "ahead":
            return ahead_errors(self.model, batch, generator, self.weights.edges)
        if self.stage.trains == "events":
            return event_errors(self.model, batch, context, self.weights, generator)
        losses: dict[str, Tensor] = {}
        if self.teaching is not None and self.stage.trains in ("tokenizer", "joint"):
            losses["teacher_latent"] = self.teaching.latent_error(self.model, batch.pixels[:, 0])
        if self.stage.trains == "tokenizer":
            pixels, others = (x.flatten(0, 1) for x in (batch.pixels, batch.pixels.roll(1, dims=1)))
            weights = self.weights
            codec = codec_error(self.model.tokenizer, pixels, others, weights.edges, weights.changed, weights.squared)
            if weights.ends:
                losses["ends"] = end_error(self.model.tokenizer, pixels).mean()
            return {"codec": codec.mean(), **losses}
        return losses | unroll_errors(self.model, batch, context, self.weights, generator, self.teaching)


def trained_parameters(model: WorldModel, stage: Stage, teaching: Teaching | None = None) -> list[nn.Parameter]:
    """The parameters of a stage, with the adapters to a teacher; the others are frozen."""
    model.requires_grad_(False)
    parts = {
        "tokenizer": lambda: [model.tokenizer],
        "camera": lambda: [model.camera],
        "movers": lambda: [model.motion.movers],
        "flow": lambda: flow_parts(model.motion),
        "ahead": lambda: [model.ahead],
        "events": lambda: [model.events],
        "dynamics": lambda: [model],
        "joint": lambda: [model],
    }[stage.trains]
    for part in parts():
        part.requires_grad_(True)
    if stage.trains == "dynamics":
        model.tokenizer.encoder.requires_grad_(False)
        model.camera.requires_grad_(False)
        for part in (model.ahead, model.motion.movers, model.motion.flow if model.turns else None):
            if part is not None:
                part.requires_grad_(False)
    adapters = [] if teaching is None else list(teaching.parameters())
    return [*(parameter for parameter in model.parameters() if parameter.requires_grad), *adapters]


def learning_rate(stage: Stage, step: int, share: float) -> float:
    """Rises over the warm-up, holds, then falls along a cosine; `share` of the stage is done."""
    rise = min(1.0, (step + 1) / max(1, stage.warmup))
    fall = max(0.0, (share - DECAY_FROM) / (1 - DECAY_FROM))
    if not stage.decay:
        return stage.learning_rate * rise
    return stage.learning_rate * rise * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, fall))))


def check_recipe(recipe: Recipe, num_processes: int) -> None:
    """ConfigMismatch for what would otherwise stop a run when it has been under way for an hour."""
    smallest = min(stage.batch_size or recipe.train.batch_size for stage in recipe.train.stages)
    if smallest < num_processes:
        raise ConfigMismatch(
            f"batch_size is {smallest}, but {num_processes} processes share a batch. "
            f"Set it to {num_processes} or more, or start fewer processes."
        )
    if recipe.data.prompt_policy is not None:
        parse_policy(recipe.data.prompt_policy, Players.of(recipe.world, recipe.data.num_envs, recipe.train.seed))
    for stage in recipe.train.stages:
        LossWeights.from_recipe(stage.loss)
        _check_taught(recipe, stage)
        model = PRESETS[recipe.model.preset].override(recipe.model.overrides)
        needed = {"movers": "motion.movers", "flow": "motion.flow", "ahead": "ahead.width"}.get(stage.trains)
        if needed and not attrgetter(needed)(model):
            raise ConfigMismatch(f"the stage {stage.name} trains {stage.trains}, but {needed} is 0. Set it.")
        longest = (1 if stage.trains == "tokenizer" else stage.context) - 1 + stage.unroll
        if recipe.data.kind == "stream" and longest > recipe.data.shard_steps:
            raise ConfigMismatch(
                f"the stage {stage.name} learns from clips of up to {longest} steps (context - 1 + unroll), but "
                f"data.shard_steps is {recipe.data.shard_steps}. Set that to {longest} or more."
            )


def is_of_teacher(name: str) -> bool:
    """Whether a weight of a stage's loss counts only where there is a teacher."""
    return name.startswith("teacher_")


def _check_taught(recipe: Recipe, stage: Stage) -> None:
    asked = sorted(filter(is_of_teacher, stage.loss))
    if asked and recipe.distill is None:
        raise ConfigMismatch(
            f"the stage {stage.name} weighs {', '.join(asked)}, but the recipe has no teacher. "
            f"Name one with distill.teacher, or leave these out."
        )

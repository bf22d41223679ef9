"""What a stage of training is: its losses, its parameters, its learning rate."""

import math

import torch
from torch import Tensor, nn

from lwm_env.errors import ConfigMismatch
from lwm_env.world_model import WorldModel
from lwm_training.loss import LossWeights, as_batch, camera_unroll, codec_error, unroll_errors
from lwm_training.recipe import Recipe, Stage

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
            pixels, others = (x.flatten(0, 1) for x in (batch.pixels, batch.pixels.roll(1, dims=1)))
            return {"codec": codec_error(self.model.tokenizer, pixels, others, self.weights).mean()}
        if self.stage.trains == "camera":
            return camera_unroll(self.model, batch, context, self.stage.dreamed)
        return unroll_errors(self.model, batch, context, self.weights, generator)


def trained_parameters(model: WorldModel, stage: Stage) -> list[nn.Parameter]:
    """The parameters of a stage; the others are frozen."""
    model.requires_grad_(False)
    parts = {
        "tokenizer": [model.tokenizer],
        "camera": [model.camera],
        "dynamics": [model],
        "joint": [model],
    }[stage.trains]
    for part in parts:
        part.requires_grad_(True)
    if stage.trains == "dynamics":
        model.tokenizer.encoder.requires_grad_(False)
        model.camera.requires_grad_(False)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


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
    for stage in recipe.train.stages:
        LossWeights.from_recipe(stage.loss)
        longest = (1 if stage.trains == "tokenizer" else stage.context) - 1 + stage.unroll
        if recipe.data.kind == "stream" and longest > recipe.data.shard_steps:
            raise ConfigMismatch(
                f"the stage {stage.name} learns from clips of up to {longest} steps (context - 1 + unroll), but "
                f"data.shard_steps is {recipe.data.shard_steps}. Set that to {longest} or more."
            )

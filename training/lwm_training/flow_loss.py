"""What teaches the flow: its copy of the last picture is compared with the next one, also coarsely, so that a motion of
many pixels is felt (an image pyramid, as in Zhou et al., 2017, arXiv:1704.07813)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.motion import Motion
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch, last_frames

SCALES = (1, 2, 4, 8)  # pixels averaged along each side


def flow_error(copy: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of pictures (B, 3, H, W) per picture, the mean of all scales: (B,)."""
    return sum(F.avg_pool2d(copy - target, scale).abs().mean((1, 2, 3)) for scale in SCALES) / len(SCALES)


def flow_parts(motion: Motion) -> list[nn.Module]:
    """What a flow is made by."""
    parts = [motion.recent, motion.older, motion.down, motion.condition, motion.films, motion.blocks, motion.attention]
    return [part for part in [*parts, motion.flow] if part is not None]


def flow_unroll(model: WorldModel, batch: Batch, context: int) -> Tensor:
    """The `flow_error` along real frames, all at once and without drawing; mean over the valid steps from the
    `context`-th frame on."""
    past = model.config.motion.context_frames
    steps = range(context - 1, batch.actions.shape[1])
    frames = torch.stack([batch.pixels[:, last_frames(t, past)] for t in steps], 1).flatten(0, 1)
    action = model.embed(batch.actions[:, steps.start :].flatten(0, 1))
    nothing = action.new_zeros(len(action), 2)
    memory = action.new_zeros(len(action), model.motion.kept_dim)
    reading = model.motion.read(frames, action, nothing, nothing, memory)
    valid = batch.valid[:, steps.start :].flatten()
    error = flow_error(reading.copies[:, 0], batch.pixels[:, context:].flatten(0, 1))
    return (error * valid).sum() / valid.sum().clamp(min=1)

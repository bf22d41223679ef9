"""What a training step learns from: clips on the device, and what the real camera did in them.

Shapes: B clips, T steps, P players.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lwm_env.belief import Belief
from lwm_env.flow import Flow
from lwm_env.registration import Sighting
from lwm_env.tokenizer import to_pixels
from lwm_env.world_model import WorldModel


@dataclass(frozen=True)
class Batch:
    """Clips as tensors: pixels (B, T + 1, 3, H, W) in [-1, 1], actions (B, T, P[, A]), rewards as indices of the
    world's reward values (B, T, P), ends (B, T) and valid (B, T) as floats, and sightings if they are known already."""

    pixels: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
    valid: Tensor
    sightings: Tensor | None = None


def as_batch(clips, model: WorldModel) -> Batch:
    """Clips of numpy arrays onto the model's device."""
    device = model.reward_values.device
    rewards = torch.from_numpy(clips.rewards).to(device)
    return Batch(
        pixels=to_pixels(torch.from_numpy(clips.observations).to(device)),
        actions=torch.from_numpy(clips.actions).to(device),
        rewards=(rewards[..., None] - model.reward_values).abs().argmin(-1),
        ends=torch.from_numpy(clips.terminations).to(device).float(),
        valid=torch.from_numpy(clips.valid).to(device).float(),
        sightings=None if clips.sightings is None else torch.from_numpy(clips.sightings).to(device),
    )


def chosen_with(share: float, batch: Batch, generator: torch.Generator) -> Tensor:
    """A `share` of the clips, drawn by chance: bool (B,)."""
    return (torch.rand(len(batch.pixels), generator=generator) < share).to(batch.pixels.device)


def last_frames(t: int, count: int) -> list[int]:
    """Which frames are seen before step t: its last `count`, the first one again where there are none before it."""
    return [max(0, t + k) for k in range(1 - count, 1)]


def mean_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of (B, ...) over the rows that count."""
    per_row = values.flatten(1).mean(1) if values.ndim > 1 else values
    return (per_row * valid).sum() / valid.sum().clamp(min=1)


def sightings(model: WorldModel, batch: Batch) -> Sighting:
    """The real camera's motion of every step: motion (B, T, 2), of a flow (B, T, motion_dim), and sure (B, T)."""
    if batch.sightings is not None:
        motion, sure = batch.sightings[..., :-1], batch.sightings[..., -1] > 0
        if model.lattice is None:
            return Sighting(motion, sure)
        return Sighting(motion[..., :2], sure, motion[..., 2:])
    before, after = (batch.pixels[:, part].flatten(0, 1) for part in (slice(None, -1), slice(1, None)))
    seen = sight_of(model)(before, after)
    return Sighting(*(part if part is None else part.unflatten(0, batch.valid.shape) for part in seen))


def sight_of(model: WorldModel) -> Callable[[Tensor, Tensor], Sighting]:
    """What finds how the camera went between real pictures (B, 3, H, W)."""
    if isinstance(model.motion.flow, Flow):
        from lwm_training.optical_flow import sight_field  # needs OpenCV

        return partial(sight_field, model.motion.flow)
    return model.sight


def at(seen: Sighting, t: int) -> Sighting:
    """That of step t."""
    return Sighting(*(part if part is None else part[:, t] for part in seen))


@torch.no_grad()
def context_belief(
    model: WorldModel, batch: Batch, seen: Sighting, context: int, offset: Tensor | None = None
) -> Belief:
    """The belief after the first `context` real frames, observed one by one as an env does, without gradients; begun
    with an offset (B, 2), if it is known."""
    belief = model.believe(batch.pixels[:, 0])
    if offset is not None:
        belief = belief._replace(offset=offset)
    for t in range(context - 1):
        belief = model.observe(belief, batch.actions[:, t], batch.pixels[:, t + 1], at(seen, t))
    return belief

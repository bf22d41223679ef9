"""What is minimised: the tokenizer's reconstruction, and the unrolled world on real continuations.

Shapes: B clips, T steps, P players, D latent dimensions, L levels, h x w cells.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.errors import ConfigMismatch
from lwm_env.tokenizer import Tokenizer, to_pixels
from lwm_env.world_model import Belief, Proposal, WorldModel
from lwm_training.registration import global_motion

REACH = 8  # pixels that registration searches
SURE = 0.7  # confidence of a registration above which it is believed
REPLAYED_FROM = 4  # unrolls of at least so many steps start from replayed frames


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """How much each term counts; set in the recipe."""

    codec: float = 4.0
    edges: float = 2.0  # on differences of neighbouring pixels, beside every picture loss
    moved: float = 4.0
    motion: float = 1.0  # distance in pixels from the motion found by registration, where it is sure
    tokens: float = 0.25
    drawn: float = 4.0
    reward: float = 0.1
    end: float = 0.1
    true_tokens: float = 0.3  # share of clips that are drawn from the true tokens instead of predicted ones

    @classmethod
    def from_recipe(cls, changes: dict[str, float]) -> "LossWeights":
        """The defaults with a stage's own weights; ConfigMismatch names what is unknown."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise ConfigMismatch(f"unknown loss weights {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**changes)


@dataclass(frozen=True)
class Batch:
    """Clips as tensors: pixels (B, T + 1, 3, H, W) in [-1, 1], actions (B, T, P[, A]), rewards as indices of the
    world's reward values (B, T, P), ends (B, T) and valid (B, T) as floats."""

    pixels: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor
    valid: Tensor


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
    )


def picture_error(predicted: Tensor, target: Tensor, edges: float) -> Tensor:
    """Mean absolute error per picture, with that of horizontal and vertical differences: (B,)."""
    error = predicted - target
    rows, columns = error.diff(dim=-2), error.diff(dim=-1)
    return error.abs().mean((1, 2, 3)) + edges * (rows.abs().mean((1, 2, 3)) + columns.abs().mean((1, 2, 3))) / 2


def codec_error(tokenizer: Tokenizer, pixels: Tensor, edges: float) -> Tensor:
    """Reconstruction error of pictures (B, 3, H, W) through the tokens alone: (B,)."""
    return picture_error(tokenizer.decode(tokenizer.quantize(tokenizer.encode(pixels))), pixels, edges)


def total_error(losses: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """The weighted sum of the terms."""
    return torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()


def mean_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of (B, ...) over the rows that count."""
    per_row = values.flatten(1).mean(1) if values.ndim > 1 else values
    return (per_row * valid).sum() / valid.sum().clamp(min=1)


def context_belief(model: WorldModel, batch: Batch, context: int, replay: bool = True) -> Belief:
    """The belief after the first `context` real frames, without gradients.

    `replay` observes them one by one as an env does. Without it the frames are taken as they are, with the motion
    found by registration and a canvas that knows the last frame only: a third of the work of a short unroll.
    """
    with torch.no_grad():
        if replay:
            belief = model.believe(batch.pixels[:, 0])
            for t in range(context - 1):
                belief = model.observe(belief, batch.actions[:, t], batch.pixels[:, t + 1])
            return belief
        belief = model.believe(batch.pixels[:, context - 1])
        kept = min(context, belief.frames.shape[1])
        frames = torch.cat([belief.frames[:, kept:], batch.pixels[:, context - kept : context]], 1)
        if context > 1:
            motion, confidence = registered_motion(batch.pixels[:, context - 2], batch.pixels[:, context - 1])
            belief = belief._replace(motion=motion * (confidence > SURE)[:, None])
        return belief._replace(frames=frames)


def step_errors(model: WorldModel, proposal: Proposal, batch: Batch, t: int, weights: LossWeights, from_truth: Tensor):
    """Losses of the step to frame t + 1 and the picture drawn: (dict of scalars, (B, 3, H, W))."""
    tokenizer, target = model.tokenizer, batch.pixels[:, t + 1]
    valid = batch.valid[:, t]
    with torch.no_grad():
        true_latent = tokenizer.quantize(tokenizer.encode(target))
        predicted = tokenizer.levels[proposal.logits.argmax(2)]
        latent = torch.where(from_truth[:, None, None, None], true_latent, predicted)
    drawn = tokenizer.decode(latent, proposal.moved)
    reward_logits, end_logit = model.events(proposal.hidden, proposal.moved_latent, latent)
    tokens = F.cross_entropy(proposal.logits.transpose(1, 2), tokenizer.indices(true_latent), reduction="none")
    rewards = F.cross_entropy(reward_logits.flatten(0, 1), batch.rewards[:, t].flatten(), reduction="none")
    motion, confidence = registered_motion(batch.pixels[:, t], target)
    distance = motion_distance(proposal.motion, motion)
    losses = {
        "motion": mean_valid(distance * (confidence > SURE), valid),
        "moved": mean_valid(picture_error(proposal.moved, target, weights.edges), valid),
        "tokens": mean_valid(tokens, valid),
        "drawn": mean_valid(picture_error(drawn, target, weights.edges), valid),
        "reward": mean_valid(rewards.view(len(valid), -1), valid),
        "end": mean_valid(F.binary_cross_entropy_with_logits(end_logit, batch.ends[:, t], reduction="none"), valid),
    }
    return losses, drawn


def registered_motion(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's motion and confidence, in float32 also where the model computes in bfloat16: registration
    subtracts large sums of squares. Small pictures are searched less far, so that something is left to compare."""
    with torch.autocast(before.device.type, enabled=False):
        return global_motion(before.float(), after.float(), reach=min(REACH, min(before.shape[-2:]) // 4))


def motion_distance(estimated: Tensor, registered: Tensor) -> Tensor:
    """Quadratic up to 2 pixels, since registered motions are rounded; linear, then flat, since some are wrong: (B,)."""
    return F.smooth_l1_loss(estimated, registered, reduction="none", beta=2.0).clamp(max=10).sum(1)


def motion_errors(model: WorldModel, batch: Batch, context: int) -> dict[str, Tensor]:
    """Distance in pixels between the estimated and the registered motion after `context` real frames."""
    belief = context_belief(model, batch, context, replay=False)
    motion, confidence = registered_motion(batch.pixels[:, context - 1], batch.pixels[:, context])
    action = model.embed(batch.actions[:, context - 1])
    _, estimated, _ = model.motion.estimate(belief.frames, action, belief.motion, belief.carry)
    distance = motion_distance(estimated, motion) * (confidence > SURE)
    return {"motion": mean_valid(distance, batch.valid[:, context - 1])}


def unroll_errors(model: WorldModel, batch: Batch, context: int, weights: LossWeights, generator: torch.Generator):
    """Losses of an unroll on the model's own frames, the mean over the steps after `context` frames."""
    steps = range(context - 1, batch.actions.shape[1])
    belief = context_belief(model, batch, context, replay=len(steps) >= REPLAYED_FROM)
    totals: dict[str, Tensor] = {}
    for t in steps:
        proposal = model.propose(belief, batch.actions[:, t])
        draw = torch.rand(len(batch.pixels), generator=generator) < weights.true_tokens
        losses, drawn = step_errors(model, proposal, batch, t, weights, draw.to(batch.pixels.device))
        for name, value in losses.items():
            totals[name] = totals.get(name, 0) + value / len(steps)
        belief = model.commit(belief, proposal, drawn.clamp(-1, 1))
    some = batch.pixels[: -(-len(batch.pixels) // 4), 0]  # a quarter of the clips
    totals["codec"] = codec_error(model.tokenizer, some, weights.edges).mean()
    return totals

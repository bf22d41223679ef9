"""What teaches the flow: its copy of the last picture is compared with the next one, also coarsely, so that a motion of
many pixels is felt (an image pyramid, as in Zhou et al., 2017, arXiv:1704.07813); of a view that turns, its motion with
the one that registration finds."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.flow import CARRY, Flow, Turn
from lwm_env.motion import Motion
from lwm_env.registration import Sighting
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch, at, last_frames, mean_valid, sightings
from lwm_training.replay import Replay

SCALES = (1, 2, 4, 8)  # pixels averaged along each side


def flow_error(copy: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of pictures (B, 3, H, W) per picture, the mean of all scales: (B,)."""
    return sum(F.avg_pool2d(copy - target, scale).abs().mean((1, 2, 3)) for scale in SCALES) / len(SCALES)


def flow_distance(flow: Flow | Turn, estimate: Tensor, seen: Sighting) -> Tensor:
    """How many pixels an estimated motion (B, motion_dim) is from the seen one, turns counted at the view's edge, where
    that is sure: (B,)."""
    off = estimate - seen.motion
    if isinstance(flow, Turn):
        off = off * off.new_tensor([1, 1, max(flow.middle)])
    return F.smooth_l1_loss(off, torch.zeros_like(off), reduction="none", beta=0.2).clamp(max=10).mean(1) * seen.sure


def flow_parts(motion: Motion) -> list[nn.Module]:
    """What a flow is made by."""
    if isinstance(motion.flow, Turn):
        return [motion.flow]
    parts = [motion.recent, motion.older, motion.down, motion.condition, motion.films, motion.blocks, motion.attention]
    return [part for part in [*parts, motion.flow] if part is not None]


def flow_unroll(model: WorldModel, batch: Batch, context: int) -> dict[str, Tensor]:
    """Of a field along real frames, all at once and without drawing, the `flow_error` of its copies and its distance
    from the field that was seen (`motion`); mean over the valid steps from the `context`-th frame on."""
    past = model.config.motion.context_frames
    steps = range(context - 1, batch.actions.shape[1])
    frames = torch.stack([batch.pixels[:, last_frames(t, past)] for t in steps], 1).flatten(0, 1)
    action = model.embed(batch.actions[:, steps.start :].flatten(0, 1))
    still, blank = (action.new_zeros(len(action), dim) for dim in (4, model.config.motion.memory_dim))
    _, features = model.motion.look(frames, torch.cat([action, still], 1), blank)
    field = model.motion.flow.estimate(features)
    copy, _ = model.motion.flow.move(frames[:, -1], field)
    seen = Sighting(*(part[:, steps.start :].flatten(0, 1) for part in sightings(model, batch)[:2]))
    errors = {
        "flow": flow_error(copy, batch.pixels[:, context:].flatten(0, 1)),
        "motion": flow_distance(model.motion.flow, field, seen),
    }
    return {name: mean_valid(error, batch.valid[:, steps.start :].flatten()) for name, error in errors.items()}


class Drives(NamedTuple):
    """How views turned in some clips: embedded actions (B, T, A), motions (B, T, 3) that were seen, sure and valid
    (B, T)."""

    actions: Tensor
    motion: Tensor
    sure: Tensor
    valid: Tensor


def turn_errors(
    model: WorldModel, batch: Batch, context: int, replay: Replay, generator: torch.Generator
) -> dict[str, Tensor]:
    """`motion`: how far a view that turns goes from the real one, led by what is seen until the `context`-th frame and
    then on its own, mean over the valid steps from there on, of this batch and of others replayed. `flow`: the
    `flow_error` of copies that turn as was seen, which teaches the aspect. Notices what is mounted on the view."""
    turn, seen = model.motion.flow, sightings(model, batch)
    actions = model.embed(batch.actions.flatten(0, 1)).unflatten(0, batch.valid.shape)
    drives = replay.mix(Drives(actions, seen.motion, seen.sure, batch.valid), generator)
    known, errors = drives.actions.new_zeros(len(drives.valid), 3 + CARRY), []
    for t in range(drives.valid.shape[1]):
        sighting = Sighting(drives.motion[:, t], drives.sure[:, t])
        motion, carry = turn.estimate(drives.actions[:, t], known)
        errors.append(flow_distance(turn, motion, sighting))
        led = sighting.sure & (t < context - 1)
        known = torch.cat([torch.where(led[:, None], sighting.motion, motion), carry], 1)
    error, valid = (values[:, context - 1 :].flatten() for values in (torch.stack(errors, 1), drives.valid))
    last, target, led = batch.pixels[:, context - 1], batch.pixels[:, context], at(seen, context - 1)
    copy, inside = turn.move(last, led.motion)
    counted = inside * (batch.valid[:, context - 1] * led.sure)[:, None, None, None]
    turn.ground.notice(last, copy.detach(), counted, target, led.motion)
    return {
        "motion": mean_valid(error, valid),
        "flow": mean_valid(flow_error(copy * inside, target * inside), batch.valid[:, context - 1] * led.sure),
    }

"""What teaches the camera: how far its estimate is from the motion that was seen, and from the place it leads to.

Shapes: B clips, T steps.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.belief import Belief
from lwm_env.motion import Hints
from lwm_env.registration import Sighting
from lwm_env.world_model import NO_HINTS, WorldModel
from lwm_training.batch import Batch, at, context_belief, mean_valid, sightings
from lwm_training.mosaic import Mosaic

if TYPE_CHECKING:
    from lwm_training.teacher import Teaching

LOST = 4.0  # pixels from which on its reward and end are not, and its camera is taught no more
ONCOURSE = 0.5  # pixels off the real camera up to which its motion can be told from the picture
CREDIT = 0.8  # of a place that is wrong goes to the motion before the last, of that to the one before, and so on


def camera_errors(
    model: WorldModel, estimate: Tensor, offset: Tensor, astray: Tensor, seen: Sighting, followed: Tensor
) -> dict[str, Tensor]:
    """How far an estimated motion (B, 2) is from the seen one, per clip: of the motion itself, and of the place that it
    leads to from `offset` (B, 2) and `astray` (B, 2) pixels from the real camera, in clips whose real camera was
    `followed` (B,) until here. Where nothing was seen, 0."""
    motion = real_motion(model, estimate, offset, astray, seen)
    if model.lattice is None:
        place, rounded = offset + astray + estimate - motion.round(), 0.5
    else:
        place, rounded = astray + estimate - motion, 0.0
    rounding = F.relu(place.abs() - rounded)
    far = F.smooth_l1_loss(rounding, torch.zeros_like(rounding), reduction="none", beta=0.5).clamp(max=10).sum(1)
    return {
        "motion": motion_distance(estimate, motion, 0.5 if model.lattice else 2.0) * seen.sure,
        "place": far * (seen.sure & followed),
    }


def real_motion(model: WorldModel, estimate: Tensor, offset: Tensor, astray: Tensor, seen: Sighting) -> Tensor:
    """The motion (B, 2) that was seen; with a lattice the one that fits best from the phase of the real camera, which
    is what a dream's `offset` is but for the pixels that it is `astray`."""
    if model.lattice is None:
        return seen.motion
    return model.lattice.motion(model.lattice.wrap((offset - astray).detach()), estimate, seen)


def strayed_on(
    model: WorldModel, estimate: Tensor, before: Tensor, after: Tensor, astray: Tensor, seen: Sighting
) -> Tensor:
    """How many pixels further a dream goes astray (B, 2) by a step that it estimates, from an offset to another."""
    motion = real_motion(model, estimate, before, astray, seen)
    if model.lattice is None:
        return (before + estimate - after).detach().round() - motion.round()
    return estimate - motion


def motion_distance(estimated: Tensor, registered: Tensor, beta: float = 2.0) -> Tensor:
    """Quadratic up to 2 pixels, since registered motions are rounded; linear, then flat, since some are wrong: (B,)."""
    return F.smooth_l1_loss(estimated, registered, reduction="none", beta=beta).clamp(max=10).sum(1)


def camera_unroll(
    model: WorldModel,
    batch: Batch,
    context: int,
    dreamed: bool = False,
    teaching: "Teaching | None" = None,
    shown: Tensor | None = None,
) -> dict[str, Tensor]:
    """Errors of the camera alone, with gradients through all that is carried: corrected by what is seen in `context`
    real frames, then left to itself. From there on it sees the real world from where it has gone astray to, or what is
    `dreamed` of it, which costs ten times as much. Clips that are `shown` (B,) it have there the real world in the
    columns that come into view: a wall that a dream does not know of stops nobody in it."""
    seen, belief = sightings(model, batch), model.believe(batch.pixels[:, 0])
    offset, motion, carry, doubt = belief.offset, belief.motion, belief.carry, None
    steps, astray, followed = batch.actions.shape[1], torch.zeros_like(offset), batch.valid[:, 0].bool()
    valid = torch.cat([torch.ones_like(batch.valid[:, :1]), batch.valid], 1).bool()
    mosaic = Mosaic(batch.pixels, seen.motion * seen.sure[..., None], valid)
    dream = context_belief(model, batch, seen, context) if dreamed else None
    taught = None if teaching is None else teaching.begin_camera(batch.pixels[:, 0])
    totals: dict[str, Tensor] = {}
    for t in range(steps):
        sighting, free = at(seen, t), t >= context - 1
        picture = batch.pixels[:, t]
        if free:
            picture = mosaic.show(t, astray.detach().round()) if dream is None else dream.frames[:, -1]
        with torch.autocast(picture.device.type, enabled=False):  # places are sums, and 7.4 in bfloat16 is 7.406
            estimate, carry = model.camera(picture.float(), model.embed(batch.actions[:, t]), motion, offset, carry)
        if model.lattice is not None and sighting.cost is not None and not free:
            phase, doubt = model.lattice.settle(doubt, estimate, sighting)
            offset = torch.where(sighting.sure[:, None], phase, offset)
        followed = followed & (sighting.sure | (not free))
        errors = camera_errors(model, estimate, offset, astray, sighting, followed)
        errors["motion"] = errors["motion"] * (astray.abs() < ONCOURSE).all(1)
        for name, value in errors.items():
            totals[name] = totals.get(name, 0) + mean_valid(value, batch.valid[:, t]) / steps
        before = offset
        pixels, motion, offset = model.correct(before, estimate, None if free else sighting)
        if teaching is not None:
            told, taught = teaching.look(taught, picture, batch.actions[:, t], pixels)
            far = mean_valid(motion_distance(estimate, told), batch.valid[:, t]) / steps
            totals["teacher_motion"] = totals.get("teacher_motion", 0) + far
        if free:
            astray = astray + strayed_on(model, estimate, before, offset, astray, sighting)
        offset, astray = (torch.lerp(place.detach(), place, CREDIT) for place in (offset, astray))
        followed = followed & (astray.abs().amax(1) < LOST)
        if free and dream is not None:
            hints = NO_HINTS if shown is None else real_sides(mosaic, t + 1, astray, shown)
            dream = dream_on(model, dream, batch.actions[:, t], hints)
    return totals


def real_sides(mosaic: Mosaic, t: int, astray: Tensor, shown: Tensor) -> Hints:
    """What really comes into view at the sides in frame t, from a camera `astray` pixels (B, 2), for the clips that are
    `shown` (B,) it."""
    picture, known = mosaic.seen_from(t, astray.detach().round()).split([3, 1], 1)
    return Hints(sides=torch.cat([picture, known * shown[:, None, None, None]], 1))


@torch.no_grad()
def dream_on(model: WorldModel, belief: Belief, action: Tensor, hints: Hints) -> Belief:
    """The belief after one more step on its own likeliest tokens."""
    proposal = model.propose(belief, action, hints=hints)
    latent = model.tokenizer.levels[proposal.logits.argmax(2)]
    return model.commit(belief, proposal, model.draw(proposal, latent).clamp(-1, 1))

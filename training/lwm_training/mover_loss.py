"""What teaches the movers: to stand where something moves, each on its own thing, and to foretell where that goes.

Masks alone teach them slowly: a copy that is a pixel off is not chosen, and a copy that is not chosen learns nothing.

Shapes: B clips of T + 1 frames of H x W pixels, in [-1, 1]; M movers, K context frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.movers import CARRY, NOTHING, Movers, Places
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch
from lwm_training.picture_loss import CHANGED

SEEN = 10 * NOTHING  # how much of a mover there must be in a frame for it to be followed
SHARING = 0.1  # squared reaches of distance by which another mover owns a pixel e times as well
SPARSE = 3  # of so many frames one is looked at for where the movers stand


def spread(movers: Movers, places: Tensor, weights: Tensor) -> Tensor:
    """Mean distance, in reaches, squared, of pixels with weights (B, H, W) from the nearest of the places (B, M, 2):
    what k-means minimises, with a soft choice of the nearest."""
    still = movers.shifts.new_zeros(*places.shape, len(movers.shifts))
    distance = movers.distance(places, still, weights.shape[-2:])
    nearest = -SHARING * torch.logsumexp(-distance / SHARING, 1)
    return (nearest * weights).sum() / weights.sum().clamp(min=1e-6)


def what_moves(movers: Movers, pixels: Tensor) -> Tensor:
    """How unusual each pixel of frames (B, T + 1, 3, H, W) is, where its clip is not the same all the time:
    (B, T + 1, H, W). The figures of a score stand still."""
    moving = (pixels - pixels.mean(1, keepdim=True)).abs().amax((1, 2)) > CHANGED
    return (pixels - movers.usual).square().sum(2) * moving[:, None]


def shifts_to_take(found: Places, walks_from: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """The places (B, T + 1, M, 2) of movers that walk by whole pixels, as in a dream, from the frames `walks_from` (B,)
    on and are at the real `found` places before; and the shifts of every step (B, T, M, 2) that keep them nearest to
    these. What is out of sight, or too far off to be reached, is not followed: it gets no shift, and its real place."""
    own, taken = [found.places[:, 0]], []
    for t in range(found.places.shape[1] - 1):
        shift = (found.places[:, t + 1] - own[-1]).round()
        followed = (found.amounts[:, t : t + 2].amin(1) > SEEN) & (shift.abs().amax(2) <= reach)
        walks = followed & (t >= walks_from)[:, None]
        shift = shift * followed[..., None]
        own.append(torch.where(walks[..., None], own[-1] + shift, found.places[:, t + 1]))
        taken.append(shift)
    return torch.stack(own, 1), torch.stack(taken, 1)


def movers_errors(
    model: WorldModel, batch: Batch, motion: Tensor, context: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Of the movers alone, without drawing: their `spread`, and the cross-entropy of every step's shift, in nats, mean
    over the valid steps from the `context`-th frame on. `motion` (B, T, 2) is the camera's."""
    movers, past = model.motion.movers, model.config.motion.context_frames
    count, steps = batch.actions.shape[:2]
    movers.remember_usual(batch.pixels)
    found = movers.find(movers.look(batch.pixels))
    weights = what_moves(movers, batch.pixels)
    some = slice(None, None, SPARSE)
    spots = spread(movers, found.places[:, some].flatten(0, 1), weights[:, some].flatten(0, 1))

    found = Places(*(part.detach() for part in found))
    walks_from = torch.randint(0, steps, (count,), generator=generator).to(motion.device)
    own, taken = shifts_to_take(found, walks_from, movers.reach)
    action = model.embed(batch.actions.flatten(0, 1)).unflatten(0, (count, steps))
    known = torch.cat([action, motion / 4, torch.zeros_like(motion)], 2)
    carry, errors = own.new_zeros(count, CARRY), []
    for t in range(steps):
        seen = [max(0, t + k) for k in range(1 - past, 1)]
        logits, carry = movers(movers.course(Places(own[:, seen], found.amounts[:, seen])), known[:, t], carry)
        errors.append(F.cross_entropy(logits.movedim(3, 1), (taken[:, t] + movers.reach).long(), reduction="none"))
    valid = batch.valid[:, context - 1 :]
    course = torch.stack(errors, 1)[:, context - 1 :].sum(3).mean(2)  # of both axes, the mean of the movers
    return {"spots": spots, "course": (course * valid).sum() / valid.sum().clamp(min=1)}

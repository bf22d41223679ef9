"""What teaches the movers: of what changed, each owns what its copy explains best, and learns to explain it better.

Masks alone teach them slowly: a copy that is a pixel off is not chosen, and a copy that is not chosen learns nothing.

Shapes: B pictures of H x W pixels, in [-1, 1]; M movers, K context frames, T steps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.movers import CARRY, Places
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch
from lwm_training.picture_loss import SURE, changes, emphasis


def mover_error(copies: Tensor, distance: Tensor, frames: Tensor, target: Tensor) -> Tensor:
    """Squared error of copies (B, M, 3, H, W) of the last of some frames (B, K, 3, H, W), of each where it is the best
    and where any of the frames differs from the target (B, 3, H, W), so that what stops is taught too: (B,). The
    `distance` (B, M, H, W) counts as an error, so that a mover is found where it explains something."""
    errors = (copies - target[:, None]).square().sum(2)
    around = F.avg_pool2d(errors, 3, stride=1, padding=1, count_include_pad=False) + SURE * distance
    errors = errors + SURE * distance
    owned = (-around / SURE).softmax(1).detach()
    moving = torch.stack([changes(frame, target) for frame in frames.unbind(1)]).amax(0)
    return ((owned * errors).sum(1) * emphasis(moving, 1.0)[:, 0]).mean((1, 2))


def movers_error(model: WorldModel, batch: Batch, motion: Tensor, context: int) -> Tensor:
    """That of the movers alone, along real frames and without drawing, with gradients through what they carry; mean
    over the valid steps from the `context`-th frame on. `motion` (B, T, 2) is the camera's."""
    movers, past = model.motion.movers, model.config.motion.context_frames
    count, steps = batch.actions.shape[:2]
    movers.remember_usual(batch.pixels)
    places, amounts = movers.find(batch.pixels[:, :-1])
    action = model.embed(batch.actions.flatten(0, 1)).unflatten(0, (count, steps))
    known = torch.cat([action, motion / 4, torch.zeros_like(motion)], 2)
    last_frames = [[max(0, t + k) for k in range(1 - past, 1)] for t in range(steps)]
    carry, all_shares = places.new_zeros(count, CARRY), []
    for t, seen in enumerate(last_frames):
        shares, carry = movers(movers.course(Places(places[:, seen], amounts[:, seen])), known[:, t], carry)
        all_shares.append(shares)
    frames = torch.stack([batch.pixels[:, seen] for seen in last_frames[context - 1 :]], 1).flatten(0, 1)
    target, shares = batch.pixels[:, context:].flatten(0, 1), torch.stack(all_shares[context - 1 :], 1).flatten(0, 1)
    copies = movers.copies(frames[:, -1], shares)
    distance = movers.distance(places[:, context - 1 :].flatten(0, 1), shares, frames.shape[-2:])
    valid = batch.valid[:, context - 1 :].flatten()
    return (mover_error(copies, distance, frames, target) * valid).sum() / valid.sum().clamp(min=1)

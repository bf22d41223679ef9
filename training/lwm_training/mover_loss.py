"""What teaches the movers: of what changed, each owns what its copy explains best, and learns to explain it better.

Masks alone teach them slowly: a copy that is a pixel off is not chosen, and a copy that is not chosen learns nothing.

Shapes: B pictures of H x W pixels, in [-1, 1]; M movers, K context frames, T steps.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.world_model import WorldModel
from lwm_training.picture_loss import changes, emphasis

if TYPE_CHECKING:
    from lwm_training.loss import Batch

SURE = 0.1  # squared error by which a copy must be better than another to own most of a pixel


def mover_error(copies: Tensor, last: Tensor, target: Tensor) -> Tensor:
    """Squared error of copies (B, M, 3, H, W) of the last picture on what changed, each where it is best: (B,)."""
    errors = (copies - target[:, None]).square().sum(2)
    around = F.avg_pool2d(errors, 3, stride=1, padding=1, count_include_pad=False)
    owned = (-around / SURE).softmax(1).detach()
    weights = emphasis(changes(last, target), 1.0)[:, 0]
    return ((owned * errors).sum(1) * weights).mean((1, 2))


def movers_error(model: WorldModel, batch: "Batch", motion: Tensor, context: int) -> Tensor:
    """That of the movers alone, along real frames from the `context`-th on, without drawing: mean over valid steps.
    `motion` (B, T, 2) is the camera's."""
    past = model.config.motion.context_frames
    steps = range(context - 1, batch.actions.shape[1])
    windows = torch.stack([batch.pixels[:, [max(0, t + k) for k in range(1 - past, 1)]] for t in steps], 1).flatten(
        0, 1
    )
    target = batch.pixels[:, context:].flatten(0, 1)
    action = model.embed(batch.actions[:, context - 1 :].flatten(0, 1))
    motion = motion[:, context - 1 :].flatten(0, 1)
    movers = model.motion.movers
    known = torch.cat([action, motion / 4, torch.zeros_like(motion)], 1)
    errors = mover_error(movers.copies(windows[:, -1], movers(movers.look(windows), known)), windows[:, -1], target)
    valid = batch.valid[:, context - 1 :].flatten()
    return (errors * valid).sum() / valid.sum().clamp(min=1)

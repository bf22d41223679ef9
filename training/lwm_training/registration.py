"""How far the whole picture moved between two real frames, by exhaustive search: a teacher for the motion model.

Shapes: B pairs of pictures (B, 3, H, W) in [-1, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def global_motion(before: Tensor, after: Tensor, reach: int = 12) -> tuple[Tensor, Tensor]:
    """The motion (down, right) in pixels that best carries `before` onto `after`, and how sure that is.

    The middle of `after` is compared with `before` at every whole offset up to `reach`; a parabola through the
    neighbours of the best one gives the fraction.

    Returns:
        motion float32 (B, 2), and confidence (B,) in [0, 1]: by how much the best offset beats the mean one.
        Pictures without structure have confidence 0.
    """
    batch, _, height, width = after.shape
    middle = after[:, :, reach : height - reach, reach : width - reach]
    products = F.conv2d(before.reshape(1, -1, height, width), middle.flatten(0, 1)[:, None], groups=3 * batch)
    ones = torch.ones(1, 1, *middle.shape[-2:], device=after.device)
    energy = F.conv2d(before.square().sum(1, keepdim=True), ones)[:, 0]
    cost = energy - 2 * products.view(batch, 3, *products.shape[-2:]).sum(1)
    cost = cost + middle.square().sum((1, 2, 3)).view(-1, 1, 1)  # sum of squared differences, (B, 2 reach + 1, ...)
    side = cost.shape[-1]
    best = cost.flatten(1).argmin(1)
    row, column = best // side, best % side
    motion = []
    for index, lines in ((row, cost[torch.arange(batch), :, column]), (column, cost[torch.arange(batch), row, :])):
        inner = index.clamp(1, side - 2)
        left, centre, right = (lines.gather(1, (inner + step)[:, None])[:, 0] for step in (-1, 0, 1))
        curve = (left - 2 * centre + right).clamp(min=1e-6)
        fraction = (0.5 * (left - right) / curve).clamp(-0.5, 0.5)
        motion.append(reach - (inner + fraction))
    mean, least = cost.mean((1, 2)), cost.amin((1, 2)).clamp(min=0)
    return torch.stack(motion, 1), ((mean - least) / (mean + 1e-3)).clamp(0, 1)

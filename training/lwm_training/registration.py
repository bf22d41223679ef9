"""How far the whole picture moved between two real frames, by search: a teacher for the motion model.

Shapes: B pairs of pictures (B, 3, H, W) in [-1, 1], R the search's reach in pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TEXTURE = 0.3  # colour difference (of 6 at most) that a game makes by sampling a moving texture anew
DOUBT = 0.1  # how much a pixel that stayed still counts against a motion; without it, rest would explain everything


@torch.no_grad()
def global_motion(before: Tensor, after: Tensor, reach: int = 8) -> tuple[Tensor, Tensor]:
    """The motion (down, right) in pixels that best carries `before` onto `after`, and how sure that is.

    The middle of `after` is compared with `before` at every whole offset up to `reach`. The best offset of every row
    is then judged again, each pixel explained by what moved or by what stayed, since players often stay in the middle
    of the picture. A parabola through the neighbours of the best one gives the fraction.

    Returns:
        motion float32 (B, 2), and confidence (B,) in [0, 1]: by how much the best offset beats the mean one.
        Pictures without structure have confidence 0.
    """
    batch, _, height, width = after.shape
    middle = after[:, :, reach : height - reach, reach : width - reach]
    cost = _squared_differences(before, middle)  # (B, 2R + 1, 2R + 1), at [i, j] of a motion by (R - i, R - j)
    side = cost.shape[-1]
    columns = cost.argmin(2)  # (B, 2R + 1)
    row = _explained(before, after, columns, reach).argmin(1)
    column = columns.gather(1, row[:, None])[:, 0]
    every = torch.arange(batch, device=after.device)
    vertical = _fraction(cost[every, :, column], row)
    horizontal = _fraction(cost[every, row, :], column)
    motion = torch.stack([reach - row - vertical, reach - column - horizontal], 1)
    mean, least = cost.mean((1, 2)), cost[every, row, column].clamp(min=0)
    confidence = ((mean - least) / (mean + 1e-3 * side)).clamp(0, 1)
    return motion, confidence


def _squared_differences(before: Tensor, middle: Tensor) -> Tensor:
    """Sum of squared differences of the middle with every window of `before` of its size."""
    batch, _, height, width = before.shape
    products = F.conv2d(before.reshape(1, -1, height, width), middle.flatten(0, 1)[:, None], groups=3 * batch)
    products = products.view(batch, 3, *products.shape[-2:]).sum(1)
    ones = before.new_ones(1, 1, 1, middle.shape[-1]), before.new_ones(1, 1, middle.shape[-2], 1)
    energy = F.conv2d(F.conv2d(before.square().sum(1, keepdim=True), ones[0]), ones[1])[:, 0]
    return energy - 2 * products + middle.square().sum((1, 2, 3)).view(-1, 1, 1)


def _explained(before: Tensor, after: Tensor, columns: Tensor, reach: int) -> Tensor:
    """For the best offset of every row, the error where each pixel may also have stayed: (B, 2R + 1)."""
    batch, _, height, width = after.shape
    middle = after[:, :, reach : height - reach, reach : width - reach]
    stayed = _mismatch(before[:, :, reach : height - reach, reach : width - reach], middle)
    across = torch.arange(width - 2 * reach, device=after.device)
    errors = []
    for row in range(columns.shape[1]):
        lines = before[:, :, row : row + height - 2 * reach]
        index = (columns[:, row, None] + across)[:, None, None].expand(batch, 3, height - 2 * reach, -1)
        moved = _mismatch(lines.gather(3, index), middle)
        errors.append((torch.minimum(moved, stayed) + DOUBT * moved).mean((1, 2)))
    return torch.stack(errors, 1)


def _mismatch(one: Tensor, other: Tensor) -> Tensor:
    """How differently each pixel is coloured, (B, H, W); little differences count little."""
    difference = (one - other).abs().sum(1)
    return F.relu(difference - TEXTURE) + 0.03 * difference


def _fraction(line: Tensor, index: Tensor) -> Tensor:
    """Where between its neighbours the lowest point of a line (B, S) lies: (B,) in [-0.5, 0.5]."""
    inner = index.clamp(1, line.shape[1] - 2)
    left, centre, right = (line.gather(1, (inner + step)[:, None])[:, 0] for step in (-1, 0, 1))
    bend = (left - 2 * centre + right).clamp(min=1e-6)
    return torch.where(inner == index, 0.5 * (left - right) / bend, 0).clamp(-0.5, 0.5)

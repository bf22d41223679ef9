"""How far the whole picture moved between two real frames, by search: it corrects the motion model where real frames
are given, and teaches it.

Shapes: B pairs of pictures (B, 3, H, W) in [-1, 1], R the search's reach in pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TEXTURE = 0.6  # colour difference (of 6 at most) that a game makes by sampling a moving texture anew
FOLLOWED = 14 / 64  # side of the square in the middle that does not vote: whom the camera follows stays where he is
CANDIDATES = 6  # rows that are looked at twice
REACH = 8  # pixels that are searched
SURE = 0.7  # confidence above which a registration is believed


class Sighting(NamedTuple):
    """A motion that was seen: (B, 2) in pixels, and whether it can be believed, bool (B,); where there is a lattice,
    what each of its motions costs, see `Lattice.sight`."""

    motion: Tensor
    sure: Tensor
    cost: Tensor | None = None


def sight(before: Tensor, after: Tensor) -> Sighting:
    """What registration finds between two pictures, in float32 also where the model computes in bfloat16: it subtracts
    large sums of squares. Small pictures are searched less far, so that something is left to compare."""
    with torch.autocast("cuda" if before.is_cuda else "cpu", enabled=False):
        motion, confidence = global_motion(before.float(), after.float(), min(REACH, min(before.shape[-2:]) // 4))
    return Sighting(motion, confidence > SURE)


@torch.no_grad()
def global_motion(before: Tensor, after: Tensor, reach: int = REACH) -> tuple[Tensor, Tensor]:
    """The motion (down, right) in pixels that best carries `before` onto `after`, and how sure that is.

    The middle of `after` is compared with `before` at every whole offset up to `reach`, both without the square where a
    followed player stays. Squared differences choose the offsets of the best rows. Grey differences, which count little
    where they are small, choose among these and their neighbours, since a texture that is sampled anew differs a little
    everywhere. A parabola through the neighbours of the best one gives the fraction.

    Returns:
        motion float32 (B, 2), and confidence (B,) in [0, 1]: by how much the best offset beats the mean one.
        Pictures without structure have confidence 0.
    """
    batch, _, height, width = after.shape
    middle = after[:, :, reach : height - reach, reach : width - reach]
    votes = _votes(height, width, after.device)
    voting = votes[reach : height - reach, reach : width - reach]
    # (B, 2R + 1, 2R + 1), at [i, j] of a motion by (R - i, R - j)
    cost = _squared_differences(before, middle, votes, voting)
    side = cost.shape[-1]
    columns = cost.argmin(2)  # (B, 2R + 1)
    rows = cost.amin(2).topk(min(CANDIDATES, side), largest=False).indices
    grey = before.sum(1), middle.sum(1), votes, voting
    chosen = _best([(row, columns.gather(1, row[:, None])[:, 0]) for row in rows.unbind(1)], *grey)
    row, column = _best([(chosen[0], (chosen[1] + step).clamp(0, side - 1)) for step in (0, -1, 1)], *grey)
    every = torch.arange(batch, device=after.device)
    vertical = _fraction(cost[every, :, column], row)
    horizontal = _fraction(cost[every, row, :], column)
    motion = torch.stack([reach - row - vertical, reach - column - horizontal], 1)
    mean, least = cost.mean((1, 2)), cost[every, row, column].clamp(min=0)
    confidence = ((mean - least) / (mean + 1e-4)).clamp(0, 1)
    return motion, confidence


def _votes(height: int, width: int, device: torch.device) -> Tensor:
    """1 where a pixel counts, 0 in the square that may hold a followed player: (H, W)."""
    votes = torch.ones(height, width, device=device)
    half = round(FOLLOWED * min(height, width) / 2)
    votes[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = 0
    return votes


def _squared_differences(before: Tensor, middle: Tensor, votes: Tensor, voting: Tensor) -> Tensor:
    """Mean squared difference of the middle with every window of `before`, over pixels that count in both."""
    batch, _, height, width = before.shape
    counted, squares = before * votes, (middle.square() * voting).sum(1)
    products = F.conv2d(
        counted.reshape(1, -1, height, width), (middle * voting).flatten(0, 1)[:, None], groups=3 * batch
    )
    products = products.view(batch, 3, *products.shape[-2:]).sum(1)
    window = F.conv2d((counted * before).sum(1, keepdim=True), voting[None, None])[:, 0]
    own = F.conv2d(votes.expand(1, batch, height, width), squares[:, None], groups=batch)[0]
    return (window - 2 * products + own) / F.conv2d(votes[None, None], voting[None, None])[0]


def _best(
    places: list[tuple[Tensor, Tensor]], before: Tensor, middle: Tensor, votes: Tensor, voting: Tensor
) -> tuple[Tensor, Tensor]:
    """The row and column (B,), of several, where a window of grey `before` is most like the middle."""
    errors = torch.stack([_mismatch(before, middle, votes, voting, *place) for place in places], 1)
    best = errors.argmin(1, keepdim=True)
    row, column = (torch.stack(axis, 1).gather(1, best)[:, 0] for axis in zip(*places, strict=True))
    return row, column


def _mismatch(before: Tensor, middle: Tensor, votes: Tensor, voting: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """How different the grey middle (B, h, w) is from the window of `before` at a row and column (B,): (B,)."""
    height, width = voting.shape
    down = row[:, None] + torch.arange(height, device=row.device)
    across = column[:, None] + torch.arange(width, device=row.device)
    index = (down[:, :, None] * before.shape[2] + across[:, None]).flatten(1)
    difference = (before.flatten(1).gather(1, index).view_as(middle) - middle).abs()
    counted = votes.flatten()[index].view_as(middle) * voting
    return (((difference - TEXTURE).clamp(0, 1) + 0.05 * difference) * counted).sum((1, 2)) / counted.sum((1, 2))


def _fraction(line: Tensor, index: Tensor) -> Tensor:
    """Where between its neighbours the lowest point of a line (B, S) lies: (B,), less than half a pixel, so that a
    rounded motion is the best whole one."""
    inner = index.clamp(1, line.shape[1] - 2)
    left, centre, right = (line.gather(1, (inner + step)[:, None])[:, 0] for step in (-1, 0, 1))
    bend = (left - 2 * centre + right).clamp(min=1e-6)
    return torch.where(inner == index, 0.5 * (left - right) / bend, 0).clamp(-0.49, 0.49)

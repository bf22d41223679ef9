"""Where the movers of a world are in a picture.

Shapes: B worlds, T frames, M movers, H x W pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.appearance import HABIT
from lwm_env.layers import Pointwise

SEEKERS = 8  # channels that look for the movers
NOTHING = 1e-3  # how much of a mover there must be in a frame to have a place
THERE = 0.05  # share of what there usually is of a mover from which on it is there
SHARP = 4  # a power, which a pixel that looks only a little like a mover does not survive
HOMING = 10.0  # how fast it is learned where a mover is looked for


class Places(NamedTuple):
    """Where each mover is in T frames, (B, T, M, 2) pixels down and right of the middle, and whether it is there,
    (B, T, M), 1 or 0. What is not there is in the middle."""

    places: Tensor
    there: Tensor


class Eyes(nn.Module):
    """Finds each mover as the middle of the pixels that look like it."""

    usual: Tensor  # (3, H, W), the mean picture; what differs from it may be a mover
    common: Tensor  # (M,), how much of each mover there is in the mean

    def __init__(self, count: int, frame_size: tuple[int, int]) -> None:
        super().__init__()
        self.count, self.frame_size = count, frame_size
        self.register_buffer("usual", torch.zeros(3, *frame_size))
        self.register_buffer("common", torch.zeros(count))
        self.seek = nn.Conv2d(3, SEEKERS, 5, padding=2, bias=False)  # where all is as usual there is nothing
        self.tell = Pointwise(SEEKERS, count, bias=False)
        self.home = nn.Parameter(torch.zeros(count, *frame_size))  # where it is looked for

    def look(self, frames: Tensor) -> Tensor:
        """How much each pixel of frames (B, T, 3, H, W) looks like each mover, (B, T, M, H, W)."""
        unusual = (frames - self.usual).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        alike = self.tell(F.relu(self.seek(unusual))).pow(SHARP) * torch.exp(HOMING * self.home)
        return alike.unflatten(0, frames.shape[:2])

    def find(self, looks: Tensor) -> Places:
        """Where the movers are, from how pixels look (B, T, M, H, W)."""
        amounts, places = self.middle(looks)
        there = (amounts > THERE * self.common + NOTHING).to(looks.dtype)
        return Places(places * there[..., None], there)

    def middle(self, looks: Tensor) -> tuple[Tensor, Tensor]:
        """How much there is of looks (..., H, W), and where in the mean, (...,) and (..., 2)."""
        down, right = (torch.arange(size, device=looks.device) - (size - 1) / 2 for size in self.frame_size)
        amounts = looks.sum((-2, -1))
        middles = torch.stack([(looks.sum(-1) * down).sum(-1), (looks.sum(-2) * right).sum(-1)], -1)
        return amounts, middles / (amounts + NOTHING)[..., None]

    @torch.no_grad()
    def remember_usual(self, frames: Tensor) -> None:
        """Take frames (B, T, 3, H, W) of training into the usual picture; the first ones are it."""
        share = HABIT if self.usual.any() else 1.0
        self.usual.lerp_(frames.mean((0, 1)), share)

    @torch.no_grad()
    def remember_common(self, looks: Tensor) -> None:
        """Take what pixels of training look like (B, T, M, H, W) into how much of each mover there commonly is."""
        share = HABIT if self.common.any() else 1.0
        self.common.lerp_(looks.sum((3, 4)).mean((0, 1)), share)

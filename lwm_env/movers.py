"""Things that move by themselves, each as a copy of the whole last picture shifted as the thing moves.

A ball, a paddle, an opponent: the network finds the place of each in the last frames, and tells from the places, the
action and what it carries how far each moves, as a distribution over whole pixels (a separable form of Finn et al.,
2016, arXiv:1605.07157), of which the likeliest is taken. Masks then choose the copy around the thing. So nothing has
to be drawn anew at whatever pixel it stands. A mover is one thing, since it counts for little far from where it is.

Shapes: B worlds, K context frames, M movers, R pixels of reach, H x W pixels.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.layers import Pointwise
from lwm_env.registration import Sighting

WIDE = 0.1  # how fast the distribution falls off at first: so slowly that every motion within reach is felt
SEEKERS = 8  # channels that look for the movers
CARRY = 64  # numbers kept from step to step: what no frame shows, such as a paddle's knob turned beyond the field's end
NOTHING = 1e-3  # how much of a mover there must be in a frame to have a place
SEEN = 10 * NOTHING  # and for it to be followed
SHARP = 4  # a power, which a pixel that looks only a little like a mover does not survive
WAVELENGTHS = (4.0, 8.0, 16.0, 32.0)  # pixels, of the waves that tell a place exactly
HOMING = 10.0  # how fast it is learned where a mover is looked for
HABIT = 0.02  # share of a training step's frames in the usual picture


def likeliest(logits: Tensor) -> Tensor:
    """1 for the largest of the logits (..., S) and 0 for the others, without gradients: mixed shifts blur a copy, and
    the copy of that copy more. With gradients passing straight through the movers unlearned what they knew."""
    return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)


class Places(NamedTuple):
    """Where each mover is in T frames, (B, T, M, 2) pixels down and right of the middle, and how much of it is there,
    (B, T, M)."""

    places: Tensor
    amounts: Tensor


class Movers(nn.Module):
    """Where each mover is, where it goes in this step, and what the last picture looks like there."""

    usual: Tensor  # (3, H, W), the mean picture; what differs from it may be a mover

    def __init__(
        self,
        count: int,
        reach: int,
        context_frames: int,
        frame_size: tuple[int, int],
        condition_dim: int,
        hidden_dim: int = 128,
    ) -> None:
        super().__init__()
        self.count, self.reach = count, reach
        self.course_dim = count * (3 * context_frames + 4 * len(WAVELENGTHS))  # how many numbers `course` gives
        self.register_buffer("usual", torch.zeros(3, *frame_size))
        self.seek = nn.Conv2d(3, SEEKERS, 5, padding=2, bias=False)  # where all is as usual there is nothing
        self.tell = Pointwise(SEEKERS, count, bias=False)
        self.home = nn.Parameter(torch.zeros(count, *frame_size))  # where it is looked for
        self.enter = nn.Linear(self.course_dim, hidden_dim)
        self.condition = nn.Linear(condition_dim, hidden_dim)
        self.think = nn.Sequential(nn.SiLU(), nn.Linear(hidden_dim, hidden_dim), nn.SiLU())
        self.remember = nn.GRUCell(hidden_dim + condition_dim, CARRY)
        self.decide = nn.Sequential(nn.Linear(hidden_dim + CARRY, hidden_dim), nn.SiLU())
        self.out = nn.Linear(hidden_dim, 2 * count * (2 * reach + 3))
        nn.init.zeros_(self.out.bias)
        self.register_buffer("shifts", torch.arange(-reach, reach + 1.0), persistent=False)

    def look(self, frames: Tensor) -> Tensor:
        """How much each pixel of frames (B, T, 3, H, W) looks like each mover, (B, T, M, H, W)."""
        unusual = (frames - self.usual).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        alike = self.tell(F.relu(self.seek(unusual))).pow(SHARP) * torch.exp(HOMING * self.home)
        return alike.unflatten(0, frames.shape[:2])

    @staticmethod
    def find(looks: Tensor) -> Places:
        """Where the movers are, from how pixels look (B, T, M, H, W)."""
        height, width = looks.shape[-2:]
        down = torch.arange(height, device=looks.device) - (height - 1) / 2
        right = torch.arange(width, device=looks.device) - (width - 1) / 2
        amounts = looks.sum((3, 4)) + NOTHING
        places = torch.stack([(looks.sum(4) * down).sum(3), (looks.sum(3) * right).sum(3)], 3) / amounts[..., None]
        return Places(places, amounts)

    def sight(self, before: Tensor, after: Tensor) -> Sighting:
        """How each mover went between two pictures (B, 3, H, W): motion (B, M, 2) in whole pixels, and whether it was
        there in both and within reach, (B, M)."""
        places, amounts = self.find(self.look(torch.stack([before, after], 1)))
        motion = (places[:, 1] - places[:, 0]).round()
        return Sighting(motion, (amounts.amin(1) > SEEN) & (motion.abs().amax(2) <= self.reach))

    def choose(self, logits: Tensor, seen: Sighting | None) -> Tensor:
        """The shares (B, M, 2, 2R + 1) of the shift that each mover takes: the one that was seen, or the likeliest."""
        shares = likeliest(logits)
        if seen is None:
            return shares
        taken = (self.shifts == seen.motion[..., None]).to(shares.dtype)
        return torch.where(seen.sure[..., None, None], taken, shares)

    @staticmethod
    def course(found: Places) -> Tensor:
        """Of K frames: where movers are, roughly and exactly, how they went from frame to frame, and how much of them
        was there, as numbers about 1, (B, course_dim)."""
        places, amounts = found
        paths = torch.cat([places[:, -1:] / 16, places.diff(dim=1) / 2], 1)
        waves = torch.stack([2 * math.pi / length * places[:, -1] for length in WAVELENGTHS], 1)
        return torch.cat([x.flatten(1) for x in (paths, amounts.log() / 8, waves.sin(), waves.cos())], 1)

    @torch.no_grad()
    def remember_usual(self, frames: Tensor) -> None:
        """Take frames (B, T, 3, H, W) of training into the usual picture; the first ones are it."""
        share = HABIT if self.usual.any() else 1.0
        self.usual.lerp_(frames.mean((0, 1)), share)

    def forward(self, course: Tensor, condition: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        """The `course` of movers, the condition (B, C) and what was carried (B, CARRY) -> logits of each shift, down
        and right, (B, M, 2, 2R + 1), what to carry on."""
        hidden = self.think(self.enter(course) + self.condition(condition))
        carry = self.remember(torch.cat([hidden, condition], 1), carry)
        out = self.out(self.decide(torch.cat([hidden, carry], 1)))
        motion, sharpness, free = out.unflatten(1, (self.count, 2, -1)).split([1, 1, 2 * self.reach + 1], dim=3)
        distance = (self.shifts - self.reach * motion).square()
        return free - WIDE * torch.exp(sharpness) * distance, carry

    def distance(self, places: Tensor, shares: Tensor, frame_size: tuple[int, int]) -> Tensor:
        """How far each pixel is from a mover's place (B, M, 2) or from where it goes, whichever is nearer, in reaches,
        squared: (B, M, H, W)."""
        both = torch.stack([places, places + (shares * self.shifts).sum(3)])
        down, right = (
            (torch.arange(size, device=places.device) - (size - 1) / 2 - both[..., axis, None]).square()
            for axis, size in enumerate(frame_size)
        )
        return (down[..., None] + right[..., None, :]).amin(0) / self.reach**2

    def move(self, pictures: Tensor, shares: Tensor) -> Tensor:
        """Pictures (B, M, C, H, W), each as its mover goes. What comes in from outside is the edge."""
        down, right = shares.unbind(2)
        moved = self._shift(down, pictures.shape[-2])[:, :, None] @ pictures
        return moved @ self._shift(right, pictures.shape[-1])[:, :, None].transpose(-1, -2)

    def _shift(self, shares: Tensor, size: int) -> Tensor:
        """Matrices (B, M, size, size) that move a line of pixels by the shares (B, M, 2R + 1)."""
        line = torch.arange(size, device=shares.device)
        source = (line[:, None] - self.shifts.long()).clamp(0, size - 1)
        chosen = F.one_hot(source.T, size).to(shares.dtype).flatten(1)  # (2R + 1, size * size)
        return (shares @ chosen).unflatten(2, (size, size))

"""The view that turns: the last picture sampled along a smooth field of motion, for games whose camera does not only
shift.

A flat world seen from above turns and shifts as a whole (`RIGID`): three numbers tell all of it, so nothing bends
however long one dreams. They are those of the step before and what the action changes in them; where real frames are
given, registration tells them. What was seen lies on a map (`Ground`), and pictures are read from it. A world in depth
has a field that is told at a coarse grid and is linear between its points (`FREE`; dense motion: Finn et al., 2016,
arXiv:1605.07157). There every pixel is one of the last picture's, and how far it is from where it belongs is kept:
what is interpolated again and again is gone after eight steps.

Shapes: B worlds, C channels, h x w grid points, the outermost at the corners of a picture of H x W pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.ground import POSE, Ground
from lwm_env.layers import Pointwise
from lwm_env.registration import Sighting
from lwm_env.turning import affine, places, sample, sight_turn, sources

FREE, RIGID = 1, 2  # what `MotionConfig.flow` may be
STRIDE = 4.0  # pixels that a feature of 1 moves a grid point by
TURN = 0.1  # radians that a feature of 1 turns the view by
HIDDEN = 128
CARRY = 64  # numbers that a turn carries from step to step, beside its motion


class Flowed(NamedTuple):
    """What was seen as the view now has it, (B, 3, H, W); which of its pixels that were, (B, 1, H, W); the map, its
    middle near the view's; how the view turned as the network thinks, (B, 3); and what is kept, (B, kept_dim)."""

    picture: Tensor
    inside: Tensor
    map: Tensor
    motion: Tensor
    kept: Tensor


class Turn(nn.Module):
    """A view from above that shifts and turns as a whole. How it went and the actions tell how it goes on; what the
    picture adds, such as grass under the wheels, is little beside that (docs/ablations.md, session 11)."""

    kept_dim = 3 + CARRY + POSE

    def __init__(self, frame_size: tuple[int, int], action_dim: int) -> None:
        super().__init__()
        self.middle = tuple((side - 1) / 2 for side in frame_size)
        self.ground = Ground(frame_size)
        self.enter = nn.Sequential(nn.Linear(action_dim + 3, CARRY), nn.SiLU())
        self.steer = nn.GRUCell(CARRY, CARRY)
        self.whole = nn.Sequential(nn.Linear(CARRY, CARRY), nn.SiLU(), nn.Linear(CARRY, 3))
        nn.init.zeros_(self.whole[-1].weight)
        nn.init.zeros_(self.whole[-1].bias)
        self.aspect = nn.Parameter(torch.zeros(()))  # log of rows over columns of a length
        self.register_buffer("units", torch.tensor([STRIDE, STRIDE, TURN]), persistent=False)

    def sight(self, before: Tensor, after: Tensor) -> Sighting:
        """How the view went between two real pictures (B, 3, H, W)."""
        return sight_turn(before, after, self.aspect.exp().to(before.device))

    def estimate(self, action: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """The next motion (B, 3) in pixels and radians, from the embedded action (B, A), the motion before and what was
        carried (B, 3 + CARRY); and what is carried on (B, CARRY)."""
        motion, carry = known.split([3, CARRY], 1)
        carry = self.steer(self.enter(torch.cat([action, motion / self.units], 1)), carry)
        return motion + self.units * self.whole(carry), carry

    def forward(self, last: Tensor, map_: Tensor, action: Tensor, kept: Tensor, seen: Sighting | None = None) -> Flowed:
        """The view on the map after it has moved as estimated, or as was `seen` where that is sure. What the map does
        not know is taken from the last picture (B, 3, H, W)."""
        motion, carry = self.estimate(action, kept[:, :-POSE])
        taken = motion if seen is None else torch.where(seen.sure[:, None], seen.motion, motion)
        aspect = self.aspect.detach().exp()
        pose = self.ground.go(kept[:, -POSE:], taken.detach(), aspect)
        map_, pose = self.ground.centre(map_, pose)
        shown, known = self.ground.read(map_, pose, aspect)
        moved, inside = self.move(last, taken)
        picture = torch.where(known > 0, shown, moved)
        return Flowed(picture, torch.maximum(known, inside), map_, motion, torch.cat([taken, carry, pose], 1))

    def move(self, last: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """The last picture (B, 3, H, W) after a motion (B, 3), and what of it was in sight; what comes in from outside
        is the edge."""
        source = sources(affine(motion, self.aspect.exp()), places(self.ground.rows_at, self.ground.columns_at))
        inside = (source.abs() <= source.new_tensor(self.middle)).all(3)
        return sample(last, source, self.middle), inside[:, None].to(last.dtype)


class Flow(nn.Module):
    """A view in depth: features on the grid to where each pixel of the next picture comes from."""

    def __init__(self, dim: int, grid: tuple[int, int], frame_size: tuple[int, int]) -> None:
        super().__init__()
        self.frame_size, self.kept_dim = frame_size, 2 * frame_size[0] * frame_size[1]
        self.think = nn.Sequential(nn.Linear(3 * dim, HIDDEN), nn.SiLU())
        self.whole = nn.Linear(HIDDEN, 6)
        self.out = Pointwise(dim, 2)
        for layer in (self.whole, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for name, few, many in zip(("rows", "columns"), grid, frame_size, strict=True):
            self.register_buffer(name, _interpolation(few, many), persistent=False)
            self.register_buffer(f"{name}_at", torch.arange(float(many)), persistent=False)
            self.register_buffer(f"{name}_of_grid", torch.linspace(-1, 1, few), persistent=False)

    @property
    def motion_dim(self) -> int:
        """Numbers of a field: down and right in pixels, at each grid point."""
        return 2 * self.rows.shape[1] * self.columns.shape[1]

    def forward(
        self, features: Tensor, last: Tensor, kept: Tensor, seen: Sighting | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features (B, C, h, w), the last picture (B, 3, H, W) and how far its pixels are from where they belong
        (B, kept_dim) -> the picture as the view now has it, which of its pixels were in sight before, (B, 1, H, W), the
        field as estimated, (B, motion_dim), and what to keep; what was `seen` of the field overrules it. What comes in
        from outside is the edge."""
        field = self.estimate(features)
        taken = field if seen is None else torch.where(seen.sure[:, None], seen.motion, field)
        moved, apart = self.step(last, kept.view(-1, 2, *self.frame_size), taken.detach())
        return moved, self.inside(self.source(taken)), field, apart.flatten(1)

    def estimate(self, features: Tensor) -> Tensor:
        """The field (B, motion_dim): the view shifts, grows and shears as a whole, and bends between grid points."""
        rows, columns = self.rows_of_grid[:, None], self.columns_of_grid
        moments = [features, features * rows, features * columns]
        whole = self.whole(self.think(torch.cat([moment.mean((2, 3)) for moment in moments], 1)))
        shift, by_row, by_column = whole[..., None, None].unflatten(1, (3, 2)).unbind(1)
        return (STRIDE * (shift + by_row * rows + by_column * columns + self.out(features))).flatten(1)

    def source(self, field: Tensor) -> Tensor:
        """Rows and columns (B, 2, H, W) of the last picture that a field (B, motion_dim) has come from."""
        field = field.view(-1, 2, self.rows.shape[1], self.columns.shape[1])
        down, right = (self.rows @ field @ self.columns.T).unbind(1)
        return torch.stack([self.rows_at[:, None] - down, self.columns_at - right], 1)

    def inside(self, source: Tensor) -> Tensor:
        """Which of these places are in the picture, (B, 1, H, W)."""
        return (source == self._held(source)).all(1, keepdim=True).to(source.dtype)

    def move(self, last: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        """The picture and what of it was in sight, moved by a field (B, motion_dim) once, with gradients."""
        source = self.source(field)
        height, width = self.frame_size
        scaled = torch.stack([source[:, 1] * 2 / (width - 1) - 1, source[:, 0] * 2 / (height - 1) - 1], 3)
        return F.grid_sample(last, scaled, padding_mode="border", align_corners=True), self.inside(source)

    def step(self, last: Tensor, apart: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        """The last picture (B, 3, H, W) moved by a field, each pixel that one of it which belongs nearest to where the
        field has come from, and how far from there it belongs, (B, 2, H, W), as `apart` tells of the last picture."""
        source = self.source(field)
        near = self._held((source + 0.5).floor())  # halves all to the same side, so that neighbours stay neighbours
        near = self._held((source - _taken(apart, near) + 0.5).floor())
        return _taken(last, near), (near + _taken(apart, near) - source).clamp(-1, 1)

    def _held(self, places: Tensor) -> Tensor:
        """Places (B, 2, H, W) outside the picture at its edge."""
        down, right = (x.clamp(0, side - 1) for x, side in zip(places.unbind(1), self.frame_size, strict=True))
        return torch.stack([down, right], 1)


def _taken(picture: Tensor, places: Tensor) -> Tensor:
    """The pixels (B, C, H, W) of a picture that are at whole places (B, 2, H, W); one that is not a number takes the
    first, so that what follows can say so."""
    last = picture.shape[2] * picture.shape[3] - 1
    index = (places[:, 0] * picture.shape[3] + places[:, 1]).long().flatten(1).clamp(0, last)
    taken = picture.flatten(2).gather(2, index[:, None].expand(-1, picture.shape[1], -1))
    return taken.view(len(picture), -1, *places.shape[2:])


def _interpolation(few: int, many: int) -> Tensor:
    """The matrix (many, few) that interpolates linearly between points at equal distances, from end to end."""
    at = torch.linspace(0, few - 1, many)
    return F.relu(1 - (at[:, None] - torch.arange(few)).abs())

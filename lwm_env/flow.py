"""The view that turns: the last picture sampled along a smooth field of motion, for games whose camera does not only
shift.

A flat world seen from above turns and shifts as a whole (`RIGID`): three numbers tell all of it, so nothing bends
however long one dreams. A world in depth has a field that is told at a coarse grid and is linear between its points
(`FREE`; dense motion: Finn et al., 2016, arXiv:1605.07157).

Shapes: B worlds, C channels, h x w grid points, the outermost at the corners of a picture of H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.layers import Pointwise

FREE, RIGID = 1, 2  # what `MotionConfig.flow` may be
STRIDE = 4.0  # pixels that a feature of 1 moves a grid point by
TURN = 0.1  # radians that a feature of 1 turns the view by
HIDDEN = 128


class Flow(nn.Module):
    """Features on the grid to where each pixel of the next picture comes from."""

    def __init__(self, kind: int, dim: int, grid: tuple[int, int], frame_size: tuple[int, int]) -> None:
        super().__init__()
        self.frame_size = frame_size
        self.think = nn.Sequential(nn.Linear(3 * dim, HIDDEN), nn.SiLU())
        self.whole = nn.Linear(HIDDEN, 6 if kind == FREE else 3)
        self.out = Pointwise(dim, 2) if kind == FREE else None
        self.aspect = nn.Parameter(torch.zeros(())) if kind == RIGID else None  # log of rows over columns of a length
        for layer in (self.whole, self.out):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        for name, few, many in zip(("rows", "columns"), grid, frame_size, strict=True):
            self.register_buffer(name, _interpolation(few, many), persistent=False)
            self.register_buffer(f"{name}_at", torch.linspace(-1, 1, many), persistent=False)
            self.register_buffer(f"{name}_of_grid", torch.linspace(-1, 1, few), persistent=False)

    def forward(self, features: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) and the last picture (B, 3, H, W) -> the picture as the view now has it, and which of
        its pixels were in sight before, (B, 1, H, W). What comes in from outside is the edge."""
        moments = [features, features * self.rows_of_grid[:, None], features * self.columns_of_grid]
        whole = self.whole(self.think(torch.cat([moment.mean((2, 3)) for moment in moments], 1)))
        source = self._turned(whole) if self.out is None else self._bent(whole, features)
        inside = (source.abs().amax(3) <= 1)[:, None].to(picture.dtype)
        return F.grid_sample(picture, source, padding_mode="border", align_corners=True), inside

    def _turned(self, whole: Tensor) -> Tensor:
        """Where pixels come from, (B, H, W, 2) right and down, between -1 and 1, if the view shifts and turns."""
        height, width = ((size - 1) / 2 for size in self.frame_size)
        shift, turn = STRIDE * whole[:, :2, None, None], TURN * whole[:, 2, None, None]
        sine, cosine, aspect = turn.sin(), turn.cos(), self.aspect.exp()
        down, right = height * self.rows_at[:, None] - shift[:, 0], width * self.columns_at - shift[:, 1]
        across = cosine * right - sine / aspect * down
        along = cosine * down + sine * aspect * right
        return torch.stack([across / width, along / height], 3)

    def _bent(self, whole: Tensor, features: Tensor) -> Tensor:
        """The same if the view also grows, shears, and bends between grid points."""
        height, width = self.frame_size
        shift, by_row, by_column = whole[..., None, None].unflatten(1, (3, 2)).unbind(1)
        whole = shift + by_row * self.rows_at[:, None] + by_column * self.columns_at
        field = STRIDE * (whole + self.rows @ self.out(features) @ self.columns.T)  # (B, 2, H, W) pixels down and right
        down = self.rows_at[:, None] - field[:, 0] * (2 / (height - 1))
        right = self.columns_at - field[:, 1] * (2 / (width - 1))
        return torch.stack([right, down], 3)


def _interpolation(few: int, many: int) -> Tensor:
    """The matrix (many, few) that interpolates linearly between points at equal distances, from end to end."""
    at = torch.linspace(0, few - 1, many)
    return F.relu(1 - (at[:, None] - torch.arange(few)).abs())

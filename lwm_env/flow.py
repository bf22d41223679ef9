"""The view that turns: the last picture sampled along a smooth field of motion, for games whose camera does not only
shift.

The field is told at a coarse grid and is linear between its points, so every turn, zoom and shift of a flat world is
exact, and a world in depth is near (dense motion: Finn et al., 2016, arXiv:1605.07157).

Shapes: B worlds, C channels, h x w grid points, the outermost at the corners of a picture of H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.layers import Pointwise

STRIDE = 4.0  # pixels that a feature of 1 moves a grid point by


class Flow(nn.Module):
    """Features on the grid to where each pixel of the next picture comes from."""

    def __init__(self, dim: int, grid: tuple[int, int], frame_size: tuple[int, int]) -> None:
        super().__init__()
        self.whole, self.out = nn.Linear(dim, 6), Pointwise(dim, 2)
        for layer in (self.whole, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for name, few, many in zip(("rows", "columns"), grid, frame_size, strict=True):
            self.register_buffer(name, _interpolation(few, many), persistent=False)
            self.register_buffer(f"{name}_at", torch.linspace(-1, 1, many), persistent=False)

    def forward(self, features: Tensor, picture: Tensor) -> Tensor:
        """Features (B, C, h, w) and the last picture (B, 3, H, W) -> the picture as the view now has it. What comes in
        from outside is the edge."""
        height, width = picture.shape[-2:]
        shift, by_row, by_column = self.whole(features.mean((2, 3)))[..., None, None].unflatten(1, (3, 2)).unbind(1)
        whole = shift + by_row * self.rows_at[:, None] + by_column * self.columns_at
        field = STRIDE * (whole + self.rows @ self.out(features) @ self.columns.T)  # (B, 2, H, W) pixels down and right
        down = self.rows_at[:, None] - field[:, 0] * (2 / (height - 1))
        right = self.columns_at - field[:, 1] * (2 / (width - 1))
        return F.grid_sample(picture, torch.stack([right, down], 3), padding_mode="border", align_corners=True)


def _interpolation(few: int, many: int) -> Tensor:
    """The matrix (many, few) that interpolates linearly between points at equal distances, from end to end."""
    at = torch.linspace(0, few - 1, many)
    return F.relu(1 - (at[:, None] - torch.arange(few)).abs())

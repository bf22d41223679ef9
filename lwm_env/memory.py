"""What lies outside the picture: a canvas, one row per world, that scrolls with the estimated motion of the camera.

A view of H x W pixels sits in the middle of a canvas with `margin` more pixels on every side. It moves by whole pixels
only, which is exact however often it happens; the fraction is carried in an `offset` to the next step. Interpolating
instead would blur what moves a little more with each step. Plane 3 of a canvas is 1 where it was ever seen.

Shapes: B worlds, motion (B, 2) in pixels, down and right, of the picture's content.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def move_whole(canvas: Tensor, pixels: Tensor) -> Tensor:
    """Canvas content moved by whole pixels (B, 2); what comes in from outside is unseen."""

    def indices(size: int, moved: Tensor) -> tuple[Tensor, Tensor]:
        source = torch.arange(size, device=canvas.device) - moved[:, None]
        return source.clamp(0, size - 1), (source >= 0) & (source < size)

    batch, planes, height, width = canvas.shape
    rows, rows_in = indices(height, pixels[:, 0].long())
    columns, columns_in = indices(width, pixels[:, 1].long())
    first = torch.arange(batch * planes, device=canvas.device).view(batch, planes, 1) * height
    lines = (first + rows[:, None]).flatten()  # whole rows at once: half of the time of a gather
    canvas = canvas.reshape(-1, width).index_select(0, lines).view(batch, planes, height, width)
    canvas = canvas.gather(3, columns[:, None, None, :].expand(batch, planes, height, width))
    return canvas * (rows_in[:, None, :, None] & columns_in[:, None, None, :])


class Views(NamedTuple):
    """What the canvas shows at the four whole motions around a fractional one, the nearest first.

    colours (B, 4, 3, H, W), known (B, 4, 1, H, W), distance (B, 4): squared, in pixels, of each from the fractional
    motion, and offset (B, 2): the fractional motion minus the nearest whole one.
    """

    colours: Tensor
    known: Tensor
    distance: Tensor
    offset: Tensor


class Canvas:
    """Reads and writes a batch of canvases; holds sizes only, all state is in the tensors that are passed."""

    def __init__(self, frame_size: tuple[int, int], margin: int) -> None:
        self.frame_size, self.margin = frame_size, margin
        self.size = (frame_size[0] + 2 * margin, frame_size[1] + 2 * margin)

    def blank(self, batch: int, device: torch.device | None = None) -> Tensor:
        """Nothing seen yet: (B, 4, H + 2 margin, W + 2 margin)."""
        return torch.zeros(batch, 4, *self.size, device=device)

    def views(self, canvas: Tensor, offset: Tensor) -> Views:
        """What a canvas (already moved by whole pixels) shows, and what it would show one pixel further on in the
        direction of the offset that is left over: down, right, and both."""

        def shown(down: int, right: int) -> Tensor:
            top, left = self.margin - down, self.margin - right
            return canvas[:, :, top : top + self.frame_size[0], left : left + self.frame_size[1]]

        further_down, further_right = (offset[:, axis] > 0 for axis in (0, 1))
        down, right = further_down[:, None, None, None], further_right[:, None, None, None]
        views = torch.stack(
            [
                shown(0, 0),
                torch.where(down, shown(1, 0), shown(-1, 0)),
                torch.where(right, shown(0, 1), shown(0, -1)),
                torch.where(
                    down,
                    torch.where(right, shown(1, 1), shown(1, -1)),
                    torch.where(right, shown(-1, 1), shown(-1, -1)),
                ),
            ],
            1,
        )
        near, far = offset.square(), (1 - offset.abs()).square()
        (near_down, near_right), (far_down, far_right) = near.unbind(1), far.unbind(1)
        distance = [near_down + near_right, far_down + near_right, near_down + far_right, far_down + far_right]
        return Views(views[:, :, :3], views[:, :, 3:], torch.stack(distance, 1), offset)

    def write(self, canvas: Tensor, picture: Tensor, gate: Tensor) -> Tensor:
        """The canvas with the picture (B, 3, H, W) now in view painted over its middle as far as the gate (B, 1, H, W)
        lets it through."""
        rows, columns = (slice(self.margin, self.margin + side) for side in self.frame_size)
        middle, painted = canvas[:, :, rows, columns], torch.cat([picture, torch.ones_like(gate)], 1)
        written = canvas.clone()
        written[:, :, rows, columns] = middle + gate * (painted - middle)
        return written

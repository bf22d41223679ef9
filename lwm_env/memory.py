"""What lies outside the picture: a canvas, one row per world, that scrolls with the estimated motion of the camera.

A view of H x W pixels sits in the middle of a canvas with `margin` more pixels on every side. It moves by whole pixels
only, which is exact however often it happens; the fraction is carried in an `offset` to the next step. Interpolating
instead would blur what moves a little more with each step. Plane 3 of a canvas is 1 where it was ever seen.

A canvas is float where gradients flow and uint8 in the state that users keep: a step moves bytes, and only what it
looks at or writes becomes numbers.

Shapes: B worlds, motion (B, 2) in pixels, down and right, of the picture's content.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def to_bytes(canvas: Tensor) -> Tensor:
    """Part of a canvas (B, 4, h, w) as uint8; bytes stay as they are."""
    if canvas.dtype == torch.uint8:
        return canvas
    colours, known = canvas.split([3, 1], 1)
    return torch.cat([(colours.clamp(-1, 1) + 1) * 127.5, known.clamp(0, 1) * 255], 1).round().to(torch.uint8)


def to_numbers(canvas: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse: colours (B, 3, h, w) in [-1, 1], and whether they were seen, (B, 1, h, w)."""
    colours, known = canvas.split([3, 1], 1)
    if canvas.dtype == torch.uint8:
        return colours.float() / 127.5 - 1, known.float() / 255
    return colours, known


def paint(part: Tensor, picture: Tensor, gate: Tensor) -> Tensor:
    """Part of a canvas (B, 4, h, w) with a picture (B, 3, h, w) painted over it as far as the gate (B, 1, h, w) lets it
    through; bytes if it was bytes."""
    colours, known = to_numbers(part)
    painted = torch.cat([colours + gate * (picture - colours), known + gate * (1 - known)], 1)
    return to_bytes(painted) if part.dtype == torch.uint8 else painted


def move_whole(canvas: Tensor, pixels: Tensor) -> Tensor:
    """Canvas content moved by whole pixels (B, 2)."""
    return move_lines(canvas, pixels[:, :1], pixels[:, 1:])


def move_lines(canvas: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Canvas content moved by whole pixels, each row by its own, (B, H or 1), and each column, (B, W or 1), of where it
    comes to. The outermost rows and columns were never seen and stay so: what comes in from outside is theirs."""

    def indices(size: int, moved: Tensor) -> Tensor:
        place = torch.arange(size, device=canvas.device)
        inside = (place > 0) & (place < size - 1)
        return torch.where(inside, (place - moved.long()).clamp(0, size - 1), place)

    height, width = canvas.shape[-2:]
    return take_lines(canvas, indices(height, down), indices(width, right))


def take_lines(canvas: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of a canvas (B, 4, H, W) these rows (B, h) and columns (B, w), or the nearest ones there are: (B, 4, h, w)."""
    batch, planes, height, width = canvas.shape
    first = torch.arange(batch * planes, device=canvas.device).view(batch, planes, 1) * height
    lines = (
        first + rows.long().clamp(0, height - 1)[:, None]
    ).flatten()  # whole rows at once: half the time of a gather
    taken = canvas.reshape(-1, width).index_select(0, lines).view(batch, planes, rows.shape[1], width)
    index = columns.long().clamp(0, width - 1)[:, None, None, :]
    return taken.gather(3, index.expand(batch, planes, rows.shape[1], columns.shape[1]))


def fill(view: Tensor, picture: Tensor, came: Tensor) -> Tensor:
    """A view (B, 4, H, W) with a picture (B, 3 + 1, H, W) where columns `came` (B, W) into it and nothing was seen yet,
    as far as the picture's last plane lets it through."""
    unseen = 1 - to_numbers(view)[1]
    return paint(view, picture[:, :3], picture[:, 3:] * unseen * came[:, None, None])


class Views(NamedTuple):
    """What the canvas shows at the four whole motions around a fractional one, the nearest first.

    colours: four times (B, 3, H, W); known (B, 4, H, W); distance (B, 4): squared, in pixels, of each from the
    fractional motion; offset (B, 2): the fractional motion minus the nearest whole one; and lines (B, P, H, W): where
    in its tile each pixel lies, see `Lattice.lines`, or no planes.
    """

    colours: tuple[Tensor, ...]
    known: Tensor
    distance: Tensor
    offset: Tensor
    lines: Tensor


class Canvas:
    """Reads and writes a batch of canvases; holds sizes only, all state is in the tensors that are passed."""

    def __init__(self, frame_size: tuple[int, int], margin: int) -> None:
        self.frame_size, self.margin = frame_size, margin
        self.size = (frame_size[0] + 2 * margin, frame_size[1] + 2 * margin)

    def blank(self, batch: int, device: torch.device | None = None) -> Tensor:
        """Nothing seen yet: (B, 4, H + 2 margin, W + 2 margin)."""
        return torch.zeros(batch, 4, *self.size, device=device)

    def view(self, canvas: Tensor) -> Tensor:
        """The part of a canvas that is in view: (B, 4, H, W)."""
        (height, width), margin = self.frame_size, self.margin
        return canvas[:, :, margin : margin + height, margin : margin + width]

    def views(self, canvas: Tensor, offset: Tensor) -> Views:
        """What a canvas (already moved by whole pixels) shows, and what it would show one pixel further on in the
        direction of the offset that is left over: down, right, and both."""

        (height, width), margin = self.frame_size, self.margin
        window = canvas[:, :, margin - 1 : margin + height + 1, margin - 1 : margin + width + 1]
        down, right = (offset[:, axis, None, None, None] > 0 for axis in (0, 1))

        def around(planes: Tensor) -> tuple[Tensor, ...]:
            rows = planes[..., 1 : height + 1, :], torch.where(down, planes[..., :height, :], planes[..., 2:, :])
            near = [part[..., 1 : width + 1] for part in rows]
            far = [torch.where(right, part[..., :width], part[..., 2:]) for part in rows]
            return *near, *far

        colours, known = (around(planes) for planes in to_numbers(window))
        near, far = offset.square(), (1 - offset.abs()).square()
        (near_down, near_right), (far_down, far_right) = near.unbind(1), far.unbind(1)
        distance = [near_down + near_right, far_down + near_right, near_down + far_right, far_down + far_right]
        return Views(colours, torch.cat(known, 1), torch.stack(distance, 1), offset, known[0][:, :0])

    def write(self, canvas: Tensor, picture: Tensor, gate: Tensor) -> Tensor:
        """The canvas with the picture (B, 3, H, W) now in view painted over its middle as far as the gate (B, 1, H, W)
        lets it through."""
        rows, columns = (slice(self.margin, self.margin + side) for side in self.frame_size)
        written = canvas.clone()
        written[:, :, rows, columns] = paint(canvas[:, :, rows, columns], picture, gate)
        return written

    def fill_sides(self, canvas: Tensor, picture: Tensor, right: Tensor) -> Tensor:
        """The canvas, whose columns have moved `right` (B, W + 2 margin or 1), with a picture (B, 3 + 1, H, W) where
        columns came into view and nothing was seen yet, as far as the picture's last plane lets it through."""
        width, margin = self.frame_size[1], self.margin
        place = torch.arange(width, device=canvas.device)
        right = right if right.shape[1] == 1 else right[:, margin : margin + width]
        came = ((place - right) < 0) | ((place - right) >= width)
        unseen = 1 - to_numbers(self.view(canvas))[1]
        return self.write(canvas, picture[:, :3], picture[:, 3:] * unseen * came[:, None, None])

"""What lies outside the picture: a canvas, one row per world, that scrolls with the estimated motion of the camera.

A view of H x W pixels sits in the middle of a canvas with `margin` more pixels on every side. Colours are kept on the
canvas's own pixel grid: moving it by whole pixels is exact, the fraction is carried in `offset`, so a remembered pixel
is interpolated twice in all (written, read), however long it waits. Plane 3 of a canvas is 1 where it was ever seen.

Shapes: B worlds, motion (B, 2) in pixels, down and right, of the picture's content.
"""

import torch
from torch import Tensor

LANCZOS_LOBES = 5


def lanczos_matrix(positions: Tensor, size: int) -> Tensor:
    """Rows that read a line of `size` pixels at fractional positions: (B, N) -> (B, N, size).

    Positions beyond the ends read the end pixel. Rows sum to 1.
    """
    positions = positions.clamp(0, size - 1)
    distance = positions[..., None] - torch.arange(size, device=positions.device, dtype=positions.dtype)
    weights = torch.sinc(distance) * torch.sinc(distance / LANCZOS_LOBES) * (distance.abs() < LANCZOS_LOBES)
    return weights / weights.sum(-1, keepdim=True)


def read_shifted(picture: Tensor, motion: Tensor, start: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The window of `size` at `start` of a picture whose content has moved by `motion`: (B, C, *size)."""
    rows = torch.arange(size[0], device=picture.device, dtype=picture.dtype) + start[0] - motion[:, :1]
    columns = torch.arange(size[1], device=picture.device, dtype=picture.dtype) + start[1] - motion[:, 1:]
    vertical = lanczos_matrix(rows, picture.shape[-2])[:, None]
    horizontal = lanczos_matrix(columns, picture.shape[-1])[:, None]
    return vertical @ picture @ horizontal.transpose(-1, -2)


def inside(motion: Tensor, size: tuple[int, int]) -> Tensor:
    """Where a picture moved by `motion` still covers its own window: float (B, 1, H, W) of 0 and 1."""

    def line(length: int, moved: Tensor) -> Tensor:
        source = torch.arange(length, device=moved.device, dtype=moved.dtype) - moved[:, None]
        return ((source >= 0) & (source <= length - 1)).float()

    return (line(size[0], motion[:, 0])[:, :, None] * line(size[1], motion[:, 1])[:, None, :])[:, None]


def move_whole(canvas: Tensor, pixels: Tensor) -> Tensor:
    """Canvas content moved by whole pixels (B, 2); what comes in from outside is unseen."""

    def indices(size: int, moved: Tensor) -> tuple[Tensor, Tensor]:
        source = torch.arange(size, device=canvas.device) - moved[:, None]
        return source.clamp(0, size - 1), (source >= 0) & (source < size)

    batch, planes, height, width = canvas.shape
    rows, rows_in = indices(height, pixels[:, 0].long())
    columns, columns_in = indices(width, pixels[:, 1].long())
    canvas = canvas.gather(2, rows[:, None, :, None].expand(batch, planes, height, width))
    canvas = canvas.gather(3, columns[:, None, None, :].expand(batch, planes, height, width))
    return canvas * (rows_in[:, None, :, None] & columns_in[:, None, None, :])


class Canvas:
    """Reads and writes a batch of canvases; holds sizes only, all state is in the tensors that are passed."""

    def __init__(self, frame_size: tuple[int, int], margin: int) -> None:
        self.frame_size, self.margin = frame_size, margin
        self.size = (frame_size[0] + 2 * margin, frame_size[1] + 2 * margin)

    def blank(self, batch: int, device: torch.device | None = None) -> Tensor:
        """Nothing seen yet: (B, 4, H + 2 margin, W + 2 margin)."""
        return torch.zeros(batch, 4, *self.size, device=device)

    def read(self, canvas: Tensor, offset: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """What the view will show after `motion`, where known: colours (B, 3, H, W), known (B, 1, H, W)."""
        view = read_shifted(canvas, offset + motion, (self.margin, self.margin), self.frame_size)
        return view[:, :3], view[:, 3:].clamp(0, 1)

    def move(self, canvas: Tensor, offset: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """The canvas and its fractional offset after the content moved by `motion`."""
        total = offset + motion
        whole = total.round()
        return move_whole(canvas, whole), total - whole

    def write(self, canvas: Tensor, offset: Tensor, picture: Tensor) -> Tensor:
        """The canvas with the picture (B, 3, H, W) now in view painted over its middle."""
        painted = read_shifted(picture, -offset, (0, 0), self.frame_size)
        covered = inside(-offset, self.frame_size)
        margin, (height, width) = self.margin, self.frame_size
        middle = canvas[:, :, margin : margin + height, margin : margin + width]
        middle = middle + covered * (torch.cat([painted, covered], 1) - middle)
        canvas = canvas.clone()
        canvas[:, :, margin : margin + height, margin : margin + width] = middle
        return canvas

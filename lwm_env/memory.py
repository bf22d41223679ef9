"""What lies outside the picture: a canvas, one row per world, that scrolls with the estimated motion of the camera.

A view of H x W pixels sits in the middle of a canvas with `margin` more pixels on every side. It moves by whole pixels
only, which is exact however often it happens; the fraction is carried in an `offset` to the next step. Interpolating
instead would blur what moves a little more with each step. Plane 3 of a canvas is 1 where it was ever seen.

Shapes: B worlds, motion (B, 2) in pixels, down and right, of the picture's content.
"""

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

    def move(self, canvas: Tensor, offset: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """The canvas and what is left over, in [-0.5, 0.5] pixels, after the content moved by `motion`."""
        total = offset + motion
        whole = total.round()
        return move_whole(canvas, whole), total - whole

    def view(self, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """What the canvas knows of the picture: colours (B, 3, H, W), known (B, 1, H, W)."""
        margin, (height, width) = self.margin, self.frame_size
        view = canvas[:, :, margin : margin + height, margin : margin + width]
        return view[:, :3], view[:, 3:]

    def write(self, canvas: Tensor, picture: Tensor) -> Tensor:
        """The canvas with the picture (B, 3, H, W) now in view painted over its middle."""
        margin, (height, width) = self.margin, self.frame_size
        canvas = canvas.clone()
        canvas[:, :3, margin : margin + height, margin : margin + width] = picture
        canvas[:, 3:, margin : margin + height, margin : margin + width] = 1
        return canvas

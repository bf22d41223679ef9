"""Which pixels of a real frame show a place that was seen before, found by following the camera of the real frames.

Every clip gets a map: the grey context frame is laid down, and each later frame is placed where it fits best, by the
mean absolute difference on known pixels, within `REACH` pixels of the frame before (first at half resolution, then
refined). Its pixels are added where the map was empty, and only there: what lies is never moved, so that slow scrolling
cannot hide in the rounding. Whole pixels suffice, since only places are asked for. A clip whose frame fits worse than
`LOST` (a cut, a turn in 3D) counts as unseen from there on. The camera is one shift for the whole picture: sprites and
displays that move against it count with the place they cover.

Shapes: B clips, T frames of H x W pixels, map of (H + 2 margin) x (W + 2 margin).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 8  # pixels that the camera may move in a step
LOST = 32.0  # grey levels
SIDE = 64  # larger frames are followed at about this resolution
SCREENS = 4  # the map reaches this many screens in each direction


@dataclass(frozen=True)
class Seen:
    """What the camera showed.

    mask: bool (B, T, H, W), pixels of each frame whose place an earlier frame of the context had shown.
    shifts: int (B, T, 2), rows and columns that the camera has moved since the first frame, in pixels of the frame.
    lost: bool (B, T), frames whose place was not found.
    """

    mask: Tensor
    shifts: Tensor
    lost: Tensor


def seen_pixels(frames: Tensor, context: int) -> Seen:
    """Follow the camera through real frames.

    Args:
        frames: uint8 (B, T, H, W, 3), one episode each.
        context: how many of the first frames the model is given.
    """
    factor = max(1, min(frames.shape[2:4]) // SIDE)
    grey = _grey(frames, factor)
    atlas = _Atlas(grey[:, 0])
    masks = [atlas.look()]
    places, lost = [atlas.place], [torch.zeros(len(frames), dtype=torch.bool)]
    for t in range(1, frames.shape[1]):
        atlas.follow(grey[:, t])
        masks.append(atlas.look())
        atlas.add(grey[:, t], in_context=t < context)
        places.append(atlas.place)
        lost.append(atlas.lost)
    shifts = (torch.stack(places, 1) - places[0][:, None]) * factor
    return Seen(_enlarge(torch.stack(masks, 1), frames.shape[2:4]), shifts, torch.stack(lost, 1))


def _grey(frames: Tensor, factor: int) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float (B, T, H / factor, W / factor), cropped to even sides."""
    grey = F.avg_pool2d(frames.float().mean(-1), factor)
    return grey[..., : grey.shape[-2] // 2 * 2, : grey.shape[-1] // 2 * 2].contiguous()


def _enlarge(mask: Tensor, size: tuple[int, int]) -> Tensor:
    return mask if mask.shape[2:] == size else F.interpolate(mask.float(), size=size, mode="nearest").bool()


class _Atlas:
    """The maps of B clips, the place of each one's last frame, and which clips are lost."""

    def __init__(self, first: Tensor) -> None:
        batch, self.height, self.width = first.shape
        margin = SCREENS * max(self.height, self.width)
        shape = (batch, self.height + 2 * margin, self.width + 2 * margin)
        self.map, self.known, self.given = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        self.place = torch.full((batch, 2), margin)
        self.lost = torch.zeros(batch, dtype=torch.bool)
        self.add(first, in_context=True)

    def _window(self, border: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of every clip's view, widened by a border."""
        rows = self.place[:, :1] - border + torch.arange(self.height + 2 * border)
        columns = self.place[:, 1:] - border + torch.arange(self.width + 2 * border)
        return torch.arange(len(self.place))[:, None, None], rows[:, :, None], columns[:, None, :]

    def look(self) -> Tensor:
        """Pixels of the views that the context has shown: bool (B, h, w)."""
        return self.given[self._window()] & ~self.lost[:, None, None]

    def add(self, frame: Tensor, in_context: bool) -> None:
        window = self._window()
        new = (self.known[window] == 0) & ~self.lost[:, None, None]
        self.map[window] = torch.where(new, frame, self.map[window])
        self.known[window] = torch.where(new, 1.0, self.known[window])
        if in_context:
            self.given[window] |= ~self.lost[:, None, None]

    def follow(self, frame: Tensor) -> None:
        """Move the views to where the frame (B, h, w) fits; the lost stay where they are."""
        reach = REACH // 2
        window = self._window(border=REACH)
        known = F.avg_pool2d(self.known[window], 2)
        rough = F.avg_pool2d(self.map[window] * self.known[window], 2) / known.clamp(min=0.25)
        shift, _ = _fit(rough, (known == 1).float(), F.avg_pool2d(frame, 2), reach)
        self.place = self.place + torch.where(self.lost[:, None], 0, 2 * shift)
        window = self._window(border=2)
        shift, error = _fit(self.map[window], self.known[window], frame, 2)
        self.place = self.place + torch.where(self.lost[:, None], 0, shift)
        size = torch.tensor(self.map.shape[1:]) - torch.tensor([self.height, self.width])
        inside = self.place.clamp(min=REACH + 2).minimum(size - REACH - 2)
        self.lost = self.lost | (error > LOST) | (self.place != inside).any(1)
        self.place = inside  # so that the next search stays on the map


def _fit(patch: Tensor, known: Tensor, frame: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Where a frame (B, h, w) fits best in a patch (B, h + 2 reach, w + 2 reach) of which a part is known.

    Returns:
        Rows and columns from the middle, int (B, 2), and the mean absolute difference there (B,).
    """
    batch, height, width = frame.shape
    best, place = torch.full((batch,), torch.inf), torch.zeros(batch, 2, dtype=torch.long)
    moves = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)]
    for y, x in sorted(moves, key=lambda move: move[0] ** 2 + move[1] ** 2):  # of equals the smallest move
        rows, columns = slice(reach + y, reach + y + height), slice(reach + x, reach + x + width)
        overlap = known[:, rows, columns]
        count = overlap.sum((1, 2))
        error = ((patch[:, rows, columns] - frame).abs() * overlap).sum((1, 2)) / count.clamp(min=1)
        error = torch.where(count < height * width / 8, torch.inf, error)
        better = error < best
        best = torch.where(better, error, best)
        place = torch.where(better[:, None], torch.tensor([y, x]), place)
    return place, best

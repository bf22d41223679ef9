"""How movers usually look, where they are ever found, and what is behind them: means over real frames, at the places
that they are found at and beside them. A dream draws what is missing from it, and is held to it outside of outlines.

Shapes: B worlds, M movers, H x W pixels, S = 2 SPRITE + 1 pixels about a place; places as `Places` counts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPRITE = 6  # pixels from the middle of a mover to the edge of how it usually looks
AROUND = SPRITE + 1.0  # pixels from a mover from which on it is not seen
UNUSUAL = 0.15  # how much a colour, in [-1, 1], differs from the background where something is
FAINTEST = 0.01  # share of frames in which a mover reaches a pixel, and its next ones may be seen as part of it
RARE = 1e-3  # share of frames below which a mover is not found at a row or a column
STEADY = 2e-4  # share of frames in which a pixel may look otherwise and still be background
HABIT = 0.02  # share of a training step's frames in what is usual


def offsets(places: Tensor, frame_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """How far rows (..., H) and columns (..., W) are from places (..., 2), in pixels."""
    rows, columns = (
        torch.arange(size, device=places.device) - (size - 1) / 2 - places[..., axis, None]
        for axis, size in enumerate(frame_size)
    )
    return rows, columns


def _wider(marks: Tensor) -> Tensor:
    """Marks (..., L) that reach a place further on both sides. (A pool of constants is one that ONNX's folding of them
    complains of.)"""
    before, here, after = (F.pad(marks, (1, 1))[..., start : start + marks.shape[-1]] for start in range(3))
    return torch.maximum(torch.maximum(before, after), here)


class Appearance(nn.Module):
    """Sprites, of movers that are as large as 2 SPRITE + 1 pixels at most; where each is found; and the background."""

    sprites: Tensor  # (M, 4, S, S), how each usually looks about its place: colours, and in which share of frames
    lines: Tensor  # (M, 2, L), in which share of frames it is found at each row and column; L is the larger of H and W
    background: Tensor  # (4, H, W), the mean picture where no mover is, and in which share of frames it is another

    def __init__(self, count: int, frame_size: tuple[int, int]) -> None:
        super().__init__()
        self.frame_size = frame_size
        self.register_buffer("sprites", torch.zeros(count, 4, 2 * SPRITE + 1, 2 * SPRITE + 1))
        self.register_buffer("lines", torch.zeros(count, 2, max(frame_size)))
        self.register_buffer("background", torch.cat([torch.zeros(3, *frame_size), torch.ones(1, *frame_size)]))

    def restore(self, picture: Tensor, places: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
        """The picture (B, 3, H, W) with movers at places (B, M, 2) that are `missing` (B, M) drawn as they usually
        look; and where that is, (B, M, H, W), 1 or 0."""
        down, right = self._about(places)
        drawn = down[:, :, None] @ self.sprites @ right[:, :, None].transpose(-1, -2)  # (B, M, 4, H, W)
        covers = (drawn[:, :, 3] > 0.5) & missing[..., None, None]
        for mover, cover in enumerate(covers.unbind(1)):
            picture = torch.where(cover[:, None], drawn[:, mover, :3], picture)
        return picture, covers.to(picture.dtype)

    def empty(self, places: Tensor, there: Tensor) -> Tensor:
        """Where nothing but the background can be seen if movers are at places (B, M, 2), each if it is `there` (B, M):
        bool (B, 1, H, W)."""
        down, right = self._about(places)
        outlines = _wider(_wider((self.sprites[:, 3] > FAINTEST).to(places.dtype)).mT).mT
        covered = (down @ outlines @ right.transpose(-1, -2) * there[..., None, None]).amax(1, keepdim=True) > 0
        return ~covered & (self.background[3] < STEADY)

    def within(self, places: Tensor, shifts: Tensor) -> Tensor:
        """Whether movers at places (B, M, 2) are where they are ever found, or a pixel beside, once they have gone by
        shifts (S,) down and right: bool (B, M, 2, S)."""
        known = _wider((self.lines > RARE).to(places.dtype))
        middle = torch.tensor([(size - 1) / 2 for size in self.frame_size], device=places.device)
        lines = ((places + middle).round()[..., None] + shifts).long()
        inside = (lines >= 0) & (lines < self.lines.shape[2])
        found = known.expand(len(places), -1, -1, -1).gather(3, lines.clamp(0, self.lines.shape[2] - 1))
        return inside & (found > 0)

    @torch.no_grad()
    def remember(self, frames: Tensor, places: Tensor, there: Tensor, usual: Tensor) -> None:
        """Take frames (B, T, 3, H, W) of training, in which movers were found at places (B, T, M, 2), each where it is
        `there` (B, T, M), into all of these; `usual` (3, H, W) is the mean picture with all movers."""
        frames, places, there = (x.flatten(0, 1) for x in (frames, places, there))
        self._remember_lines(places, there)
        self._remember_sprites(frames, places, there, usual)
        self._remember_background(frames, places, there, usual)

    def _remember_lines(self, places: Tensor, there: Tensor) -> None:
        first = not self.lines.any()
        for axis, size in enumerate(self.frame_size):
            at = (places[..., axis] + (size - 1) / 2).round().long()
            found = (F.one_hot(at, self.lines.shape[2]) * there[..., None]).mean(0)
            self.lines[:, axis].lerp_(found, 1.0 if first else HABIT)

    def _remember_sprites(self, frames: Tensor, places: Tensor, there: Tensor, usual: Tensor) -> None:
        unusual = ((frames - usual).abs().amax(1, keepdim=True) > UNUSUAL).to(frames.dtype)
        down, right = (x[:, :, None] for x in self._about(places))
        seen = torch.cat([frames * unusual, unusual], 1)[:, None]  # (N, 1, 4, H, W)
        looks = (down.transpose(-1, -2) @ seen @ right * there[..., None, None, None]).sum(0)
        colours, shares = (looks / there.sum(0).clamp(min=1)[:, None, None, None]).split([3, 1], 1)
        colours = torch.where(shares > 0, colours / shares.clamp(min=1e-6), self.sprites[:, :3])
        self.sprites.lerp_(torch.cat([colours, shares], 1), HABIT if self.sprites.any() else 1.0)

    def _remember_background(self, frames: Tensor, places: Tensor, there: Tensor, usual: Tensor) -> None:
        down, right = (x.abs() <= AROUND for x in offsets(places, self.frame_size))
        near = down[..., None] & right[..., None, :] & (there[..., None, None] > 0)
        bare = (~near.any(1, keepdim=True)).to(frames.dtype)
        first = self.background[3].amin() == 1
        known = usual if first else self.background[:3]
        other = ((frames - known).abs().amax(1, keepdim=True) > UNUSUAL).to(frames.dtype)
        count = bare.sum(0)
        mean = (torch.cat([frames, other], 1) * bare).sum(0) / count.clamp(min=1)
        self.background.lerp_(mean, (1.0 if first else HABIT) * (count > 0).to(mean.dtype))

    def _about(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows (..., H, S) and columns (..., W, S) lie about places (..., 2): 1 or 0."""
        reach = torch.arange(-SPRITE, SPRITE + 1, device=places.device)
        pairs = []
        for axis, size in enumerate(self.frame_size):
            middle = (places[..., axis] + (size - 1) / 2).round()[..., None, None]
            line = torch.arange(size, device=places.device)[:, None]
            pairs.append((line - reach == middle).to(places.dtype))
        return pairs[0], pairs[1]

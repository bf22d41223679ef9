"""The tiles around the middle of a frame, each of them looked at alike.

Where tiles are drawn at whole pixels, a wall two tiles below a falling player lies at other pixels in every frame. Cut
out by the lattice's phase it does not: what is there is told by the same weights for every tile, and how far it is by
where in its tile the middle lies. So few falls teach where all of them end.

Shapes: B worlds, frames (B, 3, H, W) in [-1, 1], N tiles on a side, S pixels of a tile on a side, D features of a tile.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REACH = 3  # tiles to every side of the one in the middle; fewer are crossed in a step


class Nearby(nn.Module):
    """Reads the tiles near the middle."""

    def __init__(self, dim: int, pitch: float, frame_size: tuple[int, int], outputs: int) -> None:
        """Tiles `pitch` pixels apart, read as `dim` features each, and these as `outputs` numbers."""
        super().__init__()
        self.pitch, self.frame_size = pitch, frame_size
        self.tiles, self.samples = 2 * REACH + 1, max(1, round(pitch))
        self.read = nn.Sequential(nn.Linear(3 * self.samples**2, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.tell = nn.Linear(self.tiles**2 * dim + 2, outputs, bias=False)
        nn.init.zeros_(self.tell.weight)

    def forward(self, picture: Tensor, phase: Tensor) -> Tensor:
        """Of a frame whose lattice has a phase (B, 2): (B, outputs)."""
        features = F.silu(self.read(self.cut(picture, phase))).flatten(1)
        return self.tell(torch.cat([features, 2 * self.within(phase) - 1], 1))

    def within(self, phase: Tensor) -> Tensor:
        """How far the middle of the frame is below and to the right of its tile's edges, in tiles: (B, 2) in [0, 1)."""
        height, width = self.frame_size
        place = (phase.new_tensor([height / 2, width / 2]) - phase) / self.pitch
        return place - place.detach().floor()

    def cut(self, picture: Tensor, phase: Tensor) -> Tensor:
        """The tiles' pixels (B, N * N, 3 * S * S), row by row of tiles; beyond the frame those of its edge."""
        batch, tiles, samples = len(picture), self.tiles, self.samples
        first = -(self.within(phase.detach()) + REACH) * self.pitch  # from the middle
        step = self.pitch / samples
        beyond = step * (torch.arange(tiles * samples, device=picture.device) + 0.5)
        lines = [
            (size / 2 + first[:, axis, None] + beyond).floor().long().clamp(0, size - 1)
            for axis, size in enumerate(self.frame_size)
        ]
        index = lines[0][:, :, None] * self.frame_size[1] + lines[1][:, None]
        pixels = picture.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, picture.shape[1], -1))
        pixels = pixels.view(batch, picture.shape[1], tiles, samples, tiles, samples)
        return pixels.permute(0, 2, 4, 1, 3, 5).reshape(batch, tiles**2, -1)

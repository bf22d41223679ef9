"""What comes into view where a game draws tiles, each at whole pixels of its own (see `Lattice`): tile by tile.

As `lwm_env.ahead`, but crops and strips are made of tiles: each is cut out of the canvas where it was drawn and laid
on a grid, one cell a tile, whatever the phase of the lattice. So a wall, a crate or a coin is the same few numbers
wherever it is met, and what is drawn has its edges on lines. Many are known by heart, as a palette: one of these is
chosen, where the mean of those that may come would be a blur. A strip is the column of tiles that the edge of the view
cuts, of which a dream has drawn the rest before, and the next; above and below the view likewise of rows, on its side.

Shapes: B worlds, pictures of H x W pixels, tiles of C x C cells (those that are a pixel shorter repeat their last one),
R rows of them, from the one above the view to the one below.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.ahead import PLANES, Ahead, AheadConfig
from lwm_env.lattice import Lattice
from lwm_env.layers import Pointwise
from lwm_env.memory import take_lines, to_numbers


class AheadTiles(nn.Module):
    """Draws what comes into view at the sides, and above and below if `AheadConfig.rows` is set."""

    def __init__(self, config: AheadConfig, lattice: Lattice) -> None:
        super().__init__()
        size = lattice.frame_size
        self.sides = Tiles(config, lattice.pitch, size, lattice.margin)
        self.rows = None
        if config.rows:
            self.rows = Tiles(replace(config, width=config.rows), lattice.pitch, size[::-1], lattice.margin)

    @property
    def noise_dim(self) -> int:
        return self.sides.noise_dim + (0 if self.rows is None else self.rows.noise_dim)

    def forward(
        self, canvas: Tensor, towards: Tensor, phase: Tensor, noise: Tensor | None = None, temperature: float = 0.0
    ) -> Tensor:
        """The canvas before it moves `towards` (B, 2) from a phase (B, 2) of the lattice, with what was not seen yet
        where it goes; noise (B, noise_dim) and temperature as in `Ahead.choose`."""
        noises = [None, None] if noise is None else noise.tensor_split([self.sides.noise_dim], 1)
        canvas = self.sides(canvas, towards, phase, noises[0], temperature)
        if self.rows is None:
            return canvas
        turned = self.rows(canvas.transpose(2, 3), towards.flip(1), phase.flip(1), noises[1], temperature)
        return turned.transpose(2, 3)


class Tiles(Ahead):
    """Draws strips of tiles at the sides. Phases are of the lattice, (B, 2) as in `Lattice`."""

    palette: Tensor

    def __init__(self, config: AheadConfig, pitch: float, view_size: tuple[int, int], margin: int) -> None:
        self.tile = math.ceil(pitch)
        self.rows_of_tiles = math.ceil(view_size[0] / pitch - 1e-6) + 2
        super().__init__(config, self.tile, (self.rows_of_tiles * self.tile, view_size[1]), margin)
        self.pitch, self.view_size = pitch, view_size
        self.before, self.count = config.reach // self.tile, config.width // self.tile  # columns of tiles, of a strip
        self.enter = Pointwise(PLANES * self.tile**2, config.dim)
        if config.palette:
            self.register_buffer("palette", torch.zeros(config.palette, 3 * self.tile**2))  # real tiles
            self.vote = Pointwise(config.dim, config.palette + 1)

    # -- what they show ----------------------------------------------------------------------------------------------

    def draw(self, features: Tensor, numbers: Tensor) -> Tensor:
        """As `Ahead.draw`; each tile is the likeliest of the palette, or drawn freely where that is likelier."""
        if not self.config.palette:
            return super().draw(features, numbers)
        free, votes = self.candidates(features, numbers)
        chosen = votes.argmax(1)
        known = self.palette[chosen.clamp(max=self.config.palette - 1)].movedim(3, 1)
        tiles = torch.where((chosen < self.config.palette)[:, None], known, free)
        return F.pixel_shuffle(tiles, self.tile)

    def candidates(self, features: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles that are drawn freely (B, 3 C C, h, s), and the logits of each of the palette and of these
        (B, palette + 1, h, s)."""
        imagined = self.imagine(features, numbers)
        return self.out(imagined), self.vote(imagined)

    # -- where tiles lie ---------------------------------------------------------------------------------------------

    def phase_at(self, phase: Tensor, left: Tensor) -> Tensor:
        """Where the first line lies from the upper edge of the view and, in a picture that is mirrored where the edge
        is the `left` one, from its other side: (..., 2)."""
        across = torch.where(left, self.view_size[1] - phase[..., 1], phase[..., 1])
        return torch.stack([phase[..., 0], across - (across / self.pitch).floor() * self.pitch], -1)

    def edge(self, phase: Tensor) -> Tensor:
        """Which column of tiles has the last pixels of the view, counted from the first line, as `phase_at` has it."""
        return ((self.view_size[1] - 0.5 - phase[..., 1]) / self.pitch).floor()

    def pixels(self, phase: Tensor, first: Tensor | int, count: int) -> Tensor:
        """The pixels of `count` tiles from the `first` (B,) on, along an axis with a phase (B,): (B, count C)."""
        tiles = torch.arange(count, device=phase.device) + _column(first)
        lines = phase[:, None] + tiles * self.pitch
        begin, end = (lines + 0.5).floor(), (lines + self.pitch + 0.5).floor()
        cells = torch.arange(self.tile, device=phase.device)
        return torch.minimum(begin[..., None] + cells, end[..., None] - 1).flatten(1)

    def cells_of(self, phase: Tensor, first: Tensor | int, pixels: Tensor) -> Tensor:
        """The inverse: in which cell of tiles from the `first` (B,) on pixels (n,) lie: (B, n)."""
        tiles = ((pixels + 0.5 - phase[:, None]) / self.pitch).floor()
        begin = (phase[:, None] + tiles * self.pitch + 0.5).floor()
        return (tiles - _column(first)) * self.tile + pixels - begin

    def cut(self, picture: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Tiles of a picture (B, P, H, W), whose pixels are given, (B, r) and (B, c); 0 where that is outside of it."""
        known = inside(rows, picture.shape[2])[:, None, :, None] & inside(columns, picture.shape[3])[:, None, None]
        return take_lines(picture, rows, columns) * known

    # -- on a canvas -------------------------------------------------------------------------------------------------

    def crop(self, canvas: Tensor, left: Tensor, phase: Tensor) -> Tensor:
        """The tiles at the right edge of the view and the strip's, or at the `left` one (B,), mirrored: colours and
        whether they were seen, (B, 4, R C, reach + width)."""
        (height, width), margin = self.view_size, self.margin
        at = self.phase_at(phase, left)
        rows = self.pixels(at[:, 0], -1, self.rows_of_tiles)
        columns = self.pixels(at[:, 1], self.edge(at) - self.before, self.before + self.count)
        columns = torch.where(left[:, None], width - 1 - columns, columns)
        crop = torch.cat(to_numbers(take_lines(canvas, rows + margin, columns + margin)), 1)
        return crop * inside(rows, height)[:, None, :, None]

    def paste(self, canvas: Tensor, strip: Tensor, left: Tensor, wanted: Tensor, phase: Tensor) -> Tensor:
        """The canvas with a strip of tiles (B, 3, R C, S) beyond the view where nothing was seen, in the worlds where
        it is `wanted` (B,)."""
        (height, width), size = self.view_size, self.config.width
        at = self.phase_at(phase, left)
        places = (torch.arange(side, device=phase.device) for side in (height, size))
        rows, columns = (
            self.cells_of(at[:, axis], first, place + start)
            for axis, first, place, start in zip((0, 1), (-1, self.edge(at)), places, (0, width), strict=True)
        )
        drawn = take_lines(strip, rows, columns)
        return super().paste(canvas, drawn, left, wanted[:, None] & inside(columns, size))

    def forward(
        self, canvas: Tensor, towards: Tensor, phase: Tensor, noise: Tensor | None = None, temperature: float = 0.0
    ) -> Tensor:
        """The canvas before it moves `towards` (B, 2), with whatever of the strip there was not seen yet."""
        left = towards[:, 1] > 0
        crop = self.crop(canvas, left, phase)
        features = self.look(crop, left)
        strip = self.draw(features, self.choose(features, noise, temperature)).clamp(-1, 1)
        return self.paste(canvas, strip, left, towards[:, 1] != 0, phase)


def inside(places: Tensor, size: int) -> Tensor:
    """Which of these places lie within so many."""
    return (places >= 0) & (places < size)


def _column(first: Tensor | int) -> Tensor | int:
    """(B, 1) of (B,); one number of all as it is, since a CUDA graph takes none from the host."""
    return first[:, None] if isinstance(first, Tensor) else first

"""Strips of tiles to learn from, and the palette of tiles that are known by heart.

Shapes: as in `strips`; tiles of C x C pixels.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.ahead_tiles import Tiles, inside
from lwm_env.lattice import Lattice
from lwm_env.registration import Sighting
from lwm_training.batch import Batch, at
from lwm_training.strips import PARTLY, STARTS, Strips

SETTLED = 6  # frames after which the phase of a lattice is known
WHOLE = 0.6  # share of the strips of tiles whose first column was drawn before; of the others the view has its part
EVERY = 6  # frames, of which one is looked at for a palette
PLAYER = 1  # tiles to every side of the middle one that the player covers
MANY, OFTEN = 4, 4  # times as many tiles are tried for a palette as it has, and how many must look like one of them


def follow_phases(lattice: Lattice, seen: Sighting) -> Tensor:
    """The likeliest phase of a lattice after each of T steps, by all that was seen so far, and of none at first:
    (B, T + 1, 2)."""
    doubt, phases = None, []
    for t in range(seen.motion.shape[1]):
        _, doubt = lattice.settle(doubt, None, at(seen, t))
        phases.append(doubt.argmin(2) * lattice.bin)
    return torch.stack([torch.zeros_like(phases[0]), *phases], 1)


def find_tiles(tiles: Tiles, batch: Batch, seen: Sighting, phase: Tensor, generator: torch.Generator) -> Strips:
    """As `find_strips`, of tiles, from the frame on from which the phase (B, T + 1, 2) is known."""
    sure = seen.sure & (batch.valid > 0)
    found = [_tiles_at(tiles, batch.pixels, phase, seen.motion, sure, left, generator) for left in (False, True)]
    return Strips(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def turn_aside(batch: Batch, seen: Sighting, phase: Tensor) -> tuple[Batch, Sighting, Tensor]:
    """The same game with rows and columns changed over."""
    batch = replace(batch, pixels=batch.pixels.transpose(3, 4))
    return batch, Sighting(seen.motion.flip(2), seen.sure), phase.flip(2)


def _tiles_at(
    ahead: Tiles,
    pixels: Tensor,
    phase: Tensor,
    motion: Tensor,
    sure: Tensor,
    left: bool,
    generator: torch.Generator,
) -> Strips:
    """Those at one edge."""
    clips, length, _, height, width = pixels.shape
    device = pixels.device
    if left:
        pixels, motion = pixels.flip(4), motion * motion.new_tensor([1, -1])
    lines = ahead.phase_at(phase, torch.full(phase.shape[:2], left, device=device))
    gone = ((motion + lines[:, :-1] - lines[:, 1:]) / ahead.pitch).round()  # by how many lines a tile is further on
    gone = F.pad(gone.cumsum(1), (0, 0, 1, 0))  # (B, T + 1, 2)
    lost = F.pad((~sure).long().cumsum(1), (1, 0))
    start = torch.randint(SETTLED, length - 1, (clips, STARTS), generator=generator).to(device)
    clip = torch.arange(clips, device=device)[:, None].expand_as(start)
    edge = ahead.edge(lines[clip, start])  # (B, STARTS)
    behind = (edge + ahead.count)[..., None] + gone[:, None, :, 1] - gone[clip, start][..., 1:]  # the strip
    arrived = (lines[:, None, :, 1] + behind * ahead.pitch + 0.5).floor() <= width
    arrived &= torch.arange(length, device=device) > start[..., None]
    end = arrived.int().argmax(2)
    good = arrived.any(2) & (lost[clip, start] == lost[clip, end])
    clip, start, end, edge = clip[good], start[good], end[good], edge[good]

    def tiles(frame: Tensor, first_column: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the frames the tiles from a column on, counted as at the start, and which of their pixels are in view."""
        moved = gone[clip, frame] - gone[clip, start]
        down, right = lines[clip, frame].unbind(1)
        rows = ahead.pixels(down, moved[:, 0] - 1, ahead.rows_of_tiles)
        columns = ahead.pixels(right, first_column + moved[:, 1], count)
        return ahead.cut(pixels[clip, frame], rows, columns), inside(rows, height), inside(columns, width)

    strip, rows, _ = tiles(end, edge, ahead.count)
    view, rows_before, columns = tiles(start, edge - ahead.before, ahead.before + ahead.count)
    seen = rows_before[:, None, :, None] & columns[:, None, None]
    visible = rows[:, None, :, None]

    def chance(*shape: int) -> Tensor:
        return torch.rand(len(clip), *shape, generator=generator).to(device)

    drawn = (chance(1, 1, 1) * (ahead.count - 1) / WHOLE).ceil() * (ahead.tile)  # of the strip, columns drawn before
    drawn = drawn * (drawn <= (ahead.count - 1) * ahead.tile)
    known = (torch.arange(strip.shape[3], device=device) < drawn) & visible & rows_before[:, None, :, None]
    row = torch.linspace(0, 1, strip.shape[2], device=device)[:, None]
    cut, above = chance(1, 1, 1), chance(1, 1, 1) < 0.5
    known |= torch.where(above, row < cut, row > cut) & (chance(1, 1, 1) < PARTLY) & visible
    known = F.pad(known, (view.shape[3] - known.shape[3], 0))
    filled = torch.where(known & ~seen, F.pad(strip, (view.shape[3] - strip.shape[3], 0)), view)
    crop = torch.cat([filled, (known | seen).to(view.dtype)], 1)
    return Strips(crop, strip, visible, torch.full_like(clip, left, dtype=torch.bool))


@torch.no_grad()
def learn_by_heart(ahead: Tiles, batch: Batch, phase: Tensor) -> None:
    """Take as the palette tiles of some frames of the clips, and as they look in a mirror: each the one that is least
    like those before, of such as come more than once. The player's, in the middle, are left out."""
    count, middle = ahead.rows_of_tiles, torch.arange(ahead.rows_of_tiles) - (ahead.rows_of_tiles - 1) / 2
    tiles = []
    for t in range(SETTLED, batch.pixels.shape[1], EVERY):
        down, right = phase[:, t].unbind(1)
        rows, columns = ahead.pixels(down, -1, count), ahead.pixels(right, -1, count)
        cut = ahead.cut(batch.pixels[:, t], rows, columns)
        seen = inside(rows, ahead.view_size[0])[:, :, None] & inside(columns, ahead.view_size[1])[:, None]
        whole = seen.unflatten(1, (count, -1)).unflatten(3, (count, -1)).all(4).all(2)  # (B, rows, columns)
        whole &= torch.maximum(middle.abs()[:, None], middle.abs()).to(whole.device) > PLAYER
        tiles.append(F.pixel_unshuffle(cut, ahead.tile).movedim(1, 3)[whole])
    tiles = torch.cat(tiles)
    tiles = torch.cat([tiles, tiles.unflatten(1, (3, ahead.tile, ahead.tile)).flip(3).flatten(1)])
    chosen, apart, nearest = (
        [],
        torch.full_like(tiles[:, 0], torch.inf),
        torch.zeros_like(tiles[:, 0], dtype=torch.long),
    )
    for number in range(MANY * ahead.config.palette):
        chosen.append(tiles[apart.argmax()])
        further = (tiles - chosen[-1]).square().mean(1)
        nearest = torch.where(further < apart, number, nearest)
        apart = torch.minimum(apart, further)
    often = torch.bincount(nearest, minlength=len(chosen)) >= OFTEN
    known = torch.stack(chosen)[often][: ahead.config.palette]
    ahead.palette[: len(known)] = known

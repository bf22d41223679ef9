"""What teaches to draw ahead: strips of real pictures that came into view a few steps later, found by registration.

Shapes: B clips of T steps, N strips of H x S pixels.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.above import Above, aside, upright
from lwm_env.ahead import Ahead
from lwm_env.ahead_tiles import Tiles, inside
from lwm_env.lattice import Lattice
from lwm_env.registration import Sighting
from lwm_env.turning import affine, inverse, places, sample, sources, then
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch, at, sightings
from lwm_training.picture_loss import END, picture_error

STARTS = 4  # tried in each clip
COLOURS = 4  # bins of each colour's brightness
SETTLED = 6  # frames after which the phase of a lattice is known
WHOLE = 0.6  # share of the strips of tiles whose first column was drawn before; of the others the view has its part
ENDS = 0.1  # of readings beyond `END`, where tanh has no gradient
LIKE = 0.01  # mean squared difference of two tiles, by which one is e times as unlikely to be the other
EVERY = 6  # frames, of which one is looked at for a palette
PLAYER = 1  # tiles to every side of the middle one that the player covers
MANY, OFTEN = 4, 4  # times as many tiles are tried for a palette as it has, and how many must look like one of them
SHOWN = 0.5  # share of the rows above a view that must come into view to learn from them
PARTLY = 0.2  # share of the strips of which some rows were seen already, and of those of which a column was


class Strips(NamedTuple):
    """crop (N, 4, H, R + S) as `Ahead.crop` gives them, strip (N, 3, H, S), which of its rows, or pixels, were in view,
    bool (N, 1, H, 1 or S), and whether it is at the left edge, bool (N,)."""

    crop: Tensor
    strip: Tensor
    visible: Tensor
    left: Tensor


def find_strips(ahead: Ahead, batch: Batch, seen: Sighting, generator: torch.Generator) -> Strips:
    """Of random pictures the strip beyond the edge that the camera went to, as the first picture shows it that has
    all of it; none where the camera turned back, was lost, or the episode ended before."""
    pixels, size = batch.pixels, ahead.config.width
    clips, length, _, height, width = pixels.shape
    device = pixels.device
    place = F.pad(seen.motion.round().cumsum(1), (0, 0, 1, 0))  # (B, T + 1, 2) of the content
    lost = F.pad((~seen.sure | (batch.valid == 0)).long().cumsum(1), (1, 0))
    start = torch.randint(length - 1, (clips, STARTS), generator=generator).to(device)
    clip = torch.arange(clips, device=device)[:, None].expand_as(start)
    moved = place[:, None] - place[clip, start][:, :, None]  # (B, STARTS, T + 1, 2)
    later = torch.arange(length, device=device) > start[..., None]
    arrived = later & (moved[..., 1].abs() >= size)
    end = arrived.int().argmax(2)
    good = arrived.any(2) & (lost[clip, start] == lost[clip, end])
    clip, start, end = clip[good], start[good], end[good]
    down, right = (place[clip, end] - place[clip, start]).long().unbind(1)
    left = right > 0
    rows = torch.arange(height, device=device) + down[:, None]
    visible = (rows >= 0) & (rows < height)
    beyond = torch.arange(size, device=device)
    columns = torch.where(left[:, None], -1 - beyond, width + beyond) + right[:, None]
    picked = pixels[clip, end].movedim(1, -1)  # colours last, as an index of rows and columns wants
    number = torch.arange(len(clip), device=device)[:, None, None]
    strip = picked[number, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]]
    visible = visible[:, None, :, None]
    strip = strip.movedim(-1, 1) * visible
    known = _known(visible, size, generator)
    view = pixels[clip, start]
    reach = ahead.config.reach
    view = torch.where(left[:, None, None, None], view[..., :reach].flip(3), view[..., width - reach :])
    colours = torch.cat([view, strip * known], 3)
    crop = torch.cat([colours, torch.cat([torch.ones_like(view[:, :1]), known], 3)], 1)
    return Strips(crop, strip, visible, left)


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


def find_rows(model: WorldModel, batch: Batch, seen: Sighting, generator: torch.Generator) -> Strips:
    """Of random pictures the rows above the view, as the later picture shows them that has most of them; none where
    that is less than `SHOWN` of them, the view was lost, or the episode ended before."""
    above, turn, pixels = model.ahead, model.motion.flow, batch.pixels
    clips, length, device = len(pixels), pixels.shape[1], pixels.device
    before = _all_before(affine(seen.motion, turn.aspect.detach().exp()))  # (B, T + 1, 2, 3)
    lost = F.pad((~seen.sure | (batch.valid == 0)).long().cumsum(1), (1, 0))
    start = torch.randint(length - 1, (clips, STARTS), generator=generator).to(device)
    clip = torch.arange(clips, device=device)[:, None].expand_as(start)
    rows = turn.rows_at[:1] + torch.arange(-above.config.width, 0, device=device)
    where = places(rows, turn.columns_at)
    maps = then(inverse(before)[clip], before[clip, start][:, :, None])  # of places at the start to those of each frame
    gone = sources(maps.flatten(0, 2), where).unflatten(0, maps.shape[:3])  # (B, STARTS, T + 1, S, W, 2)
    inside = (gone.abs() <= gone.new_tensor(turn.middle)).all(5)
    later = torch.arange(length, device=device) > start[..., None]
    share = inside.float().mean((3, 4)) * (later & (lost[clip, start][..., None] == lost[clip]))
    most, end = share.max(2)
    good = most >= SHOWN
    clip, start, end = clip[good], start[good], end[good]
    number = torch.arange(len(clip), device=device)
    visible = aside(inside[good][number, end][:, None])
    strip = aside(sample(pixels[clip, end], gone[good][number, end], turn.middle)) * visible
    near = torch.randint(-above.config.width // 2, above.config.width // 2, (len(clip), 1, 1, 1), generator=generator)
    known = (torch.arange(above.config.width, device=device) < near.to(device)) & visible
    lying = torch.cat([strip * known, known.to(strip.dtype)], 1)
    left = torch.zeros(len(clip), dtype=torch.bool, device=device)
    return Strips(above.crop(upright(lying), pixels[clip, start]), strip, visible, left)


def _all_before(steps: Tensor) -> Tensor:
    """Maps of T steps (B, T, 2, 3) -> those from each of T + 1 frames to the first."""
    maps = [torch.eye(2, 3, device=steps.device).expand_as(steps[:, 0])]
    for step in steps.unbind(1):
        maps.append(then(maps[-1], step))
    return torch.stack(maps, 1)


def _known(visible: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """What of the strips was seen before: nothing, a column, or the rows on one side of some height. (N, 1, H, S)."""
    count, height = len(visible), visible.shape[2]

    def chance(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator).to(visible.device)

    row = torch.linspace(0, 1, height, device=visible.device)[:, None]
    cut, above, kind = chance(1, 1, 1), chance(1, 1, 1) < 0.5, chance(1, 1, 1)
    rows = torch.where(above, row < cut, row > cut) & (kind < PARTLY)
    column = (torch.arange(size, device=visible.device) == 0) & (kind >= PARTLY) & (kind < 2 * PARTLY)
    return ((rows | column) & visible).float()


def rarity(strips: Tensor, visible: Tensor) -> Tensor:
    """Weights (N, 1, H, S) of mean 1, for each pixel one over the root of how often its colour comes in the batch: a
    coin of six pixels else counts nothing beside walls."""
    bins = ((strips + 1) * (COLOURS / 2)).long().clamp(0, COLOURS - 1)
    index = (bins[:, 0] * COLOURS + bins[:, 1]) * COLOURS + bins[:, 2]
    here = visible.expand(-1, -1, -1, strips.shape[3])[:, 0]
    counts = torch.bincount(index[here], minlength=COLOURS**3)
    weights = counts.clamp(min=1).rsqrt()[index] * here
    return (weights * (here.sum() / weights.sum()))[:, None]


def ahead_errors(model: WorldModel, batch: Batch, generator: torch.Generator, edges: float) -> dict[str, Tensor]:
    """`strip`: how wrong strips are that are drawn from their own codes; `code`: how unlikely the prior finds these;
    `palette`: see `palette_error`. Of strips at the sides and of such above and below the mean."""
    ahead, seen = model.ahead, sightings(model, batch)
    if isinstance(ahead, Above):
        return strip_errors(ahead, find_rows(model, batch, seen, generator), edges)
    if isinstance(ahead, Ahead):
        return strip_errors(ahead, find_strips(ahead, batch, seen, generator), edges)
    known, errors = (batch, seen, follow_phases(model.lattice, seen)), []
    for tiles, (game, sighting, phase) in ((ahead.sides, known), (ahead.rows, turn_aside(*known))):
        if tiles is None:
            continue
        if tiles.config.palette and not tiles.palette.any():
            learn_by_heart(tiles, game, phase)
        errors.append(strip_errors(tiles, find_tiles(tiles, game, sighting, phase, generator), edges))
    return {name: sum(part[name] for part in errors) / len(errors) for name in errors[0]}


def strip_errors(ahead: Ahead, found: Strips, edges: float) -> dict[str, Tensor]:
    """See `ahead_errors`; 0 where none were found."""
    by_heart = isinstance(ahead, Tiles) and ahead.config.palette > 0
    if not len(found.left):
        nothing = sum(parameter.sum() for parameter in ahead.parameters()) * 0
        return dict.fromkeys(("strip", "code", *(["palette"] * by_heart)), nothing)
    features = ahead.look(found.crop, found.left)
    reading = ahead.read(features, found.strip)
    numbers, indices = ahead.quantize(reading)
    unseen = (1 - found.crop[:, 3:, :, -found.strip.shape[3] :]) * found.visible
    weights, votes = rarity(found.strip, found.visible), None
    if by_heart:
        free, votes = ahead.candidates(features, numbers)
        drawn = F.pixel_shuffle(free, ahead.tile)
    else:
        drawn = ahead.draw(features, numbers)
    drawn = torch.where(unseen > 0, drawn, drawn.detach())  # or else differences of neighbours lead the others astray
    target = torch.where(unseen > 0, found.strip, drawn.detach())
    share = unseen.mean((1, 2, 3)).clamp(min=0.1)
    error = picture_error(drawn, target, edges, weights, squared=2.0) / share
    ends = F.relu(reading.abs() - END).square().mean()
    errors = {"strip": error.mean() + ENDS * ends, "code": ahead.unlikely(features, numbers, indices)}
    if votes is not None:
        errors["palette"] = palette_error(ahead, drawn.detach(), votes, found.strip, unseen, weights)
    return errors


def palette_error(ahead: Tiles, free: Tensor, votes: Tensor, strip: Tensor, unseen: Tensor, weights: Tensor) -> Tensor:
    """How unlikely the unseen pixels of strips (N, 3, H, S) are if each tile is one of the palette or the one that was
    drawn freely, (N, 3, H, S), with the logits of `votes`: a mixture, as in Bishop's mixture density networks (1994),
    whose parts are all equally wide. Weights (N, 1, H, S) are of pixels; a tile has their mean."""
    size = ahead.tile
    tiles, drawn = F.pixel_unshuffle(strip, size), F.pixel_unshuffle(free, size)
    mask = F.pixel_unshuffle(unseen.expand_as(strip[:, :1]), size).repeat(1, 3, 1, 1)
    known = mask * tiles
    apart = (known * tiles).sum(1, keepdim=True) - 2 * torch.einsum("nchw,pc->nphw", known, ahead.palette)
    apart = apart + torch.einsum("nchw,pc->nphw", mask, ahead.palette.square())
    apart = torch.cat([apart, (mask * (tiles - drawn).square()).sum(1, keepdim=True)], 1)
    some = mask.sum(1).clamp(min=1)
    unlikely = -(votes.log_softmax(1) - apart / (some[:, None] * LIKE)).logsumexp(1)
    counts = F.avg_pool2d(weights, size)[:, 0] * (mask.mean(1) > 0)
    return (unlikely * counts).sum() / counts.sum().clamp(min=1e-6)


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

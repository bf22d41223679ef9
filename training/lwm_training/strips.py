"""Strips to learn from: what of real pictures came into view a few steps later, found by registration.

Shapes: B clips of T steps, N strips of H x S pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.above import aside
from lwm_env.ahead import Ahead
from lwm_env.ground import KNOWN
from lwm_env.memory import paint
from lwm_env.registration import Sighting
from lwm_env.turning import affine, inverse, sample, sources, then
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch

STARTS = 4  # tried in each clip
SHOWN = 0.4  # share of the rows above a view that must come into view to learn from them
BESIDE = 0.7  # share of the crops that show what lies beside a view that turns
MOVED_ASIDE = 0.6  # share of them that are of a view beside the real one
SURVEYED = 0, 1, 4, 7, 10, 13, -3, -6  # steps to the pictures that show what lies around one
NEARLY = 1e-3  # pixels beyond the edge that are not
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


def find_rows(model: WorldModel, batch: Batch, seen: Sighting, generator: torch.Generator) -> Strips:
    """Of random pictures, or of views beside them, the rows above the view, as far as other pictures show them; none
    where that is less than `SHOWN` of them. What lies beside the view is seen in some crops.

    Players follow roads, so the rows beside the view are seen where a road leads there: in real views alone every
    corner has one."""
    ground, sizes, device = model.motion.flow.ground, model.config.ahead, batch.pixels.device
    clips, length = len(batch.pixels), batch.pixels.shape[1]
    start = torch.randint(length - 1, (clips * STARTS,), generator=generator).to(device)
    clip = torch.arange(clips, device=device).repeat_interleave(STARTS)
    where = ground.around(sizes.width, sizes.reach, sizes.beside)
    far = sizes.beside + where.shape[1] // 8
    aside_by = torch.randint(-far, far + 1, (len(clip), 1, 1), generator=generator)
    aside_by = aside_by * (torch.rand(len(clip), 1, 1, generator=generator) < MOVED_ASIDE)
    around = survey(model, batch, seen, clip, start, where + F.pad(aside_by.to(device)[..., None], (1, 0)))
    around = around[around[:, 3, : sizes.width].mean((1, 2)) >= SHOWN]

    def chance() -> Tensor:
        return torch.rand(len(around), 1, 1, generator=generator).to(device)

    strip, visible = (aside(part) for part in around[:, :, : sizes.width].split([3, 1], 1))
    row, column = (torch.arange(size, device=device) for size in where.shape[:2])
    nearest = row[:, None] >= sizes.width * (0.5 + chance())  # often nothing above the view
    inside = (row[:, None] >= sizes.width) & (column >= sizes.beside) & (column < len(column) - sizes.beside)
    known = inside | (nearest & ((row[:, None] < sizes.width) | (chance() < BESIDE)))
    left = torch.zeros(len(around), dtype=torch.bool, device=device)
    return Strips(aside(around * known[:, None]), strip, visible > 0, left)


def survey(model: WorldModel, batch: Batch, seen: Sighting, clip: Tensor, start: Tensor, where: Tensor) -> Tensor:
    """What real pictures show at places (h, w, 2) or (N, h, w, 2) of N views that turn, each of a clip and at a step
    (N,): the view's own first, then the others of `SURVEYED`, as long as the view is not lost. (N, 4, h, w)."""
    flow, length = model.motion.flow, seen.motion.shape[1]
    before = _all_before(affine(seen.motion, flow.aspect.detach().exp()))
    lost = F.pad((~seen.sure | (batch.valid == 0)).long().cumsum(1), (1, 0))
    found = batch.pixels.new_zeros(len(clip), 4, *where.shape[-3:-1])
    lies = flow.ground.lies.expand(len(clip), 1, -1, -1)
    for steps in SURVEYED:
        other = (start + steps).clamp(0, length)
        map_ = then(inverse(before[clip, other]), before[clip, start])
        gone = sources(map_, where)
        there = (gone.abs() <= gone.new_tensor(flow.middle) + NEARLY).all(3)
        there = there & ((other == start + steps) & (lost[clip, start] == lost[clip, other]))[:, None, None]
        shown, share = sample(torch.cat([batch.pixels[clip, other], lies], 1), gone, flow.middle).split([3, 1], 1)
        found = paint(found, shown, there[:, None] * (share > KNOWN) * (1 - found[:, 3:]))
    return found


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

"""Strips to learn from: what of real pictures came into view a few steps later, found by registration.

Shapes: B clips of T steps, N strips of H x S pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.above import aside, upright
from lwm_env.ahead import Ahead
from lwm_env.registration import Sighting
from lwm_env.turning import affine, inverse, places, sample, sources, then
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch

STARTS = 4  # tried in each clip
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

"""What teaches to draw ahead: how wrong strips are, and how unlikely.

Shapes: N strips of H x S pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.above import Above
from lwm_env.ahead import Ahead
from lwm_env.ahead_tiles import Tiles
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch, sightings
from lwm_training.picture_loss import END, picture_error
from lwm_training.strips import Strips, find_rows, find_strips
from lwm_training.tile_strips import find_tiles, follow_phases, learn_by_heart, turn_aside

COLOURS = 4  # bins of each colour's brightness
ENDS = 0.1  # of readings beyond `END`, where tanh has no gradient
LIKE = 0.01  # mean squared difference of two tiles, by which one is e times as unlikely to be the other


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

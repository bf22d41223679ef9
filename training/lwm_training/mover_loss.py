"""What teaches the movers: to stand where something moves, each on its own thing, and to foretell what becomes of it
and what happens then.

Masks alone teach them slowly: a copy that is a pixel off is not chosen, and a copy that is not chosen learns nothing.

Shapes: B clips of T + 1 frames of H x W pixels, in [-1, 1]; M movers, K context frames.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.eyes import Places
from lwm_env.movers import COMES, GOES, Foresight, Going, Movers
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch, last_frames
from lwm_training.picture_loss import CHANGED
from lwm_training.replay import Replay

SHARING = 0.1  # squared reaches of distance by which another mover owns a pixel e times as well
SPARSE = 3  # of so many frames one is looked at for where the movers stand
FEW, MANY = 64, 1024  # batches of a length remembered while movers learn where they stand, and while they know


def spread(movers: Movers, places: Tensor, weights: Tensor) -> Tensor:
    """Mean distance, in reaches, squared, of pixels with weights (B, H, W) from the nearest of the places (B, M, 2):
    what k-means minimises, with a soft choice of the nearest."""
    rest = Going(places.new_zeros(places.shape[:2], dtype=torch.long), torch.zeros_like(places), places)
    distance = movers.distance(places, torch.ones_like(places[..., 0]), rest)
    nearest = -SHARING * torch.logsumexp(-distance / SHARING, 1)
    return (nearest * weights).sum() / weights.sum().clamp(min=1e-6)


def what_moves(movers: Movers, pixels: Tensor) -> Tensor:
    """How unusual each pixel of frames (B, T + 1, 3, H, W) is, where its clip is not the same all the time:
    (B, T + 1, H, W). The figures of a score stand still."""
    moving = (pixels - pixels.mean(1, keepdim=True)).abs().amax((1, 2)) > CHANGED
    return (pixels - movers.usual).square().sum(2) * moving[:, None]


def walk(movers: Movers, found: Places, walks_from: Tensor) -> tuple[Tensor, list[Going]]:
    """The places (B, T + 1, M, 2) of movers that walk by whole pixels, as in a dream, from the frames `walks_from` (B,)
    on and are at the real `found` places before; and what became of them in each of the T steps."""
    own, goings = [found.places[:, 0]], []
    for t in range(found.places.shape[1] - 1):
        going = movers.follow(own[-1], found.places[:, t + 1], *found.there[:, t : t + 2].unbind(1))
        walks = (going.fates == GOES) & (t >= walks_from)[:, None]
        own.append(torch.where(walks[..., None], own[-1] + going.shifts, found.places[:, t + 1]))
        goings.append(going)
    return torch.stack(own, 1), goings


class Courses(NamedTuple):
    """How movers went in some clips, what is `known` to those who foretell it, (B, T, C), and what happened: rewards
    (B, T, P) as indices of the values, ends (B, T); valid (B, T)."""

    found: Places
    known: Tensor
    rewards: Tensor
    ends: Tensor
    valid: Tensor


def fate_error(foresight: Foresight, going: Going) -> Tensor:
    """Cross-entropy of what became of the movers, in nats, the mean over them: (B,)."""

    def nats(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits.movedim(-1, 1), target, reduction="none")

    reach = (foresight.shifts.shape[3] - 1) // 2
    shifts = nats(foresight.shifts, going.shifts.long() + reach).sum(2) * (going.fates == GOES)
    spots = 0
    for axis, logits in enumerate((foresight.rows, foresight.columns)):
        size = logits.shape[2]
        place = (going.spots[..., axis] + (size - 1) / 2).round().long().clamp(0, size - 1)
        spots = spots + nats(logits, place) * (going.fates == COMES)
    return (nats(foresight.fates, going.fates) + shifts + spots).mean(1)


def event_error(events: Tensor, rewards: Tensor, ends: Tensor) -> Tensor:
    """Cross-entropy of rewards (B, P) and ends (B,), in nats, of their logits (B, P R + 1): (B,)."""
    logits = events[:, :-1].unflatten(1, (rewards.shape[1], -1))
    rewarded = F.cross_entropy(logits.movedim(2, 1), rewards, reduction="none").mean(1)
    return rewarded + F.binary_cross_entropy_with_logits(events[:, -1], ends, reduction="none")


def course_errors(
    movers: Movers, courses: Courses, past: int, context: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """The `fate_error` and the `event_error` of every step, told from the last `past` frames, with gradients through
    what is carried; mean over the valid steps from the `context`-th frame on."""
    count, steps = courses.valid.shape
    walks_from = torch.randint(0, steps, (count,), generator=generator).to(courses.valid.device)
    own, goings = walk(movers, courses.found, walks_from)
    carry, fates, events = own.new_zeros(count, movers.carry_dim), [], []
    for t in range(steps):
        seen = last_frames(t, past)
        foresight, carry = movers(Places(own[:, seen], courses.found.there[:, seen]), courses.known[:, t], carry)
        fates.append(fate_error(foresight, goings[t]))
        events.append(event_error(foresight.events, courses.rewards[:, t], courses.ends[:, t]))
    valid = courses.valid[:, context - 1 :]
    means = [(torch.stack(x, 1)[:, context - 1 :] * valid).sum() / valid.sum().clamp(min=1) for x in (fates, events)]
    return {"course": means[0], "told": means[1]}


def standing_error(movers: Movers, pixels: Tensor) -> Tensor:
    """The `spread` of what moves in frames (B, T + 1, 3, H, W) about the movers, who also learn what is usual."""
    movers.remember_usual(pixels)
    some = slice(None, None, SPARSE)
    weights, looks = what_moves(movers, pixels)[:, some], movers.look(pixels[:, some])
    movers.remember_common(looks)
    return spread(movers, movers.find(looks).places.flatten(0, 1), weights.flatten(0, 1))


def movers_errors(
    model: WorldModel,
    batch: Batch,
    motion: Tensor,
    context: int,
    replay: Replay,
    generator: torch.Generator,
    standing: bool = True,
) -> dict[str, Tensor]:
    """Of the movers alone, without drawing: their `standing_error`, if it is asked for, and the `course_errors` of the
    batch and of some that were seen before. `motion` (B, T, 2) is the camera's."""
    movers = model.motion.movers
    errors = {"spots": standing_error(movers, batch.pixels)} if standing else {}
    with torch.no_grad():
        found = movers.find(movers.look(batch.pixels))
        movers.appearance.remember(batch.pixels, *found, movers.usual)
    action = model.embed(batch.actions.flatten(0, 1)).unflatten(0, batch.valid.shape)
    known = torch.cat([action, motion / 4, torch.zeros_like(motion)], 2)
    courses = replay.mix(Courses(found, known, batch.rewards, batch.ends, batch.valid), generator)
    past = model.config.motion.context_frames
    return errors | course_errors(movers, courses, past, context, generator)

"""Trains the inverse-dynamics net of a world on real play of its training levels."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lwm_env.spec import WorldSpec
from lwm_training.inverse_dynamics import FRAMES, InverseDynamics
from lwm_training.recipe import Data
from lwm_training.stream import open_data

BATCH, RATE, WARMUP = 128, 2e-3, 20
_STATISTICS = 16  # batches that the features are normalised over


@dataclass(frozen=True)
class Lesson:
    """How long: until `minutes` of wall-clock time or `steps` are over, whichever comes first."""

    minutes: float
    steps: int | None = None
    seed: int = 0

    def share(self, step: int, seconds: float) -> float:
        """How much of it is over, 0 to 1."""
        return min(1.0, max(seconds / 60 / self.minutes, step / self.steps if self.steps else 0.0))


def train_idm(
    spec: WorldSpec, data: Data, lesson: Lesson, progress: Callable[[float, float], object]
) -> tuple[InverseDynamics, int]:
    """The net, in eval mode, and how many steps it was trained for.

    Args:
        data: the real play; streams are of the levels of the split "train".
        progress: called after every step with the share that is over and the loss.

    Raises:
        UnknownWorld, MissingExtra, ConfigMismatch, InvalidInput, CorruptFile: see `open_data`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lesson.seed)
        net = InverseDynamics(spec)
    clips, begin, step, share = open_data(spec, data, lesson.seed), time.perf_counter(), 0, 0.0
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.01)
    while share < 1:
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * share)) / 2
        loss = net.loss(*_batch(clips, step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        share = lesson.share(step, time.perf_counter() - begin)
        progress(share, loss.item())
    net.eval().requires_grad_(False)
    first = step - 1 - (step - 1) % data.shard_lasts  # of the shard that is there
    features = torch.cat([net(_batch(clips, first + index)[0])[1] for index in range(_STATISTICS)])
    net.feature_mean.copy_(features.mean(0))
    net.feature_scale.copy_(features.std(0).clamp(min=1e-3))
    return net, step


def _batch(clips, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows within an episode, and the action in the middle of each."""
    drawn = clips.clips(step, BATCH, FRAMES - 1, min_steps=FRAMES - 1)
    return torch.from_numpy(drawn.observations), torch.from_numpy(drawn.actions[:, FRAMES // 2 - 1])

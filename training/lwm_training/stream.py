"""Real play made while training: no disk, and the batch of a step depends on (seed, step, rank) alone.

A shard is `num_envs` copies of the game played for `shard_steps` steps; `shard_lasts` consecutive steps of training
draw their clips from one shard, so a resumed run plays that shard again and goes on as if it had never stopped. Each of
several processes, which its rank tells, plays games of its own.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lwm_env.errors import ConfigMismatch
from lwm_env.registration import Sighting
from lwm_env.spec import WorldSpec
from lwm_env.tokenizer import to_pixels
from lwm_training.clips import Clips, nearest_rewards
from lwm_training.policies import Players, parse_policy
from lwm_training.recipe import Data
from lwm_training.sources import open_spec_source

if TYPE_CHECKING:
    from lwm_training.episodes import EpisodeStore

Sight = Callable[[Tensor, Tensor], Sighting]  # of pictures (B, 3, H, W) before and after


class Shard:
    """Some copies' play: observations (N, T + 1, H, W, 3) and what led from one to the next (N, T, ...)."""

    def __init__(self, spec: WorldSpec, data: Data, seed: int, split: str) -> None:
        source = open_spec_source(spec, data.num_envs, seed, split, num_threads=min(data.num_envs, os.cpu_count() or 1))
        policy = parse_policy(data.policy, Players.of(spec, data.num_envs, seed))
        frames, restarted = source.reset(), np.zeros(data.num_envs, bool)
        observations, actions, rewards, terminations, restarts = [frames], [], [], [], []
        for _ in range(data.shard_steps):
            action = policy.act(frames, restarted)
            step = source.step(action)
            restarts.append(restarted)  # the step after an end shows the next episode's first frame
            frames, restarted = step.observations, step.terminations | step.truncations
            observations.append(frames)
            actions.append(action)
            rewards.append(step.rewards)
            terminations.append(step.terminations)
        source.close()
        self.observations, self.actions, self.rewards, self.terminations = (
            np.stack(parts, 1) for parts in (observations, actions, rewards, terminations)
        )
        values = spec.reward_values
        rewarded = nearest_rewards(self.rewards, values) != np.float32(min(values, key=abs))
        self.eventful = rewarded.any(-1) | self.terminations  # bool (N, T)
        episode = np.stack(restarts, 1).cumsum(1)
        self.episode = np.concatenate([np.zeros((data.num_envs, 1), int), episode], 1)  # of every frame
        self._sightings: np.ndarray | None = None

    def sightings(self, sight: Sight) -> np.ndarray:
        """Of every step, as `Clips` has them, found once: (N, T, M + 1)."""
        if self._sightings is None:
            found = []
            for frames in self.observations:
                pixels = to_pixels(torch.from_numpy(frames))
                seen = [sight(*pair) for pair in zip(pixels[:-1].split(64), pixels[1:].split(64), strict=True)]
                for motion, sure, cost in seen:
                    known = [motion, sure[:, None].float()] if cost is None else [motion, cost, sure[:, None].float()]
                    found.append(torch.cat(known, 1))
            self._sightings = torch.cat(found).unflatten(0, self.actions.shape[:2]).numpy()
        return self._sightings

    def clips(
        self,
        rng: np.random.Generator,
        batch: int,
        length: int,
        min_steps: int,
        event_share: float = 0.0,
        sight: Sight | None = None,
    ) -> Clips:
        """`batch` stretches of `length` steps, of which the first `min_steps` stay in one episode; about `event_share`
        of them are drawn among those where a reward or an end follows these steps."""
        starts = max(0, self.actions.shape[1] - length + 1)
        first, last = self.episode[:, :starts], self.episode[:, min_steps:][:, :starts]
        rows, columns = np.nonzero(first == last)
        if not len(rows):
            raise ConfigMismatch(
                f"in {self.actions.shape[1]} steps of play no clip of {length} steps has its first {min_steps} in one "
                f"episode. Set data.shard_steps higher, or the stage's context lower."
            )
        chosen = rng.integers(len(rows), size=batch)
        if event_share:
            before = np.cumsum(np.pad(self.eventful, ((0, 0), (1, 0))), 1)
            eventful = np.flatnonzero(before[rows, columns + length] > before[rows, columns + min_steps])
            drawn = rng.random(batch) < event_share
            if len(eventful):
                chosen = np.where(drawn, eventful[rng.integers(len(eventful), size=batch)], chosen)
        row, column = rows[chosen][:, None], columns[chosen][:, None]
        steps, frames = column + np.arange(length), column + np.arange(length + 1)
        return Clips(
            observations=self.observations[row, frames],
            actions=self.actions[row, steps],
            rewards=self.rewards[row, steps],
            terminations=self.terminations[row, steps],
            valid=self.episode[row, frames[:, 1:]] == self.episode[row, frames[:, :1]],
            sightings=None if sight is None else self.sightings(sight)[row, steps],
        )


class Stream:
    """Clips of play that is made on the way."""

    def __init__(self, spec: WorldSpec, data: Data, seed: int, split: str = "train", rank: int = 0) -> None:
        self.spec, self.data, self.seed, self.split, self.rank = spec, data, seed, split, rank
        self._first: int | None = None  # step of training that the shard is for
        self._shard: Shard | None = None

    def clips(
        self,
        step: int,
        batch: int,
        length: int,
        min_steps: int = 0,
        sight: Sight | None = None,
    ) -> Clips:
        """The batch of a training step; with `sight` its sightings are found once and not again and again."""
        first = step - step % self.data.shard_lasts
        if first != self._first or self._shard is None:
            seed = int(np.random.SeedSequence([self.seed, first, self.rank]).generate_state(1)[0] >> 2)
            self._shard, self._first = Shard(self.spec, self.data, seed, self.split), first
        return self._shard.clips(
            np.random.default_rng([self.seed, step, self.rank]),
            batch,
            length,
            min_steps,
            self.data.event_share,
            sight,
        )


class Stored:
    """Clips of an episode store, drawn by (seed, step, rank)."""

    def __init__(self, store: "EpisodeStore", seed: int, rank: int = 0) -> None:
        self.store, self.seed, self.rank = store, seed, rank

    def clips(
        self,
        step: int,
        batch: int,
        length: int,
        min_steps: int = 0,
        sight: Sight | None = None,
    ) -> Clips:
        """The batch of a training step; what a store holds is not seen before."""
        rng = np.random.default_rng([self.seed, step, self.rank])
        return self.store.clips(rng, batch, length, max(1, min_steps))


def open_data(spec: WorldSpec, data: Data, seed: int, rank: int = 0) -> Stream | Stored:
    """What the recipe's `[data]` names, for the process with this rank."""
    if data.kind == "stream":
        return Stream(spec, data, seed, rank=rank)
    from lwm_training.episodes import EpisodeStore

    return Stored(EpisodeStore(str(data.path)), seed, rank)

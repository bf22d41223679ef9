"""How a policy is measured: whole episodes in a vector env, of which each env plays its share."""

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import VectorEnv
from tqdm import tqdm

from lwm_agents.sb3 import SB3VecEnv


class Policy(Protocol):
    """What plays: a model of SB3 or sb3-contrib, a planner, or anything with SB3's `predict`."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Actions of N envs and the policy's own memory, from observations (N, ...), the last memory (None at first)
        and bool (N,): whose episode begins."""


@dataclass(frozen=True)
class Played:
    """Episodes in the order in which they ended."""

    returns: list[float]
    lengths: list[int]  # steps
    steps_per_second: float  # of all envs, policy included

    def summary(self) -> dict[str, float]:
        """mean, interval (95 %, half width), num_episodes, length (mean steps), steps_per_second."""
        count = len(self.returns)
        spread = np.std(self.returns, ddof=1) if count > 1 else float("nan")
        return {
            "mean": float(np.mean(self.returns)),
            "interval": float(1.96 * spread / np.sqrt(count)),
            "num_episodes": count,
            "length": float(np.mean(self.lengths)),
            "steps_per_second": self.steps_per_second,
        }


def play(
    policy: Policy | None,
    envs: VectorEnv,
    num_episodes: int,
    seed: int = 0,
    deterministic: bool = False,
    pictures: np.ndarray | None = None,
) -> Played:
    """Play whole episodes by a policy, or by uniformly random actions (None), in a vector env of mode SAME_STEP.

    Each env plays its share of the episodes, so that short ones are not counted more often.

    Args:
        pictures: uint8 (num_envs, H, W, 3), at which the first episode of each env of a dream begins.
    """
    adapter, returns, lengths = SB3VecEnv(envs), [], []
    share = np.full(adapter.num_envs, num_episodes // adapter.num_envs)
    share[: num_episodes % adapter.num_envs] += 1
    adapter.seed(seed)
    if pictures is not None:
        adapter.set_options([{"frames": picture[None]} for picture in pictures])
    adapter.action_space.seed(seed)
    observations, begin, steps = adapter.reset(), time.perf_counter(), 0
    state, starts = None, np.ones(adapter.num_envs, bool)
    with tqdm(total=num_episodes, unit="episode", disable=None, leave=False) as bar:
        while share.any():
            if policy is None:
                actions = np.array([adapter.action_space.sample() for _ in range(adapter.num_envs)])
            else:
                actions, state = policy.predict(observations, state, starts, deterministic)
            observations, _, starts, infos = adapter.step(actions)
            steps += adapter.num_envs
            for i in np.flatnonzero(starts & (share > 0)):
                share[i] -= 1
                returns.append(infos[i]["episode"]["r"])
                lengths.append(infos[i]["episode"]["l"])
                bar.update()
    return Played(returns, lengths, steps / (time.perf_counter() - begin))

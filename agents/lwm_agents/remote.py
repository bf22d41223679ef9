"""`lwm agent join`: a trained policy in a seat of a room on another machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from lwm_agents.agent import open_agent
from lwm_agents.seats import SeatEnv
from lwm_env.web.client import RemoteEnv


class PlayedEpisode(NamedTuple):
    """What a policy came to in one episode; the first one may have begun before it joined."""

    episode: int  # from 1
    total: float  # the return
    length: int  # frames that it acted on; a slow policy sees fewer than there were


def play_seat(
    remote: RemoteEnv, checkpoint: Path, episodes: int = 0, deterministic: bool = False, device: str = "cpu"
) -> Iterator[PlayedEpisode]:
    """Play the seat that is taken, and tell of each episode at its end.

    Args:
        checkpoint: a folder that `lwm agent train` or `lwm_agents.agent.save_agent` wrote.
        episodes: how many; 0 plays until the caller stops.

    Raises:
        ServerError: the connection was lost.
        UnknownWorld, CorruptFile, ConfigMismatch: the agent cannot be read, or has other spaces than the seat.
    """
    env = SeatEnv(remote, remote.possible_agents[0])
    model = open_agent(checkpoint, DummyVecEnv([lambda: env]), device)
    episode = 0
    while not episodes or episode < episodes:
        episode += 1
        yield _play_episode(env, model, episode, deterministic)


def _play_episode(env: SeatEnv, model: PPO, episode: int, deterministic: bool) -> PlayedEpisode:
    observation, _ = env.reset()
    total, length, ended = 0.0, 0, False
    while not ended:
        action, _ = model.predict(np.asarray(observation), deterministic=deterministic)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, length, ended = total + reward, length + 1, terminated or truncated
    return PlayedEpisode(episode, total, length)

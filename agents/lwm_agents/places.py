"""What a policy sees of a game in which things move by themselves, if not its pixels: where they are.

Shapes: N envs, M movers, H x W pixels.
"""

import itertools
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_wrapper
from torch import Tensor, nn

from lwm_env.errors import ConfigMismatch
from lwm_env.eyes import Eyes
from lwm_env.tokenizer import to_pixels
from lwm_env.world_model import WorldModel

SCALE = 16.0  # pixels that are told as 1


class Sight(nn.Module):
    """Where each mover is, whether it is there, and how any two lie to each other, found with the eyes of a world."""

    pairs: Tensor

    def __init__(self, movers: int, frame_size: tuple[int, int]) -> None:
        super().__init__()
        pairs = [*itertools.combinations(range(movers), 2)]
        self.num_numbers = 3 * movers + 2 * len(pairs)
        self.eyes = Eyes(movers, frame_size)
        self.register_buffer("pairs", torch.tensor(pairs).long().view(-1, 2), persistent=False)

    @classmethod
    def of_world(cls, world: str) -> "Sight":
        """With the world's eyes; ConfigMismatch if it has no movers. And what `WorldModel.load` raises."""
        movers = WorldModel.load(world).motion.movers
        if movers is None:
            raise ConfigMismatch(
                f"{world} has no movers, whose places a policy could see. Let it see pixels, or give the world's "
                f"recipe motion.movers and train it anew."
            )
        sight = cls(movers.count, movers.frame_size)
        own = sight.eyes.state_dict()
        sight.eyes.load_state_dict({name: value for name, value in movers.state_dict().items() if name in own})
        return sight

    @torch.no_grad()
    def forward(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) -> float32 (N, 3 M + 2 pairs), numbers about 1."""
        found = self.eyes.find(self.eyes.look(to_pixels(torch.from_numpy(np.array(frames)))[:, None]))
        places, there = (part[:, 0] for part in found)
        one, other = self.pairs.unbind(1)
        away = (places[:, other] - places[:, one]) * (there[:, one] * there[:, other])[..., None]
        return torch.cat([places.flatten(1) / SCALE, away.flatten(1) / SCALE, there], 1).numpy()


class SeePlaces(VecEnvWrapper):
    """Envs that show what a `Sight` tells of their frames."""

    def __init__(self, envs: VecEnv, sight: Sight) -> None:
        super().__init__(envs, spaces.Box(-np.inf, np.inf, (sight.num_numbers,), np.float32))
        self.sight = sight

    def reset(self) -> np.ndarray:
        return self.sight(self.venv.reset())

    def step_wait(self) -> tuple:
        frames, rewards, dones, infos = self.venv.step_wait()
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = self.sight(infos[i]["terminal_observation"][None])[0]
        return self.sight(frames), rewards, dones, infos


class SeeingPolicy:
    """A policy that learned in `SeePlaces`, for those who give it frames."""

    def __init__(self, model: PPO, seen: SeePlaces) -> None:
        self.model, self.sight = model, seen.sight
        self.observation_space, self.action_space = seen.venv.observation_space, model.action_space

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Actions on seeing uint8 (N, H, W, 3), or one action on seeing (H, W, 3)."""
        told = self.sight(observation.reshape(-1, *observation.shape[-3:]))
        return self.model.predict(told.reshape(*observation.shape[:-3], -1), state, episode_start, deterministic)


def seeing(envs: VecEnv | None) -> SeePlaces | None:
    """The wrapper among those of some envs, if places are seen there."""
    return None if envs is None else unwrap_vec_wrapper(envs, SeePlaces)

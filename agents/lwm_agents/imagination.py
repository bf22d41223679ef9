"""PPO in imagination: a policy learns inside a world, and is measured there or in any other env of the same spaces."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnvWrapper
from tqdm import tqdm

from lwm_agents.agent import choose_device, load_agent, make_ppo, read_facts, save_agent
from lwm_agents.sb3 import SB3VecEnv
from lwm_env.errors import ConfigMismatch, UnknownWorld


@dataclass(frozen=True, kw_only=True)
class ImaginationConfig:
    """How a policy learns in a dream. Start states come from the world's prompt bank."""

    num_steps: int = 200_000  # of all envs together
    num_envs: int = 16
    seed: int = 0
    horizon: int | None = None  # steps until a dream is cut (its rest is the critic's guess); None: the world's limit
    surprise_penalty: float = 0.0  # reward lost per nat of the model's uncertainty, against exploiting its errors
    save_every: int = 20_000  # steps


class Honest(VecEnvWrapper):
    """Rewards in units of the game's largest, less a penalty where the world does not know what it does."""

    def __init__(self, envs: SB3VecEnv, surprise_penalty: float) -> None:
        super().__init__(envs)
        self.scale = 1 / (max(map(abs, envs.envs.unwrapped.world_spec.reward_values)) or 1)
        self.surprise_penalty = surprise_penalty

    def reset(self) -> np.ndarray:
        return self.venv.reset()

    def step_wait(self) -> tuple:
        observations, rewards, dones, infos = self.venv.step_wait()
        penalty = self.surprise_penalty * self.venv.step_infos["surprise"]
        return observations, (rewards * self.scale - penalty).astype(np.float32), dones, infos


class _Saver(BaseCallback):
    """A progress bar, and a checkpoint between two updates every `save_every` steps."""

    def __init__(self, folder: Path, facts: dict[str, Any], save_every: int, bar: tqdm) -> None:
        super().__init__()
        self.folder, self.facts, self.save_every, self.bar = folder, facts, save_every, bar
        self.saved = 0

    def _on_training_start(self) -> None:
        self.saved = self.model.num_timesteps

    def _on_rollout_start(self) -> None:  # all updates are done
        if self.model.num_timesteps - self.saved >= self.save_every:
            save_agent(self.folder, self.model, self.facts)
            self.saved = self.model.num_timesteps

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True


def train_in_dream(
    world: str, folder: Path, config: ImaginationConfig, device: str = "auto", resume: bool = True, **ppo: Any
) -> PPO:
    """Train a policy in a world; the agent goes to `folder/agent`, TensorBoard's files to `folder/tensorboard`.

    A second call goes on from the last checkpoint, in new episodes. `ppo` are settings of SB3's PPO.

    Raises:
        ConfigMismatch: the folder holds an agent of another world or configuration. And what `load_agent` raises.
    """
    envs = SB3VecEnv(world, config.num_envs, device=device, max_episode_steps=config.horizon)
    inside = envs.envs.unwrapped
    facts = {"world": inside.world_spec.id, "weights": inside.weights_hash, "config": asdict(config)}
    try:
        model = make_ppo(
            Honest(envs, config.surprise_penalty), config.seed, choose_device(device), folder / "tensorboard", **ppo
        )
        if resume and _has_agent(folder):
            _check_same(read_facts(folder / "agent"), facts, folder)
            load_agent(folder / "agent", model)
        left = config.num_steps - model.num_timesteps
        with tqdm(total=config.num_steps, initial=model.num_timesteps, unit="step", disable=None) as bar:
            if left > 0:
                saver = _Saver(folder / "agent", facts, config.save_every, bar)
                model.learn(left, saver, tb_log_name="ppo", reset_num_timesteps=model.num_timesteps == 0)
                save_agent(folder / "agent", model, facts)
        return model
    finally:
        envs.close()


def _has_agent(folder: Path) -> bool:
    try:
        return bool(read_facts(folder / "agent"))
    except UnknownWorld:
        return False


def _check_same(saved: dict[str, Any], facts: dict[str, Any], folder: Path) -> None:
    free = {"num_steps": 0, "save_every": 0}  # may differ
    ours, theirs = ({**given, "config": {**given.get("config", {}), **free}} for given in (facts, saved))
    changed = [name for name in facts if ours[name] != theirs.get(name)]
    if changed:
        raise ConfigMismatch(
            f"the agent in {folder} was trained with another {' and '.join(changed)}. Name another folder with --out, "
            f"or begin anew with --no-resume."
        )


def play(model: PPO | None, envs: VectorEnv, num_episodes: int, seed: int = 0, deterministic: bool = False) -> dict:
    """Returns of a policy, or of uniformly random actions (None), in a vector env that resets in the same step.

    Each env plays its share of the episodes, so that short ones are not counted more often.

    Returns:
        mean, interval (95 %, half width), num_episodes, length (mean steps), steps_per_second.
    """
    adapter, returns, lengths = SB3VecEnv(envs), [], []
    share = np.full(adapter.num_envs, num_episodes // adapter.num_envs)
    share[: num_episodes % adapter.num_envs] += 1
    adapter.seed(seed)
    adapter.action_space.seed(seed)
    observations, begin, steps = adapter.reset(), time.perf_counter(), 0
    while share.any():
        if model is None:
            actions = np.array([adapter.action_space.sample() for _ in range(adapter.num_envs)])
        else:
            actions, _ = model.predict(observations, deterministic=deterministic)
        observations, _, dones, infos = adapter.step(actions)
        steps += adapter.num_envs
        for i in np.flatnonzero(dones & (share > 0)):
            share[i] -= 1
            returns.append(infos[i]["episode"]["r"])
            lengths.append(infos[i]["episode"]["l"])
    spread = np.std(returns, ddof=1) if len(returns) > 1 else float("nan")
    return {
        "mean": float(np.mean(returns)),
        "interval": float(1.96 * spread / np.sqrt(len(returns))),
        "num_episodes": len(returns),
        "length": float(np.mean(lengths)),
        "steps_per_second": steps / (time.perf_counter() - begin),
    }

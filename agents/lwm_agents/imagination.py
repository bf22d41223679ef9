"""PPO in imagination, and with the same settings in the real game."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from tqdm import tqdm

from lwm_agents.agent import choose_device, digest_of, load_agent, make_ppo, read_facts, save_agent
from lwm_agents.places import SeePlaces, Sight
from lwm_agents.sb3 import SB3VecEnv
from lwm_env import worlds
from lwm_env.errors import ConfigMismatch, UnknownWorld
from lwm_env.spec import WorldSpec

log = logging.getLogger("lwm.agent")


@dataclass(frozen=True, kw_only=True)
class ImaginationConfig:
    """How a policy learns in a dream. Start states come from the world's prompt bank."""

    num_steps: int = 200_000  # of all envs together
    num_envs: int = 64
    seed: int = 0
    horizon: int | None = None  # steps until a dream is cut (its rest is the critic's guess); None: the world's limit
    surprise_penalty: float = 0.0  # reward lost per nat of the model's uncertainty, against exploiting its errors
    save_every: int = 20_000  # steps
    sees: Literal["pixels", "places"] = "pixels"  # places: of the world's movers, found with its eyes
    backend: str = "torch"  # of the dream: "torch" or "onnx"
    num_actors: int = 0  # Ray actors that step the dream; 0: this process


@dataclass(frozen=True, kw_only=True)
class Course:
    """Where a training begins, and what it leaves on its way."""

    resume: bool = True  # from the last checkpoint in its folder, in new episodes with other seeds
    start: Path | None = None  # else with this agent, of another world or of the dream; its steps count
    # Where the agent stays as it is after so many steps; a run that goes on from later makes none.
    copies: Mapping[int, Path] = field(default_factory=dict)


class Honest(VecEnvWrapper):
    """Rewards in units of the game's largest, less a penalty where the world does not know what it does."""

    def __init__(self, envs: SB3VecEnv, spec: WorldSpec, surprise_penalty: float = 0.0) -> None:
        super().__init__(envs)
        self.scale = 1 / (max(map(abs, spec.reward_values)) or 1)
        self.surprise_penalty = surprise_penalty

    def reset(self) -> np.ndarray:
        return self.venv.reset()

    def step_wait(self) -> tuple:
        observations, rewards, dones, infos = self.venv.step_wait()
        rewards = rewards * self.scale
        if self.surprise_penalty:  # a real game has no surprise
            rewards = rewards - self.surprise_penalty * self.venv.step_infos["surprise"]
        return observations, rewards.astype(np.float32), dones, infos


class _Saver(BaseCallback):
    """A progress bar, and a checkpoint between two updates every `save_every` steps; and copies of the agent that stay,
    in folders by the number of its steps.

    The agent's facts get `seconds`, the wall time that its steps took.
    """

    def __init__(
        self, folder: Path, facts: dict[str, Any], config: ImaginationConfig, bar: tqdm, copies: Mapping[int, Path]
    ) -> None:
        super().__init__()
        self.folder, self.facts, self.save_every, self.bar = folder, facts, config.save_every, bar
        self.copies = dict(copies)
        self.saved, self.first, self.begin = 0, 0, time.perf_counter() - facts["seconds"]

    def save(self) -> None:
        steps, seconds = self.model.num_timesteps, time.perf_counter() - self.begin
        facts = {**self.facts, "seconds": seconds}
        for count in [count for count in self.copies if count <= steps]:
            save_agent(self.copies.pop(count), self.model, facts)
        save_agent(self.folder, self.model, facts)
        self.saved = steps
        rate = (steps - self.first) / (seconds - self.facts["seconds"])  # since this run began
        recent = [episode["r"] for episode in self.model.ep_info_buffer]
        told = f"return {np.mean(recent):.3f} of the last {len(recent)} episodes" if recent else "no episode ended yet"
        minutes = max(0.0, self.bar.total - steps) / rate / 60
        log.info("%s: %d steps, %.0f a second, %.0f minutes left; %s", self.folder, steps, rate, minutes, told)

    def _on_training_start(self) -> None:
        self.saved = self.first = self.model.num_timesteps
        self.copies = {count: path for count, path in self.copies.items() if count > self.saved}

    def _on_rollout_start(self) -> None:  # all updates are done
        steps = self.model.num_timesteps
        if steps - self.saved >= self.save_every or any(count <= steps for count in self.copies):
            self.save()

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True


def train_in_dream(
    world: str,
    folder: Path,
    config: ImaginationConfig,
    device: str = "auto",
    course: Course = Course(),
    **ppo: Any,
) -> PPO:
    """Train a policy in a world; the agent goes to `folder/agent`, TensorBoard's files to `folder/tensorboard`.

    A second call goes on from the last checkpoint. `ppo` are settings of SB3's PPO.

    Raises:
        ConfigMismatch: the folder holds an agent of another world or configuration. And what `load_agent` raises.
    """
    envs = _dream(world, config, device)
    inside = envs.envs.unwrapped
    facts = {"world": inside.world_spec.id, "weights": inside.weights_hash, **chances(inside.world_spec)}
    facts |= {"config": asdict(config)}
    honest = Honest(envs, inside.world_spec, config.surprise_penalty)
    return _train(_make(world, honest, folder, config, device, ppo), folder, facts, config, course)


def train_in_real(
    world: str,
    make_real: Callable[..., VectorEnv],
    folder: Path,
    config: ImaginationConfig,
    device: str = "auto",
    course: Course = Course(),
    **ppo: Any,
) -> PPO:
    """The same in the real game, on the levels of its split "train"; horizon and surprise penalty do not apply.

    Args:
        make_real: makes the real game in mode SAME_STEP, see `lwm_agents.command_parts.REAL_ENV`.

    Raises:
        See `train_in_dream`. And what `make_real` raises.
    """
    spec = worlds.read_spec(worlds.find(world))
    made = {"num_envs": config.num_envs, "seed": config.seed, "split": "train"}
    envs = SB3VecEnv(make_real(world, autoreset_mode="SameStep", **made))
    facts = {"world": spec.id, "real": name_of(make_real), "config": asdict(config)}
    facts["start"] = None if course.start is None else digest_of(course.start)
    model = _make(world, Honest(envs, spec), folder, config, device, ppo)
    return _train(model, folder, facts, config, course)


def chances(spec: WorldSpec) -> dict[str, float]:
    """What decides a dream beside the weights."""
    chances = {"temperature": spec.temperature, "termination_threshold": spec.termination_threshold}
    return chances | {name: value for name in ("draw_ends", "points_to_win") if (value := getattr(spec, name))}


def _dream(world: str, config: ImaginationConfig, device: str) -> SB3VecEnv:
    options = {"device": device, "max_episode_steps": config.horizon, "backend": config.backend}
    if not config.num_actors:
        return SB3VecEnv(world, config.num_envs, **options)
    from lwm_agents.ray_envs import RayVectorEnv

    return SB3VecEnv(RayVectorEnv(world, config.num_envs, config.num_actors, **options))


def name_of(function: Callable[..., Any]) -> str:
    """MODULE:FUNCTION, as `--real` takes it."""
    return f"{function.__module__}:{function.__qualname__}"


def _make(
    world: str, envs: VecEnv, folder: Path, config: ImaginationConfig, device: str, settings: dict[str, Any]
) -> PPO:
    if config.sees == "places":
        envs = SeePlaces(envs, Sight.of_world(world))
    return make_ppo(envs, config.seed, choose_device(device), folder / "tensorboard", **settings)


def _train(model: PPO, folder: Path, facts: dict[str, Any], config: ImaginationConfig, course: Course) -> PPO:
    """Learn what is left of the steps; closes the envs of the model."""
    try:
        seconds, start = 0.0, course.start
        if course.resume and _has_agent(folder):
            _check_same(read_facts(folder / "agent"), facts, folder)
            start = folder / "agent"
        if start is not None:
            seconds = load_agent(start, model).get("seconds", 0.0)
            model.set_random_seed(config.seed + model.num_timesteps)  # levels and dreams that were not there before
        left = config.num_steps - model.num_timesteps
        counted = {"total": config.num_steps, "initial": model.num_timesteps, "desc": folder.name}
        with tqdm(**counted, unit="step", disable=None) as bar:
            if left > 0:
                saver = _Saver(folder / "agent", {**facts, "seconds": seconds}, config, bar, course.copies)
                model.learn(left, saver, tb_log_name="ppo", reset_num_timesteps=model.num_timesteps == 0)
                saver.save()
        return model
    finally:
        model.get_env().close()


def _has_agent(folder: Path) -> bool:
    try:
        return bool(read_facts(folder / "agent"))
    except UnknownWorld:
        return False


def _check_same(saved: dict[str, Any], facts: dict[str, Any], folder: Path) -> None:
    free = {"num_steps": 0, "save_every": 0, "num_actors": 0}  # may differ
    then = asdict(ImaginationConfig())  # what did not exist when it was saved was as it is by default
    ours, theirs = ({**given, "config": {**then, **given.get("config", {}), **free}} for given in (facts, saved))
    changed = [name for name in facts if ours[name] != theirs.get(name)]
    if changed:
        raise ConfigMismatch(
            f"the agent in {folder} was trained with another {' and '.join(changed)}. Name another folder with --out, "
            f"or remove the agent to begin anew."
        )

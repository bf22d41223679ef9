"""The real twin of a world: the game it was learned from, as a vector env with the world's spaces and time limit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from lwm_env import worlds
from lwm_env.errors import InvalidInput, WrongOrder
from lwm_env.scripts import Seats
from lwm_env.spec import WorldSpec
from lwm_training.source import Source, Step
from lwm_training.sources import open_spec_source


def make_real_vec(
    world: str | Path | WorldSpec,
    num_envs: int = 8,
    seed: int = 0,
    split: str = "validation",
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    num_threads: int = 1,
) -> "RealVectorEnv":
    """The real game of a world, with its observations, actions, rewards and time limit.

    Args:
        world: an id, the path of a world's folder, or a spec.
        seed: of a first reset without a seed. Copy i begins at the level that seed + i stands for, and its later levels
            follow from that alone: whatever is played and however many copies there are.
        split: whose levels, such as "train" or "validation".
        num_threads: threads of the game's library.

    Raises:
        UnknownWorld, MissingExtra, ConfigMismatch: as `open_source`; also for a world of several players without a
            script. With one, the env is the first player's.
    """
    spec = world if isinstance(world, WorldSpec) else worlds.read_spec(worlds.find(world))
    seats = Seats(spec)
    try:
        mode = AutoresetMode(autoreset_mode)
    except ValueError as error:
        modes = ", ".join(mode.value for mode in AutoresetMode)
        raise InvalidInput(f"No autoreset mode {autoreset_mode!r}; the modes are {modes}.") from error
    return RealVectorEnv(spec, open_spec_source(spec, num_envs, seed, split, num_threads), mode, seats)


class RealVectorEnv(gym.vector.VectorEnv):
    """A real game behind Gymnasium's vector API.

    `infos` has at every call `episode_seed`, int64 (N,): the level or seed that each copy plays, and `elapsed_steps`.
    In SAME_STEP mode `final_obs` is one dense batch. `reset(options={"reset_mask": mask})` restarts some copies.
    """

    def __init__(self, spec: WorldSpec, source: Source, mode: AutoresetMode, seats: Seats) -> None:
        self.world_spec, self.num_envs, self.autoreset_mode, self.render_mode = spec, source.num_envs, mode, "rgb_array"
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": spec.render_fps, "autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = spec.observation_space(), spec.action_space()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._source, self._seats = source, seats
        self._over: np.ndarray | None = None  # bool (N,): ended and not restarted
        self._elapsed = np.zeros(self.num_envs, np.int64)
        self._shown = np.zeros(self.observation_space.shape, np.uint8)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Restart all copies, or those of `options["reset_mask"]`; raises InvalidInput for a mask with a seed."""
        mask = (options or {}).get("reset_mask")
        observations = self._source.reset(seed=seed, mask=mask)
        restarted = np.ones(self.num_envs, bool) if mask is None else np.asarray(mask)
        self._over = np.zeros(self.num_envs, bool) if self._over is None else self._over & ~restarted
        self._elapsed[restarted] = 0
        self._shown = observations.copy()
        return observations, self._infos()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all copies; actions are (N,) indices of the world, or (N, A). Rewards are float64 (N,)."""
        if self._over is None:
            raise WrongOrder("Call reset() before step().")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._over.any():
            ended = np.flatnonzero(self._over).tolist()
            raise WrongOrder(f'Copies {ended} have ended; call reset(options={{"reset_mask": mask}}) for them first.')
        actions = np.asarray(actions)
        if actions.shape == self.action_space.shape:  # else the source says what is wrong
            others = self._seats.others(self._shown)
            actions = np.concatenate([actions[:, None], others], 1) if others.size else actions[:, None]
        step = self._source.step(actions)
        self._elapsed = np.where(self._over, 0, self._elapsed + 1)
        self._over = step.terminations | step.truncations
        observations, final = step.observations, {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            observations, final = self._restart_now(step)
        self._shown = observations.copy()
        infos = {**self._infos(), **final}
        return observations, step.rewards[:, 0].astype(np.float64), step.terminations, step.truncations, infos

    def render(self) -> tuple[np.ndarray, ...]:
        """The frames as they are shown, one per copy."""
        return tuple(self._shown.copy())

    def close_extras(self, **_: Any) -> None:
        self._source.close()

    def _restart_now(self, step: Step) -> tuple[np.ndarray, dict[str, Any]]:
        over = self._over
        if not over.any():
            return step.observations, {}
        before = self._infos()
        observations = self._source.reset(mask=over)
        self._elapsed[over] = 0
        self._over = np.zeros(self.num_envs, bool)
        return observations, {
            "final_obs": step.observations,
            "_final_obs": over.copy(),
            "final_info": before,
            "_final_info": over.copy(),
        }

    def _infos(self) -> dict[str, Any]:
        every = np.ones(self.num_envs, bool)
        return {
            "episode_seed": self._source.episode_seeds,
            "_episode_seed": every,
            "elapsed_steps": self._elapsed.copy(),
            "_elapsed_steps": every.copy(),
        }

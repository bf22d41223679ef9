"""Worlds for Stable-Baselines3: its `VecEnv` on top of a native vector env.

    PPO("CnnPolicy", SB3VecEnv("LWM-Platformer-v0", num_envs=64)).learn(100_000)

Shapes: N envs.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

import lwm_env  # noqa: F401 (registers the shipped worlds)
from lwm_env.errors import InvalidInput, WrongOrder, missing_extra

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "stable_baselines3", "agents") from error


class SB3VecEnv(VecEnv):
    """N worlds that SB3 steps as one batch. No `VecMonitor` is needed: an ended episode has its `episode` in `infos`.

    The numbers that a world gives at every step are `step_infos`, arrays (N,), such as `surprise`. They are not in the
    dicts of `infos`, which at large N would cost more than the model; an env's dict has, when its episode ends,
    `terminal_observation`, `episode` {r, l, t} and the last numbers, and always `TimeLimit.truncated`.

    Args:
        world: id of a registered world, path of a world's folder, or a vector env that resets in the same step, such as
            the real game's `make_real_vec(..., autoreset_mode="SameStep")`, which is then closed with this.
        num_envs: N; left out for a vector env.
        options: of `gym.make_vec`: `device`, `backend`, `temperature`, `max_episode_steps`, `render_mode`.

    Raises:
        InvalidInput: a vector env of another autoreset mode or with tensors, or arguments beside it.
        What making the world raises.
    """

    def __init__(self, world: str | os.PathLike | VectorEnv, num_envs: int | None = None, **options: Any) -> None:
        self.envs = (
            _given(world, num_envs, options) if isinstance(world, VectorEnv) else _make(world, num_envs, options)
        )
        self.step_infos: dict[str, np.ndarray] = {}
        self._actions: np.ndarray | None = None
        self._begin = time.monotonic()
        super().__init__(self.envs.num_envs, self.envs.single_observation_space, self.envs.single_action_space)
        self._forget()

    # -- reset and step ----------------------------------------------------------------------------------------------

    def reset(self) -> np.ndarray:
        """Begin an episode in every env, with the seeds of `seed()` and the options of `set_options()`."""
        seeds = None if all(seed is None for seed in self._seeds) else self._seeds
        observations, infos = self.envs.reset(seed=seeds, options=_stack(self._options))
        self.step_infos = _numbers(infos)
        self.reset_infos = [{name: values[i] for name, values in self.step_infos.items()} for i in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        self._forget()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Observations, float32 rewards, dones and infos; the observation of an ended env is its next episode's first.

        Raises:
            WrongOrder: `step_async` did not come before. And what the env's `step` raises.
        """
        if self._actions is None:
            raise WrongOrder("step_wait() came before step_async(). Call step(actions), which does both.")
        actions, self._actions = self._actions, None
        observations, rewards, terminations, truncations, infos = self.envs.step(actions)
        self._returns += rewards
        self._lengths += 1
        dones = terminations | truncations
        self.step_infos = _numbers(infos)
        told: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            told[i] = self._final(i, infos, bool(truncations[i] and not terminations[i]))
            self.reset_infos[i] = {name: values[i] for name, values in self.step_infos.items()}
        self._returns[dones], self._lengths[dones] = 0, 0
        return observations, rewards.astype(np.float32), dones, told

    def _final(self, i: int, infos: dict[str, Any], truncated: bool) -> dict[str, Any]:
        """What SB3 wants to know about an ended episode."""
        seconds = round(time.monotonic() - self._begin, 6)
        return {
            **{name: values[i].item() for name, values in _numbers(infos["final_info"]).items()},
            "TimeLimit.truncated": truncated,
            "terminal_observation": infos["final_obs"][i],
            "episode": {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": seconds},
        }

    def _forget(self) -> None:
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)

    def close(self) -> None:
        """Close the envs; a second call does nothing."""
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The current frame of each env, if made with `render_mode="rgb_array"`."""
        return list(self.envs.render() or [None] * self.num_envs)

    # -- single envs -------------------------------------------------------------------------------------------------

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each env; see `lwm_env.envs.LwmVectorEnv.call`."""
        return self.env_method(attr_name, indices=indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the envs of `indices`; what they do not share must be there already in the others."""
        chosen = list(self._get_indices(indices))
        if len(set(chosen)) == self.num_envs:
            self.envs.set_attr(attr_name, [value] * self.num_envs)
            return
        values = self.get_attr(attr_name)
        for i in chosen:
            values[i] = value
        self.envs.set_attr(attr_name, values)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of each env of `indices`, such as `get_state`; see `lwm_env.envs.LwmVectorEnv.call`.

        Raises:
            AttributeError: a single env has no such name, or it must be called for the batch (`reset`, `step`).
        """
        chosen = list(self._get_indices(indices))
        envs = self.envs.unwrapped
        if method_name in ("get_state", "set_state") and hasattr(envs, method_name):
            return [getattr(envs, method_name)(*args, **kwargs, slot=i) for i in chosen]
        if hasattr(envs, "call"):
            values = envs.call(method_name, *args, **kwargs)
            return [values[i] for i in chosen]
        value = getattr(envs, f"single_{method_name}" if method_name.endswith("_space") else method_name)
        return [value(*args, **kwargs) if callable(value) else value for _ in chosen]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for `Monitor` alone, whose `episode` the infos have."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def _make(world: str | os.PathLike, num_envs: int | None, options: dict[str, Any]) -> VectorEnv:
    options = {"num_envs": 1 if num_envs is None else num_envs, "autoreset_mode": AutoresetMode.SAME_STEP, **options}
    if options["autoreset_mode"] is not AutoresetMode.SAME_STEP or options.get("output", "numpy") != "numpy":
        raise InvalidInput("SB3 takes arrays and resets in the same step. Leave out output and autoreset_mode.")
    if str(world) in gym.registry:
        return gym.make_vec(str(world), **options)
    from lwm_env.envs import LwmVectorEnv

    return LwmVectorEnv(world, **options)


def _given(envs: VectorEnv, num_envs: int | None, options: dict[str, Any]) -> VectorEnv:
    if num_envs not in (None, envs.num_envs) or options:
        raise InvalidInput("num_envs and options belong to a world's id. Give them to the vector env that you made.")
    if getattr(envs.unwrapped, "output", "numpy") != "numpy":
        raise InvalidInput('SB3 takes arrays and the vector env gives tensors. Make it with output="numpy".')
    mode = envs.metadata.get("autoreset_mode")
    if mode is not AutoresetMode.SAME_STEP:
        raise InvalidInput(f"SB3 resets in the same step, the vector env has {mode}. Make it with SAME_STEP.")
    return envs


def _numbers(infos: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays (N,) of a vector env's infos."""
    return {name: values for name, values in infos.items() if not name.startswith("_") and _is_batch(name, values)}


def _is_batch(name: str, values: object) -> bool:
    return name != "final_obs" and isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype != object


def _stack(options: list[dict[str, Any]]) -> dict[str, Any] | None:
    """One set of options for the batch, from one for each env; None if there are none."""
    if not any(options):
        return None
    if any(entry.keys() != options[0].keys() for entry in options):
        raise InvalidInput("the options of the envs have different keys. Give all of them frames and actions, or none.")
    return {name: np.stack([np.asarray(entry[name]) for entry in options]) for name in options[0]}

"""Worlds spread over Ray actors, on this machine or on many, behind one vector env: the learner sees no difference.

    SB3VecEnv(RayVectorEnv("LWM-Platformer-v0", num_envs=64, num_actors=8))

Each actor holds a native vector env of its share of the worlds. On CPUs slot i gives the bytes that it gives in one
process, whatever the number of actors. Shapes: N envs, A action numbers.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from lwm_env.envs import LwmVectorEnv, inputs
from lwm_env.errors import ConfigMismatch, InvalidInput, LwmError, WrongOrder, missing_extra

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "ray", "ray") from error

START_SECONDS = 300  # that the actors have to load their worlds


class ActorLost(LwmError, RuntimeError):
    """A Ray actor ended, or its machine did; the worlds that it held are gone."""


class RayVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """N dreamed worlds in mode SAME_STEP, computed by Ray actors; see `LwmVectorEnv` for what they give.

    Connects to the cluster of `RAY_ADDRESS`, or to one that runs on this machine, or else starts Ray here.

    Args:
        world: id of a shipped world, or the path of a folder that every machine has.
        num_envs: N.
        num_actors: how many share the worlds, each on one CPU; at most N.
        device: "cuda" gives every actor one GPU as well, everything else computes on CPUs.
        options: of `LwmVectorEnv`: `backend`, `temperature`, `max_episode_steps`.

    Raises:
        InvalidInput: more actors than worlds, or than the cluster has CPUs or GPUs for.
        ConfigMismatch: the machines have other weights under the same name.
        ActorLost: no actor was ready in `START_SECONDS`. And what making the world raises.
    """

    render_mode = None

    def __init__(self, world: str, num_envs: int, num_actors: int, device: str = "cpu", **options: Any) -> None:
        self._actors: list[Any] = []  # until all arguments are known to be good
        num_envs, num_actors = inputs.check_count("num_envs", num_envs), inputs.check_count("num_actors", num_actors)
        if num_actors > num_envs:
            raise InvalidInput(
                f"{num_actors} actors were asked for {num_envs} worlds. Take at most one for each world."
            )
        self.num_envs, needs = num_envs, {"num_cpus": 1, "num_gpus": int(device == "cuda")}
        _connect(num_actors, needs)
        make = ray.remote(_Worlds).options(scheduling_strategy="SPREAD", **needs).remote
        self._rows = np.array_split(np.arange(num_envs), num_actors)
        world = str(Path(world).resolve() if Path(world).is_dir() else world)  # actors work in other folders
        options = {**options, "device": "cuda" if device == "cuda" else "cpu"}
        self._actors = [make() for _ in self._rows]
        try:
            found = self._ask(lambda actor, rows: actor.open.remote(world, len(rows), options), START_SECONDS)
            _check_alike(found)
        except LwmError:
            self.close()
            raise
        self.world_spec, self.weights_hash = found[0]["spec"], found[0]["weights"]
        self.nodes = [facts["node"] for facts in found]  # Ray's ids of the machines, one for each actor
        self.autoreset_mode = AutoresetMode.SAME_STEP
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_fps": self.world_spec.render_fps}
        self.single_observation_space = self.world_spec.observation_space()
        self.single_action_space = self.world_spec.action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._ready = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every env; seed s gives env i the seed s + i. See `LwmVectorEnv.reset`; no `reset_mask`.

        Raises:
            InvalidInput: a seed, frame or action of the wrong kind. ActorLost: start anew.
        """
        seeds = inputs.check_seeds(seed, self.num_envs)
        given = {name: np.asarray(value) for name, value in inputs.check_options(options).items()}
        if "reset_mask" in given or any(len(value) != self.num_envs for value in given.values()):
            raise InvalidInput(f"the options of a reset are frames and actions, each of {self.num_envs} envs.")
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
        if not self._ready:
            seeds = [int(self.np_random.integers(1 << 63)) if one is None else one for one in seeds]

        def begin(actor: Any, rows: np.ndarray) -> Any:
            shares = {name: value[rows] for name, value in given.items()}
            return actor.reset.remote([seeds[row] for row in rows], shares)

        observations, infos = zip(*self._ask(begin), strict=True)
        self._ready = True
        return np.concatenate(observations), self._merged(infos)

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Dream one step of every env; actions are integers (N,) or floats (N, A).

        Raises:
            InvalidInput: not a batch of actions of the space; nothing was stepped. WrongOrder: before `reset`.
            ActorLost: some worlds are gone; start anew.
        """
        if not self._ready:
            raise WrongOrder("step() came before reset(). Begin with: observations, infos = envs.reset(seed=0)")
        checked = inputs.check_actions(actions, self.world_spec, (self.num_envs,), "actions").numpy()
        *arrays, infos = zip(*self._ask(lambda actor, rows: actor.step.remote(checked[rows])), strict=True)
        observations, rewards, terminations, truncations = (np.concatenate(parts) for parts in arrays)
        return observations, rewards, terminations, truncations, self._merged(infos)

    def close_extras(self, **_: Any) -> None:
        """End the actors; Ray itself goes on until the process ends."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _ask(self, call: Callable[[Any, np.ndarray], Any], seconds: float | None = None) -> list[Any]:
        """What each actor answers to a call that is sent to all of them at once."""
        if not self._actors:
            raise WrongOrder("the envs are closed. Make new ones.")
        try:
            return ray.get([call(*share) for share in zip(self._actors, self._rows, strict=True)], timeout=seconds)
        except RayTaskError as error:
            if isinstance(error.cause, LwmError):
                raise error.cause from None
            raise
        except (RayActorError, GetTimeoutError) as error:
            raise ActorLost(
                f"an actor with worlds is gone, or never came ({error!s:.200}). Look at the cluster with `ray status`, "
                f"then start the same command again: a training goes on from its last checkpoint."
            ) from error

    def _merged(self, infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return _merge(list(infos), [len(rows) for rows in self._rows])


class _Worlds:
    """An actor: a share of the worlds, on the machine where Ray put it."""

    def open(self, world: str, num_envs: int, options: dict[str, Any]) -> dict[str, Any]:
        """Not in `__init__`, whose errors Ray tells as the death of the actor."""
        self.envs = LwmVectorEnv(world, num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **options)
        node = ray.get_runtime_context().get_node_id()
        return {"spec": self.envs.world_spec, "weights": self.envs.weights_hash, "node": node}

    def reset(self, seeds: list[int | None], options: dict[str, np.ndarray]) -> tuple:
        return self.envs.reset(seed=seeds, options=options)

    def step(self, actions: np.ndarray) -> tuple:
        return self.envs.step(actions)


def _connect(num_actors: int, needs: dict[str, int]) -> None:
    """Join a cluster, or start one, that has room for the actors; without room they would wait for ever."""
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers unasked
        ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    room = ray.cluster_resources()
    for name, kind in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        if room.get(name, 0) < num_actors * needs[kind]:
            raise InvalidInput(
                f"{num_actors} actors need a {name} each, Ray has {room.get(name, 0):g}. Take fewer, or add "
                f"machines by `ray start` first."
            )


def _check_alike(found: Sequence[dict[str, Any]]) -> None:
    weights = sorted({facts["weights"][:12] for facts in found})
    if len(weights) > 1:
        raise ConfigMismatch(f"the machines have the weights {weights} of one world. Copy one folder to all of them.")


def _merge(parts: Sequence[dict[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """The infos of all envs from those of each actor; where an actor has nothing under a name, zeros."""
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        sample = next(part[name] for part in parts if name in part)
        if isinstance(sample, dict):
            merged[name] = _merge([part.get(name, {}) for part in parts], sizes)
        else:
            blanks = (np.zeros((size, *sample.shape[1:]), sample.dtype) for size in sizes)
            merged[name] = np.concatenate([part.get(name, blank) for part, blank in zip(parts, blanks, strict=True)])
    return merged

"""A world shared by its players, as a `pettingzoo.ParallelEnv`."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import EzPickle
from gymnasium.utils.seeding import np_random
from pettingzoo import AECEnv, ParallelEnv

from lwm_env import familiar
from lwm_env.engine import Engine
from lwm_env.envs import facts, inputs
from lwm_env.envs.loading import RENDER_MODES, open_engine
from lwm_env.errors import InvalidInput, WrongOrder
from lwm_env.spec import WorldSpec


class LwmParallelEnv(ParallelEnv[str, Any, Any], EzPickle):
    """One dreamed world, one action a player; a world of one player is an env of one agent.

    All agents see the same frame, uint8 (H, W, 3), in arrays of their own; the episode ends for all of them at once.
    Determinism, `info`, pickles and threads are as `LwmEnv` has them.

    Args:
        world, device, render_mode, temperature, backend, output: see `LwmEnv`.
        max_cycles: steps until an episode is truncated; None takes the world's own, -1 sets no limit.

    Raises:
        InvalidInput: an argument out of its range.
        UnknownWorld, CorruptFile, ConfigMismatch, StorageError: the world cannot be loaded.
    """

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "is_parallelizable": True}  # noqa: RUF012 (PettingZoo's own)

    def __init__(
        self,
        world: str,
        *,
        device: str = "auto",
        render_mode: str | None = None,
        temperature: float | None = None,
        max_cycles: int | None = None,
        backend: str = "torch",
        output: str = "numpy",
    ) -> None:
        modes = {"render_mode": render_mode, "backend": backend, "output": output}
        EzPickle.__init__(self, world, device=device, temperature=temperature, max_cycles=max_cycles, **modes)
        self._engine: Engine | None = None  # until all arguments are known to be good
        engine = open_engine(world, 1, device, temperature, modes)
        self.world_spec: WorldSpec = engine.model.spec
        self.max_cycles = inputs.check_limit("max_cycles", max_cycles, self.world_spec)
        self.weights_hash = engine.model.weights_hash
        self.device = str(engine.device)
        self.render_mode, self.output = render_mode, output
        name = self.world_spec.id.lower().replace("-", "_")
        self.metadata = {**self.metadata, "name": name, "render_fps": self.world_spec.render_fps}
        self.possible_agents = list(self.world_spec.players)
        self.agents: list[str] = []
        self.observation_spaces = {agent: self.world_spec.observation_space() for agent in self.possible_agents}
        self.action_spaces = {agent: self.world_spec.action_space() for agent in self.possible_agents}
        self._engine = engine

    def observation_space(self, agent: str) -> gym.Space:
        """Of one agent; the same object at every call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.Space:
        """Of one agent; the same object at every call."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begin an episode; observations and infos of every agent.

        Args:
            seed: see `LwmEnv.reset`.
            options: `{"frames": uint8 (T, H, W, 3), "actions": (T - 1, P)}` starts from these, P in the order of
                `possible_agents`. Other keys are ignored.

        Raises:
            InvalidInput, WrongOrder (after `close`): nothing was changed.
        """
        engine = self._open()
        with engine.lock:
            seed = inputs.check_seed(seed)
            prompts = inputs.check_prompts(inputs.check_options(options), self.world_spec, None)
            if seed is None and not engine.ready[0]:
                seed = int(np_random()[0].integers(1 << 63))
            frames = engine.reset(np.ones(1, bool), [seed], prompts)
            familiar.warn_if_unfamiliar(engine.model, prompts, stacklevel=2)
            self.agents = list(self.possible_agents)
            return self._observations(frames), self._infos(facts.blank_infos(1))

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], dict, dict, dict, dict]:
        """Dream one step.

        Args:
            actions: one for each agent.

        Returns:
            observations, rewards, terminations, truncations and infos of every agent.

        Raises:
            InvalidInput: an agent is missing or unknown, or an action is not of its space.
            WrongOrder: before `reset`, after the end of the episode, after `close`. Nothing was changed.
        """
        engine = self._open()
        with engine.lock:
            if not self.agents:
                when = "after the end of the episode" if engine.ready[0] else "before reset()"
                raise WrongOrder(f"step() came {when}. Begin with: observations, infos = env.reset(seed=0)")
            transition = engine.step(self._joint(actions))
            rewards, terminations, infos = facts.read_transition(transition)
            terminated = bool(terminations[0])
            late = self.max_cycles is not None and engine.steps[0] >= self.max_cycles
            truncated = bool(infos["error"][0] or late)
            engine.ended[0] = terminated or truncated
            live = list(self.agents)
            if engine.ended[0]:
                self.agents = []
        return (
            self._observations(transition.frames),
            dict(zip(live, rewards[0].tolist(), strict=True)),
            dict.fromkeys(live, terminated),
            dict.fromkeys(live, truncated),
            self._infos(infos),
        )

    def _joint(self, actions: object) -> torch.Tensor:
        """The actions of all agents, (1, P) or (1, P, A)."""
        if not isinstance(actions, dict) or set(actions) != set(self.agents):
            given = sorted(map(str, actions)) if isinstance(actions, dict) else type(actions).__name__
            raise InvalidInput(f"actions for {given} were given; a dict with one for each of {self.agents} is needed.")
        checked = [
            inputs.check_actions(actions[a], self.world_spec, (), f"action of {a}") for a in self.possible_agents
        ]
        return torch.stack(checked)[None]

    def render(self) -> np.ndarray | None:
        """The current frame, uint8 (H, W, 3), a fresh array; None without a render mode."""
        self._open()
        if self.render_mode is None:
            gym.logger.warn('render() needs a render mode. Make the env with render_mode="rgb_array".')
            return None
        return self.state()

    def state(self) -> np.ndarray:
        """What all agents see: the current frame, uint8 (H, W, 3)."""
        engine = self._open()
        if not engine.ready[0]:
            raise WrongOrder("there is no frame before reset(). Begin with: observations, infos = env.reset(seed=0)")
        return engine.frames[0].cpu().numpy()

    def close(self) -> None:
        """Let go of the world; a second call does nothing, any other call is an error from now on."""
        self._engine = None

    def get_state(self) -> bytes:
        """The world as bytes; see `LwmEnv.get_state`."""
        return self._open().get_state(0)

    def set_state(self, state: bytes) -> None:
        """Continue from what `get_state` returned; see `LwmEnv.set_state`."""
        engine = self._open()
        with engine.lock:
            engine.set_state(state, 0)
            self.agents = [] if engine.ended[0] else list(self.possible_agents)

    def __getstate__(self) -> dict[str, Any]:
        engine = self._engine
        return {
            **super().__getstate__(),
            "closed": engine is None,
            "snapshot": engine.get_state(0) if engine and engine.ready[0] else None,
            "attributes": {name: self.__dict__[name] for name in _KEPT},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.update(state["attributes"])
        if state["closed"]:
            self.close()
        elif state["snapshot"] is not None:
            self.set_state(state["snapshot"])

    def _open(self) -> Engine:
        if self._engine is None:
            raise WrongOrder("the env is closed. Make a new one.")
        return self._engine

    def _observations(self, frames: torch.Tensor) -> dict[str, Any]:
        copies = {agent: frames[0].clone() for agent in self.possible_agents}
        return copies if self.output == "torch" else {agent: frame.cpu().numpy() for agent, frame in copies.items()}

    def _infos(self, infos: facts.Infos) -> dict[str, dict[str, Any]]:
        return {agent: {name: values[0].item() for name, values in infos.items()} for agent in self.possible_agents}


_KEPT = ("max_cycles", "observation_spaces", "action_spaces")


def parallel_entry_point(world: str, *, max_cycles: int = -1, **options: Any) -> LwmParallelEnv:
    """For PettingZoo's registry, which passes the limit of its spec, and none to say that there is no limit."""
    return LwmParallelEnv(world, max_cycles=max_cycles, **options)


def aec_entry_point(world: str, *, max_cycles: int = -1, **options: Any) -> AECEnv:
    """The same with agents that act in turns; the world goes on once all have acted."""
    from pettingzoo.utils.conversions import parallel_to_aec

    return parallel_to_aec(LwmParallelEnv(world, max_cycles=max_cycles, **options))

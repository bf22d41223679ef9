"""N worlds as one `gymnasium.vector.VectorEnv`, computed as a batch."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from lwm_env import familiar
from lwm_env.engine import Engine
from lwm_env.envs import facts, inputs
from lwm_env.envs.loading import RENDER_MODES, open_engine
from lwm_env.envs.slots import SlotAccess
from lwm_env.errors import WrongOrder
from lwm_env.scripts import Seats
from lwm_env.spec import WorldSpec


class LwmVectorEnv(SlotAccess, VectorEnv[Any, Any, Any], EzPickle):
    """N dreamed worlds. On a CPU, env i is `LwmEnv` with the seed of env i, byte for byte.

    Observations are uint8 (N, H, W, 3), rewards float64 (N,), infos arrays (N,) with masks under `_name`; see `LwmEnv`
    for their meaning. With `output="torch"` all of these are tensors on the device, rewards float32.

    Args:
        world, device, render_mode, temperature, backend, output: see `LwmEnv`.
        num_envs: N.
        max_episode_steps: steps until an episode is truncated; None takes the world's own, -1 sets no limit.
        autoreset_mode: `AutoresetMode` or its name. NEXT_STEP: the step after the end of an episode ignores the action
            and returns the first observation of the next. SAME_STEP: the step that ends it returns that observation,
            and the last one as `infos["final_obs"]`, one array (N, H, W, 3) with zeros where no episode ended, beside
            `final_info` and the masks `_final_obs`, `_final_info`. DISABLED: reset with `options["reset_mask"]`.

    Raises:
        InvalidInput: an argument out of its range.
        UnknownWorld, CorruptFile, ConfigMismatch, StorageError: the world cannot be loaded, or has several players.
    """

    def __init__(
        self,
        world: str,
        num_envs: int = 1,
        *,
        device: str = "auto",
        render_mode: str | None = None,
        temperature: float | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        backend: str = "torch",
        output: str = "numpy",
    ) -> None:
        modes = {"render_mode": render_mode, "backend": backend, "output": output}
        limits = {"max_episode_steps": max_episode_steps, "autoreset_mode": autoreset_mode}
        EzPickle.__init__(self, world, num_envs, device=device, temperature=temperature, **limits, **modes)
        self._engine: Engine | None = None  # until all arguments are known to be good
        self.autoreset_mode = _mode(autoreset_mode)
        engine = open_engine(world, num_envs, device, temperature, modes)
        self._seats = Seats(engine.model.spec)
        self.world_spec: WorldSpec = engine.model.spec
        self.max_episode_steps = inputs.check_limit("max_episode_steps", max_episode_steps, self.world_spec)
        self.weights_hash = engine.model.weights_hash
        self.device = str(engine.device)
        self.render_mode, self.output = render_mode, output
        self.metadata = {
            "render_modes": RENDER_MODES,
            "render_fps": self.world_spec.render_fps,
            "autoreset_mode": self.autoreset_mode,
        }
        self.num_envs = engine.num_envs
        self.single_observation_space = self.world_spec.observation_space()
        self.single_action_space = self.world_spec.action_space()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._slot_attributes: dict[str, tuple[Any, ...]] = {}
        self._engine = engine

    # -- reset and step ----------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every env, or in some.

        Args:
            seed: s gives env i the seed s + i; or N seeds; None goes on to the next episode of each env's stream.
            options: `reset_mask`, bool (N,), leaves the others alone. `frames` uint8 (N, T, H, W, 3) and `actions`
                (N, T - 1) start from these, see `LwmEnv.reset`. Other keys are ignored, nothing is changed in it.

        Raises:
            InvalidInput: a seed, mask, frame or action of the wrong kind.
            WrongOrder: after `close`, or the mask leaves out an env that was never reset. Nothing was changed.
        """
        engine = self._open()
        with engine.lock:
            seeds = inputs.check_seeds(seed, self.num_envs)
            options = inputs.check_options(options)
            given = options.get("reset_mask")
            mask = np.ones(self.num_envs, bool) if given is None else inputs.check_mask(given, self.num_envs)
            prompts = inputs.check_prompts(options, self.world_spec, self.num_envs, self._seats)
            if not (mask | engine.ready).all():
                missing = np.flatnonzero(~mask & ~engine.ready).tolist()
                raise WrongOrder(f"reset_mask leaves out envs {missing}, which were never reset. Reset all envs first.")
            if isinstance(seed, int | np.integer):
                super().reset(seed=int(seed))
            for slot in np.flatnonzero(mask & ~engine.ready):
                if seeds[slot] is None:
                    seeds[slot] = int(self.np_random.integers(1 << 63))
            frames = engine.reset(mask, seeds, prompts)
            if prompts is not None:
                familiar.warn_if_unfamiliar(engine.model, (prompts[0][mask], prompts[1][mask]), stacklevel=2)
            return self._observations(frames), self._infos(facts.blank_infos(self.num_envs), mask)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Dream one step of every env.

        Args:
            actions: integers (N,) or floats (N, A), numpy or torch.

        Raises:
            InvalidInput: not a batch of actions of the space.
            WrongOrder: before `reset`, after `close`, or an ended env in mode DISABLED. Nothing was changed.
        """
        engine = self._open()
        with engine.lock:
            if not engine.ready.all():
                raise WrongOrder("step() came before reset(). Begin with: observations, infos = envs.reset(seed=0)")
            checked = inputs.check_actions(actions, self.world_spec, (self.num_envs,), "actions")
            renewed = engine.ended.copy()
            if self.autoreset_mode == AutoresetMode.DISABLED and renewed.any():
                raise WrongOrder(
                    f"envs {np.flatnonzero(renewed).tolist()} have ended and autoreset is disabled. Reset them with "
                    f'reset(options={{"reset_mask": terminations | truncations}}).'
                )
            transition = engine.step(self._seats.join(checked, lambda: engine.frames), ~renewed)
            rewards, terminations, infos = facts.read_transition(transition)
            truncations = infos["error"] | self._out_of_time(engine.steps) & ~renewed
            engine.ended = terminations | truncations
            everyone = np.ones(self.num_envs, bool)
            frames, extra = transition.frames, {}
            if renewed.any():  # NEXT_STEP
                frames = engine.reset(renewed)
            if self.autoreset_mode == AutoresetMode.SAME_STEP and engine.ended.any():
                frames, infos, extra = self._renew_now(engine, frames, infos)
            outcome = (self._output(rewards[:, 0]), self._output(terminations), self._output(truncations))
            return self._observations(frames), *outcome, {**self._infos(infos, everyone), **extra}

    def _renew_now(
        self, engine: Engine, frames: Tensor, infos: facts.Infos
    ) -> tuple[Tensor, facts.Infos, dict[str, Any]]:
        """SAME_STEP: reset the ended envs; their last observation and info become final."""
        ended = engine.ended.copy()
        shown = torch.from_numpy(ended).to(frames.device).view(-1, 1, 1, 1)
        final_info = {name: np.where(ended, values, np.zeros_like(values)) for name, values in infos.items()}
        extra = {
            "final_obs": self._observations(torch.where(shown, frames, torch.zeros_like(frames))),
            "_final_obs": self._output(ended.copy()),
            "final_info": self._infos(final_info, ended),
            "_final_info": self._output(ended.copy()),
        }
        blank = facts.blank_infos(self.num_envs)
        return engine.reset(ended), {name: np.where(ended, blank[name], infos[name]) for name in infos}, extra

    def _out_of_time(self, steps: np.ndarray) -> np.ndarray:
        return np.zeros(self.num_envs, bool) if self.max_episode_steps is None else steps >= self.max_episode_steps

    # -- output ------------------------------------------------------------------------------------------------------

    def _observations(self, frames: Tensor) -> Any:
        return frames if self.output == "torch" else frames.cpu().numpy()

    def _output(self, values: np.ndarray) -> Any:
        if self.output == "numpy":
            return values
        return torch.from_numpy(values.astype(np.float32) if values.dtype == np.float64 else values).to(self.device)

    def _infos(self, infos: facts.Infos, mask: np.ndarray) -> dict[str, Any]:
        named = {name: self._output(values) for name, values in infos.items()}
        return {**named, **{f"_{name}": self._output(mask.copy()) for name in infos}}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The current frame of every env, uint8 (H, W, 3); None without a render mode."""
        engine = self._open()
        if self.render_mode is None:
            gym.logger.warn('render() needs a render mode. Make the envs with render_mode="rgb_array".')
            return None
        if not engine.ready.all():
            raise WrongOrder("render() came before reset(). Begin with: observations, infos = envs.reset(seed=0)")
        return tuple(engine.frames.cpu().numpy())

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the worlds; called once by `close`."""
        self._engine = None

    # -- pickle ------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        engine = self._engine
        slots = range(self.num_envs) if engine and engine.ready.all() else ()
        return {
            **super().__getstate__(),
            "closed": engine is None,
            "temperature": engine.temperature if engine else None,
            "snapshots": [engine.get_state(slot) for slot in slots],
            "attributes": {name: self.__dict__[name] for name in _KEPT if name in self.__dict__},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.update(state["attributes"])
        if state["closed"]:
            self.close()
            return
        self.temperature = state["temperature"]
        for slot, snapshot in enumerate(state["snapshots"]):
            self.set_state(snapshot, slot)


_KEPT = ("spec", "single_action_space", "action_space", "_np_random", "_np_random_seed", "_slot_attributes")


def _mode(mode: object) -> AutoresetMode:
    """`AutoresetMode.NEXT_STEP` from itself, "NextStep", "NEXT_STEP" or "next_step"."""
    if isinstance(mode, AutoresetMode):
        return mode
    named = {spelling: m for m in AutoresetMode for spelling in (m.value, m.name, m.name.lower())}
    inputs.check_choice("autoreset_mode", mode, list(named))
    return named[mode]

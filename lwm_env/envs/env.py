"""A world as a `gymnasium.Env`."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle
from torch import Tensor

from lwm_env import familiar
from lwm_env.engine import Engine
from lwm_env.envs import facts, inputs
from lwm_env.envs.loading import RENDER_MODES, open_engine
from lwm_env.errors import WrongOrder
from lwm_env.scripts import Seats
from lwm_env.spec import WorldSpec


class LwmEnv(gym.Env[Any, Any], EzPickle):
    """One dreamed world, stepped by a network.

    Observations are uint8 (H, W, 3). `info` has at every reset and step `surprise` (the mean entropy of a token in
    nats: high where the model does not know), `termination_prob` and `error` (the model's numbers stopped being finite;
    the episode is truncated at the last good frame).

    On a CPU the same seed and actions give the same bytes, in any process and as any slot of an `LwmVectorEnv`. A seed
    begins a stream of episodes; `reset()` without one goes on to its next. Threads take turns; a pickle or a copy
    resumes where the original was.

    Of a world of several players the env is the first one's; the world's script plays the others.

    Args:
        world: id, folder name, or path of a world folder.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
        render_mode: None or "rgb_array".
        temperature: of the sampled tokens, or where something is drawn ahead of that alone, >= 0; None takes the
            world's own.
        backend: "torch", or "onnx" (the extra `onnx`): the step exported on first use to the user's cache directory and
            run by ONNX Runtime. Bytes repeat within a backend; between the two a pixel may differ.
        output: "numpy", or "torch" for observations as tensors on the device.

    Raises:
        InvalidInput: an argument out of its range.
        UnknownWorld, CorruptFile, ConfigMismatch, StorageError: the world cannot be loaded, or has several players.
        MissingExtra: ONNX Runtime is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 15}  # noqa: RUF012 (Gymnasium's own)

    def __init__(
        self,
        world: str,
        *,
        device: str = "auto",
        render_mode: str | None = None,
        temperature: float | None = None,
        backend: str = "torch",
        output: str = "numpy",
    ) -> None:
        modes = {"render_mode": render_mode, "backend": backend, "output": output}
        EzPickle.__init__(self, world, device=device, temperature=temperature, **modes)
        self._engine: Engine | None = None  # until all arguments are known to be good
        engine = open_engine(world, 1, device, temperature, modes)
        self._seats = Seats(engine.model.spec)
        self.world_spec: WorldSpec = engine.model.spec
        self.weights_hash = engine.model.weights_hash
        self.device = str(engine.device)
        self.render_mode, self.output = render_mode, output
        self.metadata = {**self.metadata, "render_fps": self.world_spec.render_fps}
        self.observation_space = self.world_spec.observation_space()
        self.action_space = self.world_spec.action_space()
        self._engine = engine

    @property
    def temperature(self) -> float:
        """Of the sampled tokens; may be set between steps."""
        return self._open().temperature

    @temperature.setter
    def temperature(self, value: float | None) -> None:
        checked = inputs.check_temperature(value)
        self._open().temperature = self.world_spec.temperature if checked is None else checked

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: an integer >= 0 begins its stream of episodes; None goes on to the next (a random stream at first).
            options: `{"frames": uint8 (T, H, W, 3), "actions": (T - 1,)}` starts from these frames, T >= 1, which are
                resized where needed; the last one is the observation. Other keys are ignored. A warning,
                `UnfamiliarPrompt`, tells when that one is far from what the world was trained on.

        Raises:
            InvalidInput, WrongOrder (after `close`): nothing was changed.
        """
        engine = self._open()
        with engine.lock:
            seed = inputs.check_seed(seed)
            prompts = inputs.check_prompts(inputs.check_options(options), self.world_spec, None, self._seats)
            super().reset(seed=seed)
            if seed is None and (not engine.ready[0] or self._np_random_seed == -1):  # -1: the user set np_random
                seed = int(self.np_random.integers(1 << 63))
            frames = engine.reset(np.ones(1, bool), [seed], prompts)
        familiar.warn_if_unfamiliar(engine.model, prompts, stacklevel=2)
        return self._observation(frames), _first(facts.blank_infos(1))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Dream one step.

        Args:
            action: an integer of the `Discrete` space, or float (A,) within the `Box`.

        Returns:
            observation, reward, terminated, truncated, info. Truncation by time is left to `TimeLimit`.

        Raises:
            InvalidInput: not an action of the space.
            WrongOrder: before `reset`, after the end of the episode, after `close`. Nothing was changed.
        """
        engine = self._open()
        with engine.lock:
            if not engine.ready[0]:
                raise WrongOrder("step() came before reset(). Begin with: observation, info = env.reset(seed=0)")
            if engine.ended[0]:
                raise WrongOrder("step() came after the end of the episode. Begin the next with env.reset().")
            checked = inputs.check_actions(action, self.world_spec, ())
            transition = engine.step(self._seats.join(checked[None], lambda: engine.frames))
            rewards, terminations, infos = facts.read_transition(transition)
            engine.ended[0] = terminations[0] or infos["error"][0]
        observation = self._observation(transition.frames)
        return observation, float(rewards[0, 0]), bool(terminations[0]), bool(infos["error"][0]), _first(infos)

    def render(self) -> np.ndarray | None:
        """The current frame, uint8 (H, W, 3), a fresh array; None without a render mode."""
        engine = self._open()
        if self.render_mode is None:
            gym.logger.warn('render() needs a render mode. Make the env with render_mode="rgb_array".')
            return None
        if not engine.ready[0]:
            raise WrongOrder("render() came before reset(). Begin with: observation, info = env.reset(seed=0)")
        return engine.frames[0].cpu().numpy()

    def close(self) -> None:
        """Let go of the world; a second call does nothing, any other call is an error from now on."""
        self._engine = None

    def get_state(self) -> bytes:
        """The world as bytes: versioned, checksummed; `set_state` of any env of the same world continues it exactly."""
        return self._open().get_state(0)

    def set_state(self, state: bytes) -> None:
        """Continue from what `get_state` returned.

        Raises:
            CorruptFile: not a snapshot, cut short, or altered.
            ConfigMismatch: of other weights or another format. Nothing was changed.
        """
        self._open().set_state(state, 0)

    def get_action_meanings(self) -> list[str]:
        """The name of every action, index 0 NOOP."""
        return facts.action_meanings(self.world_spec)

    def get_keys_to_action(self) -> dict[tuple[int, ...], int]:
        """For `gymnasium.utils.play`: keys held together to the action they mean."""
        return facts.keys_to_action(self.world_spec)

    def __getstate__(self) -> dict[str, Any]:
        engine = self._engine
        return {
            **super().__getstate__(),
            "closed": engine is None,
            "temperature": engine.temperature if engine else None,
            "snapshot": engine.get_state(0) if engine and engine.ready[0] else None,
            "attributes": {name: self.__dict__[name] for name in _KEPT if name in self.__dict__},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.update(state["attributes"])
        if state["closed"]:
            self.close()
            return
        self.temperature = state["temperature"]
        if state["snapshot"] is not None:
            self.set_state(state["snapshot"])

    def _open(self) -> Engine:
        if self._engine is None:
            raise WrongOrder("the env is closed. Make a new one with gym.make().")
        return self._engine

    def _observation(self, frames: Tensor) -> Any:
        return frames[0] if self.output == "torch" else frames[0].cpu().numpy()


_KEPT = ("spec", "action_space", "observation_space", "_np_random", "_np_random_seed")


def _first(infos: facts.Infos) -> dict[str, Any]:
    """The infos of one env as Python numbers."""
    return {name: values[0].item() for name, values in infos.items()}

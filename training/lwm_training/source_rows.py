"""Games that come one by one, Gymnasium's and PettingZoo's parallel ones: a row per copy, stepped in a loop."""

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from lwm_env.errors import ConfigMismatch, MissingExtra, UnknownWorld
from lwm_training.action_codec import ActionCodec
from lwm_training.frames import Converter, image_converter
from lwm_training.source import MAX_SEED, Moved, SourceConfig

Outcome = tuple[np.ndarray, np.ndarray, bool, bool]  # frame, rewards (P,), terminated, truncated


class Row(Protocol):
    """One copy of a game."""

    players: tuple[str, ...]
    codec: ActionCodec

    def reset(self, seed: int) -> np.ndarray: ...

    def step(self, actions: np.ndarray) -> Outcome: ...

    def close(self) -> None: ...


class RowBackend:
    """Every episode has a seed of its own, drawn from the seed of its row, so that any one can be played again."""

    def __init__(self, make: Callable[[], Row], num_envs: int, facts: dict[str, Any]) -> None:
        self._rows = [make() for _ in range(num_envs)]
        self.players, self.codec, self.facts = self._rows[0].players, self._rows[0].codec, facts
        self._seeds = np.zeros(num_envs, np.int64)  # of the row
        self._counts = np.zeros(num_envs, np.int64)  # episodes begun

    def restart(self, rows: np.ndarray, seeds: np.ndarray | None) -> np.ndarray:
        if seeds is None:
            self._counts[rows] += 1
        else:
            self._seeds[rows], self._counts[rows] = seeds, 0
        return np.stack([self._rows[row].reset(int(self._episode_seed(row))) for row in rows])

    def advance(self, rows: np.ndarray, actions: np.ndarray) -> Moved:
        outcomes = [self._rows[row].step(action) for row, action in zip(rows, actions, strict=True)]
        frames, rewards, terminations, truncations = zip(*outcomes, strict=True)
        rewards = np.asarray(rewards, np.float32).reshape(len(rows), -1)
        return Moved(np.stack(frames), rewards, np.array(terminations, bool), np.array(truncations, bool))

    def episode_seeds(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self._episode_seed(row) for row in rows], np.int64)

    def close(self) -> None:
        for row in self._rows:
            row.close()

    def _episode_seed(self, row: int) -> int:
        seed, count = int(self._seeds[row]), int(self._counts[row])
        return seed if count == 0 else int(np.random.SeedSequence((seed, count)).generate_state(1)[0] % MAX_SEED)


class GymnasiumRow:
    """A gymnasium.Env; where its observation is no image, its rendered picture is the frame."""

    players = ("player_0",)

    def __init__(self, env_id: str, options: dict[str, Any], config: SourceConfig) -> None:
        """Raises UnknownWorld, MissingExtra (a library of the env), ConfigMismatch (options, no picture)."""
        self._env, self._image = self._make(env_id, options, config)
        self.codec = ActionCodec(self._env.action_space)

    def reset(self, seed: int) -> np.ndarray:
        observation, _ = self._env.reset(seed=seed)
        return self._frame(observation)

    def step(self, actions: np.ndarray) -> Outcome:
        action = actions[0] if actions[0].ndim else int(actions[0])
        observation, reward, terminated, truncated, _ = self._env.step(action)
        return self._frame(observation), np.array([reward], np.float32), bool(terminated), bool(truncated)

    def close(self) -> None:
        self._env.close()

    def _frame(self, observation: Any) -> np.ndarray:
        if self._image is not None:
            return self._image(np.asarray(observation)[None])[0]
        return np.asarray(self._env.render(), np.uint8)[..., :3]

    def _make(self, env_id: str, options: dict[str, Any], config: SourceConfig) -> tuple[gym.Env, Converter | None]:
        if env_id.startswith("ALE/") and importlib.util.find_spec("ale_py"):
            env_id = f"ale_py:{env_id}"  # Gymnasium imports what stands before the colon
        options = {"max_episode_steps": config.max_episode_steps, **options}
        env = None
        if config.view != "render":
            env = _made(env_id, options)
            image = image_converter(env.observation_space)
            if image is not None:
                return env, image
            if config.view == "observation":
                raise ConfigMismatch(f"{env_id} observes {env.observation_space}, no image; use the view 'render'.")
            env.close()
        env = _made(env_id, {**options, "render_mode": "rgb_array"})
        return env, None


def _made(env_id: str, options: dict[str, Any]) -> gym.Env:
    try:
        return gym.make(env_id, **options)
    except gym.error.DependencyNotInstalled as error:
        raise MissingExtra(f"{env_id} needs a library: {error}") from error
    except (gym.error.UnregisteredEnv, ModuleNotFoundError) as error:
        raise UnknownWorld(f"Gymnasium has no {env_id!r}: {error}") from error
    except (TypeError, ValueError, gym.error.Error) as error:
        raise ConfigMismatch(f"{env_id} does not take the options {options}: {error}") from error


class ParallelRow:
    """A PettingZoo ParallelEnv as one shared world: one frame, one action and one reward per player.

    The frame is the first player's image if all players see the same one, else the rendered picture where there is
    one. The episode ends when no player is left; the action of one who is out is ignored and earns 0. Players of
    unequal action counts all have the largest, folded into their own by the remainder. The option `frame_skip` holds
    the actions for so many of the game's steps and sums their rewards.
    """

    def __init__(self, env_id: str, options: dict[str, Any], config: SourceConfig) -> None:
        """Raises UnknownWorld, MissingExtra, ConfigMismatch (options, spaces of different kinds, no picture)."""
        self._skip = options.get("frame_skip", 1)
        if not isinstance(self._skip, int) or self._skip < 1:
            raise ConfigMismatch(f"frame_skip must be an integer of at least 1, got {self._skip!r}.")
        self._env = _parallel(env_id, {name: value for name, value in options.items() if name != "frame_skip"})
        if env_id.startswith("atari/"):
            self._env = self._env.unwrapped  # its wrappers check what `Source` has checked, for half of the time
        self.players = tuple(self._env.possible_agents)
        self._codecs = [ActionCodec(self._env.action_space(player)) for player in self.players]
        self.codec = _JointCodec(self._codecs, env_id)
        images = [image_converter(self._env.observation_space(player)) for player in self.players]
        self._image = None if config.view == "render" else images[0]
        self._check_shared = config.view == "auto" and self._image is not None
        can_render = "rgb_array" in self._env.metadata.get("render_modes", [])
        if self._image is None and (config.view == "observation" or not can_render):
            seen = self._env.observation_space(self.players[0])
            raise ConfigMismatch(f"{env_id} observes {seen}, no image, and has no picture to render.")
        self._can_render = can_render
        self._last: np.ndarray | None = None

    def reset(self, seed: int) -> np.ndarray:
        observations, _ = self._env.reset(seed=seed)
        if self._check_shared:
            self._check_shared = False
            views = [np.asarray(observations[player]) for player in self.players]
            same = all(view.shape == views[0].shape and (view == views[0]).all() for view in views)
            if not same and self._can_render:
                self._image = None
        return self._frame(observations)

    def step(self, actions: np.ndarray) -> Outcome:
        env, earned, ended = self._env, np.zeros(len(self.players), np.float32), False
        given = {player: self._own(*choice) for player, choice in zip(self.players, enumerate(actions), strict=True)}
        for _ in range(self._skip):
            going = {player: given[player] for player in env.agents}
            observations, rewards, terminations, truncations, _ = env.step(going)
            earned += [rewards.get(player, 0.0) for player in self.players]
            ended = any(terminations.values())
            over = not env.agents or all(terminations.get(p, True) or truncations.get(p, True) for p in env.agents)
            if over:
                break
        return self._frame(observations), earned, over and ended, over and not ended

    def close(self) -> None:
        self._env.close()

    def _own(self, index: int, action: np.ndarray) -> Any:
        codec = self._codecs[index]
        if isinstance(codec.space, spaces.Discrete):
            action = codec.decode(np.atleast_1d(action % codec.space.n))[0]
            return action if np.ndim(action) else int(action)
        return codec.decode(np.asarray(action)[None])[0]

    def _frame(self, observations: dict[str, Any]) -> np.ndarray:
        if self._image is None:
            picture = self._env.render()
            if picture is not None:
                self._last = np.asarray(picture, np.uint8)[..., :3]
        else:
            seen = next((observations[player] for player in self.players if player in observations), None)
            if seen is not None:
                self._last = self._image(np.asarray(seen)[None])[0]
        return self._last


class _JointCodec(ActionCodec):
    """One space for all players; each row decodes for its own players."""

    def __init__(self, codecs: list[ActionCodec], env_id: str) -> None:
        self.space = codecs[0].space
        if all(isinstance(codec.space, spaces.Discrete) for codec in codecs):
            self.space = spaces.Discrete(max(int(codec.space.n) for codec in codecs))
        elif any(codec.space != self.space for codec in codecs):
            raise ConfigMismatch(f"The players of {env_id} have different action spaces: {[c.space for c in codecs]}.")

    def decode(self, actions: np.ndarray) -> np.ndarray:
        return actions


def _parallel(env_id: str, options: dict[str, Any]) -> Any:
    """By its registered id, or `package.module` or `package.module:factory`, as `mpe2.simple_spread_v3`."""
    import pettingzoo
    from pettingzoo.env_registry.exceptions import FailedToImport, PettingZooRegistryError

    if env_id.startswith("atari/"):
        options = _ale_roms() | options
    module, _, factory = env_id.partition(":")
    try:
        if factory or ("/" not in env_id and importlib.util.find_spec(module)):
            return _with_picture(getattr(importlib.import_module(module), factory or "parallel_env"), options)
        return _with_picture(lambda **chosen: pettingzoo.make("parallel", env_id, **chosen), options)
    except (FailedToImport, ImportError) as error:
        raise MissingExtra(f"{env_id} needs a library: {error}. {error.__cause__ or ''}") from error
    except (PettingZooRegistryError, AttributeError) as error:
        known = {name.lower(): name for name in pettingzoo.parallel_registry}
        near = difflib.get_close_matches(env_id.lower().replace("_v", "-v"), known, n=3)
        hint = f"Did you mean {' or '.join(known[name] for name in near)}?" if near else f"Known: {', '.join(known)}."
        raise UnknownWorld(f"PettingZoo has no parallel env {env_id!r}. {hint}") from error
    except TypeError as error:
        raise ConfigMismatch(f"{env_id} does not take the options {options}: {error}") from error


def _with_picture(make: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        return make(**{"render_mode": "rgb_array", **options})
    except TypeError as error:
        if "render_mode" not in str(error) and "takes no arguments" not in str(error):
            raise
        return make(**options)


def _ale_roms() -> dict[str, str]:
    """The ROMs that the ale-py wheel brings, for multi-agent-ale-py, which has none."""
    found = importlib.util.find_spec("ale_py")
    if found is None or not found.submodule_search_locations:
        return {}
    return {"auto_rom_install_path": str(Path(next(iter(found.submodule_search_locations))) / "roms")}

"""One interface to every real game: N copies stepped together, RGB frames, joint actions, NEXT_STEP autoreset."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces

from lwm_env.errors import ConfigMismatch, InvalidInput, WrongOrder
from lwm_training.action_codec import ActionCodec
from lwm_training.frames import Shrink, resize

MAX_SEED = 2**31 - 1  # EnvPool's seeds are 32-bit and signed


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """How a real game is shown and stepped."""

    frame_size: tuple[int, int] | None = None  # height, width; None keeps the game's own
    max_episode_steps: int | None = None  # truncate there; the game's own limit holds besides
    num_threads: int = 1  # where the library steps in parallel
    view: Literal["auto", "observation", "render"] = "auto"  # what a frame is; auto: the observation if it is an image
    shrink: Shrink = "mean"  # how a larger picture becomes a frame, see `resize`


class Moved(NamedTuple):
    """What some rows gave; frames of the game's own size."""

    frames: np.ndarray  # uint8 (R, h, w, 3)
    rewards: np.ndarray  # float32 (R, P)
    terminations: np.ndarray  # bool (R,)
    truncations: np.ndarray  # bool (R,)


class Step(NamedTuple):
    """One step of all N copies; fresh arrays."""

    observations: np.ndarray  # uint8 (N, H, W, 3)
    rewards: np.ndarray  # float32 (N, P)
    terminations: np.ndarray  # bool (N,)
    truncations: np.ndarray  # bool (N,)


class Backend(Protocol):
    """What a library of games must offer; `rows` are indices of copies, ascending."""

    players: tuple[str, ...]
    codec: ActionCodec
    facts: dict[str, Any]

    def restart(self, rows: np.ndarray, seeds: np.ndarray | None) -> np.ndarray:
        """New episodes, from these seeds or going on from the last; returns the frames."""
        ...

    def advance(self, rows: np.ndarray, actions: np.ndarray) -> Moved:
        """One step with native actions, (R, P, ...)."""
        ...

    def episode_seeds(self, rows: np.ndarray) -> np.ndarray:
        """int64 (R,): the level, or the seed, of the episode that each row is in."""
        ...

    def close(self) -> None: ...


@dataclass
class _Rows:
    """Where each copy stands."""

    over: np.ndarray  # bool (N,): ended, restarts at the next step
    elapsed: np.ndarray  # int64 (N,): steps in this episode
    observations: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))


class Source:
    """N copies of a real game.

    The step after an episode's end ignores the action, gives reward 0 and the next episode's first frame. What copy i
    plays depends on its own seed and actions only, not on how many copies there are.
    """

    def __init__(self, name: str, backend: Backend, num_envs: int, seed: int, config: SourceConfig) -> None:
        if num_envs < 1:
            raise InvalidInput(f"num_envs must be at least 1, got {num_envs}.")
        self.name, self.num_envs, self.config = name, num_envs, config
        self.players = backend.players
        self.action_space: spaces.Discrete | spaces.Box = backend.codec.space
        self._backend, self._seed = backend, seed
        self._action_map: np.ndarray | None = None
        self._rows: _Rows | None = None
        self._closed = False
        first = resize(
            self._backend.restart(np.arange(num_envs), _seed_rows(seed, num_envs)), config.frame_size, config.shrink
        )
        self.observation_space = spaces.Box(0, 255, first.shape[1:], np.uint8)
        self._first: np.ndarray | None = first  # the frames of the seed that we were opened with

    @property
    def facts(self) -> dict[str, Any]:
        """What the source is, for JSON: the same for every number of copies and every seed."""
        return {
            "source": self.name,
            **self._backend.facts,
            "frame_size": list(self.observation_space.shape[:2]),
            "view": self.config.view,
            "shrink": self.config.shrink,
            "max_episode_steps": self.config.max_episode_steps,
            "action_map": None if self._action_map is None else self._action_map.tolist(),
        }

    @property
    def episode_seeds(self) -> np.ndarray:
        """int64 (N,): the level (Procgen) or the seed of the episode that each copy is in."""
        return self._backend.episode_seeds(np.arange(self.num_envs))

    def map_actions(self, source_actions: Sequence[int]) -> None:
        """Take index i for the game's `source_actions[i]` from now on."""
        mapped = np.asarray(source_actions, np.int64)
        count = self.action_space.n if isinstance(self.action_space, spaces.Discrete) else None
        if count is None or mapped.ndim != 1 or not len(mapped) or mapped.min() < 0 or mapped.max() >= count:
            raise ConfigMismatch(f"{self.name} has {self.action_space}; actions {mapped.tolist()} are not among them.")
        self._action_map = mapped
        self.action_space = spaces.Discrete(len(mapped))

    def reset(self, seed: int | Sequence[int] | None = None, mask: np.ndarray | None = None) -> np.ndarray:
        """Start new episodes; copy i from seed + i, or going on from where its levels are.

        Args:
            seed: of all copies, or one for each. The first reset without one uses the seed of opening.
            mask: bool (N,), which copies to restart; the others stay as they are.

        Returns:
            uint8 (N, H, W, 3) frames of all copies.

        Raises:
            InvalidInput: seed or mask of another shape or range, or a seed together with a mask.
            WrongOrder: a mask before the first reset, or after close.
        """
        self._check_open()
        rows = np.arange(self.num_envs)
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != (self.num_envs,) or mask.dtype != bool or seed is not None:
                shape = (self.num_envs,)
                raise InvalidInput(f"A mask must be bool {shape}, without a seed, got {mask.dtype} {mask.shape}.")
            if self._rows is None:
                raise WrongOrder("The first reset must be of all copies: call reset() without a mask.")
            rows = rows[mask]
        if seed is None and self._first is not None:
            frames = self._first
        elif len(rows):
            seeds = None if seed is None else _seed_rows(seed, self.num_envs)
            frames = resize(self._backend.restart(rows, seeds), self.config.frame_size, self.config.shrink)
        else:
            return self._rows.observations.copy()
        self._first = None
        self._begin(rows, frames)
        return self._rows.observations.copy()

    def step(self, actions: np.ndarray) -> Step:
        """Step all copies.

        Args:
            actions: int (N, P), or float (N, P, A) for continuous actions, clipped to the space.

        Raises:
            InvalidInput: another shape or dtype, an index out of range, or NaN; nothing was stepped.
            WrongOrder: before reset or after close.
        """
        self._check_open()
        if self._rows is None:
            raise WrongOrder("Call reset() before step().")
        actions = self._native_actions(actions)
        state = self._rows
        step = Step(
            np.empty_like(state.observations),
            np.zeros((self.num_envs, len(self.players)), np.float32),
            np.zeros(self.num_envs, bool),
            np.zeros(self.num_envs, bool),
        )
        going, over = np.flatnonzero(~state.over), np.flatnonzero(state.over)
        if len(going):
            moved = self._backend.advance(going, actions[going])
            step.observations[going] = resize(moved.frames, self.config.frame_size, self.config.shrink)
            step.rewards[going], step.terminations[going] = moved.rewards, moved.terminations
            state.elapsed[going] += 1
            limit = self.config.max_episode_steps
            late = state.elapsed[going] >= limit if limit else False
            step.truncations[going] = (moved.truncations | late) & ~moved.terminations
        if len(over):
            step.observations[over] = resize(
                self._backend.restart(over, None), self.config.frame_size, self.config.shrink
            )
            state.elapsed[over] = 0
        self._rows = _Rows(step.terminations | step.truncations, state.elapsed, step.observations)
        return step._replace(observations=step.observations.copy())

    def close(self) -> None:
        """Free the games; may be called twice."""
        if not self._closed:
            self._closed = True
            self._backend.close()

    def _check_open(self) -> None:
        if self._closed:
            raise WrongOrder(f"The source {self.name} is closed; open it again.")

    def _begin(self, rows: np.ndarray, frames: np.ndarray) -> None:
        if self._rows is None or len(rows) == self.num_envs:
            count = self.num_envs
            self._rows = _Rows(np.zeros(count, bool), np.zeros(count, np.int64), frames.copy())
            return
        self._rows.over[rows] = False
        self._rows.elapsed[rows] = 0
        self._rows.observations[rows] = frames

    def _native_actions(self, actions: np.ndarray) -> np.ndarray:
        """Checked, mapped and decoded: (N, P, ...)."""
        actions = np.asarray(actions)
        shape = (self.num_envs, len(self.players), *self.action_space.shape)
        discrete = isinstance(self.action_space, spaces.Discrete)
        if actions.shape != shape or actions.dtype.kind not in ("iu" if discrete else "fiu"):
            kind = "integers" if discrete else "floats"
            raise InvalidInput(f"Actions must be {kind} of shape {shape}, got {actions.dtype} {actions.shape}.")
        if discrete and (actions.min() < 0 or actions.max() >= self.action_space.n):
            last = self.action_space.n - 1
            raise InvalidInput(f"Actions must be 0 to {last}, got {actions.min()} to {actions.max()}.")
        if not discrete and not np.isfinite(actions).all():
            raise InvalidInput("Actions must be finite, got NaN or infinity.")
        if self._action_map is not None:
            actions = self._action_map[actions]
        flat = self._backend.codec.decode(actions.reshape(-1, *self.action_space.shape))
        return flat.reshape(*shape[:2], *flat.shape[1:])


def _seed_rows(seed: int | Sequence[int], num_envs: int) -> np.ndarray:
    seeds = np.asarray(seed)
    if seeds.dtype.kind not in "iu" or seeds.shape not in ((), (num_envs,)) or (seeds < 0).any():
        raise InvalidInput(f"A seed must be a non-negative integer, or {num_envs} of them, got {seed!r:.80}.")
    return (seeds + np.arange(num_envs) if seeds.shape == () else seeds).astype(np.int64) % MAX_SEED

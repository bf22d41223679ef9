"""One step of ours as several of the game's: for games that run at 50 frames a second, or begin with a film.

The options `action_repeat`, `skip_first` and `crop_bottom` are ours, of every library's games; see `Pace`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from lwm_env.errors import ConfigMismatch
from lwm_training.source import Backend, Moved, SourceConfig


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What stands between a game's steps and ours."""

    action_repeat: int = 1  # steps of the game in one of ours: the action is held, the rewards are summed
    skip_first: int = 0  # steps of the game before an episode's first frame, with action 0; their rewards are lost
    crop_bottom: int = 0  # rows of the picture that are cut off, before it is resized

    def __post_init__(self) -> None:
        for name, least in (("action_repeat", 1), ("skip_first", 0), ("crop_bottom", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigMismatch(f"{name} must be an integer of at least {least}, got {value!r}.")

    def game_steps(self, limit: int | None) -> int | None:
        """How many steps of the game so many of ours are, those before the first frame included."""
        return None if limit is None else self.skip_first + self.action_repeat * limit


def paced(
    make: Callable[[dict[str, Any], SourceConfig], Backend], options: dict[str, Any], config: SourceConfig
) -> Backend:
    """The game that `make` opens with its own options and limit, at the pace that ours among `options` ask for.

    Raises:
        ConfigMismatch: one of ours is out of range.
    """
    ours = {field.name for field in fields(Pace)} & set(options)
    if not ours:
        return make(options, config)
    pace = Pace(**{name: options[name] for name in ours})
    native = {name: value for name, value in options.items() if name not in ours}
    limit = pace.game_steps(config.max_episode_steps)
    return PacedBackend(make(native, replace(config, max_episode_steps=limit)), pace)


class PacedBackend:
    """Another backend's games, stepped and shown at a pace."""

    def __init__(self, game: Backend, pace: Pace) -> None:
        self._game, self._pace = game, pace
        self.players, self.codec = game.players, game.codec
        self.facts = {**game.facts, "pace": asdict(pace)}

    def restart(self, rows: np.ndarray, seeds: np.ndarray | None) -> np.ndarray:
        """Raises ConfigMismatch if an episode is over before its first frame."""
        frames = self._game.restart(rows, seeds)
        space = self.codec.space
        one = self.codec.decode(np.zeros((1, *space.shape), space.dtype))
        idle = np.broadcast_to(one[:, None], (len(rows), len(self.players), *one.shape[1:]))
        for _ in range(self._pace.skip_first):
            moved = self._game.advance(rows, idle)
            if (moved.terminations | moved.truncations).any():
                raise ConfigMismatch(f"An episode ended in the first {self._pace.skip_first} steps: lower skip_first.")
            frames = moved.frames
        return self._shown(frames)

    def advance(self, rows: np.ndarray, actions: np.ndarray) -> Moved:
        whole = Moved(*(np.array(values) for values in self._game.advance(rows, actions)))
        for _ in range(self._pace.action_repeat - 1):
            going = np.flatnonzero(~(whole.terminations | whole.truncations))
            if not len(going):
                break
            part = self._game.advance(rows[going], actions[going])
            whole.frames[going], whole.terminations[going], whole.truncations[going] = part.frames, *part[2:]
            whole.rewards[going] += part.rewards
        return whole._replace(frames=self._shown(whole.frames))

    def episode_seeds(self, rows: np.ndarray) -> np.ndarray:
        return self._game.episode_seeds(rows)

    def close(self) -> None:
        self._game.close()

    def _shown(self, frames: np.ndarray) -> np.ndarray:
        rows = frames.shape[1] - self._pace.crop_bottom
        if rows < 1:
            raise ConfigMismatch(f"crop_bottom is {self._pace.crop_bottom}, the picture has {frames.shape[1]} rows.")
        return frames[:, :rows]

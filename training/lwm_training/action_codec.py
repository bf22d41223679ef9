"""Any game's actions as one of two kinds: an index from 0, or a flat vector of bounded numbers."""

import math

import numpy as np
from gymnasium import spaces

from lwm_env.errors import ConfigMismatch

MAX_COMBINATIONS = 1024  # of a MultiDiscrete or MultiBinary action
_UNBOUNDED = 1e6  # a bound beyond this is no bound; such an action is drawn from -1 to 1


class ActionCodec:
    """Translates batches of our actions into those of a game.

    `space` is ours, of one player: Discrete(n) from 0, or a flat float32 Box with finite bounds.
    """

    def __init__(self, native: spaces.Space) -> None:
        """Raises ConfigMismatch for a space that is neither discrete nor a box."""
        self._native = native
        if isinstance(native, spaces.Discrete):
            self.space: spaces.Discrete | spaces.Box = spaces.Discrete(int(native.n))
        elif isinstance(native, spaces.MultiDiscrete | spaces.MultiBinary):
            self._sizes = _sizes(native)
            combinations = math.prod(self._sizes)
            if combinations > MAX_COMBINATIONS:
                raise ConfigMismatch(f"{native} has {combinations} combinations, at most {MAX_COMBINATIONS} are taken.")
            self.space = spaces.Discrete(combinations)
        elif isinstance(native, spaces.Box):
            low = np.asarray(native.low, np.float64).ravel()
            high = np.asarray(native.high, np.float64).ravel()
            bounded = (np.abs(low) < _UNBOUNDED) & (np.abs(high) < _UNBOUNDED)
            low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
            self.space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        else:
            raise ConfigMismatch(
                f"Actions of the kind {native} are not supported; Discrete, MultiDiscrete, MultiBinary and Box are. "
                f"Register the game with a wrapper that takes one of these (gymnasium.wrappers.TransformAction)."
            )

    def decode(self, actions: np.ndarray) -> np.ndarray:
        """(R,) int or (R, A) float actions of ours -> the game's, one row each."""
        native = self._native
        if isinstance(native, spaces.Discrete):
            return actions + native.start
        if isinstance(native, spaces.Box):
            clipped = np.clip(actions, self.space.low, self.space.high)
            return clipped.reshape(-1, *native.shape).astype(native.dtype)
        parts = np.stack(np.unravel_index(actions, self._sizes), axis=-1)
        return parts.reshape(-1, *native.shape).astype(native.dtype)

    def encode(self, native_actions: np.ndarray) -> np.ndarray:
        """A game's actions, (R, ...), as ours with one player: (R, 1) or (R, 1, A)."""
        native, count = self._native, len(native_actions)
        if isinstance(native, spaces.Discrete):
            return native_actions.reshape(count, 1) - native.start
        if isinstance(native, spaces.Box):
            return native_actions.reshape(count, 1, -1)
        parts = native_actions.reshape(count, -1).astype(np.int64)
        return np.ravel_multi_index(tuple(parts.T), self._sizes).reshape(count, 1)


def _sizes(native: spaces.MultiDiscrete | spaces.MultiBinary) -> tuple[int, ...]:
    if isinstance(native, spaces.MultiBinary):
        return (2,) * math.prod(native.shape)
    return tuple(int(size) for size in native.nvec.ravel())

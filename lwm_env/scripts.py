"""Players that need no training: they read the picture by a rule. They record play, and take an empty seat.

A world names its script in its spec. Shapes: N copies, P players.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lwm_env.errors import ConfigMismatch
from lwm_env.spec import WorldSpec

if TYPE_CHECKING:
    from torch import Tensor

Script = Callable[[np.ndarray], np.ndarray]  # uint8 (N, H, W, 3) -> int64 (N, P), an action for every player


def load_script(spec: WorldSpec) -> Script:
    """The script of a world; ConfigMismatch if it has none."""
    if spec.script is None:
        raise ConfigMismatch(f"{spec.id} names no script. Let a sticky random player or a policy play instead.")
    return SCRIPTS[spec.script](spec)


class Seats:
    """Who sits beside the first player of a Gymnasium env: nobody, or the world's script in every other seat."""

    def __init__(self, spec: WorldSpec) -> None:
        """Raises ConfigMismatch for a world of several players that names no script."""
        if len(spec.players) > 1 and spec.script is None:
            raise ConfigMismatch(
                f"{spec.id} has {len(spec.players)} players and no script to play the others; a gymnasium env has one. "
                f'Use lwm_env.parallel_env("{spec.id}").'
            )
        self._script = load_script(spec) if len(spec.players) > 1 else None

    def others(self, frames: np.ndarray) -> np.ndarray:
        """What the others do on seeing uint8 (N, H, W, 3): int64 (N, P - 1)."""
        return np.zeros((len(frames), 0), np.int64) if self._script is None else self._script(frames)[:, 1:]

    def join(self, own: "Tensor", look: Callable[[], "Tensor"]) -> "Tensor":
        """The first player's actions (N,) or (N, A) -> those of all, (N, P[, A]). `look` gives what is seen, uint8
        (N, H, W, 3), and is called only where somebody else plays."""
        if self._script is None:
            return own[:, None]
        import torch  # a web server needs the scripts alone

        return torch.cat([own[:, None], torch.from_numpy(self.others(look().cpu().numpy()))], 1)


def pong_paddles(spec: WorldSpec) -> Script:
    """Atari's two-player Pong at 64x64: both paddles follow the ball's height, and ask for a serve where none is seen.

    The players are the right paddle (green), then the left.
    """
    noop, fire, up, down = (spec.actions.meanings.index(name) for name in ("NOOP", "FIRE", "UP", "DOWN"))
    rows = np.arange(12, 58)

    def height(weight: np.ndarray) -> np.ndarray:
        """Weights (N, rows, columns) -> mean row (N,), NaN where nothing is seen."""
        total = weight.sum((1, 2))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, (weight.sum(2) * rows).sum(1) / total, np.nan)

    def act(frames: np.ndarray) -> np.ndarray:
        field = frames[:, rows].astype(np.int64)
        red, green = field[..., 0], field[..., 1]
        ball = height(np.clip(field[:, :, 9:55].min(-1) - 45, 0, None))
        right = height(np.clip(green - red, 0, None)[:, :, 55:59])
        left = height(np.clip(red - 165, 0, None)[:, :, 5:9])
        actions = np.full((len(frames), 2), fire)
        for player, paddle in enumerate((right, left)):
            above = ball - paddle
            move = np.where(np.abs(above) < 2.2, noop, np.where(above < 0, up, down))
            actions[:, player] = np.where(np.isnan(above), actions[:, player], move)
        return np.where(np.isnan(ball)[:, None], fire, actions)

    return act


SCRIPTS: dict[str, Callable[[WorldSpec], Script]] = {"pong_paddles": pong_paddles}

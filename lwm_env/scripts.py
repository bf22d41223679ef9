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

# uint8 (N, H, W, 3) -> an action for every player, int64 (N, P) or float32 (N, P, A)
Script = Callable[[np.ndarray], np.ndarray]


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
    rows = np.arange(11, 59)  # of the field, between the walls: a paddle may show in the first or the last one alone

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


def racing_road(spec: WorldSpec) -> Script:
    """CarRacing at 64x64, seen from above a car that looks up: steers to where the road goes, the slower the more it
    bends. Beside the road it drives to what it sees of it, and in a circle where it sees none.

    Gas and brake are pressed together: their ratio decides the speed, which one picture does not tell.
    """
    steer, gas, brake = (spec.actions.meanings.index(name) for name in ("STEER", "GAS", "BRAKE"))

    def act(frames: np.ndarray) -> np.ndarray:
        red, green, blue = np.moveaxis(frames.astype(np.int64), -1, 0)
        no_grass = green - np.maximum(red, blue) < 25
        road = no_grass & ((blue > 60) | (red - green > 60))  # grey or a red kerb, no mud, nor what is beyond the field
        sideways, bend = _road_ahead(road)
        actions = np.zeros((len(frames), 1, spec.actions.dim), np.float32)
        actions[:, 0, steer] = np.clip(1.5 * sideways, -1, 1)
        actions[:, 0, gas] = np.clip(0.8 - 0.8 * bend, 0.08, 0.8)
        actions[:, 0, brake] = 0.1
        return actions

    return act


_BONNET, _CAR_COLUMN = 49, 31.5  # where the car of CarRacing is seen
_AHEAD, _NEAR = 40, 16  # rows that are looked at for the bend, and for where to steer


def _road_ahead(road: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The road followed upwards from the bonnet, row by row: bool (N, 64, 64) -> float (N,), how many columns to the
    right it goes for each row up, and how much it bends, from 0 to 1."""
    count, columns = len(road), np.arange(64)
    middle, followed, near = np.full(count, _CAR_COLUMN), np.ones(count, bool), np.full(count, _CAR_COLUMN)
    reach = np.zeros(count, int)
    for row in range(_BONNET, _BONNET - _AHEAD, -1):
        strip = road[:, row]
        distance = np.where(strip, np.abs(columns - middle[:, None]), np.inf)
        followed &= distance.min(1) < 6
        gaps = np.cumsum(~strip, 1)  # the same along a stretch of road
        stretch = strip & (gaps == np.take_along_axis(gaps, distance.argmin(1)[:, None], 1))
        middle = np.where(followed, (stretch * columns).sum(1) / np.maximum(stretch.sum(1), 1), middle)
        reach += followed
        near = np.where(reach <= _NEAR, middle, near)
    sideways = (near - _CAR_COLUMN) / np.clip(reach, 4, _NEAR)
    bend = np.where(reach < _AHEAD, 1 - reach / (2 * _AHEAD), np.abs(middle - _CAR_COLUMN) / _AHEAD)
    elsewhere = road.copy()
    elsewhere[:, _BONNET - 1 :, 28:36] = False  # the car
    size, total = elsewhere.sum((1, 2)), (elsewhere * columns).sum((1, 2))
    there = np.where(size > 8, (total / np.maximum(size, 1) - _CAR_COLUMN) / _NEAR, 0.3)
    beside = reach < 3
    return np.where(beside, there, sideways), np.where(beside, 1.0, np.minimum(bend, 1.0))


SCRIPTS: dict[str, Callable[[WorldSpec], Script]] = {"pong_paddles": pong_paddles, "racing_road": racing_road}

"""Bots: players that are scripts. A bot sees the picture, as everybody does, and chooses the action of one seat.

A server lets them sit in the seats of its rooms, `lwm_agents.seats.SeatEnv` lets a policy learn against them. A new one
is a class with `reset` and `act`, and one line: `register("paddle", Paddle, ["LWM-Pong-v0"])`.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import numpy as np

from lwm_env.errors import InvalidInput
from lwm_env.scripts import load_script
from lwm_env.spec import ContinuousActions, DiscreteActions, WorldSpec

KEEP_PROBABILITY = 0.9  # of a sticky player to hold the keys for one more step
RESERVED = ("human", "neutral")  # what a server calls people, and nobody

Action = int | np.ndarray  # of a discrete world, or float32 (A,)


class Opponent(Protocol):
    """One player of one world."""

    def reset(self, seed: int | None = None) -> None:
        """An episode begins; with a seed, so does whatever the bot draws by chance."""

    def act(self, frame: np.ndarray) -> Action:
        """The action of the next step, from what is seen now: uint8 (H, W, 3), not to be changed."""


Maker = Callable[[WorldSpec, str, int], Opponent]  # the world, the player that it is (of `spec.players`), a seed


class _Entry(NamedTuple):
    make: Maker
    fits: Callable[[WorldSpec], bool] | None  # None: any world


_bots: dict[str, _Entry] = {}


def register(name: str, make: Maker, worlds: Iterable[str] | Callable[[WorldSpec], bool] | None = None) -> None:
    """Make a bot known by a name.

    Args:
        make: called with the world's spec, the player's name and a seed.
        worlds: ids of the worlds that it can play, or what tells whether it can; None: all.

    Raises:
        InvalidInput: the name is taken.
    """
    if name in _bots or name in RESERVED:
        raise InvalidInput(f"a bot named {name!r:.40} was registered, but that name is taken. Choose another one.")
    if worlds is not None and not callable(worlds):
        ids = frozenset(worlds)
        _bots[name] = _Entry(make, lambda spec: spec.id in ids)
    else:
        _bots[name] = _Entry(make, worlds)


def names_for(spec: WorldSpec) -> list[str]:
    """The bots that can play a world; those made for it come first."""
    fitting = [name for name, bot in _bots.items() if bot.fits is None or bot.fits(spec)]
    return sorted(fitting, key=lambda name: _bots[name].fits is None)


def make(name: str, spec: WorldSpec, player: str, seed: int = 0) -> Opponent:
    """A bot for one player of a world.

    Raises:
        InvalidInput: the world has no such player, or no bot of that name plays it.
    """
    if player not in spec.players:
        raise InvalidInput(f"a bot for {player!r:.40} was asked for; {spec.id} has the players {list(spec.players)}.")
    if name not in names_for(spec):
        raise InvalidInput(f"no bot {name!r:.40} plays {spec.id}; there are {names_for(spec)}.")
    return _bots[name].make(spec, player, seed)


def best_for(spec: WorldSpec, player: str, seed: int = 0) -> Opponent:
    """The first of `names_for`: the world's own script, if it has one, else a sticky player."""
    return make(names_for(spec)[0], spec, player, seed)


class StickyPlayer:
    """Holds an action for a while, then draws another one by the world's own weights; like a child with a gamepad."""

    def __init__(self, actions: DiscreteActions | ContinuousActions, seed: int) -> None:
        self._actions = actions
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Draw anew; from the beginning with a seed."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._held: Action | None = None

    def act(self, frame: np.ndarray | None = None) -> Action:
        """The held action or another one; the picture does not matter."""
        if self._held is None or self._rng.random() >= KEEP_PROBABILITY:
            self._held = self._draw()
        return self._held

    def _draw(self) -> Action:
        if isinstance(self._actions, ContinuousActions):
            low, high = np.array(self._actions.low), np.array(self._actions.high)
            resting = self._rng.random(len(low)) < np.array(self._actions.sticky_rest or [0.0] * len(low))
            return np.where(resting, np.clip(0, low, high), self._rng.uniform(low, high)).astype(np.float32)
        weights = np.array(self._actions.sticky_weights or [1.0] * self._actions.dim)
        return int(self._rng.choice(self._actions.dim, p=weights / weights.sum()))


class ScriptedPlayer:
    """Plays by the world's script, `lwm_env.scripts`."""

    def __init__(self, spec: WorldSpec, player: str) -> None:
        self._script, self._index = load_script(spec), spec.players.index(player)

    def reset(self, seed: int | None = None) -> None:
        """It remembers nothing."""

    def act(self, frame: np.ndarray) -> Action:
        action = self._script(frame[None])[0, self._index]
        return action if action.ndim else int(action)


register("script", lambda spec, player, seed: ScriptedPlayer(spec, player), lambda spec: spec.script is not None)
register("sticky", lambda spec, player, seed: StickyPlayer(spec.actions, seed))

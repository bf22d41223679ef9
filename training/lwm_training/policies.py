"""Who plays while data is recorded: random, sticky, the world's script, an SB3 checkpoint, or a mixture; named by a
short text."""

import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from gymnasium import spaces

from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, missing_extra
from lwm_env.scripts import Script, load_script
from lwm_env.spec import ContinuousActions, DiscreteActions, WorldSpec

_FORMS = (
    '"random", "sticky:0.15", "sticky:0.15:1,2,4", "script:0.15:1", "sb3:path.zip", "sb3:dqn:path.zip", '
    '"mix:0.7*sticky+0.3*random"'
)
_SKILLS = (0.0, 0.5, 0.8, 0.95, 1.0)  # share of the time that a scripted player follows its script
_STEP = 0.1  # of a sticky continuous action's walk, as a share of its range
_SB3_MODULES = {"dqn": "DQN", "sac": "SAC", "td3": "TD3"}  # where SB3's policy class lives -> algorithm; else PPO


class Policy(Protocol):
    """Actions for N copies of a game at once; the same seed and the same calls give the same actions."""

    def act(self, observations: np.ndarray, restarted: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) and bool (N,), which copies begin an episode -> int64 (N, P) or float32 (N, P, A)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Players:
    """Whom a policy plays for."""

    action_space: spaces.Discrete | spaces.Box  # of one player
    num_envs: int
    num_players: int = 1
    seed: int | Sequence[int] = 0
    weights: Sequence[float] = ()  # how often a sticky player picks each discrete action; empty: uniform
    rest: Sequence[float] = ()  # how often it leaves each value of a continuous action at rest; empty: never
    script: Script | None = None  # of the world, if it has one

    @classmethod
    def of(cls, spec: WorldSpec, num_envs: int, seed: int | Sequence[int]) -> "Players":
        """All players of a world, with its sticky weights and its script."""
        return cls(
            action_space=spec.action_space(),
            num_envs=num_envs,
            num_players=len(spec.players),
            seed=seed,
            weights=spec.actions.sticky_weights if isinstance(spec.actions, DiscreteActions) else (),
            rest=spec.actions.sticky_rest if isinstance(spec.actions, ContinuousActions) else (),
            script=load_script(spec) if spec.script else None,
        )


def parse_policy(text: str, players: Players) -> Policy:
    """A policy from its text.

    Args:
        text: `random`; `sticky[:PROBABILITY[:WEIGHTS]]`, which holds an action and draws another with that probability
            a step (0.15), by those weights (a continuous action takes a small random step instead, and jumps with
            that probability); `script[:PROBABILITY[:SKILL]]`, which draws whether to hold a random action or to
            follow the world's script, with a share for each player and episode, or with this one;
            `sb3:[ALGORITHM:]PATH`, an SB3 checkpoint, to be trusted since loading it runs its pickles;
            `mix:SHARE*POLICY+SHARE*POLICY`, one of them for each episode.

    Raises:
        InvalidInput: no such text, a probability or weights out of range.
        MissingExtra: a checkpoint, and Stable-Baselines3 is not installed.
        ConfigMismatch: a checkpoint of another action space or observation size.
    """
    kind, _, rest = text.strip().partition(":")
    if kind == "random" and not rest:
        return Sticky(players, 1.0)
    if kind == "sticky":
        probability, _, weights = rest.partition(":")
        drawn = [_number(weight, text) for weight in weights.split(",")] if weights else players.weights
        return Sticky(replace(players, weights=drawn), _number(probability or "0.15", text))
    if kind == "script":
        probability, _, skill = rest.partition(":")
        skills = (_number(skill, text),) if skill else _SKILLS
        return Scripted(players, _number(probability or "0.15", text), skills)
    if kind == "sb3" and rest:
        algorithm, colon, path = rest.partition(":")
        known = bool(colon) and algorithm.lower() in ("ppo", "a2c", "dqn", "sac", "td3", "ddpg")
        return Checkpoint(players, Path(path if known else rest), algorithm.upper() if known else None)
    if kind == "mix" and rest:
        parts = [part.partition("*") for part in re.split(r"\+(?=[\d.]+\*)", rest)]
        shares = [_number(share, text) for share, _, _ in parts]
        seeds = np.random.SeedSequence(players.seed).spawn(len(parts))
        members = [
            parse_policy(member, replace(players, seed=seed.generate_state(4).tolist()))
            for (_, _, member), seed in zip(parts, seeds, strict=True)
        ]
        return Mixture(players, members, shares)
    raise InvalidInput(f"No policy {text!r}; the forms are {_FORMS}.")


class Sticky:
    """Holds an action, and draws another with a probability at each step; probability 1 is a random policy."""

    def __init__(self, players: Players, probability: float) -> None:
        if not 0 < probability <= 1:
            raise InvalidInput(f"The probability of another action must be in (0, 1], got {probability}.")
        self._players, self._probability = players, probability
        self._random = np.random.default_rng(players.seed)
        self._weights = None
        if len(players.weights) and not players.action_space.shape:
            weights = np.asarray(players.weights, float)
            if len(weights) != players.action_space.n or (weights < 0).any() or not 0 < weights.sum() < np.inf:
                count = players.action_space.n
                raise InvalidInput(f"Weights must be {count} numbers, not all 0, got {weights.tolist()}.")
            self._weights = weights / weights.sum()
        self._actions = self._draw()
        self._resting = self._draw_resting() if len(players.rest) else None  # bool (N, P, A)

    def act(self, observations: np.ndarray, restarted: np.ndarray) -> np.ndarray:
        change = self._random.random((self._players.num_envs, self._players.num_players)) < self._probability
        change |= restarted[:, None]
        held = self._actions
        if self._players.action_space.shape:
            change = change[..., None]
            low, high = self._players.action_space.low, self._players.action_space.high
            held = np.clip(held + self._random.normal(0, _STEP, held.shape) * (high - low), low, high)
        fresh = self._draw()
        self._actions = np.where(change, fresh, held).astype(fresh.dtype)
        if self._resting is None:
            return self._actions.copy()
        self._resting = np.where(change, self._draw_resting(), self._resting)
        return np.where(self._resting, np.clip(0, low, high), self._actions).astype(fresh.dtype)

    def _draw(self) -> np.ndarray:
        space, shape = self._players.action_space, (self._players.num_envs, self._players.num_players)
        if space.shape:
            return self._random.uniform(space.low, space.high, (*shape, *space.shape)).astype(np.float32)
        return self._random.choice(int(space.n), size=shape, p=self._weights).astype(np.int64)

    def _draw_resting(self) -> np.ndarray:
        return self._random.random(self._actions.shape) < np.asarray(self._players.rest)


class Scripted:
    """Now follows the world's script, now holds an action; how much of either is drawn for each player and episode, so
    that good play meets bad."""

    def __init__(self, players: Players, probability: float, skills: Sequence[float]) -> None:
        if players.script is None:
            raise ConfigMismatch("This game has no script: name another policy, or give the world's spec a `script`.")
        if not all(0 <= skill <= 1 for skill in skills):
            raise InvalidInput(f"The share of the time that a script is followed must be in [0, 1], got {skills}.")
        self._script, self._probability, self._skills = players.script, probability, skills
        self._held = Sticky(players, probability)
        self._random = np.random.default_rng([7, *np.atleast_1d(players.seed)])
        self._shape = (players.num_envs, players.num_players)
        self._skill, self._following = self._draw_skill(), np.zeros(self._shape, bool)

    def act(self, observations: np.ndarray, restarted: np.ndarray) -> np.ndarray:
        self._skill = np.where(restarted[:, None], self._draw_skill(), self._skill)
        change = self._random.random(self._shape) < self._probability
        follows = self._random.random(self._shape) < self._skill
        self._following = np.where(change, follows, self._following)
        scripted, held = self._script(observations), self._held.act(observations, restarted)
        return np.where(self._following.reshape(*self._shape, *[1] * (held.ndim - 2)), scripted, held)

    def _draw_skill(self) -> np.ndarray:
        return self._random.choice(self._skills, self._shape)


class Mixture:
    """Plays each episode of each copy by one member, drawn anew at its beginning."""

    def __init__(self, players: Players, members: list[Policy], shares: Sequence[float]) -> None:
        weights = np.asarray(shares, float)
        if not len(weights) or (weights < 0).any() or not 0 < weights.sum() < np.inf:
            raise InvalidInput(f"The shares of a mixture must be positive, got {list(shares)}.")
        self._members, self._weights = members, weights / weights.sum()
        self._random = np.random.default_rng(players.seed)
        self._member = self._random.choice(len(members), size=players.num_envs, p=self._weights)

    def act(self, observations: np.ndarray, restarted: np.ndarray) -> np.ndarray:
        drawn = self._random.choice(len(self._members), size=len(restarted), p=self._weights)
        self._member = np.where(restarted, drawn, self._member)
        choices = np.stack([member.act(observations, restarted) for member in self._members])
        return choices[self._member, np.arange(len(restarted))]


class Checkpoint:
    """A Stable-Baselines3 checkpoint, sampling as in its training; frames are stacked as it wants them. Of several
    players it is the first one, and the world's script plays the others, as where it was trained."""

    def __init__(self, players: Players, path: Path, algorithm: str | None) -> None:
        try:
            import stable_baselines3
        except ImportError as error:
            raise missing_extra("stable-baselines3", "agents") from error
        if not path.is_file():
            raise InvalidInput(f"There is no SB3 checkpoint at {path}.")
        self._model = getattr(stable_baselines3, algorithm or _algorithm(path)).load(path, device="cpu")
        self._model.set_random_seed(int(np.random.SeedSequence(players.seed).generate_state(1)[0]))
        self._players = players
        ours, theirs = players.action_space, self._model.action_space
        if (players.num_players != 1 and players.script is None) or _size(ours) != _size(theirs):
            raise ConfigMismatch(
                f"{path} acts in {theirs}, the game in {ours} for {players.num_players} player(s). Train one for this "
                "game, or name another policy."
            )
        self._stack: np.ndarray | None = None

    def act(self, observations: np.ndarray, restarted: np.ndarray) -> np.ndarray:
        shape = self._model.observation_space.shape
        height, width, channels = shape if shape[0] > shape[-1] else (*shape[1:], shape[0])
        if observations.shape[1:3] != (height, width) or channels % 3:
            raise ConfigMismatch(f"The checkpoint sees {shape}, the game gives {observations.shape[1:]}.")
        count = channels // 3
        if self._stack is None:
            self._stack = np.zeros((len(observations), height, width, channels), np.uint8)
        self._stack[restarted] = 0  # as VecFrameStack does
        self._stack = np.concatenate([self._stack[..., 3:], observations], axis=-1) if count > 1 else observations
        seen = self._stack if shape[0] > shape[-1] else np.moveaxis(self._stack, -1, 1)
        actions, _ = self._model.predict(seen, deterministic=False)
        own = actions[:, None].astype(np.float32 if self._players.action_space.shape else np.int64)
        if self._players.num_players == 1:
            return own
        return np.concatenate([own, self._players.script(observations)[:, 1:]], axis=1)


def _algorithm(path: Path) -> str:
    """The algorithm whose checkpoint this looks like."""
    try:
        with zipfile.ZipFile(path) as archive:
            module = json.loads(archive.read("data"))["policy_class"]["__module__"]
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, OSError) as error:
        raise CorruptFile(f"{path} is no SB3 checkpoint: {error}. Name a file that `model.save` wrote.") from error
    return next((name for part, name in _SB3_MODULES.items() if part in module.split(".")), "PPO")


def _size(space: spaces.Space) -> tuple[bool, int]:
    """Whether actions are discrete, and how many, or how many numbers they have."""
    if isinstance(space, spaces.Discrete):
        return True, int(space.n)
    return False, int(np.prod(space.shape))


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidInput(f"{text!r} in the policy {whole!r} is no number; the forms are {_FORMS}.") from error

"""What a game is like, found by playing it a little: actions, rewards, lengths, whether its picture scrolls."""

import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces

from lwm_env.errors import ConfigMismatch, MissingExtra
from lwm_env.memory import move_whole
from lwm_env.registration import sight
from lwm_env.tokenizer import to_pixels
from lwm_training.action_names import PROCGEN, meanings_of
from lwm_training.frames import image_converter
from lwm_training.policies import Players, parse_policy
from lwm_training.source import Source, SourceConfig
from lwm_training.sources import open_source, resolve

POLICY = "mix:0.5*sticky+0.5*random"
SHORTEST = 6  # steps that half of the episodes must last at least: a start to dream from has five frames
CHANGED = 4 / 127.5  # mean difference of a cell, in [-1, 1] units, above which it changed
WIDE, EXPLAINED = 0.25, 0.5  # shares of all cells that change, and of these that the motion explains, when it scrolls
SCROLLS = 0.05  # share of the steps in which the whole picture moves, from which on a world needs a camera
_COPIES, _PAIRS = 8, 512


@dataclass(frozen=True)
class Traits:
    """What a library knows of a game without playing it."""

    meanings: tuple[str, ...] | None = None  # of discrete actions
    fps: int | None = None
    time_limit: int | None = None  # steps
    has_levels: bool = False  # options start_level and num_levels


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What `probe` found."""

    source: str  # library:ID
    options: dict[str, Any]
    players: tuple[str, ...]
    action_space: spaces.Discrete | spaces.Box  # of one player
    frame_size: tuple[int, int]
    traits: Traits
    num_steps: int
    rewards: dict[float, int]  # value -> how often one of the players got it
    lengths: tuple[int, ...] = ()  # of the episodes, the last of each copy as far as it was played
    num_ended: int = 0  # episodes
    scrolled: float = 0.0  # share of the looked-at steps in which the whole picture moved

    @property
    def typical_length(self) -> int:
        """Steps that half of the episodes lasted at least."""
        return int(np.median(self.lengths))


def probe(
    source: str, options: dict[str, Any] | None = None, frame_size: tuple[int, int] = (64, 64), num_steps: int = 4000
) -> Probe:
    """Play a game for about `num_steps` steps, half of the episodes by a sticky and half by a random player.

    Raises:
        ConfigMismatch: no picture and nothing to render, actions that are not supported, episodes too short to learn.
        UnknownWorld, MissingExtra: see `open_source`.
    """
    library, game = resolve(source)
    options = dict(options or {})
    try:
        traits = _TRAITS[library](game, options)
        with contextlib.closing(
            open_source(f"{library}:{game}", _COPIES, options=options, config=SourceConfig(frame_size=frame_size))
        ) as opened:
            found = _play(opened, max(1, num_steps // _COPIES))
            spaces_of = {"players": tuple(opened.players), "action_space": opened.action_space}
    except gym.error.DependencyNotInstalled as error:  # by some games only when they draw
        raise MissingExtra(f"{source} needs a library to draw its picture: {error}") from error
    result = Probe(
        source=f"{library}:{game}", options=options, frame_size=frame_size, traits=traits, **spaces_of, **found
    )
    if result.typical_length < SHORTEST:
        raise ConfigMismatch(
            f"{source}: half of {len(result.lengths)} episodes lasted at most {result.typical_length} steps, and at "
            f"least {SHORTEST} are needed to learn from. Make the game easier to survive, or repeat frames less often."
        )
    return result


def _play(source: Source, num_rounds: int) -> dict[str, Any]:
    players = Players(action_space=source.action_space, num_envs=_COPIES, num_players=len(source.players))
    policy = parse_policy(POLICY, players)
    frames, first, over = source.reset(), np.ones(_COPIES, bool), np.zeros(_COPIES, bool)
    rewards: Counter[float] = Counter()
    lengths, elapsed, before, after = [], np.zeros(_COPIES, int), [], []
    every = max(1, num_rounds * _COPIES // _PAIRS)
    for number in range(num_rounds):
        step = source.step(policy.act(frames, first))
        going = ~over
        values, counts = np.unique(step.rewards[going], return_counts=True)
        rewards.update(dict(zip(map(float, values), map(int, counts), strict=True)))
        if number % every == 0:
            before.append(frames[going])
            after.append(step.observations[going])
        elapsed = np.where(going, elapsed + 1, 0)
        frames, first, over = step.observations, over, step.terminations | step.truncations
        lengths += elapsed[over].tolist()
    return {
        "num_steps": num_rounds * _COPIES,
        "rewards": dict(rewards),
        "lengths": (*lengths, *elapsed[~over & (elapsed > 0)].tolist()),
        "num_ended": len(lengths),
        "scrolled": scrolling(np.concatenate(before), np.concatenate(after)),
    }


def scrolling(before: np.ndarray, after: np.ndarray) -> float:
    """The share of pairs of frames, uint8 (B, H, W, 3), between which the whole picture moved and not just a part.

    Registration names a motion also where one thing moves before a plain wall. So the picture must change widely, in a
    quarter of its 8x8 cells, and the motion must halve the difference in most cells that changed.
    """
    scrolled = []
    for start in range(0, len(before), 64):
        old, new = (to_pixels(torch.from_numpy(part[start : start + 64])) for part in (before, after))
        motion, sure, _ = sight(old, new)
        whole = motion.round()
        still = _cells((new - old).abs())
        moved = _cells((new - move_whole(old, whole)).abs())
        changed = still > CHANGED
        explained = ((moved < 0.5 * still) & changed).sum(1) > EXPLAINED * changed.sum(1)
        scrolled.append(sure & whole.any(1) & explained & (changed.float().mean(1) >= WIDE))
    return float(torch.cat(scrolled).float().mean()) if scrolled else 0.0


def _cells(difference: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> means over 8x8 cells (B, cells)."""
    side = [-(-length // 8) for length in difference.shape[-2:]]
    return F.adaptive_avg_pool2d(difference.mean(1), side).flatten(1)


def _gymnasium_traits(game: str, options: dict[str, Any]) -> Traits:
    env = _gymnasium_env(game, options)
    try:
        modes = env.metadata.get("render_modes") or []
        if image_converter(env.observation_space) is None and "rgb_array" not in modes:
            raise ConfigMismatch(
                f"{game} observes {env.observation_space}, no image, and cannot render one (its render modes: "
                f"{', '.join(map(str, modes)) or 'none'}). Give it uint8 (H, W, 3) observations, or a render() with "
                f'"rgb_array" in metadata["render_modes"].'
            )
        count = env.action_space.n if isinstance(env.action_space, spaces.Discrete) else 0
        fps = env.metadata.get("render_fps")
        limit = env.spec.max_episode_steps if env.spec else None
        return Traits(meanings_of(env.unwrapped, int(count)), round(fps) if fps else None, limit)
    finally:
        env.close()


def _gymnasium_env(game: str, options: dict[str, Any]) -> gym.Env:
    from lwm_training.source_rows import GymnasiumRow

    try:
        return gym.make(game, **options)
    except (gym.error.Error, ImportError, TypeError, ValueError):
        GymnasiumRow(game, options, SourceConfig()).close()  # imports Atari's games, or says what is wrong
        return gym.make(game, **options)


def _envpool_traits(game: str, options: dict[str, Any]) -> Traits:
    from lwm_training.source_envpool import EnvPoolBackend, import_envpool

    EnvPoolBackend(game, 1, options, SourceConfig()).close()
    config = import_envpool().make_spec(game).config
    levels = {"start_level", "num_levels"} <= set(config._fields)
    limit = options.get("max_episode_steps", getattr(config, "max_episode_steps", None))
    return Traits(PROCGEN if levels else None, None, limit if limit and limit < 100_000 else None, levels)


def _pettingzoo_traits(game: str, options: dict[str, Any]) -> Traits:
    return Traits()


_TRAITS = {"gymnasium": _gymnasium_traits, "envpool": _envpool_traits, "pettingzoo": _pettingzoo_traits}

"""Opens real games by name: `envpool:ID`, `gymnasium:ID`, `pettingzoo:ID`, a bare id, or the twin of a world."""

import difflib
import importlib.util
import os
import sys
from functools import partial
from typing import Any

from lwm_env.errors import ConfigMismatch, UnknownWorld
from lwm_env.spec import ContinuousActions, WorldSpec
from lwm_training.source import Backend, Source, SourceConfig
from lwm_training.source_paced import paced

LIBRARIES = ("envpool", "gymnasium", "pettingzoo")


def open_source(
    source: str,
    num_envs: int = 1,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    config: SourceConfig | None = None,
) -> Source:
    """N copies of a real game.

    Args:
        source: `envpool:CoinrunEasy-v0`, `gymnasium:CarRacing-v3`, `pettingzoo:atari/pong_v3`; a bare id is looked for
            in EnvPool, then in Gymnasium.
        num_envs: how many copies.
        seed: copy i starts from seed + i.
        options: keyword arguments of the game itself, such as `start_level` or `frame_skip`, and those of `Pace`.
        config: frame size, time limit, threads, view; by default as the game has them.

    Raises:
        UnknownWorld: no such id; the message names the nearest.
        MissingExtra: a library is not installed; the message names it and the command.
        ConfigMismatch: an unknown option, actions or observations that are not supported.
    """
    library, game = resolve(source)
    config, options = config or SourceConfig(), dict(options or {})
    backend = paced(partial(_backend, library, game, num_envs), options, config)
    return Source(f"{library}:{game}", backend, num_envs, seed, config)


def open_spec_source(spec: WorldSpec, num_envs: int, seed: int, split: str, num_threads: int = 1) -> Source:
    """The real game behind a world, with the world's frames, time limit, players and action indices.

    Args:
        split: whose levels: a name in `spec.real.splits`, such as "train" or "validation".

    Raises:
        ConfigMismatch: the world has no such split, or its players or actions do not fit the game.
    """
    splits = spec.real.splits
    if split not in splits and (splits or split not in ("train", "validation", "test")):
        raise ConfigMismatch(f"{spec.id} has no split {split!r}; its splits: {', '.join(splits) or 'none'}.")
    options = {**spec.real.options, **splits.get(split, {})}
    config = SourceConfig(
        frame_size=spec.frame_size,
        max_episode_steps=spec.max_episode_steps,
        num_threads=num_threads,
        shrink=spec.real.shrink,
    )
    source = open_source(spec.real.source, num_envs, seed, options, config)
    try:
        if len(source.players) != len(spec.players):
            raise ConfigMismatch(f"{spec.id} has players {spec.players}, {source.name} has {source.players}.")
        if not isinstance(spec.actions, ContinuousActions):
            source.map_actions(spec.actions.source_actions)
        elif source.action_space.shape != (spec.actions.dim,):
            raise ConfigMismatch(
                f"{spec.id} has {spec.actions.dim} action values, {source.name}: {source.action_space}"
            )
    except ConfigMismatch:
        source.close()
        raise
    return source


def resolve(source: str) -> tuple[str, str]:
    """(library, id) of a source's name; raises UnknownWorld with the nearest names.

    A colon may name a module of one's own, as in `my_games:MyGame-v0`, so modules in the working directory are found
    from then on, after all others.
    """
    library, colon, game = source.partition(":")
    if colon and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if colon and library in LIBRARIES:
        return library, game
    if colon and importlib.util.find_spec(library):  # Gymnasium's own `package:Env-v0`
        return "gymnasium", source
    if colon:
        near = difflib.get_close_matches(library, LIBRARIES, n=1)
        hint = f"Did you mean {near[0]}:{game}?" if near else f"Known: {', '.join(LIBRARIES)}."
        raise UnknownWorld(f"No library of games {library!r}. {hint}")
    return _resolve_bare(source)


def _resolve_bare(game: str) -> tuple[str, str]:
    import gymnasium as gym

    known = {}
    if importlib.util.find_spec("envpool"):
        from lwm_training.source_envpool import import_envpool

        known["envpool"] = import_envpool().list_all_envs()
    known["gymnasium"] = list(gym.registry)
    if importlib.util.find_spec("pettingzoo"):
        import pettingzoo

        known["pettingzoo"] = list(pettingzoo.parallel_registry)
    for library, games in known.items():
        if game in games or (library == "pettingzoo" and game.replace("_v", "-v") in games):
            return library, game
    if game.startswith("ALE/"):
        return "gymnasium", game
    names = {name.lower(): f"{library}:{name}" for library, games in reversed(known.items()) for name in games}
    near = [names[name] for name in difflib.get_close_matches(game.lower(), names, n=3)]
    hint = f"Did you mean {' or '.join(near)}?" if near else "Name it with its library, as in gymnasium:CarRacing-v3."
    absent = "" if "envpool" in known else ' EnvPool is not installed (pip install "lwm-env[data]").'
    raise UnknownWorld(f"No game {game!r} in {', '.join(known)}. {hint}{absent}")


def _backend(library: str, game: str, num_envs: int, options: dict[str, Any], config: SourceConfig) -> Backend:
    if library == "envpool":
        from lwm_training.source_envpool import EnvPoolBackend

        return EnvPoolBackend(game, num_envs, options, config)
    from lwm_training.source_rows import GymnasiumRow, ParallelRow, RowBackend

    row = GymnasiumRow if library == "gymnasium" else ParallelRow
    return RowBackend(partial(row, game, options, config), num_envs, {"library": _version(library), "options": options})


def _version(library: str) -> str:
    import importlib.metadata

    return f"{library} {importlib.metadata.version(library)}"

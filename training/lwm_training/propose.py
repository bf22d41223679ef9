"""From what a probe found to the text of a recipe, with comments for whoever edits it."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from lwm_training.action_names import NOOPS, choose_keys, name_actions
from lwm_training.probe import SCROLLS, Probe

MAX_REWARDS = 12  # distinct values that a world tells apart; more are rounded to as many
MAX_FPS, DEFAULT_FPS = 30, 15
DEFAULT_LIMIT, LONGEST_LIMIT = 1000, 10_000  # steps
POLICY = "mix:0.5*sticky:0.1+0.3*sticky:0.3+0.2*random"
LEVELS = {"train": (0, 500_000_000), "validation": (500_000_000, 100_000_000)}  # first level, how many
# name, trains, its part of the minutes, and the rest of the stage; the camera's only where the picture scrolls
_STAGES: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("tokenizer", "tokenizer", 12, {"learning_rate": 3e-3, "warmup": 100}),
    ("camera", "camera", 30, {"batch_size": 64, "learning_rate": 1.5e-3, "warmup": 200, "unroll": 15}),
    ("draw", "dynamics", 8, {"decay": False, "learning_rate": 1.5e-3, "warmup": 50, "unroll": 2}),
    ("unroll-8", "dynamics", 30, {"decay": False, "learning_rate": 1.2e-3, "warmup": 50, "unroll": 8}),
    ("camera-dreams", "camera", 15, {"batch_size": 32, "learning_rate": 5e-4, "warmup": 20, "unroll": 15}),
    ("unroll-16", "dynamics", 30, {"batch_size": 8, "learning_rate": 1e-3, "warmup": 50, "unroll": 16}),
)
_WHAT = {
    "tokenizer": "pictures to tokens and back: the sharpest that the world can ever be",
    "camera": "where the picture scrolls to",
    "draw": "the next picture, reward and end",
    "unroll-8": "the same on its own dreams, 8 steps far",
    "camera-dreams": "the camera on its own dreams",
    "unroll-16": "the last: dreams 16 steps far",
}


def world_name(source: str) -> str:
    """`MyGame` for `gymnasium:my_games:MyGame-v0`, `Pong` for `pettingzoo:atari/pong_v3`."""
    last = re.sub(r"[-_]v\d+$", "", re.split(r"[:/.]", source)[-1])
    words = re.findall(r"[A-Za-z0-9]+", last)
    return "".join(word[0].upper() + word[1:] for word in words) or "World"


def reward_values(counts: Mapping[float, int]) -> tuple[float, ...]:
    """The values that a world tells apart, ascending: those that were seen, or of many the middle ones of as many
    equal parts, and 0."""
    seen = {float(f"{value:.6g}"): count for value, count in counts.items() if np.isfinite(value)}
    if len({0.0, *seen}) <= MAX_REWARDS:
        return tuple(sorted({0.0, *seen}))
    values = np.array(sorted(value for value in seen if value))
    shares = np.cumsum([seen[value] for value in values])
    middles = (np.arange(MAX_REWARDS - 1) + 0.5) / (MAX_REWARDS - 1) * shares[-1]
    chosen = values[np.searchsorted(shares, middles)]
    return tuple(sorted({0.0, *(float(f"{value:.4g}") for value in chosen)}))


def reward_line(values: Iterable[float]) -> str:
    return f"reward_values = {json.dumps(list(values))}"


def recipe_text(probe: Probe, world_id: str, data_path: str, minutes: float, camera: bool | None = None) -> str:
    """A recipe in TOML for `lwm train`.

    Args:
        minutes: of training, divided over the stages.
        camera: whether to train the camera; None: if the picture scrolls.
    """
    scrolls = probe.scrolled >= SCROLLS if camera is None else camera
    parts = [
        _head(probe, world_id),
        _actions(probe),
        _real(probe),
        _data(data_path, scrolls),
        _train(probe, minutes, scrolls),
    ]
    return "\n".join(parts)


def _head(probe: Probe, world_id: str) -> str:
    limit = probe.traits.time_limit
    if limit is None:
        limit = int(np.clip(4 * max(probe.lengths), 100, DEFAULT_LIMIT)) if probe.num_ended else DEFAULT_LIMIT
        about_limit = "the game tells none"
    else:
        limit, about_limit = min(limit, LONGEST_LIMIT), "as in the game"
    length = f"{probe.num_ended} episodes ended, half of all lasted {probe.typical_length} steps or more"
    fps = min(probe.traits.fps or DEFAULT_FPS, MAX_FPS)
    told = "the game says so" if probe.traits.fps == fps else f"the game says {probe.traits.fps or 'nothing'}"
    common = sorted(probe.rewards.items(), key=lambda pair: -pair[1])[:5]
    seen = ", ".join(f"{value:.6g} {count} times" for value, count in common)
    players = json.dumps(list(probe.players))
    return f"""\
# {world_id}, learned from {probe.source}. Written by `lwm new`, yours to edit; `lwm new` and `lwm train` read it.
# It was seen for {probe.num_steps} steps of random play.

[world]
id = "{world_id}"
description = {json.dumps(f"Learned from {probe.source} by lwm new.")}
frame_size = {json.dumps(list(probe.frame_size))} # height, width; multiples of 8
players = {players}
# The rewards that the world can give. Seen: {seen}.
{reward_line(reward_values(probe.rewards))}
max_episode_steps = {limit} # {about_limit}; {length}
render_fps = {fps} # steps per second when people play; {told}
temperature = 0.0 # of the dreamed pictures: 0 takes the likeliest, 1 samples
"""


def _actions(probe: Probe) -> str:
    space = probe.action_space
    if isinstance(space, spaces.Box):
        names = [f"AXIS_{i}" for i in range(space.shape[0])]
        return f"""\
[world.actions]
kind = "continuous"
meanings = {json.dumps(names)} # names, for people
low = {_numbers(space.low)}
high = {_numbers(space.high)}
"""
    meanings, source_actions = name_actions(probe.traits.meanings, int(space.n))
    keys = "\n".join(f"{json.dumps(name)} = {json.dumps(held)}" for name, held in choose_keys(meanings).items())
    first = "" if meanings[0] in NOOPS else f"; no key held is {meanings[0]}, put the action first that does nothing"
    return f"""\
[world.actions]
kind = "discrete"
meanings = {json.dumps(meanings)} # names, for people{first}
source_actions = {json.dumps(source_actions)} # the same actions as the game numbers them; leave out what does nothing

[world.actions.keys] # keys held together to play an action: letters, digits, "space", "up", "enter", ...
{keys}
"""


def _real(probe: Probe) -> str:
    lines = ["[world.real]", f"source = {json.dumps(probe.source)}"]
    if probe.options:
        lines += ["", "[world.real.options] # of the game", *_table(probe.options)]
    if probe.traits.has_levels and not {"start_level", "num_levels"} & set(probe.options):
        for split, (first, count) in LEVELS.items():
            lines += ["", f"[world.real.splits.{split}]", f"start_level = {first}", f"num_levels = {count}"]
    else:
        lines += ["# Training, validation and test play by seeds far from one another."]
    return "\n".join([*lines, "", "[licences] # of what the world is learned from; kept in world.json", ""])


def _data(path: str, camera: bool) -> str:
    still = "" if camera else 'overrides = { "camera.max_motion" = 0 } # the camera stands still\n'
    return f"""\
[model]
preset = "nano" # sizes: lwm presets
{still}
[data]
kind = "store"
path = {json.dumps(path)} # what was recorded, from the working directory of `lwm new`
num_envs = 16 # copies of the game played at once while recording
policy = "{POLICY}" # who plays: see lwm collect
"""


def _train(probe: Probe, minutes: float, camera: bool) -> str:
    stages = [stage for stage in _STAGES if camera or stage[1] != "camera"]
    whole = sum(part for _, _, part, _ in stages)
    longest = max(2, min(8, probe.typical_length // 2))  # frames of context: clips with fewer are left out
    seen = f"the whole picture moved in {probe.scrolled:.0%} of the steps"
    lines = [
        "[train]",
        "seed = 0",
        "batch_size = 16",
        "checkpoint_minutes = 2",
        "log_every = 50",
        f"# {'With' if camera else 'Without'} stages for the camera: {seen}.",
        "# minutes may be steps instead, which makes a run repeatable.",
    ]
    for name, trains, part, rest in stages:
        lines += ["", f"[[train.stages]] # {_WHAT[name]}", f'name = "{name}"', f'trains = "{trains}"']
        lines += [f"minutes = {max(0.001, minutes * part / whole):.4g}", *_table(rest)]
        changed = {} if camera else {"changed": 0.5}  # little moves where the picture does not
        if trains == "camera":
            lines += [f"context = {longest}", "loss = { place = 0.4 }"]
            lines += ["dreamed = true"] if name == "camera-dreams" else []
        elif trains == "dynamics":
            lines += [f"context = {min(6, longest) if name == 'draw' else longest}"]
            weights = {"guided": 1.0 if name == "draw" else 0.6} | changed
            lines += [f"loss = {{ {', '.join(_table(weights))} }}"]
        elif changed:
            lines += [f"loss = {{ {', '.join(_table(changed))} }}"]
    return "\n".join([*lines, ""])


def _table(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in values.items()]


def _numbers(values: np.ndarray) -> str:
    return json.dumps([float(f"{value:.7g}") for value in values])

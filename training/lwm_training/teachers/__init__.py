"""Teachers that render clips: one small protocol, and the writing of what they render into a data set.

A world can also teach state by state (lwm_training/teacher.py); a teacher here is known by its pictures alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lwm_env.errors import InvalidInput
from lwm_env.spec import DiscreteActions, WorldSpec
from lwm_training.episode import Layout, pack_episode
from lwm_training.episode_writer import EpisodeWriter


@dataclass(frozen=True)
class Rendered:
    """One episode: frames uint8 (T + 1, H, W, 3), and `steps` by the names of `Layout.step_arrays`, T each."""

    frames: np.ndarray
    steps: dict[str, np.ndarray]
    seed: int = 0


class Teacher(Protocol):
    """Renders episodes of a world, each by its number, so that an interrupted rendering goes on where it was."""

    facts: dict[str, Any]  # of dataset.json: source, teacher, licences, restricted, action_map
    num_episodes: int | None  # as many as there are; None: no end

    def episode(self, number: int) -> Rendered: ...

    def close(self) -> None: ...


def layout_of(spec: WorldSpec) -> Layout:
    """The shapes of a world's episodes."""
    size, players = tuple(spec.frame_size), tuple(spec.players)
    if isinstance(spec.actions, DiscreteActions):
        return Layout(size, players, num_actions=spec.actions.dim)
    return Layout(size, players, low=tuple(spec.actions.low), high=tuple(spec.actions.high))


def facts_of(spec: WorldSpec, source: str, teacher: dict[str, Any]) -> dict[str, Any]:
    """The provenance that goes into every data set, and from there into the world that learns from it.

    Args:
        teacher: what is known of it; `licences` and `restricted` among it are handed on.
    """
    facts = {
        "source": source,
        "world": spec.id,
        "teacher": teacher,
        "licences": teacher.get("licences", {}),
        "restricted": list(teacher.get("restricted", ())),
    }
    if isinstance(spec.actions, DiscreteActions):
        facts["action_map"] = list(spec.actions.source_actions)
    return facts


def blank_steps(spec: WorldSpec, actions: np.ndarray) -> dict[str, np.ndarray]:
    """Steps (T, ...) without rewards and without an end; where the pictures stop, the episode is truncated."""
    count = len(actions)
    return {
        "actions": actions,
        "rewards": np.zeros((count, len(spec.players)), np.float32),
        "terminations": np.zeros(count, bool),
        "truncations": np.arange(count) == count - 1,
    }


def expand_chunks(actions: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Actions (C, ...) of chunks of so many frames (C,) as actions of frames, (sum of frames, ...)."""
    if len(actions) != len(frames) or np.any(frames < 1):
        raise InvalidInput(f"{len(actions)} actions need as many numbers of frames, at least 1 each; got {frames}.")
    return np.repeat(actions, frames, axis=0)


def render(
    teacher: Teacher, spec: WorldSpec, out: Path, num_episodes: int, report: Callable[[int], object] = lambda new: None
) -> dict[str, Any]:
    """Render until the data set holds that many episodes, or all that the teacher has; it goes on after a kill.

    Args:
        report: called with 1 for every new episode.

    Returns:
        Facts for JSON: folder, episodes, frames, episodes_added.

    Raises:
        ConfigMismatch: the folder holds what another teacher rendered. TeacherFailed: see `workers`.
        StorageError: the disk is full, or another process writes there; what was rendered is intact.
    """
    if num_episodes < 1:
        raise InvalidInput(f"The number of episodes must be at least 1, got {num_episodes}.")
    layout = layout_of(spec)
    last = num_episodes if teacher.num_episodes is None else min(num_episodes, teacher.num_episodes)
    with EpisodeWriter(out, layout, teacher.facts) as writer:
        first = writer.episodes
        if first < last:
            writer.begin_session({"policy": f"rendered by {teacher.facts['source']}", "first_episode": first})
        for number in range(first, last):
            rendered = teacher.episode(number)
            writer.append(pack_episode(layout, rendered.frames, rendered.steps, rendered.seed))
            report(1)
        facts = {"folder": str(out), "episodes": writer.episodes, "frames": writer.frames}
    return {**facts, "episodes_added": max(0, last - first)}

"""A folder of clips: NAME.mp4 and beside it NAME.json or NAME.csv with the actions, of each frame or of each chunk.

JSON: `{"actions": [...]}`, an action for each step; or with `"frames_per_action": 33` (a number, or one for each) for
chunks. Optional: `"rewards"`, one a step, and `"terminated": true` if the game ended with the last frame.
CSV: a header with `action`, and optional `frames`, `reward`, `terminated`; an action for each player in `action`,
separated by spaces. A step leads from one frame to the next, so that N frames have N - 1; a last one too many is left
out.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, missing_extra
from lwm_env.spec import DiscreteActions, WorldSpec
from lwm_training.frames import resize
from lwm_training.teachers import Rendered, blank_steps, expand_chunks, facts_of

VIDEOS = (".mp4", ".webm", ".mkv", ".avi", ".mov")
_KEYS = ("actions", "frames_per_action", "rewards", "terminated")


class ClipsFolder:
    """Episodes of a folder, in the order of their names."""

    def __init__(self, folder: Path, spec: WorldSpec, licences: dict[str, str]) -> None:
        """Look what is there; nothing is decoded yet.

        Raises:
            ConfigMismatch: there is no clip, or one without actions.
        """
        self.spec, self.folder = spec, folder
        self.videos = sorted(path for path in folder.glob("*") if path.suffix.lower() in VIDEOS)
        if not self.videos:
            raise ConfigMismatch(f"{folder} holds no clips. Expected videos ({', '.join(VIDEOS)}) with actions beside.")
        without = [path.name for path in self.videos if _actions_file(path) is None]
        if without:
            raise ConfigMismatch(
                f"{folder} has no actions for {', '.join(without[:3])}. Put NAME.json or NAME.csv beside each clip."
            )
        teacher = {"kind": "clips", "name": folder.resolve().name, "licences": licences}
        self.facts = facts_of(spec, f"clips:{folder.resolve().name}", teacher)
        self.num_episodes: int | None = len(self.videos)

    def episode(self, number: int) -> Rendered:
        """Raises CorruptFile for a video that cannot be decoded, InvalidInput for actions that do not fit it."""
        video = self.videos[number]
        frames = resize(read_video(video), tuple(self.spec.frame_size))
        path = _actions_file(video)
        told = _read_json(path) if path.suffix == ".json" else _read_csv(path)
        steps = _steps(told, self.spec, len(frames) - 1, path)
        return Rendered(frames, steps, seed=number)

    def close(self) -> None:
        """There is nothing open."""


def read_video(path: Path) -> np.ndarray:
    """All frames of a video, uint8 RGB (T, H, W, 3); CorruptFile if there are fewer than two."""
    try:
        import cv2
    except ImportError as error:
        raise missing_extra("opencv-python-headless", "data") from error
    capture, frames = cv2.VideoCapture(str(path)), []
    try:
        while True:
            there, frame = capture.read()
            if not there:
                break
            frames.append(frame[..., ::-1])
    finally:
        capture.release()
    if len(frames) < 2:
        raise CorruptFile(f"{path} cannot be decoded as a video of at least two frames; got {len(frames)}.")
    return np.stack(frames)


def _actions_file(video: Path) -> Path | None:
    return next((path for path in (video.with_suffix(".json"), video.with_suffix(".csv")) if path.is_file()), None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFile(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(told, dict) or not isinstance(told.get("actions"), list) or set(told) - set(_KEYS):
        raise InvalidInput(f"{path} must be an object with a list of actions; its keys may be {', '.join(_KEYS)}.")
    return told


def _read_csv(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise CorruptFile(f"{path} cannot be read as CSV: {error}") from error
    known = {"action", "frames", "reward", "terminated"}
    if not rows or "action" not in rows[0] or set(rows[0]) - known:
        raise InvalidInput(f"{path} must have rows, and a header with action and at most {', '.join(sorted(known))}.")
    told: dict[str, Any] = {"actions": [_numbers(row["action"].split()) for row in rows]}
    try:
        if "frames" in rows[0]:
            told["frames_per_action"] = [int(row["frames"]) for row in rows]
        if "reward" in rows[0]:
            told["rewards"] = [float(row["reward"]) for row in rows]
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: frames must be whole numbers and rewards numbers ({error}).") from error
    told["terminated"] = str(rows[-1].get("terminated", "")).strip().lower() in ("1", "true", "yes")
    return told


def _numbers(words: list[str]) -> list[Any]:
    return [int(word) if word.lstrip("-").isdecimal() else word for word in words]


def _steps(told: dict[str, Any], spec: WorldSpec, count: int, path: Path) -> dict[str, np.ndarray]:
    actions = np.stack([_action(action, spec, path) for action in told["actions"]] or [np.zeros(0)])
    rewards = np.asarray(told.get("rewards", np.zeros(len(actions))), np.float32)
    if len(rewards) != len(actions):
        raise InvalidInput(f"{path} has {len(actions)} actions and {len(rewards)} rewards; expected as many.")
    if "frames_per_action" in told:
        lengths = np.broadcast_to(np.asarray(told["frames_per_action"]), len(actions))
        if not np.issubdtype(lengths.dtype, np.integer):
            raise InvalidInput(f"{path}: frames_per_action must be a whole number, or one for each action.")
        actions = expand_chunks(actions, lengths)
        last = np.cumsum(lengths) - 1  # the reward of a chunk is earned with its last frame
        rewards, earned = np.zeros(len(actions), np.float32), rewards
        rewards[last] = earned
    if len(actions) not in (count, count + 1):
        raise InvalidInput(
            f"{path} has actions for {len(actions)} steps, but the clip has {count + 1} frames, that is {count} steps. "
            f"Give one action a step, or chunks whose frames add up to that."
        )
    steps = blank_steps(spec, actions[:count])
    steps["rewards"] = np.repeat(rewards[:count, None], len(spec.players), 1)
    if told.get("terminated"):
        steps["terminations"], steps["truncations"] = steps["truncations"], steps["terminations"]
    return steps


def _action(given: Any, spec: WorldSpec, path: Path) -> np.ndarray:
    """One action of every player: (P,) indices or (P, A) numbers."""
    players = len(spec.players)
    if not isinstance(spec.actions, DiscreteActions):
        try:
            return np.asarray(given, np.float32).reshape(players, spec.actions.dim)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{path}: {given!r:.60} is not {players} x {spec.actions.dim} numbers.") from error
    every = given if isinstance(given, list) else [given]
    indices = [_index(name, spec.actions) for name in every]
    if len(indices) != players or None in indices:
        raise InvalidInput(
            f"{path}: {given!r:.60} is no action of {players} players. Known: {', '.join(spec.actions.meanings)}, or "
            f"their numbers 0 to {spec.actions.dim - 1}."
        )
    return np.array(indices)


def _index(name: Any, actions: DiscreteActions) -> int | None:
    if isinstance(name, str) and name in actions.meanings:
        return actions.meanings.index(name)
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < actions.dim:
        return name
    return None

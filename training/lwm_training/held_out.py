"""Clips of real play to evaluate on: from random places of real episodes, a context and what really followed.

Shapes: N copies of the game, B clips, C context frames, S steps with ground truth, T >= S steps with actions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lwm_env.errors import ConfigMismatch, InvalidInput
from lwm_env.spec import DiscreteActions, WorldSpec
from lwm_training.clips import Clips
from lwm_training.policies import Players, Policy, parse_policy
from lwm_training.source import Source, Step

if TYPE_CHECKING:
    from lwm_training.episodes import EpisodeStore
    from lwm_training.readings import Reading

NUM_ENVS = 64
SEED_OFFSET = 1 << 30  # training plays with small seeds, and games without levels must be evaluated on others
LONGEST_WAIT = 200  # steps of play between two clips of one copy, drawn evenly
Progress = Callable[[int], object]  # told how many more units are done
# Is shown every real frame as it is played: clips (R,), the frame's index in each, frames (R, H, W, 3), and whether an
# episode ended before it (R,). Index 0 begins a clip, perhaps again.
Watch = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], object]


@dataclass(frozen=True)
class Far:
    """Real frames further ahead than the clips: steps after the context, frames uint8 (B, K, H, W, 3), and valid bool
    (B, K), whether the episode of the context still runs."""

    steps: tuple[int, ...]
    frames: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """Clips of C - 1 + S steps that begin in one episode and stay in it for C frames at least.

    actions: (B, C - 1 + T, P) or (B, C - 1 + T, P, A), those of the clips first. What follows the end of an episode is
    not valid, but goes on being played, so a dream of any length has actions to follow.
    split: whose levels, as far as it is known. far: frames beyond the truth. reading: what an inverse-dynamics net read
    of the real frames of all steps while they were played.
    """

    clips: Clips
    context: int
    actions: np.ndarray
    split: str | None = None
    far: Far | None = None
    reading: "Reading | None" = None

    @property
    def truth(self) -> int:
        """Steps with ground truth after the context."""
        return self.clips.valid.shape[1] - self.context + 1

    @property
    def horizon(self) -> int:
        """Steps with actions after the context."""
        return self.actions.shape[1] - self.context + 1

    @property
    def valid(self) -> np.ndarray:
        """bool (B, S): whether the frame after that step still belongs to the episode of the context."""
        return self.clips.valid[:, self.context - 1 :]

    def __len__(self) -> int:
        return len(self.actions)

    def chunks(self, size: int) -> Iterator["HeldOut"]:
        """The same in parts of at most `size` clips, views of this one."""
        for first in range(0, len(self), size):
            rows = slice(first, first + size)
            far = self.far and Far(self.far.steps, self.far.frames[rows], self.far.valid[rows])
            reading = self.reading and self.reading[rows]
            yield replace(self, clips=self.clips[rows], actions=self.actions[rows], far=far, reading=reading)


def from_clips(clips: Clips, context: int) -> HeldOut:
    """Clips of an episode store, without those whose episode ends within the context.

    Raises:
        InvalidInput: no clip is left, or they are too short.
    """
    if not 1 <= context <= clips.valid.shape[1]:
        raise InvalidInput(f"context must be 1 to {clips.valid.shape[1]} frames for these clips, got {context}.")
    before = slice(0, context - 1)
    good = clips.valid[:, before].all(1) & ~clips.terminations[:, before].any(1) & clips.valid[:, context - 1]
    if not good.any():
        raise InvalidInput(f"None of {len(good)} clips stays in its episode for {context} frames. Shorten it.")
    clips = clips[good]
    return HeldOut(clips, context, clips.actions)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How many clips of which lengths, who plays, and the seed of the places and of the actions."""

    num_clips: int
    context: int  # frames
    truth: int  # steps with ground truth after it
    horizon: int  # steps with actions after it
    policy: str = "sticky"  # as in `lwm collect --policy`
    seed: int = 0
    far: tuple[int, ...] = ()  # steps beyond the truth whose frames are kept

    @property
    def num_true(self) -> int:
        return self.context - 1 + self.truth

    @property
    def num_steps(self) -> int:
        return self.context - 1 + self.horizon


def play_clips(
    spec: WorldSpec, split: str, wanted: Wanted, progress: Progress, watches: Sequence[Watch] = ()
) -> HeldOut:
    """Play the real game behind a world, on the levels of a split.

    Args:
        progress: called with 1 for every clip that is done.
        watches: see every frame of every clip, also those that are not kept.

    Raises:
        UnknownWorld, MissingExtra, ConfigMismatch, InvalidInput: see `open_spec_source` and `parse_policy`.
    """
    from lwm_training.sources import open_spec_source

    num_envs = min(NUM_ENVS, wanted.num_clips)
    source = open_spec_source(spec, num_envs, SEED_OFFSET + wanted.seed * num_envs, split)
    try:
        return replace(record(source, spec, wanted, progress, watches), split=split)
    finally:
        source.close()


def stored_clips(folder: Path, spec: WorldSpec, wanted: Wanted) -> HeldOut:
    """Clips of what `lwm collect` recorded; whether the world was trained on it, the caller has to know.

    Raises:
        InvalidInput: more steps than there is truth for, or no episode is long enough.
        ConfigMismatch: there is no data set, or its frames, players or actions are not the world's.
        CorruptFile, MissingExtra: see `EpisodeStore`.
    """
    from lwm_training.episodes import EpisodeStore

    if wanted.horizon > wanted.truth:
        raise InvalidInput(f"Recorded clips are dreamed for {wanted.truth} steps at most, got {wanted.horizon}.")
    with EpisodeStore(folder) as store:
        _check_layout(store, spec)
        rng = np.random.default_rng([wanted.seed, 1])
        clips = store.clips(rng, wanted.num_clips, wanted.num_true, min_steps=wanted.context)
        return replace(from_clips(clips, wanted.context), split=store.facts.get("split"))


def _check_layout(store: "EpisodeStore", spec: WorldSpec) -> None:
    layout, actions = store.layout, spec.actions
    discrete = isinstance(actions, DiscreteActions)
    facts = {
        "frame_size": (tuple(layout.frame_size), tuple(spec.frame_size)),
        "players": (len(layout.players), len(spec.players)),
        "actions": (layout.num_actions or -len(layout.low), actions.dim if discrete else -actions.dim),
    }
    if discrete:
        mapped = store.facts.get("action_map")
        facts["source_actions"] = (tuple(range(actions.dim) if mapped is None else mapped), actions.source_actions)
    for name, (found, expected) in facts.items():
        if found != expected:
            raise ConfigMismatch(
                f"{store.folder} has {name} {found}, the world {spec.id} has {expected}. "
                f"Record its real game: lwm collect {spec.id}"
            )


def record(
    source: Source, spec: WorldSpec, wanted: Wanted, progress: Progress, watches: Sequence[Watch] = ()
) -> HeldOut:
    """Clips from random places of what is played in a source with the world's spaces; see `play_clips`."""
    rng = np.random.default_rng([wanted.seed, 1])  # the policy draws from the seed itself
    policy = parse_player(source, spec, wanted.policy, wanted.seed)
    tape, jobs = _Tape(spec, wanted), _Jobs(source.num_envs, wanted, rng)
    frames, over = source.reset(), np.zeros(source.num_envs, bool)
    restarted = ~over
    while jobs.left:
        rows, clips = jobs.begin(over)
        tape.observations[clips, 0] = frames[rows]
        for watch in watches:
            watch(clips, np.zeros(len(clips), int), frames[rows], np.zeros(len(clips), bool))
        actions = policy.act(frames, restarted)
        step = source.step(actions)
        rows, clips, steps = tape.write(jobs, actions, step, over)
        for watch in watches:
            watch(clips, steps + 1, step.observations[rows], over[rows])
        frames, restarted, over = step.observations, over, step.terminations | step.truncations
        progress(jobs.advance(over))
    left = np.logical_or.accumulate(tape.crossings, axis=1)  # the episode of the context
    clips = Clips(
        tape.observations,
        tape.actions[:, : wanted.num_true],
        tape.rewards,
        tape.terminations,
        ~left[:, : wanted.num_true],
    )
    ends = [wanted.context - 2 + step for step in wanted.far]
    far = Far(wanted.far, tape.far, ~left[:, ends]) if wanted.far else None
    return HeldOut(clips, wanted.context, tape.actions, far=far)


def parse_player(source: Source, spec: WorldSpec, policy: str, seed: int) -> Policy:
    """Who plays the copies of a source, by a policy's text."""
    return parse_policy(policy, Players.of(spec, source.num_envs, seed))


class _Tape:
    """What is recorded."""

    def __init__(self, spec: WorldSpec, wanted: Wanted) -> None:
        num_clips, num_true, players = wanted.num_clips, wanted.num_true, len(spec.players)
        discrete = isinstance(spec.actions, DiscreteActions)
        action = (players,) if discrete else (players, spec.actions.dim)
        self.observations = np.zeros((num_clips, num_true + 1, *spec.frame_size, 3), np.uint8)
        self.actions = np.zeros((num_clips, wanted.num_steps, *action), np.int64 if discrete else np.float32)
        self.rewards = np.zeros((num_clips, num_true, players), np.float32)
        self.terminations = np.zeros((num_clips, num_true), bool)
        self.crossings = np.zeros((num_clips, wanted.num_steps), bool)  # steps that lead into the next episode
        self.far = np.zeros((num_clips, len(wanted.far), *spec.frame_size, 3), np.uint8)
        self._far_steps = [wanted.context - 2 + step for step in wanted.far]

    def write(
        self, jobs: "_Jobs", actions: np.ndarray, step: Step, over: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One step of the copies that record; which copies these are, their clips, and the step in each."""
        rows = np.flatnonzero(jobs.clip >= 0)
        clips, steps = jobs.clip[rows], jobs.step[rows]
        self.actions[clips, steps] = actions[rows]
        self.crossings[clips, steps] = over[rows]
        for column, far in enumerate(self._far_steps):
            self.far[clips[steps == far], column] = step.observations[rows[steps == far]]
        true = steps < self.terminations.shape[1]
        kept, into, at = rows[true], clips[true], steps[true]
        self.observations[into, at + 1] = step.observations[kept]
        self.rewards[into, at] = step.rewards[kept]
        self.terminations[into, at] = step.terminations[kept]
        return rows, clips, steps


class _Jobs:
    """Which copy records which clip, and how long it waits before the next."""

    def __init__(self, num_envs: int, wanted: Wanted, rng: np.random.Generator) -> None:
        self.clip, self.step = np.full(num_envs, -1), np.zeros(num_envs, int)  # -1: none
        self._open = list(range(wanted.num_clips))
        self._context, self._num_steps, self._rng = wanted.context, wanted.num_steps, rng
        self._wait = rng.integers(LONGEST_WAIT + 1, size=num_envs)

    @property
    def left(self) -> bool:
        return bool(self._open) or bool((self.clip >= 0).any())

    def begin(self, over: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies that begin a clip at their current frame, and the clips."""
        self._wait -= 1
        rows = np.flatnonzero((self.clip < 0) & (self._wait < 0) & ~over)[: len(self._open)]
        self.clip[rows] = [self._open.pop(0) for _ in rows]
        self.step[rows] = 0
        return rows, self.clip[rows]

    def advance(self, over: np.ndarray) -> int:
        """One step further; clips whose context met an end are given back. Returns how many clips are done."""
        busy = self.clip >= 0
        self.step[busy] += 1
        broken = busy & over & (self.step < self._context)
        done = busy & (self.step == self._num_steps) & ~broken
        self._open += self.clip[broken].tolist()
        self.clip[broken | done] = -1
        self._wait[broken | done] = self._rng.integers(LONGEST_WAIT + 1, size=int((broken | done).sum()))
        return int(done.sum())

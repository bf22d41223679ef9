"""Records real play into a data set, until it holds as many frames as asked for."""

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from lwm_env.errors import InvalidInput
from lwm_env.spec import WorldSpec
from lwm_training.episode import Compressor, Episode, Layout, Recorder
from lwm_training.episode_writer import EpisodeWriter
from lwm_training.policies import Players, Policy, parse_policy
from lwm_training.source import MAX_SEED, Source, SourceConfig
from lwm_training.sources import open_source, open_spec_source

_SAMPLE_STEPS = 64  # played by `estimate`, by each copy
_SAMPLE_ENVS = 8
_SPARE = 1.05  # how much more disk than expected must be free


@dataclass(frozen=True, kw_only=True)
class CollectPlan:
    """What to record; the source is a name for `open_source`, or a world, whose real game is played."""

    source: str | WorldSpec
    out: Path
    frames: int  # steps that the data set shall hold in the end
    num_envs: int = 64
    policy: str = "sticky"
    seed: int = 0
    split: str = "train"  # of a world: whose levels
    options: dict[str, Any] = field(default_factory=dict)  # of a named source
    config: SourceConfig = field(default_factory=SourceConfig)

    def __post_init__(self) -> None:
        if self.frames < 1 or self.num_envs < 1 or self.seed < 0:
            raise InvalidInput(
                f"frames and num_envs must be at least 1 and seed at least 0, got {self.frames}, {self.num_envs} and "
                f"{self.seed}."
            )


@dataclass(frozen=True)
class _Goal:
    """How long to play."""

    frames: int
    seed: int | None = None  # of the first reset; None: as the source was opened
    report: Callable[[int], None] = lambda new: None
    stopped: Callable[[], bool] = lambda: False


def collect(plan: CollectPlan, report: Callable[[int], None] = lambda new: None) -> dict[str, Any]:
    """Play and record until the data set holds `plan.frames` frames; one that holds some already is continued.

    Each run plays other levels than the runs before it, and a fresh run with the same plan records the
    same episodes. An interrupt keeps what was played; a kill costs the episodes that had not ended.

    Args:
        report: called with the number of new frames, for a progress bar.

    Returns:
        Facts for JSON: folder, episodes, frames and bytes added, frames per second.

    Raises:
        StorageError: another process records there, the disk is full or read-only; what was recorded is intact.
        ConfigMismatch: the folder holds another source's data. And what `open_source` and `parse_policy` raise.
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(_open(plan, plan.num_envs)))
        writer = stack.enter_context(EpisodeWriter(plan.out, layout_of(source), _facts(plan, source)))
        before, session = writer.frames, writer.num_sessions
        if before >= plan.frames:
            return {"folder": str(plan.out), "frames": before, "episodes_added": 0, "frames_added": 0}
        policy = parse_policy(plan.policy, _players(plan, source, session))
        recorder = Recorder(layout_of(source), plan.num_envs, stack.enter_context(_compressor(plan.config.num_threads)))
        writer.begin_session({"policy": plan.policy, "seed": plan.seed, "num_envs": plan.num_envs})
        started, episodes = time.monotonic(), 0
        with _interrupts() as stopped:
            seed = _session_seed(plan.seed, session) if session else None
            for episode in _play(source, policy, recorder, _Goal(plan.frames - before, seed, report, stopped)):
                writer.append(episode)
                episodes += 1
        seconds, frames = time.monotonic() - started, writer.frames
    size = sum(path.stat().st_size for path in (plan.out / "shards").glob("*.h5"))
    return {
        "folder": str(plan.out),
        "frames": frames,
        "bytes": size,
        "episodes_added": episodes,
        "frames_added": frames - before,
        "frames_per_second": round((frames - before) / seconds, 1),
    }


def estimate(plan: CollectPlan) -> dict[str, Any]:
    """What `collect` would do, found by playing a little and writing nothing; for JSON."""
    num_envs = min(_SAMPLE_ENVS, plan.num_envs)
    with contextlib.closing(_open(plan, num_envs)) as source:
        policy = parse_policy(plan.policy, _players(plan, source, 0))
        started = time.monotonic()
        recorder = Recorder(layout_of(source), num_envs)
        episodes = list(_play(source, policy, recorder, _Goal(num_envs * _SAMPLE_STEPS)))
        seconds, facts, layout = time.monotonic() - started, _facts(plan, source), layout_of(source)
    played = sum(map(len, episodes))
    per_frame = sum(episode.size for episode in episodes) / played
    free = shutil.disk_usage(_existing(plan.out)).free
    return {
        **facts,
        "layout": layout.to_json(),
        "policy": plan.policy,
        "seed": plan.seed,
        "num_envs": plan.num_envs,
        "out": str(plan.out),
        "frames": plan.frames,
        "expected_bytes": round(per_frame * plan.frames),
        "raw_bytes": int(np.prod(layout.frame_shape)) * plan.frames,
        "free_bytes": free,
        "fits": per_frame * plan.frames * _SPARE < free,
        "sampled_frames_per_second": round(played / seconds, 1),
    }


def collect_with_bar(plan: CollectPlan) -> dict[str, Any]:
    """`collect` with a progress bar on stderr where that is a terminal."""
    with tqdm(total=plan.frames, unit="frame", unit_scale=True, disable=None, desc="collect") as bar:
        return collect(plan, bar.update)


def layout_of(source: Source) -> Layout:
    """The shapes of the episodes that a source gives."""
    size, players, space = source.observation_space.shape[:2], tuple(source.players), source.action_space
    if isinstance(space, spaces.Discrete):
        return Layout(size, players, num_actions=int(space.n))
    return Layout(size, players, low=tuple(space.low.tolist()), high=tuple(space.high.tolist()))


def _play(source: Source, policy: Policy, recorder: Recorder, goal: _Goal) -> Iterator[Episode]:
    """The episodes of at least that many steps; the last of them are cut off."""
    observations = source.reset(seed=goal.seed)
    recorder.begin(observations, source.episode_seeds, range(source.num_envs))
    first, over = np.ones(source.num_envs, bool), np.zeros(source.num_envs, bool)
    played = 0
    while played < goal.frames and not goal.stopped():
        actions = policy.act(observations, first)
        step = source.step(actions)
        yield from recorder.record(actions, step, source.episode_seeds)
        new = int((~over).sum())  # what was over has only restarted
        observations, first, over = step.observations, over, step.terminations | step.truncations
        played += new
        goal.report(new)
    yield from recorder.stop()


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Lets the first Ctrl-C end the recording in order, between two steps; the second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    stop = threading.Event()

    def note(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield stop.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
    if stop.is_set():
        raise KeyboardInterrupt


def _open(plan: CollectPlan, num_envs: int) -> Source:
    seed = _session_seed(plan.seed, 0)
    if isinstance(plan.source, WorldSpec):
        return open_spec_source(plan.source, num_envs, seed, plan.split, plan.config.num_threads)
    return open_source(plan.source, num_envs, seed, plan.options, plan.config)


def _facts(plan: CollectPlan, source: Source) -> dict[str, Any]:
    if not isinstance(plan.source, WorldSpec):
        return source.facts
    return {**source.facts, "world": plan.source.id, "split": plan.split}


def _players(plan: CollectPlan, source: Source, session: int) -> Players:
    seed = (plan.seed, session)
    if isinstance(plan.source, WorldSpec):
        return Players.of(plan.source, source.num_envs, seed)
    return Players(
        action_space=source.action_space, num_envs=source.num_envs, num_players=len(source.players), seed=seed
    )


def _session_seed(seed: int, session: int) -> int:
    """Far from those of other sessions and seeds, so that their copies do not share levels."""
    return int(np.random.SeedSequence((seed, session)).generate_state(1)[0] % MAX_SEED)


@contextlib.contextmanager
def _compressor(num_threads: int) -> Iterator[Compressor]:
    if num_threads == 1:
        yield map
        return
    with ThreadPoolExecutor(num_threads) as pool:
        yield pool.map


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)

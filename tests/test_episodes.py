"""A data set outlives kills, flipped bits, full disks and second writers, and gives back what was recorded."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py", reason="data sets are HDF5 files")

from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, MissingExtra, StorageError
from lwm_training import episode_writer
from lwm_training.episode import Episode, Layout, Recorder, pack_episode
from lwm_training.episode_writer import EpisodeWriter
from lwm_training.episodes import EpisodeStore, verify
from lwm_training.source import Step

posix = pytest.mark.skipif(os.name == "nt", reason="needs fork, signals and limits of POSIX")
LAYOUT = Layout((8, 12), ("player_0",), num_actions=5)
FACTS = {"source": "made up"}


def frame(number: int, step: int) -> np.ndarray:
    """Tells which episode and step it is of: red and green the episode, blue the step."""
    return np.full((8, 12, 3), [number // 256, number % 256, step], np.uint8)


def made_up(number: int, length: int | None = None) -> Episode:
    """An episode whose every number follows from its own number."""
    length = 3 + number * 7 % 50 if length is None else length
    steps = np.arange(length)
    arrays = {
        "actions": (steps + number) % 5,
        "rewards": steps + number / 4,
        "terminations": steps == length - 1,
        "truncations": np.zeros(length, bool),
    }
    return pack_episode(LAYOUT, np.stack([frame(number, step) for step in range(length + 1)]), arrays, seed=number)


def write(folder: Path, numbers, layout: Layout = LAYOUT) -> None:
    with EpisodeWriter(folder, layout, FACTS) as writer:
        for number in numbers:
            writer.append(made_up(number))


def numbers_in(folder: Path) -> list[int]:
    """The numbers of the episodes in a data set, each of which must be whole."""
    with EpisodeStore(folder) as store:
        for episode in store:
            assert episode.digest == made_up(episode.seed).digest
        return store.seeds.tolist()


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(episode_writer, "SHARD_FRAMES", 150)


def test_what_was_recorded_is_given_back(tmp_path, small_shards):
    write(tmp_path / "new" / "set", range(40))

    with EpisodeStore(tmp_path / "new" / "set") as store:
        assert len(store) == 40 and store.frames == store.lengths.sum() and store.facts == FACTS
        assert len(list((tmp_path / "new" / "set" / "shards").iterdir())) > 4
        assert (store.frames_of(17)[:, 0, 0] == [[0, 17, step] for step in range(store.lengths[17] + 1)]).all()
        assert (store.frames_of(17, 15, 18)[:, 0, 0, 2] == [15, 16, 17]).all()
        assert store.steps(17)["rewards"][3] == [17 / 4 + 3]
        with pytest.raises(InvalidInput, match="0 to 39"):
            store.steps(40)
    assert verify(tmp_path / "new" / "set") == []


def test_episodes_are_appended_by_later_writers(tmp_path):
    write(tmp_path, range(5))
    before = (tmp_path / "shards" / "000000.h5").read_bytes()
    write(tmp_path, range(5, 9))

    assert numbers_in(tmp_path) == list(range(9))
    assert (tmp_path / "shards" / "000000.h5").read_bytes() == before


def test_a_record_holds_what_batched_play_showed():
    lengths, played = (20, 33), 70
    recorder = Recorder(LAYOUT, 2)
    steps, over, numbers = np.zeros(2, int), np.zeros(2, bool), np.array([0, 1])
    recorder.begin(np.stack([frame(0, 0), frame(1, 0)]), numbers, range(2))
    found = []
    for _ in range(played):
        actions = ((steps + numbers) % 5)[:, None]
        rewards = np.where(over, 0, steps + numbers / 4)[:, None].astype(np.float32)
        numbers = np.where(over, numbers + 2, numbers)
        steps = np.where(over, 0, steps + 1)
        over = steps == np.array(lengths)
        observations = np.stack([frame(*pair) for pair in zip(numbers, steps, strict=True)])
        found += recorder.record(actions, Step(observations, rewards, over, np.zeros(2, bool)), numbers)
    found += recorder.stop()

    finished = [(0, 20), (1, 33), (2, 20), (4, 20), (3, 33)]
    assert [episode.digest for episode in found[:5]] == [made_up(*pair).digest for pair in finished]
    assert [(len(episode), episode.complete) for episode in found[5:]] == [(7, False), (2, False)]
    assert found[6].steps["truncations"].tolist() == [False, True] and found[6].seed == 5


@pytest.mark.parametrize("num_threads", [1, 3])
def test_clips_stay_in_one_episode_and_line_up(tmp_path, small_shards, num_threads):
    write(tmp_path, range(300, 330))
    with EpisodeStore(tmp_path, num_threads) as store:
        clips = store.clips(np.random.default_rng(0), batch=400, length=20)
        again = store.clips(np.random.default_rng(0), batch=400, length=20)
        lengths = dict(zip(store.seeds.tolist(), store.lengths.tolist(), strict=True))

    assert all((vars(again)[name] == array).all() for name, array in vars(clips).items() if array is not None)
    assert clips.observations.shape == (400, 21, 8, 12, 3) and clips.actions.dtype == np.int64
    shown = clips.observations[:, :, 0, 0].astype(int)
    numbers = shown[..., 0] * 256 + shown[..., 1]
    assert (numbers == numbers[:, :1]).all()
    for row, number in enumerate(numbers[:, 0].tolist()):
        first, length = shown[row, 0, 2], lengths[number]
        steps = np.arange(first, min(first + 20, length))
        count = len(steps)
        assert clips.valid[row].tolist() == [True] * count + [False] * (20 - count)
        assert shown[row, :, 2].tolist() == [*range(first, first + count + 1), *[first + count] * (20 - count)]
        assert clips.actions[row, :count, 0].tolist() == ((steps + number) % 5).tolist()
        assert clips.rewards[row, :count, 0].tolist() == (steps + number / 4).tolist()
        assert clips.terminations[row, :count].tolist() == (steps == length - 1).tolist()
        assert not clips.actions[row, count:].any() and not clips.rewards[row, count:].any()


def test_every_step_is_equally_likely_to_begin_a_clip(tmp_path):
    with EpisodeWriter(tmp_path, LAYOUT, FACTS) as writer:
        writer.append(made_up(1, length=4))
        writer.append(made_up(2, length=16))
    with EpisodeStore(tmp_path) as store:
        firsts = store.clips(np.random.default_rng(0), 4000, 1).observations[:, 0, 0, 0, 1:]
        kept = store.clips(np.random.default_rng(0), 200, 8, min_steps=8)
        with pytest.raises(InvalidInput, match="17 steps"):
            store.clips(np.random.default_rng(0), 1, 20, min_steps=17)

    counts = np.unique(firsts, axis=0, return_counts=True)[1]
    assert len(counts) == 20 and counts.min() > 130 and counts.max() < 270  # 200 expected, 14 its deviation
    assert kept.valid.all() and (kept.observations[:, 0, 0, 0, 1] == 2).all()


def test_continuous_actions_of_several_players_are_given_back(tmp_path):
    layout = Layout((8, 12), ("a", "b"), low=(-1.0, 0.0, 0.0), high=(1.0, 1.0, 1.0))
    actions, rewards = np.random.default_rng(0).random((6, 2, 3), np.float32), np.arange(12.0).reshape(6, 2)
    ends = {"terminations": np.zeros(6, bool), "truncations": np.arange(6) == 5}
    with EpisodeWriter(tmp_path, layout, FACTS) as writer:
        frames = np.zeros((7, 8, 12, 3), np.uint8)
        writer.append(pack_episode(layout, frames, {"actions": actions, "rewards": rewards, **ends}, seed=0))
    with EpisodeStore(tmp_path) as store:
        clips = store.clips(np.random.default_rng(0), 1, 6, min_steps=6)

    assert clips.actions.dtype == np.float32 and (clips.actions[0] == actions).all()
    assert (clips.rewards[0] == rewards).all() and not clips.terminations.any()


def _write_for_ever(folder: Path, first: int, pipe: int) -> None:
    """Appends episode after episode, and reports each one when it is safe."""
    episode_writer.SHARD_FRAMES = 150
    writer = EpisodeWriter(folder, LAYOUT, FACTS)
    number = first
    while True:
        writer.append(made_up(number))
        number += 1
        os.write(pipe, b".")


@posix
def test_a_kill_at_any_time_costs_no_finished_episode(tmp_path):
    random.seed(0)
    context, safe = multiprocessing.get_context("fork"), 0
    for number in range(16):
        receiving, sending = os.pipe()
        process = context.Process(target=_write_for_ever, args=(tmp_path, safe, sending))
        process.start()
        os.close(sending)
        with os.fdopen(receiving, "rb") as reports:
            reported = safe
            if number % 2:  # the others may be killed while they still open the folder
                reported += len(reports.read(1))
            time.sleep(random.uniform(0.01, 0.15))
            process.kill()
            process.join()
            reported += len(reports.read())
        if not (tmp_path / "dataset.json").exists():
            assert reported == 0
            continue
        found = numbers_in(tmp_path)
        assert found == list(range(len(found))) and reported <= len(found) <= reported + 1
        assert verify(tmp_path) == []
        safe = len(found)
    assert safe >= 8


def _killed_writer(folder: Path, count: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=_append_and_die, args=(folder, count))
    process.start()
    process.join()


def _append_and_die(folder: Path, count: int) -> None:
    writer = EpisodeWriter(folder, LAYOUT, FACTS)
    for number in range(count):
        writer.append(made_up(number))
    os.kill(os.getpid(), signal.SIGKILL)


@posix
@pytest.mark.parametrize("sealed", [True, False])
def test_every_flipped_bit_is_detected(tmp_path, sealed):
    folder = tmp_path / "set"
    if sealed:
        write(folder, range(6))
    else:
        _killed_writer(folder, 6)
        assert (folder / "journal.bin").stat().st_size > 1000
    assert verify(folder) == []
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "writer.lock"]
    chosen = random.Random(0)
    for _ in range(250):
        path = chosen.choice(files)
        original = path.read_bytes()
        changed = bytearray(original)
        changed[chosen.randrange(len(changed))] ^= 1 << chosen.randrange(8)
        path.write_bytes(changed)
        assert verify(folder), path
        path.write_bytes(original)
    assert verify(folder) == [] and numbers_in(folder) == list(range(6))


def test_a_lost_or_foreign_file_is_named(tmp_path):
    write(tmp_path, range(3))
    shard = tmp_path / "shards" / "000000.h5"
    shutil.copy(shard, tmp_path / "shards" / "000007.h5")
    assert [problem for problem in verify(tmp_path) if "000007.h5 is not named" in problem]
    shard.unlink()
    assert [problem for problem in verify(tmp_path) if "000000.h5 cannot be read" in problem]
    with pytest.raises(CorruptFile, match="lwm data verify"):
        EpisodeStore(tmp_path)


def test_damaged_frames_are_an_error_and_no_picture(tmp_path):
    write(tmp_path, [30])
    shard = tmp_path / "shards" / "000000.h5"
    data = bytearray(shard.read_bytes())
    chunk = made_up(30).chunks[0]
    data[data.index(chunk) + len(chunk) // 2] ^= 255
    shard.write_bytes(data)

    with EpisodeStore(tmp_path) as store, pytest.raises(CorruptFile, match="000000.h5"):
        store.episode(0)


@posix
def test_a_second_writer_is_refused_and_a_dead_one_is_not_waited_for(tmp_path):
    _killed_writer(tmp_path, 4)
    assert (tmp_path / "writer.lock").read_text().isdigit()
    with EpisodeWriter(tmp_path, LAYOUT, FACTS) as writer:
        assert writer.frames == sum(len(made_up(number)) for number in range(4))
        with pytest.raises(StorageError, match=f"pid {os.getpid()}"):
            EpisodeWriter(tmp_path, LAYOUT, FACTS)
        writer.append(made_up(4))
        with EpisodeStore(tmp_path) as store:  # reading goes on meanwhile
            assert len(store) == 4
    assert numbers_in(tmp_path) == list(range(5))


@posix
@pytest.mark.parametrize("limit", [3000, 9000])
def test_a_full_disk_is_a_typed_error_and_nothing_is_lost(tmp_path, limit, monkeypatch):
    """3,000 bytes stop the journal, 9,000 the file that it is sealed into."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(episode_writer, "SHARD_FRAMES", 60 if limit > 3000 else 10**6)
    write(tmp_path, range(2))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    safe = 2
    with pytest.raises(StorageError, match="intact"):  # noqa: SIM117
        with EpisodeWriter(tmp_path, LAYOUT, FACTS) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            try:
                while True:
                    writer.append(made_up(safe))
                    safe += 1
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert numbers_in(tmp_path) in (list(range(safe)), list(range(safe + 1)))
    assert verify(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        EpisodeWriter(tmp_path / "file" / "set", LAYOUT, FACTS)


def test_other_data_are_not_mixed_in(tmp_path):
    write(tmp_path / "set", range(2))
    with pytest.raises(ConfigMismatch, match="source is 'made up' there, 'other' here"):
        EpisodeWriter(tmp_path / "set", LAYOUT, {"source": "other"})
    with pytest.raises(ConfigMismatch, match="Choose another folder"):
        EpisodeWriter(tmp_path / "set", Layout((8, 8), ("player_0",), num_actions=5), FACTS)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".dataset.json.new").write_text("{")  # a writer was killed there
    write(tmp_path / "begun", range(2))
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigMismatch, match="thesis.txt"):
        EpisodeWriter(tmp_path / "else", LAYOUT, FACTS)
    with pytest.raises(ConfigMismatch, match="lwm collect"):
        EpisodeStore(tmp_path / "else")


def test_without_h5py_the_error_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"h5py .*pip install .*data"):
        EpisodeWriter(tmp_path, LAYOUT, FACTS)

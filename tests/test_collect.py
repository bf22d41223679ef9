"""`lwm collect` and `lwm data`: what is recorded, by whom, how it goes on after a kill, and how it is exchanged."""

import json
import multiprocessing
import os
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
from click.testing import CliRunner
from gymnasium import spaces
from PIL import Image

pytest.importorskip("h5py", reason="data sets are HDF5 files")

from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, MissingExtra, UnknownWorld
from lwm_env.spec import DiscreteActions, RealSource, WorldSpec
from lwm_training.collect import CollectPlan, collect, estimate
from lwm_training.commands_data import collect as collect_command
from lwm_training.commands_data import data as data_command
from lwm_training.contact_sheet import contact_sheet
from lwm_training.data_facts import data_facts
from lwm_training.episodes import EpisodeStore, verify
from lwm_training.policies import Players, parse_policy
from lwm_training.source import SourceConfig

posix = pytest.mark.skipif(os.name == "nt", reason="needs fork and signals of POSIX")
GAME = "gymnasium:LwmTest/Walk-v0"


class Walk(gym.Env):
    """A dot that actions 1 and 2 move; red is the step, green the place; ends at either side, place 0 or 20."""

    observation_space = spaces.Box(0, 255, (16, 21, 3), np.uint8)
    action_space = spaces.Discrete(3)

    def __init__(self, pause=0.0):
        self.pause = pause

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, int(self.np_random.integers(5, 16))
        return self._frame(), {}

    def step(self, action):
        time.sleep(self.pause)
        self.steps += 1
        self.place += (0, -1, 1)[action]
        over = self.place in (0, 20)
        return self._frame(), float(self.place == 20), over, False, {}

    def _frame(self):
        frame = np.zeros((16, 21, 3), np.uint8)
        frame[:, self.place] = 255
        frame[0, 0] = self.steps % 256, self.place, 0
        return frame


@pytest.fixture(scope="module", autouse=True)
def registered_game():
    gym.register("LwmTest/Walk-v0", Walk, max_episode_steps=40)
    yield
    gym.registry.pop("LwmTest/Walk-v0")


def plan(folder, frames=600, **changes) -> CollectPlan:
    return CollectPlan(
        **{"source": GAME, "out": folder, "frames": frames, "num_envs": 4, "policy": "random", **changes}
    )


def whole(folder) -> list[bytes]:
    """The digests of all episodes, each of which must follow the rules of the game."""
    digests = []
    with EpisodeStore(folder) as store:
        for number, episode in enumerate(store):
            frames, steps = store.frames_of(number).astype(int), episode.steps
            assert frames[:, 0, 0, 0].tolist() == list(range(len(episode) + 1))
            moved = np.array([0, -1, 1])[steps["actions"][:, 0]]
            assert (np.diff(frames[:, 0, 0, 1]) == moved).all()
            assert (steps["rewards"][:, 0] == (frames[1:, 0, 0, 1] == 20)).all()
            ends = np.isin(frames[1:, 0, 0, 1], (0, 20))
            assert (steps["terminations"] == ends).all() and not ends[:-1].any()
            over = ends[-1] or steps["truncations"][-1]
            assert over and episode.complete == bool(ends[-1] or len(episode) == 40)
            digests.append(episode.digest)
    return digests


def test_a_recording_holds_what_was_played(tmp_path):
    facts = collect(plan(tmp_path))

    digests = whole(tmp_path)
    assert facts["frames"] == facts["frames_added"] and 600 <= facts["frames"] < 604
    assert len(digests) == facts["episodes_added"] == len(set(digests))
    assert verify(tmp_path) == []


def test_the_same_plan_records_the_same_episodes(tmp_path):
    for folder, seed, threads in (("a", 1, 1), ("b", 1, 2), ("c", 2, 1)):
        collect(plan(tmp_path / folder, seed=seed, config=SourceConfig(num_threads=threads)))

    assert whole(tmp_path / "a") == whole(tmp_path / "b") != whole(tmp_path / "c")


def test_recording_goes_on_with_other_episodes(tmp_path):
    collect(plan(tmp_path, 300))
    before = whole(tmp_path)
    facts = collect(plan(tmp_path, 600))
    nothing = collect(plan(tmp_path, 600))

    after = whole(tmp_path)
    assert after[: len(before)] == before and len(set(after)) == len(after) > len(before)
    assert 600 <= facts["frames"] < 604 and nothing["frames_added"] == 0
    assert len(EpisodeStore(tmp_path).sessions) == 2


def test_another_game_or_option_is_not_mixed_in(tmp_path):
    collect(plan(tmp_path, 50))
    with pytest.raises(ConfigMismatch, match="max_episode_steps"):
        collect(plan(tmp_path, 100, config=SourceConfig(max_episode_steps=7)))


def _collect_slowly(folder) -> None:
    collect(plan(folder, 10**9, options={"pause": 0.0005}))


def _recording(folder):
    """A process that records until it is stopped, and has committed new episodes."""
    process = multiprocessing.get_context("fork").Process(target=_collect_slowly, args=(folder,))
    process.start()
    journal, deadline = folder / "journal.bin", time.monotonic() + 100
    while time.monotonic() < deadline and (not journal.exists() or journal.stat().st_size < 5000):
        time.sleep(0.02)
    return process


@posix
def test_a_killed_recording_goes_on_and_has_lost_nothing(tmp_path):
    before = []
    for number in range(6):
        process = _recording(tmp_path)
        time.sleep(0.05 * number)
        process.kill()
        process.join()
        after = whole(tmp_path)
        assert after[: len(before)] == before and len(after) > len(before) and verify(tmp_path) == []
        before = after
    assert len(set(before)) == len(before)


@posix
def test_an_interrupt_keeps_what_was_played(tmp_path):
    process = _recording(tmp_path)
    os.kill(process.pid, signal.SIGINT)
    process.join(100)

    assert process.exitcode == 1 and not (tmp_path / "journal.bin").exists()
    whole(tmp_path)
    with EpisodeStore(tmp_path) as store:
        assert (~store.complete).sum() <= 4  # one of each copy, where one had begun


def test_an_estimate_writes_nothing_and_is_near(tmp_path):
    facts = estimate(plan(tmp_path / "new", 2000))
    assert not (tmp_path / "new").exists() and facts["fits"]

    collect(plan(tmp_path / "new", 2000))
    size = data_facts(tmp_path / "new")["bytes"]
    assert 0.3 < facts["expected_bytes"] / size < 2


def test_a_world_is_recorded_in_its_own_indices_and_with_its_weights(tmp_path):
    spec = WorldSpec(
        id="LWM-Walk-v0",
        description="Walk",
        frame_size=(16, 21),
        actions=DiscreteActions(meanings=("NOOP", "RIGHT", "LEFT"), source_actions=(0, 2, 1), sticky_weights=(0, 1, 0)),
        max_episode_steps=30,
        real=RealSource(source=GAME),
    )
    collect(plan(tmp_path, 60, source=spec, policy="sticky"))

    with EpisodeStore(tmp_path) as store:
        assert store.facts["world"] == spec.id and store.facts["action_map"] == [0, 2, 1]
        steps = store.steps(0)
        assert (steps["actions"] == 1).all() and steps["rewards"][-1] == 1  # always to the right, to its end


def run(command, *arguments):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands_record_describe_verify_and_draw(tmp_path):
    folder, sheet = tmp_path / "set", tmp_path / "sheet.png"
    arguments = [GAME, "--out", folder, "--frames", 200, "--num-envs", 4, "--frame-size", "16x24", "--policy", "random"]

    told = run(collect_command, *arguments, "--dry-run")
    assert "MB expected" in told and "GB free" in told and "frames: 200" in told and not folder.exists()
    assert json.loads(run(collect_command, *arguments, "--json"))["frames_added"] >= 200
    facts = json.loads(run(data_command, "info", folder, "--json"))
    assert facts["source"] == GAME and facts["frame_size"] == [16, 24] and facts["frames"] >= 200
    assert "intact" in run(data_command, "verify", folder)
    run(data_command, "sheet", folder, "--out", sheet, "--rows", 3, "--columns", 5)
    assert Image.open(sheet).size == (5 * (96 + 3), 3 * (64 + 28))

    shard = folder / "shards" / "000000.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match="000000.h5 is damaged"):
        run(data_command, "verify", folder)


def test_a_sheet_shows_the_first_and_the_last_frame(tmp_path):
    collect(plan(tmp_path, 100))
    with EpisodeStore(tmp_path) as store:
        picture = np.asarray(contact_sheet(store, rows=1, columns=2, seed=0))
        shown = [picture[14 + 60, 5 * place + 2, 0] > 200 for place in range(21)]
        starts = [np.flatnonzero(store.frames_of(number, 0, 1)[0, 12, :, 0])[0] for number in range(len(store))]
        assert shown.index(True) in starts and sum(shown) == 1


# Policies ------------------------------------------------------------------------------------------------------------


def players(space=None, **changes) -> Players:
    return Players(**{"action_space": space or spaces.Discrete(4), "num_envs": 50, "seed": 3, **changes})


def acted(text: str, who: Players, steps: int = 200) -> np.ndarray:
    """(steps, N, P, ...) of actions; every copy restarts at step 100."""
    policy = parse_policy(text, who)
    observations = np.zeros((who.num_envs, 16, 16, 3), np.uint8)
    return np.stack([policy.act(observations, np.full(who.num_envs, step % 100 == 0)) for step in range(steps)])


@pytest.mark.parametrize("text", ["random", "sticky", "sticky:0.3:1,0,2,3", "mix:0.5*random+0.5*sticky:0.01"])
@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.Box(np.float32([-1, 0]), np.float32([1, 1]))])
def test_a_policy_follows_from_its_seed_and_stays_in_the_space(text, space):
    actions = acted(text, players(space, num_players=2))

    assert (actions == acted(text, players(space, num_players=2))).all()
    assert (actions != acted(text, players(space, num_players=2, seed=4))).any()
    assert all(space.contains(action) for action in actions[:20].reshape(-1, *space.shape))


def test_sticky_holds_actions_and_draws_by_weight():
    actions = acted("sticky:0.2:0,1,3,0", players())[..., 0]

    changed = (actions[1:100] != actions[:99]).mean()
    assert set(np.unique(actions)) == {1, 2} and 0.7 < (actions == 2).mean() < 0.8
    assert 0.055 < changed < 0.095  # 0.2 times the chance of 0.375 to draw the other one
    assert (acted("sticky:0.2", players(weights=(0, 1, 0, 0))) == 1).all()


def test_a_mixture_plays_each_episode_by_one_member():
    actions = acted("mix:3*sticky:1:1,0,0,0+1*sticky:1:0,1,0,0", players(num_envs=400))[..., 0]

    assert (actions[:100] == actions[0]).all() and (actions[100:] == actions[100]).all()
    assert (actions[0] != actions[100]).any() and 0.65 < (actions == 0).mean() < 0.85


@pytest.mark.parametrize(
    "text",
    ["", "rondom", "random:1", "sticky:0", "sticky:1.5", "sticky:x", "sticky:0.1:1,2", "mix:", "mix:random", "sb3:"],
)
def test_a_wrong_policy_is_refused_with_the_reason(text):
    with pytest.raises(InvalidInput):
        parse_policy(text, players())


def test_a_checkpoint_plays_and_must_fit_the_game(tmp_path, monkeypatch):
    sb3 = pytest.importorskip("stable_baselines3")
    game = gym.make("LwmTest/Walk-v0")
    game = gym.wrappers.ResizeObservation(game, (36, 36))
    sb3.PPO("CnnPolicy", game, n_steps=8, batch_size=8, device="cpu", seed=0).save(tmp_path / "agent.zip")
    who = players(spaces.Discrete(3), num_envs=3)
    policy = parse_policy(f"sb3:{tmp_path / 'agent.zip'}", who)
    observations = np.random.default_rng(0).integers(0, 256, (3, 36, 36, 3), np.uint8)

    actions = policy.act(observations, np.ones(3, bool))
    assert actions.shape == (3, 1) and actions.dtype == np.int64 and actions.max() < 3
    with pytest.raises(ConfigMismatch, match="36"):
        policy.act(observations[:, :20], np.ones(3, bool))
    with pytest.raises(ConfigMismatch, match="Discrete"):
        parse_policy(f"sb3:ppo:{tmp_path / 'agent.zip'}", players())
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    with pytest.raises(CorruptFile, match="broken.zip"):
        parse_policy(f"sb3:{tmp_path / 'broken.zip'}", who)
    with pytest.raises(InvalidInput, match="nowhere.zip"):
        parse_policy("sb3:nowhere.zip", who)
    monkeypatch.setitem(__import__("sys").modules, "stable_baselines3", None)
    with pytest.raises(MissingExtra, match=r"pip install .*agents"):
        parse_policy(f"sb3:{tmp_path / 'agent.zip'}", who)


# Minari --------------------------------------------------------------------------------------------------------------


def test_a_data_set_survives_the_way_to_minari_and_back(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="needs the extra `data`")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    from lwm_training.interchange import export_minari, import_minari

    collect(plan(tmp_path / "ours", 200))
    facts = export_minari(tmp_path / "ours", "lwm/walk/random-v0", author="tests")
    import_minari("lwm/walk/random-v0", tmp_path / "back")

    assert whole(tmp_path / "back") == whole(tmp_path / "ours")
    assert EpisodeStore(tmp_path / "back").facts == EpisodeStore(tmp_path / "ours").facts
    dataset = minari.load_dataset("lwm/walk/random-v0")
    assert len(dataset) == facts["episodes"] and dataset.action_space == spaces.Discrete(3)
    with pytest.raises(InvalidInput, match="already exists"):
        export_minari(tmp_path / "ours", "lwm/walk/random-v0")
    with pytest.raises(UnknownWorld, match="Did you mean lwm/walk/random-v0"):
        import_minari("lwm/walk/randm-v0", tmp_path / "other")
    with pytest.raises(ConfigMismatch, match="choose a new folder"):
        import_minari("lwm/walk/random-v0", tmp_path / "back")
    assert "jax" not in __import__("sys").modules


def test_a_minari_data_set_of_others_is_imported(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="needs the extra `data`")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    from lwm_training.interchange import import_minari

    frames = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), np.uint8)
    ends = np.arange(5) == 4
    actions = np.array([[0, 1], [2, 0], [1, 1], [2, 1], [0, 0]])
    buffer = minari.data_collector.EpisodeBuffer(
        observations=frames, actions=actions, rewards=np.arange(5.0), terminations=ends, truncations=~ends & False
    )
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            "else/game-v0",
            [buffer, buffer],
            observation_space=spaces.Box(0, 255, (20, 24, 3), np.uint8),
            action_space=spaces.MultiDiscrete([3, 2]),
            jpeg_encoding=False,
        )
    import_minari(str(tmp_path / "minari" / "else" / "game-v0"), tmp_path / "set")

    with EpisodeStore(tmp_path / "set") as store:
        assert len(store) == 2 and store.layout.num_actions == 6
        assert store.steps(1)["actions"][:, 0].tolist() == [1, 4, 3, 5, 0]
        assert (store.frames_of(1) == frames).all()

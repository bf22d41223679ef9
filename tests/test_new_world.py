"""`lwm new` on the game of docs/new-world.md and on games that it must refuse, with a tiny model and few steps."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from lwm_env import worlds
from lwm_env.cli import main as lwm
from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, UnknownWorld
from lwm_env.worlds.install import install_world

pytest.importorskip("accelerate", reason="needs the extra `train`")
pytest.importorskip("tensorboard", reason="needs the extra `train`")
pytest.importorskip("h5py", reason="needs the extra `data`")

from lwm_training.action_names import choose_keys, name_actions
from lwm_training.new_world import NewWorld, Wishes
from lwm_training.probe import Probe, Traits, probe, scrolling
from lwm_training.propose import recipe_text, reward_values, world_name
from lwm_training.recipe import load_recipe

DOC = (Path(__file__).parent.parent / "docs" / "new-world.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", DOC, flags=re.MULTILINE | re.DOTALL)
GAME, IN_PYTHON = (body for language, body in BLOCKS if language == "python")
COMMANDS = [line for language, body in BLOCKS if language == "console" for line in body.splitlines()]
NEW = [line for line in COMMANDS if line.startswith("lwm new")]
SMALL = ["--frame-size=16", "--frames=600", "--clips=4"]
TINY = [
    "-o", "train.steps=2", "-o", "train.batch_size=4", "-o", "train.log_every=1", "-o", "model.overrides.margin=8",
    "-o", "model.overrides.tokenizer={encoder_dim=8,encoder_blocks=1,fine_dim=8,decoder_dim=8,decoder_blocks=1}",
    "-o", "model.overrides.camera={middle_dim=8,whole_dim=4,hidden_dim=16,carry_dim=8}",
    "-o", "model.overrides.motion={dim=8,bottleneck_dim=16,bottleneck_blocks=1}",
    "-o", "model.overrides.dynamics={dim=8,blocks=1,event_dim=8}",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with the game of the documentation."""
    folder = tmp_path_factory.mktemp("new")
    (folder / "my_game.py").write_text(GAME)
    path = list(sys.path)
    yield folder
    sys.path[:] = path
    sys.modules.pop("my_game", None)
    gym.registry.pop("Catch-v0", None)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LWM_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "worlds"


def begin(place: Path, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command], cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


# -- the worked example ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_commands_of_the_documentation_make_a_world_and_a_kill_costs_no_phase(place, home, monkeypatch, capsys):
    monkeypatch.chdir(place)
    dry, whole = ([*shlex.split(line)[1:], *SMALL] for line in NEW)
    out = place / "runs" / "catch"

    assert lwm(dry) == 0
    recipe = (out / "RECIPE.toml").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["RECIPE.toml"]
    world = tomllib.loads(recipe)["world"]
    assert world["actions"]["meanings"] == ["NOOP", "LEFT", "RIGHT"] and world["actions"]["keys"]["LEFT"] == ["a"]
    assert world["max_episode_steps"] == 400 and {-1.0, 0.0, 1.0} <= set(world["reward_values"])

    long = ["-o", "train.stages.tokenizer.steps=100000", "-o", "train.checkpoint_minutes=1e-7"]
    killed = begin(place, "-m", "lwm_env.cli", *whole, *TINY, *long)
    while not list((out / "training" / "checkpoints").glob("step_*")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    recorded = {path: path.stat().st_mtime_ns for path in (out / "data" / "shards").glob("*.h5")}
    assert recorded and list(json.loads((out / "progress.json").read_text())) == ["collect"]
    capsys.readouterr()

    assert lwm([*whole, *TINY]) == 0
    made = capsys.readouterr()
    assert "collect: done before" in made.err and "lwm play LWM-Catch-v0" in made.out
    assert {path: path.stat().st_mtime_ns for path in (out / "data" / "shards").glob("*.h5")} == recorded
    log = [json.loads(line)["total_steps"] for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    assert log == sorted(set(log))  # training went on, it did not begin again

    assert lwm([*whole, *TINY]) == 0
    again = capsys.readouterr()
    assert again.out == made.out
    for phase in ("collect", "train", "evaluate"):
        assert f"{phase}: done before\n" in again.err
    assert (out / "RECIPE.toml").read_text() == recipe
    assert (out / "training" / "world" / "report" / "index.html").exists()

    python = begin(place, "-c", IN_PYTHON)
    assert python.wait(120) == 0, python.communicate()
    assert lwm(["envs", "list"]) == 0
    assert {"LWM-Catch-v0", "LWM-Platformer-v0"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}

    (out / "RECIPE.toml").write_text(recipe.replace("render_fps = 15", "render_fps = 20"))  # as a user edits it
    assert lwm([*whole, *TINY]) == 0
    told = capsys.readouterr().err
    assert "collect: done before\n" in told and "train: done before, but the recipe" in told
    assert worlds.read_spec(worlds.find("LWM-Catch-v0")).render_fps == 20


def test_another_game_in_the_same_folder_is_refused(tmp_path):
    (tmp_path / "RECIPE.toml").write_text(recipe_text(a_probe(source="gymnasium:A-v0"), "LWM-A-v0", "data", 1))

    with pytest.raises(ConfigMismatch, match="not for gymnasium:CartPole-v1. Choose another --out"):
        NewWorld(Wishes(source="gymnasium:CartPole-v1", out=tmp_path), print).write_recipe()


def test_a_recipe_that_streams_needs_no_recording(tmp_path):
    text = recipe_text(a_probe(source="gymnasium:A-v0"), "LWM-A-v0", "data", 1)
    (tmp_path / "RECIPE.toml").write_text(re.sub("(?m)^path = .*$", "", text.replace('"store"', '"stream"')))
    told = []

    NewWorld(Wishes(source="gymnasium:A-v0", out=tmp_path), told.append).collect()

    assert "nothing is recorded" in told[0] and not (tmp_path / "data").exists()


def test_damaged_progress_is_told(tmp_path):
    (tmp_path / "progress.json").write_text("{")

    with pytest.raises(CorruptFile, match="Remove it; what was recorded and trained is kept"):
        NewWorld(Wishes(source="CartPole-v1", out=tmp_path), print)


def test_options_that_cannot_be_are_told_before_the_game_is_played(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    wishes = {"source": "my_game:Catch-v0", "out": tmp_path / "out"}

    for name in ("Platformer", "My Game"):
        with pytest.raises(InvalidInput, match="another name|no id of a world"):
            NewWorld(Wishes(**wishes, name=name), print).write_recipe()
    with pytest.raises(ConfigMismatch, match="multiples of 8"):
        NewWorld(Wishes(**wishes, frame_size=(60, 64)), print).write_recipe()
    assert not (tmp_path / "out").exists()
    assert lwm(["new", "no_such_module:Game-v0", "--out", str(tmp_path / "out")]) == 1


# -- what the probe finds ----------------------------------------------------------------------------------------------


class Odd(gym.Env):
    """A game whose spaces and length a test chooses."""

    metadata = {"render_modes": ["human"]}  # noqa: RUF012 (Gymnasium's own)

    def __init__(self, observations, actions, length=50):
        self.observation_space, self.action_space, self.length = observations, actions, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.elapsed = 0
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), {}

    def step(self, action):
        self.elapsed += 1
        over = self.elapsed >= self.length
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), 0.25 * over, over, False, {}


PICTURE = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
FEATURES = gym.spaces.Box(-1, 1, (4,), np.float32)
TWO = gym.spaces.Discrete(2)


@pytest.fixture
def odd():
    gym.register("LwmTestOdd-v0", Odd)
    yield lambda **spaces: probe("LwmTestOdd-v0", spaces, (16, 16), num_steps=1600)
    del gym.registry["LwmTestOdd-v0"]


@pytest.mark.parametrize(
    ("game", "told"),
    [
        ({"observations": FEATURES, "actions": TWO}, 'no image, and cannot render one.*human.*"rgb_array" in metadata'),
        ({"observations": PICTURE, "actions": gym.spaces.Dict({"a": TWO})}, "Dict.*not supported.*TransformAction"),
        ({"observations": PICTURE, "actions": TWO, "length": 3}, "at least 6 are needed"),
    ],
)
def test_games_that_cannot_be_learned_are_refused_with_a_remedy(odd, game, told):
    with pytest.raises(ConfigMismatch, match=told):
        odd(**game)


def test_a_missing_game_is_told():
    with pytest.raises(UnknownWorld):
        probe("no_such_module:Game-v0")


def test_rewards_lengths_and_continuous_actions_become_a_recipe_that_loads(odd, tmp_path):
    box = gym.spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), dtype=np.float64)
    found = odd(observations=PICTURE, actions=box)

    assert found.num_ended == 8 * 3 and found.rewards == {0.0: 8 * 194, 0.25: 8 * 3}  # 200 rounds, 3 of them restarts
    assert found.typical_length == 50 and found.scrolled == 0
    path = tmp_path / "r.toml"
    path.write_text(recipe_text(replace(found, options={"length": 50}), "LWM-Odd-v0", "data", minutes=10))
    recipe = load_recipe(path)
    assert recipe.world.real.options == {"length": 50}
    assert recipe.world.actions.low == (-1, 0) and recipe.world.actions.high == (1, 2)
    assert recipe.world.reward_values == (0, 0.25) and recipe.world.max_episode_steps == 200
    assert [stage.name for stage in recipe.train.stages] == ["tokenizer", "draw", "unroll-8", "unroll-16"]
    assert sum(stage.minutes for stage in recipe.train.stages) == pytest.approx(10)


def test_a_scrolling_picture_is_told_from_one_thing_that_moves():
    rng = np.random.default_rng(0)
    wall = rng.integers(0, 256, (16, 40, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    wide = np.stack([wall[:, x : x + 64] for x in range(0, 60, 3)])
    still = np.full((20, 64, 64, 3), 200, np.uint8)
    for x in range(20):
        still[x, 30:40, 3 * x : 3 * x + 6] = 20

    assert scrolling(wide[:-1], wide[1:]) > 0.9
    assert scrolling(still[:-1], still[1:]) == 0


def a_probe(**changes) -> Probe:
    return Probe(
        **{
            "source": "envpool:CoinrunEasy-v0", "options": {}, "players": ("player_0",), "action_space": TWO,
            "frame_size": (64, 64), "traits": Traits(has_levels=True), "num_steps": 4000, "rewards": {0.0: 9},
            "lengths": (500,), "scrolled": 0.2, **changes,
        }
    )  # fmt: skip


def test_levels_and_the_camera_of_a_scrolling_game_come_into_the_recipe(tmp_path):
    path = tmp_path / "r.toml"
    for camera, expected in ((None, True), (False, False)):
        path.write_text(recipe_text(a_probe(), "LWM-Mine-v0", "data", 125, camera))
        recipe = load_recipe(path)

        assert ("camera" in [stage.trains for stage in recipe.train.stages]) == expected
        train, held = (recipe.world.real.splits[name] for name in ("train", "validation"))
        assert train["start_level"] + train["num_levels"] <= held["start_level"]


# -- names, keys, rewards ----------------------------------------------------------------------------------------------


def test_actions_are_named_and_what_does_nothing_comes_first():
    told = ["up", "NOOP", "move right", "UPRIGHTFIRE", "pickup", "up"]

    meanings, source_actions = name_actions(told, 6)

    assert meanings == ("NOOP", "UP_0", "MOVE_RIGHT", "UPRIGHTFIRE", "PICKUP", "UP_5")
    assert source_actions == (1, 0, 2, 3, 4, 5)
    assert choose_keys(("NOOP", "UP", "MOVE_RIGHT", "UPRIGHTFIRE", "PICKUP", "RIGHT")) == {
        "UP": ["w"], "MOVE_RIGHT": ["d"], "UPRIGHTFIRE": ["w", "d", "space"], "PICKUP": ["1"], "RIGHT": ["2"],
    }  # fmt: skip
    assert name_actions(None, 2) == (("ACTION_0", "ACTION_1"), (0, 1))


def test_many_rewards_become_a_dozen_with_nothing():
    few, many = {1.0: 3, -1.0: 2}, {float(value): 1 for value in np.linspace(-3, 5, 999)}

    assert reward_values(few) == (-1, 0, 1)
    chosen = reward_values(many)
    assert len(chosen) == 12 and 0 in chosen and chosen[0] < -2 and chosen[-1] > 4


def test_a_world_is_named_after_its_game():
    names = {"gymnasium:my_games:MyGame-v0": "MyGame", "pettingzoo:atari/pong_v3": "Pong", "ALE/Ms_Pac-v5": "MsPac"}

    assert {source: world_name(source) for source in names} == names


# -- installed worlds --------------------------------------------------------------------------------------------------


def test_an_installed_world_is_found_by_its_id_and_replaced_as_a_whole(home, tiny_world):
    assert "LWM-Tiny-v0" not in worlds.installed()

    target = install_world(tiny_world)
    (target / "old.txt").write_text("of the one before")
    install_world(tiny_world)

    assert target == home / "tiny-v0" == worlds.find("LWM-Tiny-v0") and not (target / "old.txt").exists()
    assert worlds.verify(target) == worlds.verify(tiny_world)
    assert "LWM-Tiny-v0" not in worlds.shipped()


def test_a_world_with_the_id_of_a_shipped_one_is_not_installed(home):
    with pytest.raises(InvalidInput, match="Give yours another name"):
        install_world(worlds.shipped()["LWM-Platformer-v0"])

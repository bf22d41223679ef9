"""Held-out clips of a game with a known rule, and `lwm evaluate` on it."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from lwm_env.cli import main
from lwm_env.spec import RealSource, WorldSpec
from lwm_env.world_model import WorldModel
from lwm_training.held_out import Wanted, play_clips
from lwm_training.report import Report

GAME = "LwmTestCorridor-v0"


class Corridor(gym.Env):
    """A view 16 pixels wide walks along a picture. The left edge holds the place, so that a frame tells it. An end and
    a reward lie at place 20, a mere end at place 0."""

    action_space = gym.spaces.Discrete(3)  # stay, left, right
    observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    picture = np.random.default_rng(0).integers(0, 256, (16, 64, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(3, 18))
        return self._look(), {}

    def step(self, action):
        self.place += (0, -1, 1)[action]
        return self._look(), 10.0 * (self.place == 20), self.place in (0, 20), False, {}

    def _look(self):
        frame = self.picture[:, self.place : self.place + 16].copy()
        frame[:, 0] = self.place
        return frame


@pytest.fixture(scope="module", autouse=True)
def corridor():
    gym.register(GAME, Corridor)
    yield
    del gym.registry[GAME]


@pytest.fixture(scope="module")
def spec(tiny_spec) -> WorldSpec:
    return tiny_spec.model_copy(update={"real": RealSource(source=f"gymnasium:{GAME}"), "max_episode_steps": 30})


# -- real clips --------------------------------------------------------------------------------------------------------


def test_clips_of_the_game_follow_its_rule(spec):
    wanted = Wanted(num_clips=70, context=4, truth=12, horizon=15, seed=3)

    held = play_clips(spec, "validation", wanted, lambda _: None)

    clips = held.clips
    places = clips.observations[:, :, 0, 0, 0].astype(int)
    moves = np.array([0, -1, 1])[clips.actions[..., 0]]
    assert clips.valid.shape == (70, 15) and held.actions.shape == (70, 18, 1)
    assert (np.diff(places, axis=1)[clips.valid] == moves[clips.valid]).all()
    over = np.isin(places[:, 1:], (0, 20)) & clips.valid
    assert (clips.terminations & clips.valid == over).all() and over.any()
    assert (clips.rewards[..., 0] * clips.valid == 10.0 * ((places[:, 1:] == 20) & clips.valid)).all()
    assert clips.valid[:, :4].all() and not clips.terminations[:, :3].any()  # the context is within one episode
    assert len(np.unique(places[:, 0])) > 5 and not clips.valid.all()


def test_the_same_seed_gives_the_same_clips_and_another_others(spec):
    first, second, other = (
        play_clips(spec, "validation", Wanted(num_clips=4, context=2, truth=5, horizon=5, seed=seed), lambda _: None)
        for seed in (1, 1, 2)
    )

    assert np.array_equal(first.clips.observations, second.clips.observations)
    assert not np.array_equal(first.clips.observations, other.clips.observations)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tiny_world, spec, tmp_path_factory) -> Path:
    """The tiny world, with the corridor as its real game."""
    path = tmp_path_factory.mktemp("corridor") / "world"
    model = WorldModel.load(tiny_world)
    model.spec = spec
    model.save(path, {"data": "random weights of the tests"})
    return path


def run(capsys, *args: str) -> tuple[int, str]:
    code = main(["evaluate", *args])
    return code, capsys.readouterr().out


def test_the_command_writes_a_report_that_names_the_weights(world, capsys):
    size = ("--clips", "3", "--horizon", "5", "--context", "2")

    code, out = run(capsys, str(world), *size, "--temperature", "1", "--json")

    report = Report.model_validate_json(out)
    assert code == 0 and report == Report.model_validate_json((world / "report.json").read_text())
    assert report.weights == WorldModel.load(world).weights_hash and report.world == "LWM-Tiny-v0"
    assert (report.protocol.num_clips, report.protocol.horizon, report.protocol.temperature) == (3, 5, 1)
    assert set(report.rows["psnr"]) == {"1", "4", "5"} and report.rows["psnr"]["5"].value > 0
    assert "torch" in report.versions
    assert (world / "report" / "index.html").exists()


def test_the_same_seed_gives_the_same_figures(world, capsys, tmp_path):
    args = (str(world), "--clips", "2", "--horizon", "3", "--context", "1", "--seed", "7", "--temperature", "0.5")

    reports = [json.loads(run(capsys, *args, "--out", str(tmp_path / name), "--json")[1]) for name in "ab"]

    for report in reports:
        del report["seconds"]
    assert reports[0] == reports[1]


def test_the_table_and_the_calibration_are_printed(world, capsys, tmp_path):
    code, out = run(capsys, str(world), "--clips", "2", "--horizon", "2", "--context", "1", "--out", str(tmp_path))
    assert code == 0 and "psnr [dB]" in out and "rewards: F1" in out

    code, out = run(capsys, str(world), "--clips", "8", "--horizon", "30", "--context", "1", "--calibrate", "--json")
    found = json.loads(out)
    assert code == 0 and 0 < found["termination_threshold"] < 1 and 0 <= found["f1"] <= 1


def test_a_world_that_draws_its_ends_has_a_threshold_at_temperature_0_alone(world, capsys, tmp_path):
    model = WorldModel.load(world)
    model.spec = model.spec.model_copy(update={"draw_ends": True, "temperature": 1.0})
    model.save(tmp_path / "world", {})
    calibrate = (str(tmp_path / "world"), "--clips", "8", "--horizon", "30", "--context", "1", "--calibrate")

    assert main(["evaluate", *calibrate]) == 1 and "Add --temperature 0" in capsys.readouterr().err
    code, out = run(capsys, *calibrate, "--temperature", "0", "--json")
    assert code == 0 and 0 < json.loads(out)["termination_threshold"] < 1


def test_recorded_clips_are_evaluated_like_played_ones(world, capsys, tmp_path):
    store, size = tmp_path / "store", ("--clips", "4", "--horizon", "3", "--context", "2")
    record = ("collect", str(world), "--out", str(store), "--frames", "150", "--num-envs", "2", "--split", "test")
    assert main([*record, "--json"]) == 0
    capsys.readouterr()

    code, out = run(capsys, str(world), *size, "--store", str(store), "--out", str(tmp_path), "--json")

    protocol = Report.model_validate_json(out).protocol
    assert code == 0 and (protocol.source, protocol.split, protocol.policy) == (str(store), "test", None)


def test_recordings_of_another_game_are_refused(world, capsys, tmp_path):
    store = tmp_path / "store"
    assert main(["collect", f"gymnasium:{GAME}", "--out", str(store), "--frames", "20", "--frame-size", "24"]) == 0
    capsys.readouterr()

    assert main(["evaluate", str(world), "--store", str(store), "--out", str(tmp_path)]) == 1
    assert "frame_size (24, 24)" in capsys.readouterr().err


def test_errors_of_the_command_are_one_line(world, capsys):
    assert main(["evaluate", str(world), "--device", "abacus"]) == 1
    assert main(["evaluate", str(world), "--split", "moon"]) == 1
    assert main(["evaluate", "LWM-Nowhere-v0"]) == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 3 and all(line.startswith("error: ") for line in told)

"""Inverse dynamics, distances, walks there and back, and `lwm evaluate --full`, on games with a known rule."""

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

from lwm_env.belief import Output
from lwm_env.cli import main
from lwm_env.errors import ConfigMismatch, CorruptFile
from lwm_env.spec import ContinuousActions, RealSource
from lwm_env.world_model import WorldModel
from lwm_training import evaluate, inverse_dynamics, memory_walk
from lwm_training.clips import Clips
from lwm_training.held_out import HeldOut, Wanted, play_clips
from lwm_training.inverse_dynamics import FEATURES, InverseDynamics
from lwm_training.readings import Reader, Reading, describe, obedience, read_real, spread
from lwm_training.recipe import Data
from lwm_training.report import Protocol, Report, as_table, build
from lwm_training.rollout import Sampling
from lwm_training.sources import open_spec_source
from lwm_training.train_idm import Lesson, train_idm

GAME = "LwmTestGallery-v0"


class Gallery(gym.Env):
    """A camera walks along a wide picture, two pixels a step, and stops at its ends; an episode never ends. One colour
    of the picture rises to the right, so that a motion is easy to tell; the others are noise."""

    action_space = gym.spaces.Discrete(3)  # stay, left, right
    observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    picture = np.random.default_rng(0).integers(0, 256, (16, 400, 3), np.uint8)
    picture[:, :, 0] = 8 * np.arange(400) % 256

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(150, 250))
        return self.picture[:, self.place : self.place + 16].copy(), {}

    def step(self, action):
        self.place = int(np.clip(self.place + 2 * (0, -1, 1)[action], 0, 384))
        return self.picture[:, self.place : self.place + 16].copy(), 0.0, False, False, {}


@pytest.fixture(scope="module", autouse=True)
def gallery():
    gym.register(GAME, Gallery)
    yield
    del gym.registry[GAME]


@pytest.fixture(scope="module")
def spec(tiny_spec):
    return tiny_spec.model_copy(update={"real": RealSource(source=f"gymnasium:{GAME}"), "max_episode_steps": 200})


@pytest.fixture(scope="module")
def net(spec) -> InverseDynamics:
    """A trained one."""
    data = Data(num_envs=8, shard_steps=128, policy="sticky:0.5")
    return train_idm(spec, data, Lesson(minutes=10, steps=80), lambda share, loss: None)[0]


# -- the net -----------------------------------------------------------------------------------------------------------


def test_the_net_learns_to_name_actions_of_play_that_it_has_not_seen(spec, net):
    held = play_clips(spec, "validation", Wanted(num_clips=8, context=3, truth=20, horizon=20), lambda _: None)

    real = read_real(net, held)

    tallies = obedience(real, real, held, (1, 4, 20), None)
    assert tallies["idm"].steps == (4, 20) and tallies["idm"].counts.sum() == 8 * 19  # of steps 2 to 20
    assert tallies["idm"].totals.sum() / tallies["idm"].counts.sum() > 0.85
    assert np.nanmean(real.features, (0, 1)).shape == (FEATURES,) and np.abs(np.nanmean(real.features)) < 1


def test_frames_that_are_played_are_read_like_frames_that_are_kept(spec, net):
    wanted = Wanted(num_clips=6, context=2, truth=9, horizon=9, seed=2)
    reader = Reader(net, 6, 2, 9)

    held = play_clips(spec, "validation", wanted, lambda _: None, [reader.show])

    kept = read_real(net, held)
    assert np.array_equal(reader.reading.named, kept.named, equal_nan=True)
    assert np.isnan(kept.named[:, 0]).all() and not np.isnan(kept.named[:, 2:]).any()  # three frames precede step 2


def test_a_net_comes_back_from_its_file(spec, net, tmp_path):
    inverse_dynamics.save(net, tmp_path / "idm.safetensors", {"steps": "60"})

    loaded, digest = inverse_dynamics.load(tmp_path / "idm.safetensors", spec)

    windows = torch.randint(0, 256, (5, 4, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(loaded.read(windows)[0], net.read(windows)[0])
    assert (tmp_path / "idm.safetensors").stat().st_size < 1_000_000 and len(digest) == 64


def test_a_net_of_another_world_or_a_broken_file_is_refused(spec, net, tmp_path):
    path = tmp_path / "idm.safetensors"
    inverse_dynamics.save(net, path, {})
    with pytest.raises(ConfigMismatch, match="heads"):
        inverse_dynamics.load(path, spec.model_copy(update={"players": ("left", "right")}))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptFile):
        inverse_dynamics.load(path, spec)


def test_players_and_continuous_actions_have_outputs_of_their_own(spec):
    windows = torch.randint(0, 256, (5, 4, 16, 16, 3), dtype=torch.uint8)
    box = ContinuousActions(meanings=("steer", "gas"), low=(-1.0, 0.0), high=(1.0, 4.0))
    duel = InverseDynamics(spec.model_copy(update={"players": ("left", "right")}))
    drive = InverseDynamics(spec.model_copy(update={"actions": box}))

    assert duel.read(windows)[0].shape == (5, 2) and duel.loss(windows, torch.zeros(5, 2, dtype=torch.long)) > 0
    for bias, expected in ((0.0, [0.0, 2.0]), (1.0, [1.0, 4.0])):  # shares of the range
        drive.heads.weight.data.zero_()
        drive.heads.bias.data.fill_(bias)
        assert drive.read(windows)[0][0, 0].tolist() == expected
    assert drive.loss(windows, torch.tensor([[[1.0, 4.0]]]).expand(5, 1, 2)).item() == pytest.approx(0)


# -- what is made of readings ------------------------------------------------------------------------------------------


def clips_of(actions: np.ndarray, context: int, truth: int) -> HeldOut:
    batch, length = len(actions), context - 1 + truth
    clips = Clips(
        observations=np.zeros((batch, length + 1, 16, 16, 3), np.uint8),
        actions=actions[:, :length],
        rewards=np.zeros((batch, length, 1), np.float32),
        terminations=np.zeros((batch, length), bool),
        valid=np.ones((batch, length), bool),
    )
    return HeldOut(clips, context, actions)


def test_obedience_counts_the_actions_before_the_last_frame_while_the_episode_runs():
    held = clips_of(np.array([[[9], [1], [2], [0], [1]], [[9], [2], [2], [2], [2]]]), context=2, truth=4)
    held.clips.valid[1, 3:] = False  # clip 1 ends after step 2
    named = np.array([[[np.nan], [1], [2], [1]], [[np.nan], [0], [2], [2]]], np.float32)
    dreamed = Reading(named, np.zeros((2, 4, FEATURES), np.float32))

    tallies = obedience(dreamed, dreamed, held, (1, 3, 4), None)

    assert tallies["idm"].steps == (3, 4)
    assert tallies["idm"].totals.tolist() == [[2, 0], [0, 0]]  # into step 1 and 2 right, into step 3 wrong
    assert tallies["idm"].counts.tolist() == [[2, 1], [1, 0]]


def test_continuous_actions_are_scored_by_r2():
    actions = np.array([[[[0.0]], [[1.0]], [[0.0]], [[1.0]]]], np.float32)
    held = clips_of(actions, context=1, truth=4)
    named = np.array([[[[np.nan]], [[np.nan]], [[1.0]], [[0.5]]]], np.float32)  # of steps 2 and 3: true 1 and 0
    reading = Reading(named, np.zeros((1, 4, FEATURES), np.float32))

    ratio = obedience(reading, reading, held, (4,), spread(held))["idm"].ratio()

    assert spread(held).tolist() == [[0.25]]
    assert ratio.tolist() == [pytest.approx((1 + (1 - 0.25 / 0.25)) / 2)]


def test_descriptors_average_the_windows_that_lie_within_sixteen_frames():
    held = clips_of(np.zeros((2, 452, 1), int), context=1, truth=20)
    held.clips.valid[1, 10:] = False
    features = np.tile(np.arange(1, 453, dtype=np.float32)[None, :, None], (2, 1, FEATURES))
    features[0, 20] = np.nan  # step 21
    reading = Reading(np.zeros((2, 452, 1), np.float32), features)

    described = describe(reading, reading, held)

    first, minute = described["idm_16"][0], described["idm_450"][0]
    assert first[0, 0, 0] == 10 and np.isnan(first[1]).all()  # windows that end at steps 4 to 16
    assert minute.shape == (2, 28, FEATURES) and np.isnan(minute[0, 1]).all() and minute[0, 2, 0] == 42


@pytest.mark.parametrize("kind", ["duel", "drive"])
def test_worlds_of_several_players_and_of_continuous_actions_are_measured_with_all_rows(
    kind, tiny_config, spec, duel_world
):
    rng = np.random.default_rng(0)
    if kind == "duel":
        model = WorldModel.load(duel_world)
        actions = rng.integers(0, 3, (5, 21, 2))
    else:
        box = ContinuousActions(meanings=("steer", "gas"), low=(-1.0, 0.0), high=(1.0, 1.0))
        model = WorldModel(tiny_config, spec.model_copy(update={"actions": box})).eval()
        actions = rng.uniform(-1, 1, (5, 21, 1, 2)).astype(np.float32)
    held = clips_of(actions, context=4, truth=18)
    held.clips.observations[:] = rng.integers(0, 256, held.clips.observations.shape)
    held = replace(held, clips=replace(held.clips, rewards=np.zeros((5, 21, len(model.spec.players)), np.float32)))
    net = InverseDynamics(model.spec).eval()

    def colours(clips: torch.Tensor) -> np.ndarray:
        assert clips.dtype == torch.uint8 and clips.shape[1:] == (16, 16, 16, 3)
        return clips.float().mean((1, 2, 3)).numpy()

    measured = evaluate.measure(model, held, Sampling(), lambda _: None, evaluate.Tools(net, colours, filmed=2))

    facts = {"source": "x:y", "split": None, "policy": None, "seed": 0, "num_clips": 5, "context": 4, "horizon": 18}
    protocol = Protocol(**facts, temperature=0.0, termination_threshold=0.5)
    report = build(measured, protocol, {"world": "LWM-X-v0", "weights": "0" * 64, "device": "cpu"}, {})
    assert measured.film.shape == (2, 18, 16, 16, 3) and (measured.film[:, 3] == measured.showcase.dreamed[:2, 4]).all()
    assert set(report.rows["idm"]) == {"4", "8", "15", "18"} and report.rows["idm_real"]["18"].value <= 1
    assert set(report.rows["control"]) == {"1", "4", "8", "15"}
    assert set(report.distances) == {"fd_idm", "kd_idm", "fvd_i3d"} and set(report.distances["fvd_i3d"]) == {"16"}
    assert "fd_idm: 16 frames" in as_table(report)


# -- memory ------------------------------------------------------------------------------------------------------------


class Camera:
    """Dreams the gallery as it is, from the place that its context shows; or walks too slowly to the left."""

    reward_values, noise_dim = torch.zeros(1), 1

    def __init__(self, spec, slow: bool) -> None:
        self.spec, self.slow = spec, slow

    def start(self, frames, actions):
        columns = [Gallery.picture[:, place : place + 16] for place in range(385)]
        places = [next(p for p, c in enumerate(columns) if (c == frame[-1].numpy()).all()) for frame in frames]
        return {"at": torch.tensor(places)}

    def step(self, state, action, noise=None, temperature=0.0):
        left = 0 if self.slow else -2
        at = state["at"] + torch.tensor([0, left, 2])[action[:, 0]]
        frames = np.stack([Gallery.picture[:, place : place + 16] for place in at.tolist()])
        none = torch.zeros(len(at))
        return {"at": at}, Output(torch.from_numpy(frames), none[:, None], none[:, None, None], none, none)


def test_a_dream_that_remembers_is_back_at_the_same_place_and_another_is_not(spec):
    def walk(slow: bool):
        games = lambda seed: open_spec_source(spec, 4, seed, "validation")  # noqa: E731
        return memory_walk.walk(Camera(spec, slow), games, Sampling(), 2, lambda _: None, lengths=(4,))

    faithful, forgetful = walk(slow=False), walk(slow=True)

    for tallies in (faithful, forgetful):
        assert tallies["returned"].totals.sum() == 4 and tallies["real"].totals.sum() == 0  # it is the same picture
        assert tallies["gone"].ratio().tolist() == [8]
    assert faithful["dream"].totals.sum() == 0 and faithful["same"].ratio().tolist() == [1]
    assert faithful["place"].ratio()[0] < 0.1
    assert forgetful["dream"].totals.sum() > 0 and forgetful["same"].ratio().tolist() == [0]


def test_worlds_without_left_and_right_do_not_walk(spec):
    box = ContinuousActions(meanings=("steer",), low=(-1.0,), high=(1.0,))
    assert memory_walk.can_walk(spec)
    assert not memory_walk.can_walk(spec.model_copy(update={"players": ("left", "right")}))
    assert not memory_walk.can_walk(spec.model_copy(update={"actions": box}))


# -- the commands ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tiny_world, spec, net, tmp_path_factory):
    """The tiny world with the gallery as its real game, and a net."""
    path = tmp_path_factory.mktemp("gallery") / "world"
    model = WorldModel.load(tiny_world)
    model.spec = spec
    model.save(path, {"data": "random weights of the tests"})
    inverse_dynamics.save(net, path / inverse_dynamics.FILE, {})
    return path


@pytest.mark.slow
def test_the_full_report_has_every_row_that_the_world_allows(world, capsys, tmp_path):
    pytest.importorskip("moviepy")
    size = ("--clips", "8", "--horizon", "20", "--context", "3", "--long-clips", "4", "--long-horizon", "460")

    code = main(["evaluate", str(world), *size, "--full", "--out", str(tmp_path), "--json"])

    report = Report.model_validate_json(capsys.readouterr().out)
    assert code == 0 and report.notes == () and report.protocol.long_clips == 4
    assert list(report.rows["sharpness"]) == ["1", "4", "8", "15", "20", "30", "60", "300", "460"]
    assert report.rows["idm_real"]["20"].value > 0.8 and report.rows["idm_real"]["460"].value > 0.7  # seldom at a wall
    assert report.running_clips["460"] == 0 and report.rows["psnr"]["460"].value is None  # episodes have 200 steps
    assert set(report.distances["fd_idm"]) == {"16", "450"} and report.distances["fd_idm"]["450"].over_floor > 0
    assert set(report.memory) == {"8", "16", "30"} and report.memory["8"].returned > 0
    assert (tmp_path / "report" / "minute-0.mp4").stat().st_size > 1000
    page = (tmp_path / "report" / "index.html").read_text()
    assert 'src="minute-0.mp4"' in page and 'src="obedience.png"' in page and "real cameras back" in page


def test_without_a_net_the_report_says_how_to_make_one(world, net, capsys, tmp_path):
    (world / inverse_dynamics.FILE).unlink()
    try:
        code = main(["evaluate", str(world), "--clips", "2", "--horizon", "4", "--out", str(tmp_path), "--json"])
    finally:
        inverse_dynamics.save(net, world / inverse_dynamics.FILE, {})

    out, err = capsys.readouterr()
    report = json.loads(out)
    assert code == 0 and "idm" not in report["rows"] and "lwm idm" in report["notes"][0] and "lwm idm" in err


def test_a_net_is_trained_by_a_command_and_kept_when_the_world_is_written_again(world, capsys, tmp_path):
    code = main(["idm", str(world), "--steps", "2", "--json"])

    facts = json.loads(capsys.readouterr().out)
    assert code == 0 and facts["steps"] == 2 and facts["bytes"] < 1_000_000
    before = (world / inverse_dynamics.FILE).read_bytes()
    model = WorldModel.load(world)
    model.save(world, {"data": "again"})
    assert (world / inverse_dynamics.FILE).read_bytes() == before


def test_what_cannot_be_is_told_before_the_work(world, capsys, tmp_path):
    (tmp_path / "recipe.toml").write_text("")
    (tmp_path / "i3d.pt").write_text("not a network")

    assert main(["evaluate", str(world), "--full", "--store", str(tmp_path)]) == 1
    assert "--store" in capsys.readouterr().err
    assert main(["evaluate", str(world), "--i3d", str(tmp_path / "i3d.pt"), "--out", str(tmp_path)]) == 1
    assert "no TorchScript file" in capsys.readouterr().err
    assert main(["evaluate", str(world), "--idm", str(tmp_path / "absent"), "--out", str(tmp_path)]) == 1
    assert "is missing" in capsys.readouterr().err


def test_real_frames_beyond_the_truth_are_kept_where_they_are_asked_for(spec):
    wanted = Wanted(num_clips=3, context=2, truth=4, horizon=10, far=(6, 10))
    film = []

    held = play_clips(spec, "validation", wanted, lambda _: None, [lambda *shown: film.append(shown)])

    for column, step in enumerate(wanted.far):
        seen = {
            int(c): f
            for clips, at, frames, _ in film
            for c, i, f in zip(clips, at, frames, strict=True)
            if i == step + 1
        }
        assert all((held.far.frames[clip, column] == seen[clip]).all() for clip in range(3))
    assert held.far.valid.all() and replace(held, far=None).far is None


def test_the_gallery_has_a_row_for_every_world_whatever_its_players(tiny_world, duel_world, capsys, tmp_path):
    out = tmp_path / "gallery.png"

    code = main(["gallery", str(tiny_world), str(duel_world), "--frames", "3", "--every", "0.2", "--out", str(out)])

    with Image.open(out) as picture:
        assert code == 0 and picture.size == (3 * (16 + 2) * 8, 2 * (128 + 14))
    assert out.stat().st_size < 100_000
    assert main(["gallery", str(tiny_world), "--frames", "1", "--out", str(tmp_path / "no" / "gallery.png")]) == 1
    assert "--out" in capsys.readouterr().err

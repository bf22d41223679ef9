"""Pictures that a world knows and pictures that it does not, and dreams that start from files."""

import warnings
from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

import lwm_env
from lwm_env import familiar
from lwm_env.cli import main as lwm
from lwm_env.demo import write_video
from lwm_env.engine import Engine
from lwm_env.envs.loading import load_world
from lwm_env.errors import InvalidInput, UnfamiliarPrompt
from lwm_env.prompt_file import NUM_FRAMES, read_prompt

WORLD = "LWM-Platformer-v0"


@pytest.fixture(scope="module")
def model():
    return load_world(WORLD, torch.device("cpu"))


def strange() -> dict[str, np.ndarray]:
    """Pictures of no platformer: noise, smooth colours as of a sky, one colour."""
    rng = np.random.default_rng(0)
    down, right = np.mgrid[0:64, 0:64][..., None] / 63
    sky = (1 - down) * (250, 190, 120) + down * (40, 70, 160) + 20 * right
    flat = np.full((64, 64, 3), (200, 30, 120), np.uint8)
    return {
        "noise": rng.integers(0, 256, (64, 64, 3), np.uint8),
        "sky": sky.clip(0, 255).astype(np.uint8),
        "flat": flat,
    }


def known(model) -> np.ndarray:
    return model.prompts.frames[3].numpy()


# -- the measure -------------------------------------------------------------------------------------------------------


def test_the_platformer_knows_its_own_prompts_and_no_strange_picture(model):
    assert familiar.unfamiliar(model, model.prompts.frames[:, -1]) is None
    for picture in strange().values():
        told = familiar.unfamiliar(model, torch.from_numpy(picture)[None])
        assert told.startswith(f"{WORLD} was not trained on pictures like this one") and "CoinrunEasy" in told


@pytest.mark.skipif(not find_spec("envpool"), reason="needs the extra `data`")
def test_the_platformer_knows_real_coinrun_and_no_other_game(model):
    from lwm_training.sources import open_source

    shares = {}
    for game in ("CoinrunEasy", "JumperEasy", "BossfightEasy"):
        source = open_source(f"envpool:{game}-v0", 64, 5, {"start_level": 500_000_000, "num_levels": 100_000_000})
        frames = torch.from_numpy(source.reset())
        source.close()
        worse = familiar.reconstruction_psnr(model, frames) < familiar.least_psnr(model)
        shares[game] = float(worse.double().mean())

    assert shares["CoinrunEasy"] <= 0.05 and shares["JumperEasy"] == shares["BossfightEasy"] == 1


def test_a_world_without_prompts_warns_of_nothing(tiny_world):
    from lwm_env.world_model import WorldModel

    bare = WorldModel.load(tiny_world)
    bare.prompts = None

    assert familiar.unfamiliar(bare, torch.zeros(1, 16, 16, 3, dtype=torch.uint8)) is None


# -- resets ------------------------------------------------------------------------------------------------------------


def test_a_reset_warns_of_strange_frames_and_dreams_what_it_would_have_dreamed(model):
    frames = strange()["noise"][None]
    env = gym.make(WORLD)

    with pytest.warns(UnfamiliarPrompt, match="dB"):
        env.reset(seed=4, options={"frames": frames})

    engine = Engine(model)
    engine.reset(np.ones(1, bool), [4], (torch.from_numpy(frames)[None], torch.zeros(1, 0, 1, dtype=torch.int64)))
    assert env.unwrapped.get_state() == engine.get_state()


def test_a_normal_reset_and_one_from_known_frames_warn_of_nothing(model):
    env = gym.make(WORLD)
    parallel = lwm_env.parallel_env(WORLD)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UnfamiliarPrompt)
        env.reset(seed=0)
        env.reset(options={"frames": known(model)[-1:]})
        parallel.reset(seed=0, options={"frames": known(model)[-1:]})
    with pytest.warns(UnfamiliarPrompt):
        parallel.reset(seed=0, options={"frames": strange()["sky"][None]})


def test_a_vector_env_warns_of_the_slots_that_are_reset(model):
    envs = gym.make_vec(WORLD, num_envs=2)
    frames = np.stack([known(model)[-1:], strange()["noise"][None]])
    envs.reset(seed=0)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UnfamiliarPrompt)
        envs.reset(options={"frames": frames, "reset_mask": np.array([True, False])})
    with pytest.warns(UnfamiliarPrompt):
        envs.reset(options={"frames": frames})


def test_a_normal_reset_measures_nothing(tiny_world, monkeypatch):
    def measured(*_):
        raise AssertionError("a reset without frames measured pictures")

    monkeypatch.setattr(familiar, "reconstruction_psnr", measured)
    env = lwm_env.parallel_env(str(tiny_world))
    env.reset(seed=0)
    env.reset()


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_picture_is_cropped_to_the_shape_of_the_world(tmp_path, tiny_spec):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")

    prompt = read_prompt(tmp_path / "wide.png", tiny_spec)

    assert prompt["frames"].shape == (1, 16, 16, 3) and prompt["frames"].min() > 200
    assert prompt["actions"].shape == (0,)


def test_a_clip_is_read_at_the_rate_of_the_world_and_its_end_is_taken(tmp_path, tiny_spec):
    grey = [np.full((32, 32, 3), 8 * i, np.uint8) for i in range(30)]
    first, *rest = map(Image.fromarray, grey)
    first.save(tmp_path / "clip.gif", save_all=True, append_images=rest, duration=200)  # 5 pictures a second

    prompt = read_prompt(tmp_path / "clip.gif", tiny_spec.model_copy(update={"render_fps": 10}))

    values = prompt["frames"].mean((1, 2, 3)).round().tolist()
    assert len(values) == NUM_FRAMES and values[-4:] == [8 * 28, 8 * 28, 8 * 29, 8 * 29]
    assert prompt["actions"].tolist() == [0] * (NUM_FRAMES - 1)
    two = tiny_spec.model_copy(update={"players": ("left", "right")})
    assert read_prompt(tmp_path / "clip.gif", two)["actions"].shape == (NUM_FRAMES - 1, 2)


def test_a_video_is_read(tmp_path, tiny_spec):
    pytest.importorskip("moviepy", reason="needs the extra `video`")
    write_video(tmp_path / "clip.mp4", [np.full((64, 64, 3), 10 * i, np.uint8) for i in range(20)], fps=15)

    frames = read_prompt(tmp_path / "clip.mp4", tiny_spec)["frames"]

    assert frames.shape == (NUM_FRAMES, 16, 16, 3) and abs(frames[-1].mean() - 190) < 12


@pytest.mark.parametrize("name", ["absent.png", "text.png", "text.mp4", "long.gif"])
def test_files_that_cannot_be_taken_are_told(tmp_path, tiny_spec, name):
    if name.startswith("text"):
        (tmp_path / name).write_text("no picture")
    if name == "long.gif":
        pictures = [Image.new("L", (8, 8), i) for i in range(4)]
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=20_000)

    with pytest.raises(InvalidInput, match=name):
        read_prompt(tmp_path / name, tiny_spec)


def test_demo_and_headless_play_begin_at_a_picture_and_warn(tmp_path, capsys):
    pytest.importorskip("moviepy", reason="needs the extra `video`")
    Image.fromarray(strange()["noise"]).save(tmp_path / "noise.png")
    given = ["--from", str(tmp_path / "noise.png"), "--seconds", "0.2"]

    assert lwm(["demo", "--out", str(tmp_path / "a.mp4"), *given]) == 0
    assert capsys.readouterr().err.count(f"warning: {WORLD} was not trained on pictures like this one") == 1
    assert lwm(["play", WORLD, "--headless", str(tmp_path / "b.mp4"), *given]) == 0
    assert "warning:" in capsys.readouterr().err and (tmp_path / "b.mp4").stat().st_size > 1000

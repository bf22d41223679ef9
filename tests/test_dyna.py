"""`lwm agent train --refresh`: the world is renewed with what the policy saw of the real game."""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("accelerate", reason="needs the extra `train`")
pytest.importorskip("h5py", reason="needs the extra `data`")
from lwm_agents.agent import read_facts
from lwm_agents.dyna import RefreshConfig, train_with_refresh
from lwm_agents.imagination import ImaginationConfig
from lwm_env import cli, worlds
from lwm_env.errors import InvalidInput
from lwm_env.spec import RealSource
from lwm_env.world_model import WorldModel

GAME = '''
"""A picture that gets lighter or darker; it ends at either end."""
import gymnasium as gym
import numpy as np

class Light(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.level = int(self.np_random.integers(3, 8))
        return self._frame(), {}

    def step(self, action):
        self.level += (0, -1, 1)[action]
        return self._frame(), 10.0 * (self.level == 10), self.level in (0, 10), False, {}

    def _frame(self):
        return np.full((16, 16, 3), 25 * self.level, np.uint8)

gym.register("Light-v0", Light)
'''
CONFIG = ImaginationConfig(num_steps=32, num_envs=2, horizon=6)
FAST = {"n_steps": 8, "batch_size": 16, "n_epochs": 1}


@pytest.fixture
def game_world(tiny_world, tmp_path, monkeypatch) -> str:
    """A tiny world whose real game is the one above, importable in subprocesses."""
    (tmp_path / "our_light.py").write_text(GAME)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    model = WorldModel.load(tiny_world)
    how = {"termination_threshold": 0.3, "draw_ends": True, "temperature": 0.5}
    model.spec = model.spec.model_copy(update={"real": RealSource(source="gymnasium:our_light:Light-v0"), **how})
    model.save(tmp_path / "start", provenance={"data": "random weights of the tests"})
    return str(tmp_path / "start")


def recipe_of(world: str) -> str:
    """A recipe of one short stage that makes such a world."""
    spec = worlds.read_spec(worlds.find(world))
    return f"""
[world]
id = "{spec.id}"
description = "{spec.description}"
frame_size = [16, 16]
reward_values = [0.0, 10.0]
max_episode_steps = 20
real.source = "{spec.real.source}"
actions = {{ kind = "discrete", meanings = ["NOOP", "LEFT", "RIGHT"], source_actions = [0, 1, 2] }}

[model.overrides]
margin = 8
tokenizer = {{ encoder_dim = 8, encoder_blocks = 1, fine_dim = 8, decoder_dim = 8, decoder_blocks = 1 }}
motion = {{ dim = 8, bottleneck_dim = 16, bottleneck_blocks = 1 }}
dynamics = {{ dim = 8, blocks = 1, event_dim = 8 }}

[train]
batch_size = 2
stages = [{{ name = "all", trains = "joint", steps = 1, learning_rate = 1e-3, context = 2, unroll = 2 }}]
"""


@pytest.mark.slow
def test_the_policy_goes_on_in_a_world_that_learned_from_its_play(game_world, tmp_path):
    (tmp_path / "recipe.toml").write_text(recipe_of(game_world))
    refresh = RefreshConfig(recipe=tmp_path / "recipe.toml", num_rounds=1, num_frames=200, num_envs=2)
    run = tmp_path / "run"

    model = train_with_refresh(game_world, run, CONFIG, refresh, "cpu", **FAST)

    first, second = (read_facts(run / f"round-{index}" / "agent") for index in (0, 1))
    renewed = worlds.read_manifest(run / "round-0" / "world")
    assert (first["num_timesteps"], second["num_timesteps"], model.num_timesteps) == (16, 32, 32)
    assert second["weights"] == renewed.files["model.safetensors"].sha256 != first["weights"]
    assert renewed.provenance["started_from"]["weights"] == first["weights"]
    spec = worlds.read_spec(run / "round-0" / "world")
    assert (spec.termination_threshold, spec.draw_ends, spec.temperature) == (0.3, True, 0.5)  # the recipe says neither
    assert read_facts(run / "agent")["real_frames"] == 200
    (manifest,) = (run / "data").glob("*.json")
    assert json.loads(manifest.read_text())["sessions"][0]["policy"].startswith("mix:0.7*sb3:ppo:")


@pytest.mark.slow
def test_a_gain_counts_the_frames_that_renewed_the_dream(game_world, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "recipe.toml").write_text(recipe_of(game_world))
    options = {"--seeds": 1, "--steps": 256, "--envs": 2, "--horizon": 6, "--episodes": 2, "--frames": 128}
    options |= {"--refresh": 1, "--real-frames": 200, "--recipe": tmp_path / "recipe.toml", "--out": tmp_path / "gain"}
    words = ["agent", "gain", game_world, *(str(word) for pair in options.items() for word in pair), "--device", "cpu"]

    assert cli.main(words) == 0

    found = json.loads((tmp_path / "gain" / "gain.json").read_text())
    assert {kind: each["frames"] for kind, each in found["lines"].items()} == {
        "real": [0, 128],
        "dream": [0, 128],
        "renewed": [200, 328],
    }
    (agent,) = (tmp_path / "gain" / "seed-0").glob("renewed-*/agent")
    assert read_facts(agent)["num_timesteps"] == 256 and Path(read_facts(agent)["world"]).parent.name == "round-0"
    assert "a renewed dream" in (tmp_path / "gain" / "gain.md").read_text()


def test_what_cannot_work_is_refused(game_world, tmp_path):
    with pytest.raises(InvalidInput, match="rounds"):
        RefreshConfig(recipe=tmp_path, num_rounds=0)
    assert cli.main(["agent", "train", game_world, "--refresh", "1"]) == 2

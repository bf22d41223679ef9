"""`lwm agent`: a policy learns in a dream, is kept, resumed, refused where it does not fit, and measured."""

import json

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
from lwm_agents.agent import load_agent, make_ppo, read_facts
from lwm_agents.evaluation import play
from lwm_agents.imagination import Honest, ImaginationConfig, train_in_dream, train_in_real
from lwm_agents.sb3 import SB3VecEnv
from lwm_env import cli
from lwm_env.envs import LwmVectorEnv
from lwm_env.errors import ConfigMismatch, CorruptFile, UnknownWorld

FAST = {"n_steps": 8, "batch_size": 16, "n_epochs": 1}
CONFIG = {"num_steps": 32, "num_envs": 2, "horizon": 6, "save_every": 16}


@pytest.fixture(scope="module")
def run(tiny_world, tmp_path_factory):
    """A finished run of 32 steps."""
    folder = tmp_path_factory.mktemp("run")
    train_in_dream(str(tiny_world), folder, ImaginationConfig(**CONFIG), "cpu", **FAST)
    return folder


def real_twin(world, num_envs, seed, split, autoreset_mode):
    """Stands for the real game."""
    assert split == "validation"
    return LwmVectorEnv(world, num_envs, autoreset_mode=autoreset_mode, max_episode_steps=6)


def test_a_run_leaves_an_agent_and_a_log(run, tiny_spec):
    facts = read_facts(run / "agent")

    assert facts["num_timesteps"] == 32 and facts["world"] == tiny_spec.id
    assert list((run / "tensorboard").rglob("events*"))


def test_the_same_settings_train_in_the_real_game(tiny_world, tiny_spec, tmp_path):
    made = []

    def make_real(world, num_envs, seed, split, autoreset_mode):
        made.append((num_envs, seed, split))
        return LwmVectorEnv(world, num_envs, autoreset_mode=autoreset_mode)

    model = train_in_real(str(tiny_world), make_real, tmp_path, ImaginationConfig(**CONFIG), "cpu", **FAST)
    facts = read_facts(tmp_path / "agent")

    assert made == [(2, 0, "train")] and model.num_timesteps == facts["num_timesteps"] == 32
    assert facts["real"].endswith("make_real") and facts["world"] == tiny_spec.id and facts["seconds"] > 0


def test_a_second_call_goes_on_and_a_finished_run_stays(run, tiny_world):
    before = (run / "agent" / "policy.safetensors").read_bytes()

    same = train_in_dream(str(tiny_world), run, ImaginationConfig(**CONFIG), "cpu", **FAST)
    assert same.num_timesteps == 32 and (run / "agent" / "policy.safetensors").read_bytes() == before
    longer = ImaginationConfig(**{**CONFIG, "num_steps": 64})
    more = train_in_dream(str(tiny_world), run, longer, "cpu", **FAST)

    assert more.num_timesteps == read_facts(run / "agent")["num_timesteps"] == 64
    with pytest.raises(ConfigMismatch, match="config"):
        train_in_dream(str(tiny_world), run, ImaginationConfig(**{**CONFIG, "seed": 1}), "cpu", **FAST)


def test_a_loaded_agent_acts_as_it_did(run, tiny_world):
    envs = SB3VecEnv(tiny_world, 2)
    first, second = (make_ppo(envs, seed, "cpu", **FAST) for seed in (0, 1))
    for model in (first, second):
        load_agent(run / "agent", model)

    observations, states = envs.reset(), [model.policy.state_dict() for model in (first, second)]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    actions = [model.predict(observations, deterministic=True)[0].tolist() for model in (first, second)]
    assert actions[0] == actions[1]


def test_an_agent_that_does_not_fit_or_is_damaged_is_refused(run, tiny_world, tmp_path):
    model = make_ppo(SB3VecEnv(tiny_world, 1), 0, "cpu")
    with pytest.raises(UnknownWorld, match="lwm agent train"):
        load_agent(tmp_path / "nothing", model)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("agent.json", "policy.safetensors"):
        (damaged / name).write_bytes((run / "agent" / name).read_bytes())
    facts = json.loads((damaged / "agent.json").read_text())
    (damaged / "agent.json").write_text(json.dumps({**facts, "spaces": {"observations": "Box", "actions": "Box"}}))
    with pytest.raises(ConfigMismatch, match="spaces"):
        load_agent(damaged, model)
    (damaged / "agent.json").write_text(json.dumps(facts))
    (damaged / "policy.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CorruptFile, match="damaged"):
        load_agent(damaged, model)


def test_rewards_are_scaled_and_surprise_costs(tiny_world, tiny_spec):
    envs, plain = Honest(SB3VecEnv(tiny_world, 2), tiny_spec, 0.5), SB3VecEnv(tiny_world, 2)
    for each in (envs, plain):
        each.seed(0)
        each.reset()

    rewards, raw = envs.step(np.ones(2, int))[1], plain.step(np.ones(2, int))[1]

    assert np.allclose(rewards, raw / 10 - 0.5 * plain.step_infos["surprise"])


def test_each_env_plays_its_share_of_the_episodes(tiny_world):
    envs = LwmVectorEnv(tiny_world, 2, autoreset_mode="SAME_STEP", max_episode_steps=4)

    first, second = (play(None, envs, 5, seed=1).summary() for _ in range(2))

    assert first["num_episodes"] == 5 and 1 <= first["length"] <= 4
    assert {**first, "steps_per_second": 0} == {**second, "steps_per_second": 0}


def test_the_commands_evaluate_in_the_dream_and_in_the_real_game(run, tiny_world, capsys, monkeypatch):
    args = ["agent", "evaluate", str(tiny_world), "--agent", str(run / "agent"), "--episodes", "3", "--envs", "2"]
    monkeypatch.setattr("lwm_agents.commands._resolve", lambda name: real_twin)

    assert cli.main([*args, "--device", "cpu", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]

    assert list(results) == ["dream, agent", "dream, random", "real, agent", "real, random"]
    assert all(row["num_episodes"] == 3 for row in results.values())
    monkeypatch.undo()
    assert cli.main([*args, "--where", "real", "--real", "nothing:here"]) == 1
    assert "MODULE:FUNCTION" in capsys.readouterr().err

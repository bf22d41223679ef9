"""Stable-Baselines3 on the worlds: what its own DummyVecEnv gives, from one batch; PPO learns unmodified."""

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, is_vecenv_wrapped

from lwm_agents.sb3 import SB3VecEnv
from lwm_env.envs import LwmEnv, LwmVectorEnv
from lwm_env.errors import InvalidInput, WrongOrder

POLICY = {"policy_kwargs": {"normalize_images": False, "net_arch": [8]}, "device": "cpu"}  # 16x16 is small for a CNN


@pytest.fixture
def envs(tiny_world) -> SB3VecEnv:
    """Three envs of the tiny world."""
    return SB3VecEnv(tiny_world, 3, temperature=1.0, render_mode="rgb_array")


def monitored(world, seed: int):
    """What SB3's users have without the adapter."""
    make = lambda: Monitor(gym.wrappers.TimeLimit(LwmEnv(str(world), temperature=1.0), 20))  # noqa: E731
    envs = DummyVecEnv([make] * 3)
    envs.seed(seed)
    return envs


def test_it_gives_what_dummy_vec_env_gives(envs, tiny_world):
    theirs, ended = monitored(tiny_world, 4), 0
    envs.seed(4)
    assert np.array_equal(envs.reset(), theirs.reset())
    assert envs.reset_infos == theirs.reset_infos
    for actions in np.random.default_rng(0).integers(0, 3, (45, 3)):
        ours, expected = envs.step(actions), theirs.step(actions)
        for mine, his in zip(ours[:3], expected[:3], strict=True):
            assert mine.dtype == his.dtype and np.array_equal(mine, his)
        for i, (mine, his) in enumerate(zip(ours[3], expected[3], strict=True)):
            assert mine["TimeLimit.truncated"] == his["TimeLimit.truncated"]
            assert ("terminal_observation" in mine) == ("terminal_observation" in his) == ours[2][i]
            if ours[2][i]:
                ended += 1
                assert np.array_equal(mine["terminal_observation"], his["terminal_observation"])
                assert [mine["episode"][key] for key in "rl"] == [his["episode"][key] for key in "rl"]
                assert (mine["surprise"], mine["error"]) == (his["surprise"], his["error"])
            elif not expected[2][i]:
                assert envs.step_infos["surprise"][i] == his["surprise"]
    assert ended


def test_a_time_limit_is_told_apart_from_an_end(tiny_world, envs):
    short = SB3VecEnv(tiny_world, 2, max_episode_steps=1)
    short.reset()

    _, _, dones, infos = short.step(np.zeros(2, int))

    assert dones.all()
    for info in infos:
        assert info["TimeLimit.truncated"] == (info["termination_prob"] < short.envs.world_spec.termination_threshold)


def test_seeds_are_those_of_the_envs_and_are_used_once(envs):
    assert envs.seed(7) == [7, 8, 9]
    first = envs.reset()
    assert envs.get_attr("np_random_seed") == [7, 8, 9]
    second = envs.reset()
    envs.seed(7)

    assert np.array_equal(envs.reset(), first)
    assert np.array_equal(envs.reset(), second)


def test_worlds_start_from_frames_by_options(envs):
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 16, 16, 3), dtype=np.uint8)
    envs.set_options([{"frames": frames[i], "actions": [i]} for i in range(3)])

    assert np.array_equal(envs.reset(), frames[:, -1])
    envs.set_options([{"frames": frames[0], "actions": [0]}, {}, {}])
    with pytest.raises(InvalidInput, match="keys"):
        envs.reset()


def test_single_envs_are_reached_by_name_and_index(envs):
    envs.reset()
    states = envs.env_method("get_state")

    envs.env_method("set_state", states[0], indices=2)

    assert envs.env_method("get_state", indices=[2, 1]) == [states[0], states[1]]
    assert envs.get_attr("render_mode", indices=1) == ["rgb_array"] and envs.has_attr("temperature")
    assert envs.env_method("get_action_meanings", indices=[0]) == [["NOOP", "LEFT", "RIGHT"]]
    envs.set_attr("label", "a")
    envs.set_attr("label", "b", indices=1)
    assert envs.get_attr("label") == ["a", "b", "a"] and not envs.has_attr("nonsense")
    assert envs.env_is_wrapped(Monitor) == [True] * 3 and envs.env_is_wrapped(gym.Wrapper, 0) == [False]
    assert len(envs.get_images()) == 3 and envs.render().shape == (32, 32, 3)


def test_misuse_is_refused(envs, tiny_world):
    with pytest.raises(WrongOrder, match="step_async"):
        envs.step_wait()
    with pytest.raises(WrongOrder, match="reset"):
        envs.step(np.zeros(3, int))
    for world, arguments, told in (
        (LwmVectorEnv(tiny_world, 2), {}, "SAME_STEP"),
        (LwmVectorEnv(tiny_world, 2, autoreset_mode="SAME_STEP", output="torch"), {}, "numpy"),
        (LwmVectorEnv(tiny_world, 2, autoreset_mode="SAME_STEP"), {"num_envs": 3}, "num_envs"),
        (tiny_world, {"autoreset_mode": "NEXT_STEP"}, "same step"),
    ):
        with pytest.raises(InvalidInput, match=told):
            SB3VecEnv(world, **arguments)
    envs.close()
    envs.close()
    with pytest.raises(WrongOrder, match="closed"):
        envs.reset()


def test_a_pickle_resumes(envs):
    envs.seed(0)
    envs.reset()
    for _ in range(3):
        envs.step(np.ones(3, int))

    copy = pickle.loads(pickle.dumps(envs))

    for _ in range(20):
        ours, theirs = envs.step(np.ones(3, int)), copy.step(np.ones(3, int))
        assert all(np.array_equal(x, y) for x, y in zip(ours[:3], theirs[:3], strict=True))
        assert [i.get("episode", {}).get("r") for i in ours[3]] == [i.get("episode", {}).get("r") for i in theirs[3]]


def test_ppo_learns_saves_and_is_evaluated(envs, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PPO("MlpPolicy", envs, n_steps=16, batch_size=12, n_epochs=1, seed=0, **POLICY)
        model.learn(96)
        model.save(tmp_path / "policy.zip")
        returns, lengths = evaluate_policy(model, envs, n_eval_episodes=4, return_episode_rewards=True)

    assert len(model.ep_info_buffer) and all(1 <= info["l"] <= 20 for info in model.ep_info_buffer)
    assert len(returns) == 4 and all(1 <= length <= 20 for length in lengths)
    again = PPO.load(tmp_path / "policy.zip", env=envs, device="cpu")
    assert again.learn(48, reset_num_timesteps=False).num_timesteps == 144
    assert not is_vecenv_wrapped(envs, VecMonitor)


@pytest.mark.slow
def test_ppo_with_a_cnn_runs_unmodified_on_a_shipped_world():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PPO("CnnPolicy", SB3VecEnv("LWM-Platformer-v0", num_envs=2), n_steps=8, batch_size=16, n_epochs=1)
        model.learn(16)

    assert model.num_timesteps == 16

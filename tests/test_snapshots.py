"""Pickles, snapshots and forks of the envs, and the single envs inside a vector env."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from lwm_env.envs import LwmEnv, LwmVectorEnv
from lwm_env.errors import InvalidInput, WrongOrder
from lwm_env.world_model import WorldModel

PLAN = np.random.default_rng(5).integers(0, 3, (20, 3))


@pytest.fixture(scope="module")
def endless(tiny_world, tmp_path_factory) -> str:
    """The tiny world, its episodes without an end."""
    return with_threshold(tiny_world, tmp_path_factory, 1.0)


@pytest.fixture(scope="module")
def brief(tiny_world, tmp_path_factory) -> str:
    """The tiny world, its episodes over with the first step."""
    return with_threshold(tiny_world, tmp_path_factory, 0.0)


def with_threshold(tiny_world, tmp_path_factory, threshold: float) -> str:
    model = WorldModel.load(tiny_world)
    model.spec = model.spec.model_copy(update={"termination_threshold": threshold})
    path = tmp_path_factory.mktemp("worlds") / "changed"
    model.save(path, provenance={})
    return str(path)


@pytest.fixture
def envs(endless) -> LwmVectorEnv:
    """Three envs in the middle of their episodes."""
    envs = LwmVectorEnv(endless, 3, temperature=1.0, render_mode="rgb_array")
    envs.reset(seed=0)
    envs.step(np.array([0, 1, 2]))
    return envs


def play(env: gym.Env, num_steps: int, action: int = 2) -> bytes:
    """Everything that `num_steps` of one action give, as bytes."""
    seen = []
    for _ in range(num_steps):
        observation, *rest = env.step(action)
        seen += [observation.tobytes(), repr(rest).encode()]
    return b"".join(seen)


def follow(envs: LwmVectorEnv, actions: np.ndarray) -> list[bytes]:
    """Observations, rewards, terminations and truncations of every step."""
    return [b"".join(column.tobytes() for column in envs.step(row)[:4]) for row in actions]


# -- single envs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy])
def test_a_pickle_resumes_in_the_middle_of_an_episode(endless, duplicate):
    spec = EnvSpec("lwm-tests/Endless-v0", "lwm_env.envs.env:LwmEnv", max_episode_steps=20, kwargs={"world": endless})
    env = gym.make(spec, temperature=1.0, render_mode="rgb_array")
    env.reset(seed=3)
    env.unwrapped.temperature = 0.5
    env.step(1)
    other = duplicate(env)

    assert (other.render() == env.render()).all()
    assert other.spec == env.spec and other.unwrapped.temperature == 0.5
    assert other.unwrapped.get_state() == env.unwrapped.get_state()
    assert play(other, 3) == play(env, 3)
    assert (other.reset()[0] == env.reset()[0]).all()
    assert play(other, 3) == play(env, 3)
    assert other.np_random.random() == env.np_random.random()


def test_closed_and_fresh_envs_can_be_pickled(endless):
    fresh, closed = LwmEnv(endless), LwmEnv(endless)
    closed.close()

    with pytest.raises(WrongOrder, match="reset"):
        pickle.loads(pickle.dumps(fresh)).step(0)
    with pytest.raises(WrongOrder, match="closed"):
        pickle.loads(pickle.dumps(closed)).reset()


def test_a_snapshot_goes_back_in_time_and_into_a_fresh_env(endless):
    env, fresh = LwmEnv(endless, temperature=1.0), LwmEnv(endless, temperature=1.0, render_mode="rgb_array")
    env.reset(seed=4)
    play(env, 3)
    state = env.get_state()
    expected = play(env, 5)

    env.set_state(state)
    fresh.set_state(state)

    assert play(env, 5) == expected == play(fresh, 5)
    assert env.get_state() == fresh.get_state()


def test_a_snapshot_remembers_that_the_episode_is_over(brief):
    env, fresh = LwmEnv(brief), LwmEnv(brief)
    env.reset(seed=0)
    env.step(0)

    fresh.set_state(env.get_state())

    with pytest.raises(WrongOrder, match="after the end"):
        fresh.step(0)


# -- vector envs -------------------------------------------------------------------------------------------------------


def test_a_fork_goes_on_like_its_source(envs):
    envs.fork(source=0, targets=[2])

    observations = envs.step(np.array([1, 1, 1]))[0]

    assert np.array_equal(observations[0], observations[2]) and not np.array_equal(observations[0], observations[1])


def test_a_snapshot_of_a_single_env_continues_in_a_slot(envs, endless):
    env = LwmEnv(endless, temperature=1.0)
    env.reset(seed=77)

    envs.set_state(env.get_state(), 1)

    assert np.array_equal(envs.step(np.array([2, 2, 2]))[0][1], env.step(2)[0])
    assert envs.get_state(1) == env.get_state()


@pytest.mark.parametrize("duplicate", [lambda envs: pickle.loads(pickle.dumps(envs)), copy.deepcopy])
def test_a_pickle_resumes_where_it_was(endless, duplicate):
    envs = LwmVectorEnv(endless, 3, temperature=1.0, max_episode_steps=5)
    envs.reset(seed=0)
    follow(envs, PLAN[:7])
    envs.set_attr("my_label", "x")

    other = duplicate(envs)

    assert follow(other, PLAN) == follow(envs, PLAN)
    assert other.get_attr("my_label") == ("x", "x", "x") and other.max_episode_steps == 5
    envs.close()
    with pytest.raises(WrongOrder):
        duplicate(envs).reset()


def test_single_envs_are_reached_by_name(envs):
    assert envs.call("get_action_meanings")[2] == ["NOOP", "LEFT", "RIGHT"]
    assert len(envs.call("render")) == 3 and np.array_equal(envs.call("render")[1], envs.render()[1])
    assert envs.get_attr("action_space") == (envs.single_action_space,) * 3
    assert envs.get_attr("temperature") == (1.0,) * 3
    envs.set_attr("temperature", 0.5)
    envs.set_attr("my_label", ["a", "b", "c"])
    assert envs.temperature == 0.5 and envs.get_attr("my_label") == ("a", "b", "c")
    with pytest.raises(AttributeError, match="nonsense"):
        envs.get_attr("nonsense")
    with pytest.raises(AttributeError, match="step"):
        envs.call("step", 0)
    for name, values in (("temperature", [0, 1, 2]), ("my_label", [1]), ("action_space", 1), ("step", 1)):
        with pytest.raises(InvalidInput):
            envs.set_attr(name, values)

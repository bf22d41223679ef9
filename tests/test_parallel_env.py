"""The PettingZoo env: its own checks, several players in one world, misuse."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test

from lwm_env.envs import LwmEnv
from lwm_env.envs.parallel_env import LwmParallelEnv
from lwm_env.errors import InvalidInput, WrongOrder
from lwm_env.world_model import Prompts, WorldModel


@pytest.fixture(scope="module")
def duel(tiny_config, tiny_spec, tmp_path_factory) -> str:
    """A tiny world of two players, whose episodes end by time alone."""
    spec = tiny_spec.model_copy(update={"players": ("left", "right"), "termination_threshold": 1.0, "temperature": 1.0})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(tiny_config, spec).requires_grad_(False)
        for weight in model.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.3)
        frames = torch.randint(0, 256, (4, 3, 16, 16, 3), dtype=torch.uint8)
        model.prompts = Prompts(frames, torch.randint(0, 3, (4, 2, 2)))
    path = tmp_path_factory.mktemp("worlds") / "duel"
    model.save(path, provenance={})
    return str(path)


def test_pettingzoos_checks_have_nothing_to_say(duel, tiny_world):
    for world in (duel, str(tiny_world)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parallel_api_test(LwmParallelEnv(world), num_cycles=60)
            parallel_seed_test(lambda world=world: LwmParallelEnv(world), num_cycles=10)


def test_a_world_of_one_player_is_an_env_of_one_agent(tiny_world):
    parallel, single = LwmParallelEnv(str(tiny_world)), LwmEnv(str(tiny_world))

    observations, infos = parallel.reset(seed=4)
    observation, info = single.reset(seed=4)
    results, expected = parallel.step({"player_0": 2}), single.step(2)

    assert (observations["player_0"] == observation).all() and infos["player_0"] == info
    assert (results[0]["player_0"] == expected[0]).all()
    assert [result["player_0"] for result in results[1:]] == list(expected[1:])


def test_every_player_matters_and_sees_a_copy_of_the_same_frame(duel):
    env, frames = LwmParallelEnv(duel), []
    for left, right in ((0, 0), (1, 0), (0, 1)):
        env.reset(seed=0)
        observations = env.step({"right": right, "left": left})[0]
        frames.append(observations["left"].tobytes())
        assert (observations["left"] == observations["right"]).all()
        assert not np.shares_memory(observations["left"], observations["right"])

    assert len(set(frames)) == 3


def test_the_episode_ends_for_all_at_its_limit_of_cycles(duel):
    env = LwmParallelEnv(duel, max_cycles=2)
    env.reset(seed=0)
    for truncated in (False, True):
        _, rewards, terminations, truncations, _ = env.step({"left": 0, "right": 0})
        assert truncations == {"left": truncated, "right": truncated} and not any(terminations.values())
        assert set(rewards) == {"left", "right"}

    assert env.agents == []
    with pytest.raises(WrongOrder, match="after the end"):
        env.step({})
    env.reset()
    assert env.agents == ["left", "right"]


def test_joint_actions_lead_to_the_frames_that_an_episode_starts_from(duel):
    env, frames = LwmParallelEnv(duel), np.zeros((3, 16, 16, 3), np.uint8)

    observations, _ = env.reset(options={"frames": frames, "actions": [[0, 1], [2, 2]]})

    assert not observations["left"].any()
    with pytest.raises(InvalidInput, match=r"\(2, 2\)"):
        env.reset(options={"frames": frames, "actions": [0, 1]})


def test_a_pickle_and_a_snapshot_resume(duel):
    env, fresh = LwmParallelEnv(duel), LwmParallelEnv(duel)
    env.reset(seed=0)
    env.step({"left": 1, "right": 2})
    copy = pickle.loads(pickle.dumps(env))
    fresh.set_state(env.get_state())

    frames = [other.step({"left": 0, "right": 2})[0]["left"].tobytes() for other in (env, copy, fresh)]

    assert len(set(frames)) == 1


BAD_ACTIONS = [
    {}, {"left": 0}, {"left": 0, "right": 0, "up": 0}, {"left": 0, "right": 3}, {"left": None, "right": 0},
    [0, 0], None,
]  # fmt: skip


@pytest.mark.parametrize("actions", BAD_ACTIONS, ids=repr)
def test_bad_actions_are_refused_and_change_nothing(duel, actions):
    env = LwmParallelEnv(duel)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(InvalidInput):
        env.step(actions)
    assert env.get_state() == before and env.agents == ["left", "right"]


def test_calls_in_the_wrong_order_are_refused(duel):
    env = LwmParallelEnv(duel, render_mode="rgb_array")
    for call in (lambda: env.step({"left": 0, "right": 0}), env.render, env.state, env.get_state):
        with pytest.raises(WrongOrder, match=r"reset\(\)"):
            call()
    env.reset(seed=0)
    assert env.render().shape == (16, 16, 3)
    env.close()
    env.close()
    for call in (env.reset, lambda: env.step({}), env.render, env.state, env.get_state):
        with pytest.raises(WrongOrder, match="closed"):
            call()

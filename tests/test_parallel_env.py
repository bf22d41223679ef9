"""The PettingZoo env: its own checks, several players in one world, misuse."""

import functools
import os
import pickle
import subprocess
import sys
import threading
import warnings

import gymnasium as gym
import numpy as np
import pettingzoo
import pytest
import torch
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test

from lwm_env.envs import LwmEnv
from lwm_env.envs.parallel_env import LwmParallelEnv, aec_entry_point
from lwm_env.errors import InvalidInput, WrongOrder
from lwm_env.world_model import WorldModel

SHIPPED = [name for name, spec in pettingzoo.parallel_registry.items() if spec.namespace == "lwm"]


@pytest.fixture(scope="module")
def duel(duel_world) -> str:
    """The world of two players."""
    return str(duel_world)


def check_parallel(make, num_cycles: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(make(), num_cycles=num_cycles)
        parallel_seed_test(make, num_cycles=10)


# -- conformance -----------------------------------------------------------------------------------------------------


def test_pettingzoos_checks_have_nothing_to_say(duel, tiny_world):
    for world in (duel, str(tiny_world)):
        check_parallel(functools.partial(LwmParallelEnv, world), 60)


@pytest.mark.parametrize("name", SHIPPED)
def test_pettingzoos_checks_have_nothing_to_say_about_a_shipped_world(name):
    check_parallel(functools.partial(pettingzoo.make, "parallel", name), 20)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_world_can_be_played_in_turns(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        api_test(pettingzoo.make("aec", name), num_cycles=10)


def test_turns_of_two_players_are_one_step_of_their_world(duel):
    turns, parallel = aec_entry_point(duel), LwmParallelEnv(duel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "We recommend agents to be named")  # left and right are better
        api_test(aec_entry_point(duel), num_cycles=20)
    turns.reset(seed=0)
    parallel.reset(seed=0)

    turns.step(1)
    turns.step(2)

    assert (turns.observe("left") == parallel.step({"left": 1, "right": 2})[0]["left"]).all()


def test_every_shipped_world_is_registered_under_its_name_in_lower_case():
    ids = [name for name, spec in gym.registry.items() if spec.entry_point == "lwm_env.envs.env:LwmEnv"]
    shipped = [name for name in ids if name.startswith("LWM-")]

    assert [name.lower().replace("lwm-", "lwm/", 1) for name in shipped] == SHIPPED
    assert set(SHIPPED) <= set(pettingzoo.aec_registry)


@pytest.mark.parametrize("name", SHIPPED)
def test_pettingzoos_make_passes_the_limit_of_cycles(name):
    spec = pettingzoo.spec("parallel", name)

    limits = [pettingzoo.make("parallel", name, max_cycles=limit).max_cycles for limit in (None, -1, 7)]

    assert limits == [spec.max_cycles, None, 7]
    assert spec.max_cycles == pettingzoo.make("parallel", name).world_spec.max_episode_steps


def test_importing_lwm_env_leaves_the_sound_of_games_alone():
    code = "import os, lwm_env; print(os.environ.get('SDL_AUDIODRIVER'))"
    for sound in (None, "alsa"):
        environment = {name: value for name, value in os.environ.items() if name != "SDL_AUDIODRIVER"}
        environment |= {} if sound is None else {"SDL_AUDIODRIVER": sound}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(sound)


# -- players ---------------------------------------------------------------------------------------------------------


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


def test_every_player_has_rewards_of_its_own(duel):
    env, rewards = LwmParallelEnv(duel, max_cycles=-1), []
    env.reset(seed=0)
    for left, right in np.random.default_rng(0).integers(0, 3, (60, 2)).tolist():
        given = env.step({"left": left, "right": right})[1]
        rewards.append((given["left"], given["right"]))

    assert all(type(reward) is float for pair in rewards for reward in pair)
    assert {(0.0, 10.0), (10.0, 0.0)} & set(rewards)
    assert len(set(rewards)) >= 2


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
    env.max_cycles = 9
    env.action_space("left").seed(3)  # an unseeded space seeds itself at its first sample, each copy anew
    copy = pickle.loads(pickle.dumps(env))
    assert copy.max_cycles == 9
    assert copy.action_space("left").sample() == env.action_space("left").sample()
    fresh.set_state(env.get_state())

    frames = [other.step({"left": 0, "right": 2})[0]["left"].tobytes() for other in (env, copy, fresh)]

    assert len(set(frames)) == 1


def test_tensors_come_out_and_go_in_on_request(duel):
    env, control = LwmParallelEnv(duel, output="torch"), LwmParallelEnv(duel)
    env.reset(seed=0)
    control.reset(seed=0)

    observations = env.step({"left": torch.tensor(1), "right": torch.tensor(2)})[0]

    assert all(frame.dtype == torch.uint8 for frame in observations.values())
    assert (observations["left"].numpy() == control.step({"left": 1, "right": 2})[0]["left"]).all()
    observations["left"].zero_()
    assert observations["right"].any() and env.state().any()


def test_two_threads_take_turns(duel):
    env, control, failures = LwmParallelEnv(duel, max_cycles=-1), LwmParallelEnv(duel, max_cycles=-1), []

    def play(env, num_steps):
        try:
            for _ in range(num_steps):
                env.step({"left": 1, "right": 2})
        except Exception as error:
            failures.append(error)

    env.reset(seed=0)
    threads = [threading.Thread(target=play, args=(env, 15)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    control.reset(seed=0)
    play(control, 30)

    assert not failures and env.get_state() == control.get_state()


def test_weights_that_are_not_finite_end_the_episode_for_all(duel, tmp_path):
    model = WorldModel.load(duel)
    for weight in model.parameters():
        weight.fill_(torch.nan)
    model.save(tmp_path / "broken", provenance={})
    env = LwmParallelEnv(str(tmp_path / "broken"))
    before, _ = env.reset(seed=0)

    observations, rewards, terminations, truncations, infos = env.step({"left": 1, "right": 2})

    assert all(infos[agent]["error"] and truncations[agent] and not terminations[agent] for agent in before)
    assert all((observations[agent] == before[agent]).all() and rewards[agent] == 0 for agent in before)
    assert env.agents == []


# -- misuse ----------------------------------------------------------------------------------------------------------


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

"""The single env: Gymnasium's own checks, determinism, prompts, pickles, snapshots, misuse."""

import copy
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import lwm_env  # noqa: F401 (registers the shipped worlds)
from lwm_env.envs import LwmEnv
from lwm_env.envs.loading import load_world
from lwm_env.errors import WrongOrder

SHIPPED = [name for name, spec in gym.registry.items() if spec.entry_point == "lwm_env.envs.env:LwmEnv"]
TINY = "lwm-tests/TinyEnv-v0"


@pytest.fixture(scope="module", autouse=True)
def registered(tiny_world):
    """The tiny world as a registered id."""
    gym.register(TINY, "lwm_env.envs.env:LwmEnv", max_episode_steps=20, kwargs={"world": str(tiny_world)})
    yield
    del gym.registry[TINY]


@pytest.fixture(scope="module")
def make_world(tiny_world, tmp_path_factory):
    """Writes the tiny world with other facts in its spec; the end of an episode is set by its threshold."""

    def write(change_weights=lambda model: None, **changes) -> str:
        model = copy.deepcopy(load_world(str(tiny_world), torch.device("cpu")))
        model.spec = model.spec.model_copy(update=changes)
        change_weights(model)
        path = tmp_path_factory.mktemp("world") / "changed"
        model.save(path, provenance={})
        return str(path)

    return write


@pytest.fixture(scope="module")
def endless(make_world) -> str:
    return make_world(termination_threshold=1.0)


@pytest.fixture(scope="module")
def brief(make_world) -> str:
    """Its episodes end with the first step."""
    return make_world(termination_threshold=0.0)


def play(env: gym.Env, num_steps: int, action: int = 2) -> bytes:
    """Everything that `num_steps` of one action give, as bytes."""
    seen = []
    for _ in range(num_steps):
        observation, *rest = env.step(action)
        seen += [observation.tobytes(), repr(rest).encode()]
    return b"".join(seen)


# -- conformance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SHIPPED, TINY])
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasiums_check_has_nothing_to_say(name, render_mode):
    env = gym.make(name, render_mode=render_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize("name", SHIPPED)
def test_sb3s_check_has_nothing_to_say(name):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = gym.make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # CarRacing's gas and brake, too, go from 0 to 1.
        warnings.filterwarnings("ignore", "We recommend you to use a symmetric and normalized Box action space")
        checker.check_env(env)


@pytest.mark.parametrize("name", [*SHIPPED, TINY])
def test_an_episode_is_truncated_at_its_time_limit(name):
    env = gym.make(name, max_episode_steps=3)
    env.reset(seed=0)
    env.action_space.seed(0)
    for step in range(1, 4):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert truncated == (step == 3)
        if terminated:
            break


def test_info_has_the_same_numeric_keys_at_reset_and_step(endless):
    env = LwmEnv(endless)

    _, first = env.reset(seed=0)
    _, _, _, _, second = env.step(0)

    assert first.keys() == second.keys() == {"surprise", "termination_prob", "error"}
    assert (
        [type(value) for value in first.values()] == [type(value) for value in second.values()] == [float, float, bool]
    )
    assert second["surprise"] > 0 and 0 < second["termination_prob"] < 1


def test_the_models_end_probability_ends_the_episode(brief, endless):
    for world, ends in ((brief, True), (endless, False)):
        env = LwmEnv(world)
        env.reset(seed=0)
        _, reward, terminated, truncated, _ = env.step(0)
        assert (type(reward), terminated, truncated) == (float, ends, False)


def test_weights_that_are_not_finite_end_the_episode_with_an_error(make_world):
    env = LwmEnv(make_world(lambda model: model.motion.down.weight.fill_(torch.nan)))
    first, _ = env.reset(seed=0)

    observation, reward, terminated, truncated, info = env.step(0)

    assert (reward, terminated, truncated, info["error"]) == (0.0, False, True, True)
    assert (observation == first).all()
    with pytest.raises(WrongOrder):
        env.step(0)


# -- determinism -----------------------------------------------------------------------------------------------------


def test_a_seed_begins_a_stream_of_different_episodes(endless):
    env, seen = LwmEnv(endless, temperature=1.0), []
    for seed in (5, None, None, 5, None, None, 6):
        env.reset(seed=seed)
        seen.append(play(env, 3))

    assert seen[:3] == seen[3:6]
    assert len(set(seen)) == 4


def test_an_unseeded_env_is_random_and_follows_np_random_when_it_is_set(endless):
    envs = [LwmEnv(endless, temperature=1.0) for _ in range(4)]
    for env in envs[2:]:
        env.np_random = np.random.default_rng(3)
    for env in envs:
        env.reset()
    first, second, third, fourth = (play(env, 3) for env in envs)

    assert first != second
    assert third == fourth


def test_arrays_handed_out_never_change_and_may_be_written_to(endless):
    env, control = LwmEnv(endless, render_mode="rgb_array"), LwmEnv(endless)
    handed = [env.reset(seed=0)[0]]
    for _ in range(5):
        handed += [env.step(1)[0], env.render()]
    copies = [array.copy() for array in handed]
    play(env, 5)
    assert all((array == saved).all() for array, saved in zip(handed, copies, strict=True))

    control.reset(seed=0)
    play(control, 5, action=1)
    play(control, 5)
    for array in handed:
        array[:] = 0
    assert play(env, 3) == play(control, 3)


# -- starting from pictures ------------------------------------------------------------------------------------------


def pictures(length: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (length, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_an_episode_can_start_from_any_frames(endless, length):
    env, frames = LwmEnv(endless), pictures(length)

    first, _ = env.reset(seed=0, options={"frames": frames, "actions": [1] * (length - 1)})
    seen = play(env, 3)
    second, _ = env.reset(seed=1, options={"frames": torch.from_numpy(frames), "actions": np.ones(length - 1, int)})

    assert (first == frames[-1]).all() and (second == frames[-1]).all()
    assert play(env, 3) == seen


def test_one_frame_needs_no_actions_and_frames_of_another_size_are_resized(endless):
    env = LwmEnv(endless)
    flat = np.full((1, 40, 30, 3), 77, np.uint8)

    observation, _ = env.reset(options={"frames": flat})

    assert observation.shape == (16, 16, 3) and (observation == 77).all()
    env.step(0)


def test_foreign_options_are_left_to_wrappers_and_not_changed(endless):
    env, options = LwmEnv(endless), {"of_a_wrapper": 1, "frames": pictures(1)}

    env.reset(seed=0, options=options)

    assert set(options) == {"of_a_wrapper", "frames"}


# -- what an env tells -----------------------------------------------------------------------------------------------


def test_meanings_and_keys_fit_gymnasiums_play(endless):
    env = LwmEnv(endless)

    assert env.get_action_meanings() == ["NOOP", "LEFT", "RIGHT"]
    assert env.get_keys_to_action() == {(ord("a"),): 1, (ord("d"),): 2}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_action_but_noop_of_a_shipped_world_has_a_key(name):
    env = gym.make(name).unwrapped

    if env.world_spec.actions.kind == "continuous":  # gymnasium.utils.play, too, knows keys for single actions alone
        assert len(env.get_action_meanings()) == env.action_space.shape[0] and env.get_keys_to_action() == {}
        return
    assert env.get_action_meanings()[0] == "NOOP"
    assert set(env.get_keys_to_action().values()) == set(range(1, env.action_space.n))


def test_tensors_come_out_and_go_in_on_request(endless):
    env, control = LwmEnv(endless, output="torch"), LwmEnv(endless)

    first, _ = env.reset(seed=0)
    second, *_ = env.step(torch.tensor(1))

    assert first.dtype == torch.uint8 and not second.is_inference()
    assert (first.numpy() == control.reset(seed=0)[0]).all() and (second.numpy() == control.step(1)[0]).all()


def test_rendering_without_a_mode_warns_and_gives_none(endless):
    env = LwmEnv(endless)
    env.reset(seed=0)

    with pytest.warns(UserWarning, match="rgb_array"):
        assert env.render() is None

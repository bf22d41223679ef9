"""Whatever a user does wrong, env and vector env say so by a typed error and stay as they were."""

import re

import numpy as np
import pytest
import torch

from lwm_env.envs import LwmEnv, LwmVectorEnv
from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, UnknownWorld, WrongOrder
from lwm_env.spec import ContinuousActions
from lwm_env.world_model import WorldModel


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


def pictures(length: int) -> np.ndarray:
    return np.zeros((length, 16, 16, 3), np.uint8)


# -- the single env ----------------------------------------------------------------------------------------------------


def named(value: object) -> str:
    """As `repr`, without addresses, so that all processes that share the tests have the same names for them."""
    return re.sub(r" at 0x\w+", "", repr(value))


BAD_ACTIONS = [
    3, -1, 2**70, 1.0, float("nan"), True, "LEFT", None, [1], np.zeros(1, int), np.array([0, 1]), np.float32(1),
    [object()], torch.tensor([1]), [[1], [1, 2]], {}, np.uint64(2**63), 1j,
]  # fmt: skip
BAD_SEEDS = [-1, 1.0, "0", True, [1], np.float64(2), float("nan")]
BAD_OPTIONS = [
    [], "frames", 3,
    {"frames": pictures(1).astype(float)}, {"frames": pictures(1)[0]}, {"frames": pictures(0)}, {"frames": "a"},
    {"frames": pictures(1)[..., :1]}, {"frames": [pictures(1)[0], 3]}, {"frames": pictures(2)}, {"actions": [1]},
    {"frames": pictures(2), "actions": [1, 1]}, {"frames": pictures(2), "actions": [3]},
    {"frames": pictures(2), "actions": [0.5]}, {"frames": pictures(1), "actions": [0]}, {"frames": pictures(2)[:, :0]},
]  # fmt: skip
BAD_ARGUMENTS = [
    {"render_mode": "human"}, {"render_mode": 3}, {"backend": "jax"}, {"backend": None}, {"output": "jax"},
    {"temperature": -1}, {"temperature": float("nan")}, {"temperature": "hot"}, {"temperature": True},
    {"device": "gpu"}, {"device": "meta"}, {"device": None}, {"device": "cuda:99"},
]  # fmt: skip


@pytest.fixture(scope="module")
def running(endless) -> LwmEnv:
    env = LwmEnv(endless, render_mode="rgb_array")
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("action", BAD_ACTIONS, ids=named)
def test_bad_actions_are_refused_and_change_nothing(running, action):
    before = running.get_state()
    with pytest.raises(InvalidInput, match="from 0 to 2"):
        running.step(action)
    assert running.get_state() == before


@pytest.mark.parametrize("seed", BAD_SEEDS, ids=named)
def test_bad_seeds_are_refused_and_change_nothing(running, seed):
    before = running.get_state(), running.np_random.bit_generator.state
    with pytest.raises(InvalidInput, match="integer"):
        running.reset(seed=seed)
    assert (running.get_state(), running.np_random.bit_generator.state) == before


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options_are_refused_and_change_nothing(running, options):
    before = running.get_state()
    with pytest.raises(InvalidInput):
        running.reset(seed=1, options=options)
    assert running.get_state() == before


@pytest.mark.parametrize("state", [b"", b"LWMS", b"x" * 100, "text", None, 3], ids=named)
def test_bad_states_are_refused_and_change_nothing(running, state):
    before = running.get_state()
    with pytest.raises(CorruptFile, match="get_state"):
        running.set_state(state)
    assert running.get_state() == before


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS, ids=named)
def test_bad_arguments_are_refused(endless, arguments):
    with pytest.raises(InvalidInput):
        LwmEnv(endless, **arguments)


def test_actions_of_a_continuous_world_are_checked(tiny_config, tiny_spec, tmp_path):
    actions = ContinuousActions(meanings=("STEER", "GAS"), low=(-1, 0), high=(1, 1))
    spec = tiny_spec.model_copy(update={"actions": actions, "termination_threshold": 1.0})
    WorldModel(tiny_config, spec).save(tmp_path / "world", provenance={})
    env = LwmEnv(str(tmp_path / "world"))
    env.reset(seed=0, options={"frames": pictures(2), "actions": np.array([[0.5, 0.5]])})

    env.step(np.array([1, 0.25]))
    before = env.get_state()
    for action in ([0, 2], [0, np.nan], [np.inf, 0], [0], [[0, 0]], 0, ["a", "b"], [True, False]):
        with pytest.raises(InvalidInput, match="finite numbers"):
            env.step(action)
    assert env.get_state() == before
    assert env.get_keys_to_action() == {}


def test_calls_in_the_wrong_order_are_refused(brief):
    env = LwmEnv(brief, render_mode="rgb_array")
    for call in (lambda: env.step(0), env.render, env.get_state):
        with pytest.raises(WrongOrder, match=r"reset\(\)"):
            call()
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(WrongOrder, match="after the end"):
        env.step(0)
    state = env.get_state()
    env.close()
    env.close()
    for call in (env.reset, lambda: env.step(0), env.render, env.get_state, lambda: env.set_state(state)):
        with pytest.raises(WrongOrder, match="closed"):
            call()


def test_worlds_that_cannot_be_a_single_env_say_so(endless, tiny_config, tiny_spec, tmp_path):
    with pytest.raises(UnknownWorld):
        LwmEnv("no-such-world")
    duel = tiny_spec.model_copy(update={"players": ("left", "right")})
    WorldModel(tiny_config, duel).save(tmp_path / "duel", provenance={})
    with pytest.raises(ConfigMismatch, match="2 players"):
        LwmEnv(str(tmp_path / "duel"))
    WorldModel(tiny_config, tiny_spec).save(tmp_path / "other", provenance={})
    other = LwmEnv(str(tmp_path / "other"))
    other.reset(options={"frames": pictures(1)})
    with pytest.raises(ConfigMismatch, match="weights"):
        LwmEnv(endless).set_state(other.get_state())


# -- the vector env ----------------------------------------------------------------------------------------------------


@pytest.fixture
def envs(endless) -> LwmVectorEnv:
    """Three envs in the middle of their episodes."""
    envs = LwmVectorEnv(endless, 3)
    envs.reset(seed=0)
    envs.step(np.array([0, 1, 2]))
    return envs


BAD_BATCHES = [
    0, [0, 0], [0, 0, 0, 0], [0, 0, 3], [0, -1, 0], np.zeros(3), np.array([np.nan, 0, 0]), [True, False, True], None,
    "abc", [[0], [0], [0]], [object()] * 3, [0, [0], 0], torch.zeros(3), torch.zeros(2, dtype=torch.int64), {},
    np.full(3, 2**40),
]  # fmt: skip
BAD_RESETS = [
    {"seed": -1}, {"seed": [0, 1]}, {"seed": [0, 1, -1]}, {"seed": 1.5}, {"seed": [0, 1, "2"]}, {"seed": "012"},
    {"options": 3}, {"options": {"reset_mask": [1, 0, 0]}}, {"options": {"reset_mask": np.zeros(3, bool)}},
    {"options": {"reset_mask": np.ones(4, bool)}}, {"options": {"reset_mask": "yes"}},
    {"options": {"frames": np.zeros((1, 16, 16, 3), np.uint8)}}, {"options": {"actions": np.zeros((3, 0))}},
    {"options": {"frames": np.zeros((3, 2, 16, 16, 3), np.uint8), "actions": np.zeros((3, 2), int)}},
    {"options": {"frames": np.zeros((2, 1, 16, 16, 3), np.uint8)}},
]  # fmt: skip
BAD_VECTOR_ARGUMENTS = [
    {"num_envs": 0}, {"num_envs": 2.0}, {"num_envs": True}, {"max_episode_steps": 0}, {"max_episode_steps": -2},
    {"autoreset_mode": "sometimes"}, {"autoreset_mode": None}, {"autoreset_mode": 3}, {"render_mode": "human"},
    {"output": "list"}, {"temperature": -0.1}, {"backend": "jax"}, {"device": "tpu"},
]  # fmt: skip


@pytest.mark.parametrize("actions", BAD_BATCHES, ids=named)
def test_bad_batches_of_actions_are_refused_and_change_nothing(envs, actions):
    before = envs.call("get_state")
    with pytest.raises(InvalidInput, match="from 0 to 2"):
        envs.step(actions)
    assert envs.call("get_state") == before


@pytest.mark.parametrize("arguments", BAD_RESETS)
def test_bad_resets_of_a_batch_are_refused_and_change_nothing(envs, arguments):
    before = envs.call("get_state"), envs.np_random.bit_generator.state
    with pytest.raises(InvalidInput):
        envs.reset(**arguments)
    assert (envs.call("get_state"), envs.np_random.bit_generator.state) == before


@pytest.mark.parametrize("arguments", BAD_VECTOR_ARGUMENTS, ids=named)
def test_bad_arguments_of_a_batch_are_refused(endless, arguments):
    with pytest.raises(InvalidInput):
        LwmVectorEnv(endless, **arguments)


@pytest.mark.parametrize("slot", [3, -1, 1.0, True, None, "0"])
def test_bad_slots_are_refused(envs, slot):
    before = envs.call("get_state")
    for call in (
        lambda: envs.get_state(slot),
        lambda: envs.set_state(before[0], slot),
        lambda: envs.fork(0, [1, slot]),
    ):
        with pytest.raises(InvalidInput, match="0 to 2"):
            call()
    with pytest.raises(CorruptFile):
        envs.set_state(b"nothing", 0)
    assert envs.call("get_state") == before


def test_calls_of_a_batch_in_the_wrong_order_are_refused(endless):
    envs = LwmVectorEnv(endless, 2, render_mode="rgb_array")
    for call in (lambda: envs.step(np.zeros(2, int)), envs.render, lambda: envs.get_state(0)):
        with pytest.raises(WrongOrder, match=r"reset\(\)"):
            call()
    with pytest.raises(WrongOrder, match=r"\[1\]"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(seed=0)
    envs.close()
    envs.close()
    for call in (envs.reset, lambda: envs.step(np.zeros(2, int)), envs.render, lambda: envs.get_attr("spec")):
        with pytest.raises(WrongOrder, match="closed"):
            call()

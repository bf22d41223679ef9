"""Misuse of every registered world as Env, VectorEnv and ParallelEnv, discovered: a new world needs no new test.

Each wrong call gets a typed error, and the world's state is afterwards what it was, byte for byte.
"""

import gymnasium as gym
import numpy as np
import pettingzoo
import pytest
import torch

import lwm_env  # noqa: F401 (registers the shipped worlds)
from lwm_env.errors import InvalidInput, LwmError, WrongOrder

IDS = [name for name, spec in gym.registry.items() if spec.entry_point == "lwm_env.envs.env:LwmEnv"]
PARALLEL_IDS = [name for name, spec in pettingzoo.parallel_registry.items() if spec.namespace == "lwm"]
LONELY, JOINT = "lwm-tests/Lonely-v0", "lwm-tests/joint-v0"
BAD_SEEDS = [-1, 1.5, "0", True, float("nan")]


@pytest.fixture(scope="module", autouse=True)
def registered(tiny_world, duel_world):
    """Two more worlds: a tiny one, and one of two players."""
    gym.register(
        LONELY,
        "lwm_env.envs.env:LwmEnv",
        vector_entry_point="lwm_env.envs.vector_env:LwmVectorEnv",
        max_episode_steps=20,
        kwargs={"world": str(tiny_world)},
    )
    entry_point = "lwm_env.envs.parallel_env:parallel_entry_point"
    pettingzoo.register("parallel", JOINT, entry_point, max_cycles=20, kwargs={"world": str(duel_world)})
    yield
    del gym.registry[LONELY], pettingzoo.parallel_registry[JOINT]


def bad_actions(space: gym.Space, lead: tuple[int, ...]) -> list:
    """Actions that are none of a space, in every way: shape, dtype, range, NaN, infinity, objects."""
    good = np.asarray(np.broadcast_to(space.sample(), (*lead, *space.shape)))
    floats = good.astype(np.float64)
    wrong = [
        None, "LEFT", {}, [object()], 1j, good[None], np.full(good.shape, object()), np.full(good.shape, True),
        np.full(good.shape, np.nan), floats + np.inf, torch.full((*good.shape, 1), 0), np.zeros((*good.shape, 2)),
    ]  # fmt: skip
    if lead:
        wrong += [good[:-1], np.concatenate([good, good]), list(good[:-1]), [[0], [0, 1]], 0]
    if isinstance(space, gym.spaces.Discrete):
        wrong += [floats, good * 0 + int(space.n), good * 0 - 1, good * 0 + 2**40, np.full(good.shape, 2**63, "u8")]
    else:
        wrong += [floats + 2 * np.ptp([space.low, space.high]) + 1]
    return wrong


def bad_options(space: gym.Space, lead: tuple[int, ...]) -> list:
    """Options of a reset that are wrong whatever the world."""
    frames = np.zeros((*lead, 1, *space.shape), np.uint8)
    wrong = [
        [], 3, "f", {"frames": frames.astype(float)}, {"frames": frames[..., :1]}, {"frames": frames[0, ..., None]},
        {"frames": "a"}, {"frames": frames[..., :0, :]}, {"actions": [0]}, {"frames": frames, "actions": ["LEFT"]},
        {"frames": np.concatenate([frames, frames], len(lead))}, {"frames": np.full(frames.shape, np.nan)},
    ]  # fmt: skip
    if lead:
        masks = [[1] * lead[0], np.zeros(lead, bool), np.ones(lead[0] + 1, bool), "yes", np.ones(lead, int), np.True_]
        wrong += [{"reset_mask": mask} for mask in masks] + [{"frames": frames[:-1]}]
    return wrong


def refused(env, state, calls: dict, error: type[LwmError] = InvalidInput) -> list[str]:
    """What was not refused by the typed error, or changed the state."""
    before, faults = state(), []
    for told, call in calls.items():
        try:
            call()
            faults.append(f"{told} went through")
        except error as caught:
            if len(str(caught)) < 20:
                faults.append(f"{told}: says no more than {caught}")
        except Exception as caught:
            faults.append(f"{told}: {type(caught).__name__} {caught}")
        if state() != before:
            faults.append(f"{told} changed the state")
            before = state()
    return faults


def numbered(name: str, call, values: list) -> dict:
    return {f"{name}[{i}] {value!r:.60}": lambda value=value: call(value) for i, value in enumerate(values)}


def after_close(env, calls: dict) -> list[str]:
    env.close()
    env.close()
    return refused(env, lambda: None, calls, WrongOrder)


@pytest.mark.parametrize("name", [*IDS, LONELY])
def test_an_env_refuses_every_misuse(name):
    env = gym.make(name, render_mode="rgb_array").unwrapped
    if len(env.world_spec.players) > 1:
        pytest.skip("of several players")
    good = env.action_space.sample()
    early = {"step": lambda: env.step(good), "render": env.render, "get_state": env.get_state}
    assert refused(env, lambda: None, early, WrongOrder) == []
    env.reset(seed=0)
    state = env.get_state()

    assert refused(env, env.get_state, {
        **numbered("action", env.step, bad_actions(env.action_space, ())),
        **numbered("seed", lambda seed: env.reset(seed=seed), [*BAD_SEEDS, [1]]),
        **numbered("options", lambda o: env.reset(seed=1, options=o), bad_options(env.observation_space, ())),
    }) == []  # fmt: skip
    states = numbered("state", env.set_state, [b"", state[:-1], state[:40], b"x" * 99, "text", None])
    assert refused(env, env.get_state, states, LwmError) == []
    late = {"reset": env.reset, "set_state": lambda: env.set_state(state), **early}
    assert after_close(env, late) == []


@pytest.mark.parametrize("name", [*IDS, LONELY])
@pytest.mark.parametrize("mode", list(gym.vector.AutoresetMode), ids=lambda mode: mode.name)
def test_a_vector_env_refuses_every_misuse(name, mode):
    if len(gym.make(name).unwrapped.world_spec.players) > 1:
        pytest.skip("of several players")
    envs = gym.make_vec(name, num_envs=2, render_mode="rgb_array", max_episode_steps=1, autoreset_mode=mode).unwrapped
    good = envs.action_space.sample()
    early = {"step": lambda: envs.step(good), "render": envs.render, "get_state": lambda: envs.get_state(0)}
    half = {"mask": lambda: envs.reset(options={"reset_mask": np.array([True, False])})}
    assert refused(envs, lambda: None, {**early, **half}, WrongOrder) == []
    envs.reset(seed=0)
    state = envs.get_state(0)

    assert refused(envs, lambda: envs.call("get_state"), {
        **numbered("actions", envs.step, bad_actions(envs.single_action_space, (2,))),
        **numbered("seed", lambda seed: envs.reset(seed=seed), [*BAD_SEEDS, [0], [0, 1, 2], [0, -1], [0, "1"]]),
        **numbered("options", lambda o: envs.reset(options=o), bad_options(envs.single_observation_space, (2,))),
        **numbered("slot", lambda slot: envs.set_state(state, slot), [2, -1, 1.0, None, True]),
        **numbered("fork", lambda targets: envs.fork(0, targets), [[2], [0, -1], [None]]),
    }) == []  # fmt: skip
    envs.step(good)
    if mode == gym.vector.AutoresetMode.DISABLED:  # both episodes are over
        over = {"step after the end": lambda: envs.step(good)}
        assert refused(envs, lambda: envs.call("get_state"), over, WrongOrder) == []
    late = {"reset": envs.reset, "set_state": lambda: envs.set_state(state, 0), "fork": lambda: envs.fork(0, [1])}
    assert after_close(envs, {**late, **early, "call": lambda: envs.call("get_state")}) == []


@pytest.mark.parametrize("name", [*PARALLEL_IDS, JOINT])
def test_a_parallel_env_refuses_every_misuse(name):
    env = pettingzoo.make("parallel", name, max_cycles=1, render_mode="rgb_array")
    agents = env.possible_agents
    good = {agent: env.action_space(agent).sample() for agent in agents}
    early = {"step": lambda: env.step(good), "render": env.render, "state": env.state, "get_state": env.get_state}
    assert refused(env, lambda: None, early, WrongOrder) == []
    env.reset(seed=0)
    state = env.get_state()
    joint = [{**good, agents[-1]: action} for action in bad_actions(env.action_space(agents[-1]), ())]
    absent = [None, {}, list(good.values()), {**good, "stranger": 0}, dict(list(good.items())[1:]), {0: 0}]

    assert refused(env, lambda: (env.get_state(), list(env.agents)), {
        **numbered("actions", env.step, joint + absent),
        **numbered("seed", lambda seed: env.reset(seed=seed), [*BAD_SEEDS, [1]]),
        **numbered("options", lambda o: env.reset(options=o), bad_options(env.observation_space(agents[0]), ())),
    }) == []  # fmt: skip
    env.step(good)
    over = {"step after the end": lambda: env.step(good), "nobody": lambda: env.step({})}
    assert refused(env, env.get_state, over, WrongOrder) == []
    late = {"reset": env.reset, "set_state": lambda: env.set_state(state), **early}
    assert after_close(env, late) == []


BAD_ARGUMENTS = [
    {"render_mode": "ansi"}, {"backend": "jax"}, {"output": "list"}, {"temperature": -1}, {"temperature": np.nan},
    {"temperature": "hot"}, {"device": "tpu"}, {"device": None}, {"device": "cuda:99"}, {"world": 3},
    {"world": "no-such-world"},
]  # fmt: skip


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS, ids=repr)
def test_bad_arguments_are_refused_by_every_maker(arguments, recwarn):  # gym.make warns of the render mode first
    makers = [lambda name=name: gym.make(name, **arguments) for name in [*IDS, LONELY]]
    makers += [lambda name=name: gym.make_vec(name, num_envs=2, **arguments) for name in [*IDS, LONELY]]
    makers += [lambda name=name: pettingzoo.make("parallel", name, **arguments) for name in [*PARALLEL_IDS, JOINT]]
    for make in makers:
        with pytest.raises(LwmError):
            make()


@pytest.mark.parametrize("count", [0, -1, 1.5, "many", True])
def test_bad_counts_are_refused_by_every_maker(count):
    for name in [*IDS, LONELY]:
        for arguments in ({"num_envs": count}, {"num_envs": 1, "max_episode_steps": count}):
            if arguments.get("max_episode_steps") == -1:  # no limit
                continue
            with pytest.raises(InvalidInput):
                gym.make_vec(name, **arguments)
    for name in [*PARALLEL_IDS, JOINT]:
        if count != -1:
            with pytest.raises(InvalidInput):
                pettingzoo.make("parallel", name, max_cycles=count)

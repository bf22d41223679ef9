"""Envs in other processes, in several threads, and several in one process."""

import functools
import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import gymnasium as gym
import numpy as np
import pytest
import torch

from lwm_env.envs import LwmEnv
from lwm_env.world_model import WorldModel


@pytest.fixture(scope="module")
def endless(tiny_world, tmp_path_factory) -> str:
    """The tiny world, its episodes without an end."""
    return with_threshold(tiny_world, tmp_path_factory, 1.0)


def with_threshold(tiny_world, tmp_path_factory, threshold: float) -> str:
    model = WorldModel.load(tiny_world)
    model.spec = model.spec.model_copy(update={"termination_threshold": threshold})
    path = tmp_path_factory.mktemp("worlds") / "changed"
    model.save(path, provenance={})
    return str(path)


def play(env: gym.Env, num_steps: int, action: int = 2) -> bytes:
    """Everything that `num_steps` of one action give, as bytes."""
    seen = []
    for _ in range(num_steps):
        observation, *rest = env.step(action)
        seen += [observation.tobytes(), repr(rest).encode()]
    return b"".join(seen)


ELSEWHERE = """
import hashlib, sys
from lwm_env.envs import LwmEnv
env = LwmEnv(sys.argv[1], temperature=1.0)
observation, _ = env.reset(seed=11)
digest = hashlib.sha256(observation.tobytes())
for t in range(30):
    observation, *rest = env.step(t % 3)
    digest.update(observation.tobytes() + repr(rest).encode())
print(digest.hexdigest())
"""


def test_same_seed_and_actions_give_the_same_bytes_in_another_process(endless):
    env = LwmEnv(endless, temperature=1.0)
    digest = hashlib.sha256(env.reset(seed=11)[0].tobytes())
    for t in range(30):
        observation, *rest = env.step(t % 3)
        digest.update(observation.tobytes() + repr(rest).encode())

    command = [sys.executable, "-c", ELSEWHERE, endless]
    other = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    assert other.stdout.strip() == digest.hexdigest()


def test_one_set_of_weights_serves_all_envs_of_a_process(endless):
    first, second = LwmEnv(endless), LwmEnv(endless)

    assert first._engine.model is second._engine.model


def test_two_threads_take_turns(endless):
    env, control, failures = LwmEnv(endless), LwmEnv(endless), []

    def run():
        try:
            play(env, 20)
        except Exception as error:
            failures.append(error)

    env.reset(seed=0)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    control.reset(seed=0)
    play(control, 40)

    assert not failures
    assert env.get_state() == control.get_state()


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("repetition", range(int(os.environ.get("LWM_REPETITIONS", "1"))))
def test_async_workers_step_after_the_parent_used_torch(endless, context, repetition):
    """100 steps within 60 s; LWM_REPETITIONS=20 shows that none of 20 hangs."""
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{context} is not a start method here")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.randn(500, 500) @ torch.randn(500, 500)
    makers = [functools.partial(LwmEnv, endless)] * 2
    control = gym.vector.SyncVectorEnv(makers)
    control.reset(seed=0)
    try:
        envs = gym.vector.AsyncVectorEnv(makers, context=context)
        envs.reset_async(seed=0)
        envs.reset_wait(timeout=60)
        started = time.monotonic()
        for _ in range(100):
            envs.step_async(np.array([2, 1]))
            observations = envs.step_wait(timeout=60)[0]
            assert np.array_equal(observations, control.step(np.array([2, 1]))[0])
        assert time.monotonic() - started < 60
        envs.close(timeout=30)
    finally:
        torch.set_num_threads(threads)

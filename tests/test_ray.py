"""Worlds in Ray actors: on two nodes of a cluster of this machine they give the bytes that they give in one process."""

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("ray", reason="needs the extra `ray`")
import ray
from ray.cluster_utils import Cluster

from lwm_agents.agent import read_facts
from lwm_agents.imagination import ImaginationConfig, train_in_dream
from lwm_agents.ray_envs import ActorLost, RayVectorEnv
from lwm_env import cli
from lwm_env.envs import LwmVectorEnv
from lwm_env.errors import InvalidInput, UnknownWorld, WrongOrder

FAST = {"n_steps": 8, "batch_size": 16, "n_epochs": 1}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, to which this process is connected as `lwm agent train` connects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        made.add_node(num_cpus=1)
        made.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def envs(cluster, tiny_world):
    """Five worlds in two actors."""
    made = RayVectorEnv(str(tiny_world), 5, 2, temperature=1.0, max_episode_steps=4)
    yield made
    made.close()


def same(ours, theirs) -> bool:
    """Whether two results of an env are equal, in dtypes and keys too."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def test_the_worlds_of_two_nodes_give_the_bytes_of_one_process(envs, tiny_world):
    alone = LwmVectorEnv(tiny_world, 5, autoreset_mode="SAME_STEP", temperature=1.0, max_episode_steps=4)
    generator, ended = np.random.default_rng(0), 0

    assert len(set(envs.nodes)) == 2  # one actor on each
    assert same(envs.reset(seed=7), alone.reset(seed=7))
    for _ in range(10):
        actions = generator.integers(3, size=5)
        result = envs.step(actions)
        assert same(result, alone.step(actions))
        ended += (result[2] | result[3]).sum()
    assert ended >= 10
    frames = generator.integers(0, 256, (5, 2, 16, 16, 3), dtype=np.uint8)
    options = {"frames": frames, "actions": np.ones((5, 1), int)}
    seeds = [3, 1, 4, 1, 5]
    assert same(envs.reset(seed=seeds, options=options), alone.reset(seed=seeds, options=options))
    assert envs.step(actions)[0].flags.writeable  # a copy of what Ray holds


def test_a_policy_learns_the_same_weights_and_may_change_to_other_actors(cluster, tiny_world, tmp_path):
    config = {"num_steps": 32, "num_envs": 2, "horizon": 6, "surprise_penalty": 0.1}
    for name, num_actors in (("alone", 0), ("ray", 2)):
        chosen = ImaginationConfig(**config, num_actors=num_actors)
        train_in_dream(str(tiny_world), tmp_path / name, chosen, "cpu", **FAST)
    weights = [(tmp_path / name / "agent" / "policy.safetensors").read_bytes() for name in ("alone", "ray")]

    assert weights[0] == weights[1]
    longer = ImaginationConfig(**{**config, "num_steps": 64}, num_actors=1)
    assert train_in_dream(str(tiny_world), tmp_path / "ray", longer, "cpu", **FAST).num_timesteps == 64


def test_the_command_trains_with_one_more_flag(cluster, tiny_world, tmp_path):
    args = ["agent", "train", str(tiny_world), "--out", str(tmp_path), "--steps", "1", "--envs", "2", "--ray", "2"]

    assert cli.main([*args, "--device", "cpu", "--backend", "torch"]) == 0
    assert read_facts(tmp_path / "agent")["config"]["num_actors"] == 2


def test_misuse_is_refused_and_nothing_is_stepped(envs, cluster, tiny_world):
    with pytest.raises(WrongOrder, match="reset"):
        envs.step(np.zeros(5, int))
    with pytest.raises(InvalidInput, match="reset_mask|options"):
        envs.reset(options={"reset_mask": np.ones(5, bool)})
    first = envs.reset(seed=1)
    for actions in (np.zeros(4, int), np.array([0, 1, 2, 0, 3]), np.zeros(5)):
        with pytest.raises(InvalidInput, match="actions"):
            envs.step(actions)
    for num_envs, num_actors, told in ((2, 3, "at most one"), (9, 9, "CPU")):
        with pytest.raises(InvalidInput, match=told):
            RayVectorEnv(str(tiny_world), num_envs, num_actors)
    after = envs.step(np.ones(5, int))
    assert same(envs.reset(seed=1), first) and same(envs.step(np.ones(5, int)), after)


def test_errors_of_an_actor_and_its_death_are_told(cluster, tiny_world, tmp_path):
    with pytest.raises(UnknownWorld, match="nothing"):
        RayVectorEnv(str(tmp_path / "nothing"), 2, 2)
    envs = RayVectorEnv(str(tiny_world), 2, 2)
    envs.reset(seed=0)
    ray.kill(envs._actors[1])
    with pytest.raises(ActorLost, match="checkpoint"):
        envs.step(np.zeros(2, int))
    envs.close()
    envs.close()

"""The native vector env: equal to Gymnasium's own around the single env, in every autoreset mode."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import lwm_env  # noqa: F401 (registers the shipped worlds)
from lwm_env.engine import Engine
from lwm_env.envs import LwmEnv, LwmVectorEnv
from lwm_env.errors import WrongOrder
from lwm_env.world_model import Prompts, WorldModel

LIVELY = "lwm-tests/Lively-v0"
SHIPPED = [name for name, spec in gym.registry.items() if spec.entry_point == "lwm_env.envs.env:LwmEnv"]
MODES = list(AutoresetMode)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_config, tiny_spec, enliven) -> str:
    """A tiny world whose pictures follow the actions, with rewards, and with an end about every tenth step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(tiny_config, tiny_spec)
        frames = torch.randint(0, 256, (6, 3, 16, 16, 3), dtype=torch.uint8)
        model.prompts = Prompts(frames, torch.randint(0, 3, (6, 2, 1)))
        enliven(model)
    folder = tmp_path_factory.mktemp("lively")
    model.save(folder / "draft", provenance={})
    model = WorldModel.load(folder / "draft")
    engine = Engine(model, 8, temperature=1.0)
    engine.reset(np.ones(8, bool), list(range(8)))
    seen = torch.cat([engine.step(torch.full((8, 1), t % 3)).end_prob for t in range(20)])
    threshold = seen.quantile(0.9).item()
    model.spec = model.spec.model_copy(update={"temperature": 1.0, "termination_threshold": threshold})
    model.save(folder / "world", provenance={})
    return str(folder / "world")


@pytest.fixture(scope="module", autouse=True)
def registered(world):
    """The lively world as a registered id."""
    gym.register(
        LIVELY,
        "lwm_env.envs.env:LwmEnv",
        vector_entry_point="lwm_env.envs.vector_env:LwmVectorEnv",
        max_episode_steps=20,
        kwargs={"world": world},
    )
    yield
    del gym.registry[LIVELY]


@pytest.fixture
def envs(world) -> LwmVectorEnv:
    """Three envs in the middle of their episodes."""
    envs = LwmVectorEnv(world, 3, render_mode="rgb_array", max_episode_steps=-1)
    envs.reset(seed=0)
    envs.step(np.array([0, 1, 2]))
    return envs


def plan(num_steps: int, num_envs: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 3, (num_steps, num_envs))


def same(ours, theirs) -> bool:
    """Equal values, dtypes and keys; Gymnasium's array of objects for `final_obs` is compared with our dense one."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)
    if theirs.dtype == object:
        theirs = np.stack([np.zeros_like(ours[0]) if entry is None else entry for entry in theirs])
    return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def follow(envs, actions: np.ndarray) -> list[bytes]:
    """Observations, rewards, terminations and truncations of every step."""
    return [b"".join(column.tobytes() for column in envs.step(row)[:4]) for row in actions]


# -- equal to the single env -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("num_envs", "num_steps"), [(1, 60), (3, 500)])
def test_make_vec_equals_sync_over_500_steps(mode, num_envs, num_steps):
    ours = gym.make_vec(LIVELY, num_envs=num_envs, autoreset_mode=mode)
    theirs = gym.make_vec(LIVELY, num_envs=num_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    assert isinstance(ours, LwmVectorEnv) and isinstance(theirs, SyncVectorEnv)

    first, second = ours.reset(seed=3), theirs.reset(seed=3)
    assert same(first[0], second[0]) and same(first[1], second[1])
    terminated = truncated = rewarded = 0
    for actions in plan(num_steps, num_envs):
        first, second = ours.step(actions), theirs.step(actions)
        assert all(same(x, y) for x, y in zip(first, second, strict=True))
        ended = first[2] | first[3]
        terminated, truncated, rewarded = terminated + first[2].sum(), truncated + first[3].sum(), rewarded + first[1]
        if mode == AutoresetMode.DISABLED and ended.any():
            renewed = [envs.reset(options={"reset_mask": ended.copy()}) for envs in (ours, theirs)]
            assert same(renewed[0][0], renewed[1][0])

    assert terminated and rewarded.any() and (truncated or num_envs == 1)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_world_in_a_batch_equals_sync(name):
    ours, theirs = gym.make_vec(name, num_envs=2), gym.make_vec(name, num_envs=2, vectorization_mode="sync")

    assert same(ours.reset(seed=0)[0], theirs.reset(seed=0)[0])
    for _ in range(100):
        actions = ours.action_space.sample()
        assert all(same(x, y) for x, y in zip(ours.step(actions), theirs.step(actions), strict=True))


@pytest.mark.parametrize("num_envs", [1, 2, 3, 5, 8])
def test_every_slot_equals_the_env_alone(world, num_envs):
    envs = LwmVectorEnv(world, num_envs, max_episode_steps=-1, autoreset_mode="disabled")
    singles = [LwmEnv(world) for _ in range(num_envs)]
    observations, _ = envs.reset(seed=10)
    expected = [env.reset(seed=10 + i)[0] for i, env in enumerate(singles)]
    for actions in plan(12, num_envs):
        assert np.array_equal(observations, expected)
        observations, _, terminations, _, _ = envs.step(actions)
        expected = [env.step(action)[0] for env, action in zip(singles, actions, strict=True)]
        if terminations.any():
            renewed, _ = envs.reset(options={"reset_mask": terminations})
            assert np.array_equal(renewed[~terminations], observations[~terminations])
            observations = renewed
            for i in np.flatnonzero(terminations):
                expected[i] = singles[i].reset()[0]


def test_the_env_truncates_by_itself(world, tmp_path):
    model = WorldModel.load(world)
    model.spec = model.spec.model_copy(update={"termination_threshold": 1.0})
    model.save(tmp_path / "endless", provenance={})
    options = {"world": str(tmp_path / "endless"), "max_episode_steps": 2, "autoreset_mode": "SAME_STEP"}
    envs = gym.make_vec(LIVELY, num_envs=2, **options)
    envs.reset(seed=0)

    truncations = [envs.step(np.zeros(2, int))[3].tolist() for _ in range(4)]

    assert truncations == [[False, False], [True, True], [False, False], [True, True]]
    assert LwmVectorEnv(world).max_episode_steps == 20
    assert LwmVectorEnv(world, max_episode_steps=-1).max_episode_steps is None


def test_lists_of_seeds_and_unseeded_resets(world):
    envs = LwmVectorEnv(world, 3)
    by_list = envs.reset(seed=[7, 8, 9])[0], follow(envs, plan(4, 3))
    by_number = envs.reset(seed=7)[0], follow(envs, plan(4, 3))
    assert np.array_equal(by_list[0], by_number[0]) and by_list[1] == by_number[1]

    streams = []
    for _ in range(2):
        envs.reset(seed=[7, None, 9])
        streams.append(envs.call("get_state"))
    assert streams[0][0] == streams[1][0] and streams[0][1] != streams[1][1] and streams[0][2] == streams[1][2]

    fresh = [LwmVectorEnv(world, 2) for _ in range(2)]
    seeds = [env.reset()[0] is not None and env.get_attr("np_random_seed") for env in fresh]
    assert len({seed for pair in seeds for seed in pair}) == 4


# -- resets ----------------------------------------------------------------------------------------------------------


def test_a_partial_reset_leaves_the_others_alone(world):
    envs, control = LwmVectorEnv(world, 3, max_episode_steps=-1), LwmVectorEnv(world, 3, max_episode_steps=-1)
    envs.reset(seed=0)
    control.reset(seed=0)
    before = envs.step(np.array([1, 1, 1]))[0]
    control.step(np.array([1, 1, 1]))
    options = {"reset_mask": np.array([False, True, False]), "of_a_wrapper": 1}

    observations, infos = envs.reset(seed=40, options=options)

    assert set(options) == {"reset_mask", "of_a_wrapper"}
    assert np.array_equal(observations[[0, 2]], before[[0, 2]])
    assert infos["_surprise"].tolist() == [False, True, False]
    assert envs.get_attr("np_random_seed") == (0, 41, 2)
    ours, theirs = envs.step(np.array([2, 2, 2])), control.step(np.array([2, 2, 2]))
    assert all(np.array_equal(x[[0, 2]], y[[0, 2]]) for x, y in zip(ours[:4], theirs[:4], strict=True))


def test_worlds_start_from_frames_of_their_own(world):
    frames = np.random.default_rng(1).integers(0, 256, (2, 3, 20, 12, 3), dtype=np.uint8)
    actions = np.array([[0, 1], [2, 2]])
    envs = LwmVectorEnv(world, 2, max_episode_steps=-1)

    observations, _ = envs.reset(seed=0, options={"frames": frames, "actions": actions})
    stepped = envs.step(np.array([1, 2]))[0]

    for i in range(2):
        env = LwmEnv(world)
        assert np.array_equal(
            env.reset(seed=i, options={"frames": frames[i], "actions": actions[i]})[0], observations[i]
        )
        assert np.array_equal(env.step([1, 2][i])[0], stepped[i])


def test_final_observations_are_one_dense_array(world):
    envs = LwmVectorEnv(world, 3, autoreset_mode="SameStep", max_episode_steps=2)
    envs.reset(seed=0)
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    for _ in range(3):  # the world may end an episode by itself before the limit does
        observations, _, terminations, truncations, infos = envs.step(np.zeros(3, int))
        ended = terminations | truncations
        assert ("final_obs" in infos) == ended.any()
        if ended.any():
            break

    assert infos["final_obs"].shape == (3, 16, 16, 3) and infos["final_obs"].dtype == np.uint8
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == ended.tolist()
    assert (infos["final_info"]["surprise"] > 0).tolist() == ended.tolist()
    assert not np.array_equal(infos["final_obs"][ended], observations[ended])
    assert (infos["surprise"][ended] == 0).all()


def test_in_mode_disabled_an_ended_env_waits_for_its_reset(world):
    envs = LwmVectorEnv(world, 2, autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=1)
    envs.reset(seed=0)
    envs.step(np.zeros(2, int))
    before = envs.call("get_state")

    with pytest.raises(WrongOrder, match="reset_mask"):
        envs.step(np.zeros(2, int))

    assert envs.call("get_state") == before
    envs.reset(options={"reset_mask": np.array([True, True])})
    envs.step(np.zeros(2, int))


# -- what comes out --------------------------------------------------------------------------------------------------


def test_infos_have_the_same_keys_at_reset_and_step(world):
    envs = LwmVectorEnv(world, 2)

    _, first = envs.reset(seed=0)
    infos = [envs.step(np.zeros(2, int))[4] for _ in range(5)]

    assert all(info.keys() == first.keys() for info in infos)
    assert all(value.shape == (2,) for value in first.values())


def test_arrays_handed_out_never_change(envs):
    handed = [envs.reset(seed=0)[0]]
    for actions in plan(10, 3):
        observations, rewards, terminations, truncations, infos = envs.step(actions)
        handed += [observations, rewards, terminations, truncations, *infos.values(), *envs.render()]
    copies = [array.copy() for array in handed]

    follow(envs, plan(10, 3))
    envs.reset(seed=1)

    assert all(np.array_equal(array, saved) for array, saved in zip(handed, copies, strict=True))


@pytest.mark.parametrize("mode", MODES[:2])
def test_tensors_have_the_values_of_the_arrays(world, mode):
    tensors = LwmVectorEnv(world, 3, output="torch", autoreset_mode=mode)
    arrays = LwmVectorEnv(world, 3, autoreset_mode=mode)
    assert np.array_equal(tensors.reset(seed=0)[0], arrays.reset(seed=0)[0])
    for actions in plan(25, 3):
        ours, theirs = tensors.step(torch.from_numpy(actions)), arrays.step(actions)
        assert all(
            isinstance(x, torch.Tensor) and np.array_equal(x, y) for x, y in zip(ours[:4], theirs[:4], strict=True)
        )
        assert ours[4].keys() == theirs[4].keys()
    assert [x.dtype for x in ours[:4]] == [torch.uint8, torch.float32, torch.bool, torch.bool]


def test_gymnasiums_vector_wrappers_fit(world):
    wrappers = gym.wrappers.vector
    envs = wrappers.NormalizeReward(wrappers.ResizeObservation(wrappers.GrayscaleObservation(
        wrappers.RecordEpisodeStatistics(gym.make_vec(LIVELY, num_envs=3))), (8, 8)))  # fmt: skip
    envs.reset(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = [envs.step(envs.action_space.sample()) for _ in range(25)]

    assert results[0][0].shape == (3, 8, 8)
    assert any("episode" in infos for *_, infos in results)


def test_spaces_and_metadata(world):
    envs = gym.make_vec(LIVELY, num_envs=3)

    assert envs.observation_space.contains(envs.reset(seed=0)[0])
    assert envs.metadata["autoreset_mode"] is envs.autoreset_mode is AutoresetMode.NEXT_STEP
    assert envs.single_action_space == LwmEnv(world).action_space
    assert envs.spec.id == LIVELY

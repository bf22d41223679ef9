"""Every library of games looks the same: RGB frames, joint actions, NEXT_STEP autoreset, a seed per copy."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pettingzoo
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from pettingzoo import ParallelEnv

from lwm_env.errors import ConfigMismatch, InvalidInput, MissingExtra, UnknownWorld, WrongOrder
from lwm_env.scripts import load_script
from lwm_env.spec import DiscreteActions, RealSource, WorldSpec
from lwm_training.action_codec import ActionCodec
from lwm_training.frames import image_converter, resize
from lwm_training.real import make_real_vec
from lwm_training.recipe import load_recipe
from lwm_training.source import SourceConfig
from lwm_training.sources import open_source, open_spec_source, resolve

PROCGEN_ACTIONS = (4, 1, 7, 5, 3, 2, 8, 0, 6)
SPLITS = {
    "train": {"start_level": 0, "num_levels": 500_000_000},
    "validation": {"start_level": 500_000_000, "num_levels": 100_000_000},
}


class Counter(gym.Env):
    """Shows the step in the red channel, the seed in the green one and the last action in the blue one; ends at 5."""

    observation_space = spaces.Box(0, 255, (16, 20, 3), np.uint8)
    action_space = spaces.Discrete(4, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number, self.seed_seen = 0, seed
        return self._frame(0), {}

    def step(self, action):
        self.step_number += 1
        return self._frame(action), float(action), self.step_number == 5, False, {}

    def _frame(self, action):
        return np.full((16, 20, 3), [self.step_number, self.seed_seen % 256, action], np.uint8)


class Relay(ParallelEnv):
    """Two players see the same picture; the second one leaves after step 2, the game ends at step 4."""

    metadata = {"name": "relay", "render_modes": ()}  # noqa: RUF012
    possible_agents = ("first", "second")

    def observation_space(self, player):
        return spaces.Box(0, 255, (16, 16, 3), np.uint8)

    def action_space(self, player):
        return spaces.Discrete(2 if player == "first" else 3)

    def reset(self, seed=None, options=None):
        self.agents, self.number, self.given = list(self.possible_agents), 0, []
        return self._seen(self.agents), {}

    def step(self, actions):
        self.number += 1
        self.given.append(dict(actions))
        players = self.agents
        ended = {player: self.number >= (4 if player == "first" else 2) for player in players}
        self.agents = [player for player in players if not ended[player]]
        rewards = {player: float(actions[player]) for player in players}
        return self._seen(players), rewards, ended, dict.fromkeys(players, False), {}

    def close(self):
        pass

    def _seen(self, players):
        return {player: np.full((16, 16, 3), self.number, np.uint8) for player in players}


@pytest.fixture(scope="module", autouse=True)
def registered_games():
    gym.register("LwmTest/Counter-v0", Counter)
    pettingzoo.register("parallel", "lwmtest/relay-v0", lambda: Relay())
    yield
    gym.registry.pop("LwmTest/Counter-v0")
    pettingzoo.parallel_registry.pop("lwmtest/relay-v0")


@pytest.fixture(scope="module")
def platformer():
    """The spec of the platformer, where CoinRun can be played."""
    try:
        open_source("envpool:CoinrunEasy-v0").close()
    except MissingExtra as error:
        pytest.skip(f"CoinRun cannot be played here: {error}")
    names = ("NOOP", "LEFT", "RIGHT", "UP", "DOWN", "UPLEFT", "UPRIGHT", "DOWNLEFT", "DOWNRIGHT")
    return WorldSpec(
        id="LWM-Platformer-v0",
        description="CoinRun",
        actions=DiscreteActions(meanings=names, source_actions=PROCGEN_ACTIONS),
        reward_values=(0.0, 10.0),
        max_episode_steps=60,
        real=RealSource(source="envpool:CoinrunEasy-v0", splits=SPLITS),
    )


def play(source, steps, seed=0):
    """Everything that random play shows, as bytes, with a generator of its own for each copy."""
    randoms = [np.random.default_rng(seed + row) for row in range(source.num_envs)]
    seen = [[frame.tobytes()] for frame in source.reset()]
    ends = 0
    for _ in range(steps):
        actions = np.array([[random.integers(source.action_space.n)] for random in randoms])
        step = source.step(actions)
        ends += int((step.terminations | step.truncations).sum())
        for row in range(source.num_envs):
            seen[row].append(b"".join(array[row].tobytes() for array in step))
    return seen, ends


def test_the_step_after_an_end_restarts_and_ignores_the_action():
    source = open_source("gymnasium:LwmTest/Counter-v0", 2, seed=7)
    first = source.reset()
    rows = [source.step(np.array([[1], [2]])) for _ in range(6)]

    assert first[:, 0, 0].tolist() == [[0, 7, 0], [0, 8, 0]]
    assert [row.observations[1, 0, 0, 0] for row in rows] == [1, 2, 3, 4, 5, 0]
    assert [row.terminations[1] for row in rows] == [False] * 4 + [True, False]
    assert [row.rewards[1, 0] for row in rows] == [3.0] * 5 + [0.0]  # the game counts its actions from 1
    assert rows[5].observations[1, 0, 0, 1] == source.episode_seeds[1] % 256 != 8
    source.close()


def test_a_time_limit_truncates_and_frames_are_resized():
    source = open_source(
        "gymnasium:LwmTest/Counter-v0", 1, 0, {}, SourceConfig(frame_size=(8, 12), max_episode_steps=2)
    )
    source.reset()
    steps = [source.step(np.array([[0]])) for _ in range(3)]

    assert steps[0].observations.shape == (1, 8, 12, 3)
    assert [bool(step.truncations[0]) for step in steps] == [False, True, False]
    assert not any(step.terminations[0] for step in steps)


def test_a_reset_with_a_mask_leaves_the_others_alone():
    source = open_source("gymnasium:LwmTest/Counter-v0", 3, 0)
    source.reset()
    source.step(np.zeros((3, 1), int))
    observations = source.reset(mask=np.array([False, True, False]))

    assert observations[:, 0, 0, 0].tolist() == [1, 0, 1]
    assert source.step(np.zeros((3, 1), int)).observations[:, 0, 0, 0].tolist() == [2, 1, 2]


def test_what_was_handed_out_never_changes():
    source = open_source("gymnasium:LwmTest/Counter-v0", 2, 0)
    first = source.reset()
    step = source.step(np.zeros((2, 1), int))
    copies = first.copy(), step.observations.copy()
    step.observations[:] = 99
    source.step(np.zeros((2, 1), int))
    after = source.reset(mask=np.zeros(2, bool))

    assert (first == copies[0]).all() and after[0, 0, 0, 0] == 2


@pytest.mark.parametrize(
    "actions",
    [np.zeros(2, int), np.zeros((2, 1)), np.full((2, 1), 4), np.full((2, 1), -1), np.zeros((3, 1), int), [[None], [0]]],
)
def test_wrong_actions_are_refused_and_nothing_is_stepped(actions):
    source = open_source("gymnasium:LwmTest/Counter-v0", 2, 0)
    source.reset()
    with pytest.raises(InvalidInput):
        source.step(actions)

    assert source.step(np.zeros((2, 1), int)).observations[0, 0, 0, 0] == 1


def test_steps_before_reset_and_after_close_are_refused():
    source = open_source("gymnasium:LwmTest/Counter-v0", 1, 0)
    with pytest.raises(WrongOrder):
        source.step(np.zeros((1, 1), int))
    source.close()
    source.close()
    with pytest.raises(WrongOrder):
        source.reset()


def test_a_game_without_images_is_seen_as_it_is_rendered():
    pytest.importorskip("pygame", reason="CartPole draws with pygame")
    source = open_source("gymnasium:CartPole-v1", 2, 3, {}, SourceConfig(frame_size=(40, 60)))
    observations = source.reset()
    step = source.step(np.array([[0], [1]]))

    assert observations.shape == (2, 40, 60, 3) and observations.std() > 0
    assert (step.observations[0] != step.observations[1]).any()
    source.close()


def test_a_parallel_game_has_one_frame_and_a_reward_per_player():
    source = open_source("pettingzoo:lwmtest/relay_v0", 1, 0)
    source.reset()
    steps = [source.step(np.array([[1, 2]])) for _ in range(5)]

    assert source.players == ("first", "second") and source.action_space == spaces.Discrete(3)
    assert [step.rewards[0].tolist() for step in steps] == [[1, 2], [1, 2], [1, 0], [1, 0], [0, 0]]
    assert [bool(step.terminations[0]) for step in steps] == [False] * 3 + [True, False]
    assert [step.observations[0, 0, 0, 0] for step in steps] == [1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("gymnasium:CartPol-v1", "CartPole"),
        ("CartPolle-v1", "CartPole-v1"),
        ("gymnasim:CartPole-v1", "gymnasium:CartPole-v1"),
        ("pettingzoo:lwmtest/rely_v0", "lwmtest/relay-v0"),
    ],
)
def test_an_unknown_game_names_the_nearest(name, nearest):
    with pytest.raises(UnknownWorld, match=nearest):
        open_source(name)


def test_envpool_names_the_nearest_id_and_option():
    pytest.importorskip("envpool")
    with pytest.raises(UnknownWorld, match="CoinrunEasy-v0"):
        open_source("envpool:CoinrunEazy-v0")
    with pytest.raises(ConfigMismatch, match="frame_skip"):
        open_source("envpool:Pong-v5", options={"frameskip": 3})


def test_a_bare_id_is_looked_for_in_envpool_then_in_gymnasium():
    assert resolve("LwmTest/Counter-v0") == ("gymnasium", "LwmTest/Counter-v0")
    assert resolve("lwmtest/relay_v0")[0] == "pettingzoo"
    pytest.importorskip("envpool")
    assert resolve("CoinrunEasy-v0") == ("envpool", "CoinrunEasy-v0")


def test_without_envpool_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(MissingExtra, match=r"envpool .*pip install .*data"):
        open_source("envpool:CoinrunEasy-v0")


def test_without_opencv_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r"opencv.*pip install .*data"):
        open_source("gymnasium:LwmTest/Counter-v0", config=SourceConfig(frame_size=(8, 8)))


@pytest.mark.parametrize(
    ("shape", "num_stacked", "picked"),
    [
        ((20, 24, 3), 1, (..., slice(0, 3))),
        ((20, 24, 4), 1, (..., slice(0, 3))),
        ((20, 24, 1), 1, (..., [0, 0, 0])),
        ((20, 24), 1, (..., None)),
        ((4, 20, 24, 3), 1, (slice(None), -1)),
    ],
)
def test_images_of_every_layout_become_rgb(shape, num_stacked, picked):
    batch = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    frames = image_converter(spaces.Box(0, 255, shape, np.uint8), num_stacked)(batch)

    assert frames.shape == (2, 20, 24, 3)
    assert (frames == np.broadcast_to(batch[picked], frames.shape)).all()


@pytest.mark.parametrize(("channels", "num_stacked"), [(3, 1), (12, 4), (4, 4), (4, 1), (1, 1)])
def test_of_a_stack_along_the_channels_the_last_frame_is_taken(channels, num_stacked):
    batch = np.random.default_rng(0).integers(0, 256, (2, channels, 20, 24), np.uint8)
    frames = image_converter(spaces.Box(0, 255, (channels, 20, 24), np.uint8), num_stacked)(batch)

    colour = channels // num_stacked == 3
    last = batch[:, -3:] if colour else batch[:, -1:] if (channels, num_stacked) != (4, 1) else batch[:, :3]
    assert (frames == np.broadcast_to(np.moveaxis(last, 1, -1), (2, 20, 24, 3))).all()


def test_small_grids_and_vectors_are_no_images():
    assert image_converter(spaces.Box(0, 255, (7, 7, 3), np.uint8)) is None
    assert image_converter(spaces.Box(-1, 1, (4,), np.float32)) is None
    assert image_converter(spaces.Discrete(3)) is None


def test_a_ball_stays_whole_where_the_brightest_pixel_is_shown():
    frame = np.zeros((1, 10, 7, 3), np.uint8)
    frame[..., 0] = 144  # the ground
    frame[0, 4:7, 3] = 236  # a ball one pixel wide
    frame[0, :2, :2, 1] = 186  # brighter than the ground, darker than the ball

    small = resize(frame, (5, 4), "brightest")[0]

    assert {tuple(colour) for colour in small.reshape(-1, 3).tolist()} == {(144, 0, 0), (236,) * 3, (144, 186, 0)}
    assert np.argwhere(small[..., 2]).tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]  # columns 1 and 2 both touch it
    assert np.argwhere(small[..., 1] == 186).tolist() == [[0, 0], [0, 1]]


def test_resize_takes_the_mean_of_each_area():
    pytest.importorskip("cv2")
    frame = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1).repeat(3, axis=-1)

    assert resize(frame, (2, 2))[0, :, :, 0].tolist() == [[3, 5], [11, 13]]  # 2.5, 4.5, 10.5, 12.5


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(5, start=-2), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3), spaces.Box(-2, 2, (2, 2))],
)
def test_actions_survive_the_way_there_and_back(space):
    space.seed(0)
    codec = ActionCodec(space)
    native = np.stack([space.sample() for _ in range(20)])
    ours = codec.encode(native)[:, 0]

    assert all(codec.space.contains(action) for action in ours)
    np.testing.assert_array_equal(codec.decode(ours), native)


def test_coinrun_gives_the_same_bytes_whatever_is_beside_it(platformer):
    together, ends = play(open_spec_source(platformer, 3, 40, "train"), 130)
    alone = [play(open_spec_source(platformer, 1, 40 + row, "train"), 130, row)[0][0] for row in range(3)]

    assert together == alone
    assert ends >= 6  # the limit of 60 steps at least


def test_coinrun_has_the_worlds_spaces_and_levels(platformer):
    source = open_spec_source(platformer, 16, 0, "validation")
    frames = source.reset()

    assert source.action_space == spaces.Discrete(9)
    assert frames.shape == (16, 64, 64, 3) and frames.dtype == np.uint8
    assert ((source.episode_seeds >= 500_000_000) & (source.episode_seeds < 600_000_000)).all()
    assert SPLITS["validation"].items() <= source.facts["options"].items()
    with pytest.raises(ConfigMismatch, match="train, validation"):
        open_spec_source(platformer, 1, 0, "tests")


def test_the_real_twin_has_the_spaces_of_the_world(platformer):
    envs = make_real_vec(platformer, num_envs=3)
    observations, infos = envs.reset(seed=5)

    assert envs.single_observation_space == platformer.observation_space()
    assert envs.single_action_space == platformer.action_space()
    assert envs.observation_space.contains(observations)
    for _ in range(3):
        observations, rewards, terminations, truncations, step_infos = envs.step(envs.action_space.sample())
        assert envs.observation_space.contains(observations) and len(envs.render()) == 3
        assert rewards.dtype == np.float64 and terminations.dtype == truncations.dtype == bool
        assert step_infos.keys() == infos.keys()
    envs.close()


def test_the_real_twin_begins_at_the_same_levels_for_the_same_seed(platformer):
    envs, one = make_real_vec(platformer, num_envs=3), make_real_vec(platformer, num_envs=1, seed=6)
    levels = envs.reset(seed=5)[1]["episode_seed"].tolist()
    envs.reset()
    again = envs.reset(seed=5)[1]["episode_seed"].tolist()

    assert levels == again
    assert one.reset()[1]["episode_seed"].tolist() == levels[1:2]
    assert envs.reset(seed=[6, 5, 7])[1]["episode_seed"].tolist() == [levels[1], levels[0], levels[2]]
    envs.close(), one.close()


def test_index_0_of_the_real_twin_does_nothing_and_2_walks_right(platformer):
    envs = make_real_vec(platformer, num_envs=2, seed=3)
    before, _ = envs.reset()
    for _ in range(4):
        after, *_ = envs.step(np.array([0, 2]))

    changed = (before != after).mean(axis=(1, 2, 3))
    assert changed[0] < 0.05 < changed[1]  # the camera follows whoever walks
    envs.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_real_twin_knows_every_autoreset_mode(platformer, mode):
    envs = make_real_vec(platformer, num_envs=2, autoreset_mode=mode)
    envs.reset(seed=0)
    noop = np.zeros(2, int)
    for _ in range(60):
        observations, _, terminations, truncations, infos = envs.step(noop)

    assert truncations.all() and not terminations.any()
    if mode is AutoresetMode.SAME_STEP:
        assert infos["_final_obs"].all() and infos["final_obs"].shape == observations.shape
        assert (infos["final_obs"] != observations).any() and infos["elapsed_steps"].tolist() == [0, 0]
    elif mode is AutoresetMode.NEXT_STEP:
        assert infos["elapsed_steps"].tolist() == [60, 60]
        _, rewards, _, truncations, infos = envs.step(noop)
        assert infos["elapsed_steps"].tolist() == [0, 0] and not truncations.any() and not rewards.any()
    else:
        with pytest.raises(WrongOrder, match="reset_mask"):
            envs.step(noop)
        envs.reset(options={"reset_mask": np.array([True, True])})
        envs.step(noop)
    envs.close()


def test_the_twin_of_several_players_or_an_unknown_world_is_refused(platformer):
    with pytest.raises(ConfigMismatch, match="2 players and no script"):
        make_real_vec(platformer.model_copy(update={"players": ("a", "b")}))
    with pytest.raises(UnknownWorld):
        make_real_vec("LWM-Platfromer-v9")
    with pytest.raises(InvalidInput, match="NextStep"):
        make_real_vec(platformer, autoreset_mode="sometimes")


def test_a_frame_skip_holds_the_actions_and_sums_the_rewards_to_the_end():
    source = open_source("pettingzoo:lwmtest/relay-v0", options={"frame_skip": 3})
    first = source.reset()
    steps = [source.step(np.array([[1, 2]])) for _ in range(2)]

    assert first.max() == 0 and [step.observations.max() for step in steps] == [3, 4]
    assert [step.rewards.tolist() for step in steps] == [[[3, 4]], [[1, 0]]]  # the second player is out after two
    assert [step.terminations.tolist() for step in steps] == [[False], [True]]
    with pytest.raises(ConfigMismatch, match="frame_skip"):
        open_source("pettingzoo:lwmtest/relay-v0", options={"frame_skip": 0})


def test_two_player_pong_is_the_twin_of_its_recipe():
    pytest.importorskip("multi_agent_ale_py", reason='needs the extra: pip install "lwm-env[atari]"')
    pytest.importorskip("ale_py", reason='needs the extra: pip install "lwm-env[atari]"')
    spec = load_recipe(Path(__file__).parent.parent / "training/recipes/pong.toml").world

    def played(num_envs):
        source = open_spec_source(spec, num_envs, 0, "train")
        frames, script, rewards = source.reset(), load_script(spec), []
        for _ in range(100):
            actions = script(frames)
            actions[:, 1] = 1  # FIRE: the left paddle stands still
            step = source.step(actions)
            frames = step.observations
            rewards.append(step.rewards)
        source.close()
        return frames, np.stack(rewards)

    frames, rewards = played(2)

    assert frames.shape == (2, 64, 64, 3) and set(np.unique(rewards)) <= {-1, 0, 1}
    assert rewards[..., 0].sum() > 0 and (rewards.sum(-1) == 0).all()  # nobody was late with a serve
    alone = played(1)
    assert (alone[0] == frames[:1]).all() and (alone[1] == rewards[:, :1]).all()

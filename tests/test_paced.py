"""Steps of ours that are several of a game's, rewards taken for the nearest value, players of continuous actions."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from pydantic import ValidationError

from lwm_env import opponents
from lwm_env.errors import ConfigMismatch
from lwm_env.scripts import load_script
from lwm_env.spec import ContinuousActions, RealSource, WorldSpec
from lwm_training.clips import nearest_rewards
from lwm_training.event_metrics import Happenings
from lwm_training.policies import Players, parse_policy
from lwm_training.recipe import Data
from lwm_training.report_rows import events_of
from lwm_training.source import SourceConfig
from lwm_training.sources import open_source
from lwm_training.stream import Shard

STEER, GAS, BRAKE = range(3)
PACE = {"action_repeat": 3, "skip_first": 2, "crop_bottom": 4}


class Tape(gym.Env):
    """Shows the game's step in the red channel, what was steered in the green one, and 255 in the last four rows; a
    step gives 1, the eleventh ends it."""

    observation_space = spaces.Box(0, 255, (20, 16, 3), np.uint8)
    action_space = spaces.Box(np.float32([-1, 0, 0]), np.float32([1, 1, 1]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number = 0
        return self._picture(0), {}

    def step(self, action):
        self.number += 1
        return self._picture(action[STEER]), 1.0, self.number == 11, False, {}

    def _picture(self, steered):
        picture = np.full((20, 16, 3), [self.number, round(100 * (1 + steered)), 0], np.uint8)
        picture[16:] = 255
        return picture


@pytest.fixture(scope="module", autouse=True)
def tape():
    gym.register("LwmTest/Tape-v0", Tape)
    yield
    gym.registry.pop("LwmTest/Tape-v0")


def drivers(**changes) -> WorldSpec:
    names = ("STEER", "GAS", "BRAKE")
    return WorldSpec(
        id="LWM-Drive-v0", description="A drive of the tests.", frame_size=(16, 16), script="racing_road",
        actions=ContinuousActions(meanings=names, low=(-1, 0, 0), high=(1, 1, 1), sticky_rest=(0.3, 0.0, 1.0)),
        **{"real": RealSource(source="none")} | changes,
    )  # fmt: skip


def forward(steered: float) -> np.ndarray:
    return np.array([[[steered, 0.5, 0]]], np.float32)


def test_a_step_holds_the_action_for_several_of_the_game_and_sums_the_rewards_to_the_end():
    source = open_source("gymnasium:LwmTest/Tape-v0", options=PACE)
    first = source.reset()
    steps = [source.step(forward(0.5)) for _ in range(4)]

    assert first.shape == (1, 16, 16, 3) and first.max() == 100  # the rows of 255 are cut off
    assert first[0, 0, 0].tolist() == [2, 100, 0]  # two steps of the game, nothing steered
    assert [step.observations[0, 0, 0, 0] for step in steps] == [5, 8, 11, 2]
    assert [step.observations[0, 0, 0, 1] for step in steps] == [150, 150, 150, 100]
    assert [step.rewards.item() for step in steps] == [3, 3, 3, 0]
    assert [step.terminations.item() for step in steps] == [False, False, True, False]
    assert source.facts["pace"] == PACE


def test_copies_that_end_in_the_middle_of_a_step_leave_the_others_going():
    source = open_source("gymnasium:LwmTest/Tape-v0", 2, options={"action_repeat": 4})
    source.reset()
    source.step(np.repeat(forward(0), 2, 0))
    source.reset(mask=np.array([False, True]))
    steps = [source.step(np.repeat(forward(0), 2, 0)) for _ in range(2)]

    assert [step.observations[:, 0, 0, 0].tolist() for step in steps] == [[8, 4], [11, 8]]
    assert steps[1].rewards[:, 0].tolist() == [3, 4] and steps[1].terminations.tolist() == [True, False]


def test_the_time_limit_counts_our_steps():
    source = open_source("gymnasium:LwmTest/Tape-v0", 1, 0, PACE, SourceConfig(max_episode_steps=2))
    source.reset()
    steps = [source.step(forward(0)) for _ in range(3)]

    assert [step.truncations.item() for step in steps] == [False, True, False]
    assert not any(step.terminations.item() for step in steps)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"action_repeat": 0}, "action_repeat must be an integer of at least 1, got 0"),
        ({"action_repeat": 1.5}, "action_repeat"),
        ({"skip_first": -1}, "skip_first"),
        ({"skip_first": 11}, "ended in the first 11 steps"),
        ({"crop_bottom": 20}, "the picture has 20 rows"),
    ],
)
def test_a_pace_that_cannot_be_is_told(options, told):
    with pytest.raises(ConfigMismatch, match=told):
        open_source("gymnasium:LwmTest/Tape-v0", options=options)


def test_rewards_are_taken_for_the_nearest_value():
    rewards = np.float32([[-0.3], [2.6], [3.4], [6.9], [-99.9]])

    assert nearest_rewards(rewards, [-100, -0.3, 3, 6.3])[:, 0] == pytest.approx([-0.3, 3, 3, 6.3, -100])


def test_the_reward_nearest_to_0_is_no_event():
    real = np.float32([[3, 3, -0.3, -0.3, 3]])[..., None]
    given = Happenings(
        end_probs=np.zeros((1, 5)), rewards=real, real_rewards=real, real_ends=np.zeros((1, 5), bool),
        valid=np.ones((1, 5), bool),
    )  # fmt: skip

    assert events_of(given, threshold=0.5)[1].found.tolist() == [3]


def test_a_shard_draws_clips_where_a_reward_differs_from_the_one_nearest_to_0():
    options = {"action_repeat": 3}  # 3, 3, 3, and 2 with the end
    spec = drivers(reward_values=(2.0, 3.0), real=RealSource(source="gymnasium:LwmTest/Tape-v0", options=options))
    usual = spec.model_copy(update={"reward_values": (3.0, 9.0)})
    data = Data(num_envs=1, shard_steps=6, policy="random")

    assert Shard(spec, data, 0, "train").eventful.tolist() == [[True, True, True, True, False, True]]
    assert Shard(usual, data, 0, "train").eventful.tolist() == [[False, False, False, True, False, False]]


def test_random_players_leave_continuous_values_at_rest_as_often_as_the_world_says():
    policy = parse_policy("sticky:0.2", Players.of(drivers(), num_envs=400, seed=1))
    calm = np.zeros((400, 16, 16, 3), np.uint8), np.zeros(400, bool)
    actions = np.stack([policy.act(*calm)[:, 0] for _ in range(30)])
    bot = opponents.make("sticky", drivers(), "player_0", seed=2)
    played = np.stack([bot.act(calm[0][0]) for _ in range(3000)])

    for drawn in (actions.reshape(-1, 3), played):
        assert (drawn[:, STEER] == 0).mean() == pytest.approx(0.3, abs=0.06)
        assert (drawn[:, GAS] > 0).mean() > 0.95 and (drawn[:, BRAKE] == 0).all()
        assert (np.abs(drawn[:, STEER]) <= 1).all() and drawn[:, STEER].std() > 0.4


def test_a_share_of_rest_for_each_value_or_none():
    with pytest.raises(ValidationError, match="2 values need as many of sticky_rest or none, got 1"):
        ContinuousActions(meanings=("STEER", "GAS"), low=(-1, 0), high=(1, 1), sticky_rest=(0.5,))


def track(*stretches: tuple[slice, slice]) -> np.ndarray:
    """CarRacing's colours: road on grass, and the car."""
    frame = np.full((64, 64, 3), (102, 204, 102), np.uint8)
    for stretch in stretches:
        frame[stretch] = 105
    frame[50:58, 31:33] = (204, 0, 0)
    return frame


STRAIGHT = (slice(0, 64), slice(25, 39))
UP_TO_A_BEND = (slice(36, 64), slice(25, 39))
LEFT, RIGHT = (slice(36, 48), slice(0, 39)), (slice(36, 48), slice(25, 64))


def test_the_driver_steers_to_where_the_road_goes_and_slows_down_before_bends():
    drive = load_script(drivers())
    ahead, left, right, beside, lost = drive(
        np.stack([
            track(STRAIGHT), track(UP_TO_A_BEND, LEFT), track(UP_TO_A_BEND, RIGHT),
            track((slice(0, 64), slice(50, 64))), track(),
        ])
    )[:, 0]  # fmt: skip

    assert abs(ahead[STEER]) < 0.1 and ahead[GAS] > 0.7
    assert left[STEER] < -0.1 and right[STEER] > 0.1 and left[GAS] == pytest.approx(right[GAS], abs=0.05)
    assert left[GAS] < 0.6 and beside[STEER] > 0.5 and beside[GAS] < 0.1
    assert lost[STEER] > 0.1 and 0 < lost[GAS] < 0.1


def test_the_driver_is_a_bot_and_a_policy_of_its_world():
    frame = track((slice(0, 64), slice(50, 64)))
    bot = opponents.make("script", drivers(), "player_0")
    policy = parse_policy("script:0.5", Players.of(drivers(), num_envs=100, seed=0))
    actions = np.stack([policy.act(np.stack([frame] * 100), np.zeros(100, bool)) for _ in range(20)])

    scripted = bot.act(frame)
    follows = (actions == scripted).all(-1).mean()
    assert scripted.shape == (3,) and scripted.dtype == actions.dtype == np.float32
    assert actions.shape == (20, 100, 1, 3) and 0.5 < follows < 0.8  # the mean skill is 0.65

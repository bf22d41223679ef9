"""Scripted players: what they do on pictures made by hand, and as the other seats of a Gymnasium env."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lwm_env import opponents
from lwm_env.errors import ConfigMismatch, InvalidInput
from lwm_env.scripts import Seats, load_script
from lwm_env.spec import DiscreteActions, RealSource, WorldSpec
from lwm_training.policies import Players, parse_policy

NOOP, FIRE, UP, DOWN = range(4)


@pytest.fixture(scope="module")
def pong() -> WorldSpec:
    meanings = ("NOOP", "FIRE", "UP", "DOWN")
    return WorldSpec(
        id="LWM-Pong-v0", description="Pong as the tests draw it.", players=("first_0", "second_0"),
        actions=DiscreteActions(meanings=meanings, source_actions=(0, 1, 2, 3)), reward_values=(-1.0, 0.0, 1.0),
        real=RealSource(source="none"), script="pong_paddles",
    )  # fmt: skip


def picture(ball: int | None, right: int, left: int) -> np.ndarray:
    """Atari's colours: paddles 5 pixels high around the rows `right` and `left`, of which the walls hide what is not in
    the field, and a ball of one pixel in row `ball`."""
    frame = np.full((64, 64, 3), (144, 72, 17), np.uint8)
    frame[right - 2 : right + 3, 56:58] = (92, 186, 92)
    frame[left - 2 : left + 3, 6:8] = (213, 130, 74)
    if ball is not None:
        frame[ball, 30] = 236
    frame[:11] = frame[59:] = 236
    return frame


@pytest.mark.parametrize(
    ("ball", "right", "left", "expected"),
    [
        (20, 40, 30, (UP, UP)),
        (50, 40, 51, (DOWN, NOOP)),
        (35, 35, 20, (NOOP, DOWN)),
        (None, 20, 50, (FIRE, FIRE)),
        (40, 9, 9, (DOWN, DOWN)),
        (20, 60, 60, (UP, UP)),
    ],
)
def test_paddles_follow_the_ball_and_serve_where_there_is_none(pong, ball, right, left, expected):
    assert load_script(pong)(picture(ball, right, left)[None]).tolist() == [list(expected)]


def test_pictures_are_judged_one_by_one(pong):
    pictures = np.stack([picture(20, 40, 30), picture(None, 40, 30), picture(50, 20, 50)])
    script = load_script(pong)

    assert (script(pictures) == np.concatenate([script(frame[None]) for frame in pictures])).all()


def test_the_other_seats_of_an_env_are_played_by_the_script(pong):
    seats, frames = Seats(pong), torch.from_numpy(np.stack([picture(20, 40, 30), picture(50, 40, 51)]))

    assert seats.join(torch.tensor([FIRE, UP]), lambda: frames).tolist() == [[FIRE, UP], [UP, NOOP]]


def test_worlds_without_a_script_say_so(pong):
    duel = pong.model_copy(update={"script": None})
    alone = duel.model_copy(update={"players": ("player_0",)})

    with pytest.raises(ConfigMismatch, match="2 players and no script"):
        Seats(duel)
    with pytest.raises(ConfigMismatch, match="no script"):
        load_script(alone)
    with pytest.raises(ConfigMismatch, match="no script"):
        parse_policy("script", Players(action_space=spaces.Discrete(4), num_envs=1))
    assert Seats(alone).join(torch.tensor([UP]), lambda: pytest.fail("nobody looks")).tolist() == [[UP]]


def test_a_scripted_policy_follows_for_a_share_of_the_time_that_differs_between_players(pong):
    frames = np.stack([picture(20, 40, 30)] * 200)
    players = Players(
        action_space=spaces.Discrete(4), num_envs=200, num_players=2, seed=1, weights=(1, 0, 0, 1),
        script=load_script(pong),
    )  # fmt: skip
    policies = [parse_policy("script:0.5", players) for _ in range(2)]
    restarted = np.arange(40) % 20 == 0

    actions, again = (np.stack([p.act(frames, np.full(200, new)) for new in restarted]) for p in policies)

    follows = (actions == UP).mean(0)  # held actions are NOOP and DOWN
    assert (actions == again).all()
    assert (follows[..., 0] != follows[..., 1]).mean() > 0.5
    assert follows.min() < 0.1 and follows.max() > 0.85 and 0.5 < follows.mean() < 0.75  # the mean skill is 0.65


def test_a_scripted_policy_may_follow_for_a_given_share(pong):
    frames = np.stack([picture(20, 40, 30)] * 50)
    players = Players(action_space=spaces.Discrete(4), num_envs=50, num_players=2, script=load_script(pong))
    always, half = (parse_policy(text, players) for text in ("script:1:1", "script:1:0.5"))
    new = np.ones(50, bool)

    assert (always.act(frames, new) == UP).all()
    assert 0.4 < np.mean([half.act(frames, new) == UP for _ in range(20)]) < 0.85  # other actions may be UP too
    with pytest.raises(InvalidInput, match=r"in \[0, 1\], got \(2\.0,\)"):
        parse_policy("script:0.5:2", players)


def test_the_script_is_a_bot_of_its_world_and_comes_first(pong):
    bot = opponents.make("script", pong, "second_0")
    bot.reset(seed=1)

    assert opponents.names_for(pong)[0] == "script" and bot.act(picture(20, 40, 30)) == UP
    unscripted = pong.model_copy(update={"script": None})
    assert "script" not in opponents.names_for(unscripted)
    assert isinstance(opponents.best_for(pong, "first_0"), opponents.ScriptedPlayer)
    assert isinstance(opponents.best_for(unscripted, "first_0"), opponents.StickyPlayer)

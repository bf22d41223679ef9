"""One seat of a game of several: the others are policies or chance, and a policy that learned can take any seat."""

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pytest.importorskip("stable_baselines3")
from stable_baselines3.common.vec_env import DummyVecEnv

from lwm_agents.agent import load_agent, make_ppo, save_agent
from lwm_agents.seats import SeatEnv
from lwm_env import cli, opponents
from lwm_env.envs.parallel_env import LwmParallelEnv
from lwm_env.errors import ConfigMismatch, InvalidInput, WrongOrder

FAST = {"n_steps": 8, "batch_size": 8, "n_epochs": 1}


class Always:
    """Plays one action, and writes down what it was asked."""

    def __init__(self, action: int) -> None:
        self.action, self.asked = action, []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.asked.append((observation.shape, state, bool(episode_start[0]), deterministic))
        return np.array([self.action]), (state or 0) + 1


@pytest.fixture
def game(duel_world) -> LwmParallelEnv:
    return LwmParallelEnv(str(duel_world), max_cycles=4)


def learn(game, seat: str, seed: int):
    """A policy of a few steps in a seat."""
    return make_ppo(DummyVecEnv([lambda: SeatEnv(game, seat)]), seed, "cpu", **FAST).learn(16)


@pytest.mark.parametrize("seat", ["left", "right"])
def test_gymnasiums_checks_have_nothing_to_say(duel_world, seat):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*not created with `gymnasium.make`.*|.*env.spec.*")
        check_env(SeatEnv(LwmParallelEnv(str(duel_world)), seat), skip_render_check=True)


def test_a_seat_sees_and_earns_what_its_player_does(game, duel_world):
    env, control = SeatEnv(game, "right", {"left": Always(1)}), LwmParallelEnv(str(duel_world), max_cycles=4)
    observation, info = env.reset(seed=3)
    observations, infos = control.reset(seed=3)
    assert (observation == observations["right"]).all() and info == infos["right"]

    for action in (2, 0, 1, 2):
        observation, *outcome, info = env.step(action)
        observations, *outcomes, infos = control.step({"left": 1, "right": action})
        assert (observation == observations["right"]).all() and info == infos["right"]
        assert outcome == [values["right"] for values in outcomes]

    assert outcome[1:] == [False, True]  # truncated
    with pytest.raises(WrongOrder, match="reset"):
        env.step(0)


def test_the_memory_of_another_player_lasts_an_episode(game):
    other = Always(0)
    env = SeatEnv(game, "left", {"right": other}, deterministic=True)
    for _ in range(2):
        env.reset(seed=0)
        env.step(0)
        env.step(0)

    shape = (1, 16, 16, 3)
    assert other.asked == [(shape, None, True, True), (shape, 1, False, True)] * 2


def test_random_players_follow_the_seed(game):
    env, frames = SeatEnv(game, "left"), []
    for seed in (1, 1, 2):
        env.reset(seed=seed)
        frames.append(b"".join(env.step(0)[0].tobytes() for _ in range(3)))

    assert frames[0] == frames[1] != frames[2]


def test_a_bot_sees_the_picture_and_follows_the_seed(game, duel_world, monkeypatch):
    class Brightest:
        def __init__(self):
            self.seeds = []

        def reset(self, seed=None):
            self.seeds.append(seed)

        def act(self, frame):
            assert frame.shape == (16, 16, 3) and frame.dtype == np.uint8
            return int(frame.mean(axis=(0, 1)).argmax())  # one of three actions

    bot = Brightest()
    monkeypatch.setattr(opponents, "_bots", dict(opponents._bots))
    opponents.register("brightest", lambda spec, player, seed: bot, ["LWM-Duel-v0"])
    assert opponents.names_for(game.world_spec) == ["brightest", "sticky"]  # those made for the world first
    env, control = SeatEnv(game, "right", {"left": "brightest"}), LwmParallelEnv(str(duel_world), max_cycles=4)
    env.reset(seed=3)
    observations, _ = control.reset(seed=3)
    for _ in range(3):
        chosen = int(observations["left"].mean(axis=(0, 1)).argmax())
        observations, *_ = control.step({"left": chosen, "right": 1})
        assert (env.step(1)[0] == observations["right"]).all()
    assert bot.seeds == [4, None]

    sticky, frames = SeatEnv(game, "right", {"left": "sticky"}), []
    for seed in (1, 1, 2):
        sticky.reset(seed=seed)
        frames.append(b"".join(sticky.step(0)[0].tobytes() for _ in range(3)))
    assert frames[0] == frames[1] != frames[2]
    for name in ("paddle", "human"):
        with pytest.raises(InvalidInput, match=name):
            SeatEnv(game, "right", {"left": name})
    with pytest.raises(InvalidInput, match="taken"):
        opponents.register("sticky", None)


def test_a_policy_that_learned_takes_either_seat(game, tmp_path):
    save_agent(tmp_path / "agent", learn(game, "left", 0), {})
    for seat, other in (("left", "right"), ("right", "left")):
        policy = make_ppo(DummyVecEnv([lambda seat=seat: SeatEnv(game, seat)]), 1, "cpu", **FAST)
        load_agent(tmp_path / "agent", policy)
        env, played = SeatEnv(game, other, {seat: policy}), 0
        env.reset(seed=0)
        while not env.step(0)[3]:
            played += 1
        assert played == 3


def test_an_agent_joins_a_room_of_a_server(game, play_server, tmp_path, capsys):
    save_agent(tmp_path / "agent", learn(game, "left", 0), {})
    room = play_server.call("POST", "rooms", {"world": "LWM-Duel-v0", "seats": {"right": "sticky"}})["room"]
    command = ["agent", "join", play_server.url, room, "left", str(tmp_path / "agent"), "--episodes", "2", "--json"]

    assert cli.main(command) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["episode"], second["episode"]) == (1, 2) and 1 <= second["length"] <= 20
    seats = play_server.call("GET", f"rooms/{room}")["seats"]
    assert seats[0]["state"] == "dropped" and seats[1]["played_by"] == "sticky"

    assert cli.main([*command[:4], "right", *command[5:]]) == 1
    assert "no such seat is free" in capsys.readouterr().err


def test_misuse_is_refused(game, tiny_world):
    for seat, others in (("middle", None), ("left", {"left": Always(0)}), ("left", {"middle": None})):
        with pytest.raises(InvalidInput, match="seats are"):
            SeatEnv(game, seat, others)
    stranger = learn(game, "left", 0)
    stranger.action_space = gym.spaces.Discrete(5)
    with pytest.raises(ConfigMismatch, match=r"Discrete\(5\)"):
        SeatEnv(game, "left", {"right": stranger})
    with pytest.raises(WrongOrder, match="reset"):
        SeatEnv(game, "left").step(0)

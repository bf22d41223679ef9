"""`lwm agent` on a world of two players: its script plays the other one, in the dream and in the real game alike."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
from lwm_agents.agent import make_ppo
from lwm_agents.sb3 import SB3VecEnv
from lwm_env import cli
from lwm_env.envs import LwmVectorEnv
from lwm_env.envs.parallel_env import LwmParallelEnv
from lwm_env.scripts import load_script
from lwm_env.spec import DiscreteActions, RealSource
from lwm_env.world_model import Prompts, WorldModel
from lwm_training.policies import Players, parse_policy
from lwm_training.real import make_real_vec

GAME = '''
"""Pong as the script `pong_paddles` sees it: a ball that comes from the left, for one point or none."""
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

played = []  # what the second player did at each step of each copy

class TinyPong(ParallelEnv):
    metadata = {"name": "tiny_pong", "render_modes": []}
    possible_agents = ["first_0", "second_0"]

    def observation_space(self, agent):
        return spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def action_space(self, agent):
        return spaces.Discrete(4)

    def reset(self, seed=None, options=None):
        generator = np.random.default_rng(seed)
        self.agents, self.column, self.rows = list(self.possible_agents), 12, generator.integers(18, 52, 3)
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions):
        played.append(actions["second_0"])
        moves = (0, 0, -3, 3)  # NOOP, FIRE, UP, DOWN
        for player, agent in enumerate(self.possible_agents):
            self.rows[player] = np.clip(self.rows[player] + moves[actions[agent]], 16, 54)
        self.column += 6
        over, hit = self.column > 50, abs(self.rows[0] - self.rows[2]) < 4
        reward = float(hit) - float(not hit) if over else 0.0
        names = list(self.agents)
        if over:
            self.agents = []
        return (self._seen(), dict(zip(names, (reward, -reward))), *({n: end for n in names} for end in (over, False)),
                {n: {} for n in names})

    def _seen(self):
        right, left, ball = self.rows
        frame = np.full((64, 64, 3), (144, 72, 17), np.uint8)
        frame[:11] = frame[59:] = 236
        frame[right - 2 : right + 3, 56:58] = (92, 186, 92)
        frame[left - 2 : left + 3, 6:8] = (213, 130, 74)
        frame[ball, self.column] = 236
        return {agent: frame for agent in self.possible_agents}

parallel_env = TinyPong
'''


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    """The module of the real game."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "our_tiny_pong.py").write_text(GAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.invalidate_caches()
        yield importlib.import_module("our_tiny_pong")
        sys.modules.pop("our_tiny_pong")


@pytest.fixture(scope="module")
def world(game, tiny_config, tiny_spec, enliven, tmp_path_factory) -> str:
    """A tiny dream of that game, with pictures of it as prompts."""
    meanings = ("NOOP", "FIRE", "UP", "DOWN")
    changes = {
        "id": "LWM-TinyPong-v0", "players": ("first_0", "second_0"), "frame_size": (64, 64), "script": "pong_paddles",
        "actions": DiscreteActions(meanings=meanings, source_actions=(0, 1, 2, 3)), "reward_values": (-1.0, 1.0),
        "termination_threshold": 1.0, "temperature": 1.0, "real": RealSource(source="pettingzoo:our_tiny_pong"),
    }  # fmt: skip
    config = tiny_config.override({"frame_size": (64, 64), "motion.memory_dim": 8})
    env = game.parallel_env()
    frames = np.stack([[env.reset(seed=i)[0]["first_0"]] * 3 for i in range(4)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(config, tiny_spec.model_copy(update=changes))
        model.prompts = Prompts(torch.from_numpy(frames), torch.randint(0, 4, (4, 2, 2)))
        enliven(model)
    path = tmp_path_factory.mktemp("worlds") / "tiny_pong"
    model.save(path, provenance={"data": "random weights of the tests"})
    return str(path)


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_in_the_real_game_the_script_answers_the_real_frames(world, game, mode):
    envs = make_real_vec(world, num_envs=2, autoreset_mode=mode)
    script, ends, answers = load_script(envs.world_spec), 0, set()
    shown, _ = envs.reset(seed=1)
    before = np.zeros(2, bool)
    for own in np.random.default_rng(0).integers(4, size=(40, 2)):
        game.played.clear()
        expected = script(shown)[:, 1]
        shown, _, terminations, truncations, _ = envs.step(own)
        stepped = np.ones(2, bool) if mode == "SameStep" else ~before  # a copy that ended is restarted instead
        assert game.played == expected[stepped].tolist()
        before = terminations | truncations
        ends += before.sum()
        answers |= set(game.played)
    envs.close()

    assert ends >= 4 and {0, 2, 3} & answers == {0, 2, 3}


def test_in_the_dream_the_same_script_answers_the_dreamed_frames(world):
    envs, both = LwmVectorEnv(world, 1, max_episode_steps=-1), LwmParallelEnv(world, max_cycles=-1)
    script = load_script(envs.world_spec)
    observations, frame = envs.reset(seed=2)[0], both.reset(seed=2)[0]["first_0"]
    for own in np.random.default_rng(0).integers(4, size=10):
        assert (observations[0] == frame).all()
        other = int(script(frame[None])[0, 1])
        seen, rewards, *_ = both.step({"first_0": int(own), "second_0": other})
        frame = seen["first_0"]
        observations, reward, *_ = envs.step(np.array([own]))
        assert reward[0] == rewards["first_0"]


def test_dream_to_real_works(world, tmp_path, capsys):
    args = ["agent", "report", world, "--out", str(tmp_path), "--seeds", "1", "--steps", "1", "--envs", "2"]

    assert cli.main([*args, "--episodes", "4", "--device", "cpu", "--backend", "torch", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert found["world"] == "LWM-TinyPong-v0" and found["real"] == "lwm_training.real:make_real_vec"
    played = {(trial["kind"], place): each for trial in found["trials"] for place, each in trial["played"].items()}
    assert sorted(played) == [("dream", "dream"), ("dream", "real"), ("random", "real"), ("real", "real")]
    for (_, place), each in played.items():
        assert len(each["returns"]) == 4
        assert set(each["returns"]) <= {-1.0, 1.0} if place == "real" else each["lengths"] == [20] * 4

    agent = next(tmp_path.glob("seed-0/dream-*/agent"))
    args = ["agent", "evaluate", world, "--agent", str(agent), "--episodes", "2", "--envs", "2", "--backend", "torch"]
    if importlib.util.find_spec("moviepy"):
        args += ["--video", str(tmp_path / "film.mp4"), "--video-seconds", "1"]
    assert cli.main([*args, "--device", "cpu"]) == 0
    assert "real, random" in capsys.readouterr().out
    planning = ["--planner", "--num-plans", "2", "--horizon", "2", "--replan-every", "2"]
    assert cli.main([*args[:3], *planning, *args[5:11], "--device", "cpu"]) == 0


def test_a_policy_records_play_of_the_real_game_with_the_script_beside_it(world, tmp_path):
    envs = SB3VecEnv(world, 2)
    make_ppo(envs, 0, "cpu", n_steps=8, batch_size=16).save(tmp_path / "policy.zip")
    spec = envs.envs.unwrapped.world_spec
    frames = envs.reset()
    policy = parse_policy(f"sb3:ppo:{tmp_path / 'policy.zip'}", Players.of(spec, 2, 0))

    actions = policy.act(frames, np.ones(2, bool))

    assert actions.shape == (2, 2) and actions.dtype == np.int64
    assert (actions[:, 1] == load_script(spec)(frames)[:, 1]).all()

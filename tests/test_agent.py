"""`lwm agent`: a policy learns in a dream, is kept, resumed, refused where it does not fit, and measured."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
from gymnasium.vector import VectorWrapper

from lwm_agents.agent import digest_of, load_agent, make_ppo, open_agent, read_facts
from lwm_agents.evaluation import play
from lwm_agents.film import GAP, LABEL, SIDE, film
from lwm_agents.imagination import Honest, ImaginationConfig, train_in_dream, train_in_real
from lwm_agents.places import SeePlaces, Sight
from lwm_agents.sb3 import SB3VecEnv
from lwm_env import cli
from lwm_env.envs import LwmVectorEnv
from lwm_env.errors import ConfigMismatch, CorruptFile, UnknownWorld
from lwm_env.world_model import WorldModel

FAST = {"n_steps": 8, "batch_size": 16, "n_epochs": 1}
CONFIG = {"num_steps": 32, "num_envs": 2, "horizon": 6, "save_every": 16}


@pytest.fixture(scope="module")
def run(tiny_world, tmp_path_factory):
    """A finished run of 32 steps."""
    folder = tmp_path_factory.mktemp("run")
    train_in_dream(str(tiny_world), folder, ImaginationConfig(**CONFIG), "cpu", **FAST)
    return folder


def real_twin(world, num_envs, seed, split, autoreset_mode):
    """Stands for the real game."""
    assert split == "validation"
    return LwmVectorEnv(world, num_envs, autoreset_mode=autoreset_mode, max_episode_steps=6)


def test_a_run_leaves_an_agent_and_a_log(run, tiny_spec):
    facts = read_facts(run / "agent")

    assert facts["num_timesteps"] == 32 and facts["world"] == tiny_spec.id
    assert list((run / "tensorboard").rglob("events*"))


def test_the_same_settings_train_in_the_real_game(tiny_world, tiny_spec, tmp_path):
    made = []

    def make_real(world, num_envs, seed, split, autoreset_mode):
        made.append((num_envs, seed, split))
        return LwmVectorEnv(world, num_envs, autoreset_mode=autoreset_mode)

    model = train_in_real(str(tiny_world), make_real, tmp_path, ImaginationConfig(**CONFIG), "cpu", **FAST)
    facts = read_facts(tmp_path / "agent")

    assert made == [(2, 0, "train")] and model.num_timesteps == facts["num_timesteps"] == 32
    assert facts["real"].endswith("make_real") and facts["world"] == tiny_spec.id and facts["seconds"] > 0


def test_a_run_that_goes_on_begins_at_seeds_that_it_did_not_play(tiny_world, tmp_path):
    seeds = []

    class Recorded(VectorWrapper):
        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed, options=options)

    def make_real(world, num_envs, seed, split, autoreset_mode):
        return Recorded(LwmVectorEnv(world, num_envs, autoreset_mode=autoreset_mode))

    for steps in (32, 64):
        config = ImaginationConfig(**{**CONFIG, "num_steps": steps, "seed": 5})
        train_in_real(str(tiny_world), make_real, tmp_path, config, "cpu", **FAST)

    assert seeds == [[5, 6], [37, 38]]


def test_a_second_call_goes_on_and_a_finished_run_stays(run, tiny_world):
    before = (run / "agent" / "policy.safetensors").read_bytes()

    same = train_in_dream(str(tiny_world), run, ImaginationConfig(**CONFIG), "cpu", **FAST)
    assert same.num_timesteps == 32 and (run / "agent" / "policy.safetensors").read_bytes() == before
    longer = ImaginationConfig(**{**CONFIG, "num_steps": 64})
    more = train_in_dream(str(tiny_world), run, longer, "cpu", **FAST)

    assert more.num_timesteps == read_facts(run / "agent")["num_timesteps"] == 64
    with pytest.raises(ConfigMismatch, match="config"):
        train_in_dream(str(tiny_world), run, ImaginationConfig(**{**CONFIG, "seed": 1}), "cpu", **FAST)


def test_a_loaded_agent_acts_as_it_did(run, tiny_world):
    envs = SB3VecEnv(tiny_world, 2)
    first, second = (make_ppo(envs, seed, "cpu", **FAST) for seed in (0, 1))
    for model in (first, second):
        load_agent(run / "agent", model)

    observations, states = envs.reset(), [model.policy.state_dict() for model in (first, second)]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    actions = [model.predict(observations, deterministic=True)[0].tolist() for model in (first, second)]
    assert actions[0] == actions[1]


def test_an_agent_that_does_not_fit_or_is_damaged_is_refused(run, tiny_world, tmp_path):
    model = make_ppo(SB3VecEnv(tiny_world, 1), 0, "cpu")
    with pytest.raises(UnknownWorld, match="lwm agent train"):
        load_agent(tmp_path / "nothing", model)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("agent.json", "policy.safetensors"):
        (damaged / name).write_bytes((run / "agent" / name).read_bytes())
    facts = json.loads((damaged / "agent.json").read_text())
    (damaged / "agent.json").write_text(json.dumps({**facts, "spaces": {"observations": "Box", "actions": "Box"}}))
    with pytest.raises(ConfigMismatch, match="spaces"):
        load_agent(damaged, model)
    (damaged / "agent.json").write_text(json.dumps(facts))
    (damaged / "policy.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CorruptFile, match="damaged"):
        load_agent(damaged, model)


def test_rewards_are_scaled_and_surprise_costs(tiny_world, tiny_spec):
    envs, plain = Honest(SB3VecEnv(tiny_world, 2), tiny_spec, 0.5), SB3VecEnv(tiny_world, 2)
    for each in (envs, plain):
        each.seed(0)
        each.reset()

    rewards, raw = envs.step(np.ones(2, int))[1], plain.step(np.ones(2, int))[1]

    assert np.allclose(rewards, raw / 10 - 0.5 * plain.step_infos["surprise"])


def test_each_env_plays_its_share_of_the_episodes(tiny_world):
    envs = LwmVectorEnv(tiny_world, 2, autoreset_mode="SAME_STEP", max_episode_steps=4)

    first, second = (play(None, envs, 5, seed=1).summary() for _ in range(2))

    assert first["num_episodes"] == 5 and 1 <= first["length"] <= 4
    assert {**first, "steps_per_second": 0} == {**second, "steps_per_second": 0}


def test_a_policy_goes_on_in_the_real_game(tiny_world, tmp_path, capsys, monkeypatch):
    def make_real(world, num_envs, seed, split, autoreset_mode):
        assert split == "train"
        return LwmVectorEnv(world, num_envs, autoreset_mode=autoreset_mode, max_episode_steps=6)

    monkeypatch.setattr("lwm_agents.command_parts.resolve", lambda name: make_real)
    words = ["agent", "train", str(tiny_world), "--out", str(tmp_path)]
    words += ["--steps", "100", "--envs", "2", "--device", "cpu"]

    assert cli.main([*words, "--then-real", "200", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert told == {"agent": str(tmp_path / "then-real" / "agent"), "num_timesteps": 384}  # rollouts of 128
    dreamed, after = (read_facts(folder / "agent") for folder in (tmp_path, tmp_path / "then-real"))
    assert dreamed["num_timesteps"] == 128 and "weights" in dreamed and "real" in after
    assert after["start"] == digest_of(tmp_path / "agent")
    assert cli.main([*words, "--then-real", "200"]) == 0  # all is done
    assert str(tmp_path / "then-real" / "agent") in capsys.readouterr().out


def test_the_commands_evaluate_in_the_dream_and_in_the_real_game(run, tiny_world, capsys, monkeypatch):
    args = ["agent", "evaluate", str(tiny_world), "--agent", str(run / "agent"), "--episodes", "3", "--envs", "2"]
    monkeypatch.setattr("lwm_agents.command_parts.resolve", lambda name: real_twin)

    assert cli.main([*args, "--device", "cpu", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]

    assert list(results) == ["dream, agent", "dream, random", "real, agent", "real, random"]
    assert all(row["num_episodes"] == 3 for row in results.values())
    monkeypatch.undo()
    assert cli.main([*args, "--where", "real", "--real", "nothing:here"]) == 1
    assert "MODULE:FUNCTION" in capsys.readouterr().err


# -- the film --------------------------------------------------------------------------------------------------------


class Walker:
    """Plays action 1, and keeps what it saw and whether it was told of a beginning."""

    def __init__(self):
        self.seen, self.starts = [], []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.seen.append(observation[0].copy())
        self.starts.append(bool(episode_start[0]))
        return np.array([1]), state


def panels(frame):
    """What the two panels of a film's frame show, labels apart."""
    scale = SIDE // 16
    left, right = frame[:, :SIDE], frame[:, SIDE + GAP :]
    return [panel[LABEL::scale, ::scale] for panel in (left, right)], [panel[:LABEL] for panel in (left, right)]


def test_a_film_shows_what_the_policy_sees_and_both_sides_begin_at_one_picture(tiny_world):
    walkers = {"dream": Walker(), "real": Walker()}
    limits = {"dream": 6, "real": 4}
    envs = {
        place: LwmVectorEnv(tiny_world, 1, autoreset_mode="SAME_STEP", max_episode_steps=limit, temperature=1.0)
        for place, limit in limits.items()
    }

    frames = film({place: (walkers[place], envs[place]) for place in envs}, num_frames=14, seed=3)

    (real, dream), labels = zip(*(panels(frame)[0] for frame in frames), strict=True), panels(frames[0])[1]
    assert len(frames) == 14 and (real[0] == dream[0]).all() and labels[0].any() and (labels[0] != labels[1]).any()
    assert (real[0] == envs["real"].reset(seed=3)[0][0]).all()
    for place, shown in (("real", real), ("dream", dream)):
        seen, limit = walkers[place].seen, limits[place]
        assert all((shown[t] == seen[t]).all() for t in range(limit))
        assert walkers[place].starts[: limit + 1] == [True, *[False] * (limit - 1), True]
    assert all((real[t] == real[4]).all() for t in (5, 6)) and not (real[4] == real[3]).all()  # the last one waits
    assert (real[7] == dream[7]).all() and (real[7] == walkers["dream"].seen[6]).all()  # the next pair


def test_evaluate_writes_a_film(run, tiny_world, tmp_path, capsys, monkeypatch):
    pytest.importorskip("moviepy", reason="needs the extra `video`")
    from moviepy import VideoFileClip

    args = ["agent", "evaluate", str(tiny_world), "--agent", str(run / "agent"), "--episodes", "2", "--envs", "2"]
    args += ["--device", "cpu", "--json", "--video-seconds", "1", "--video"]
    monkeypatch.setattr("lwm_agents.command_parts.resolve", lambda name: real_twin)

    assert cli.main([*args, str(tmp_path / "film.mp4")]) == 0
    told = json.loads(capsys.readouterr().out)

    with VideoFileClip(told["video"]) as clip:
        assert clip.size == [2 * SIDE + GAP, SIDE + LABEL] and clip.n_frames == 15
    assert cli.main([*args, str(tmp_path / "alone.mp4"), "--where", "dream"]) == 0
    with VideoFileClip(str(tmp_path / "alone.mp4")) as clip:
        assert clip.size == [SIDE, SIDE + LABEL]
    assert cli.main([*args, str(tmp_path / "film.gif")]) == 1
    assert "--video" in capsys.readouterr().err


def test_a_policy_may_see_where_movers_are_with_the_eyes_of_the_world(tmp_path):
    config = ImaginationConfig(**CONFIG, sees="places")

    model = train_in_dream("LWM-Pong-v0", tmp_path, config, "cpu", **FAST)
    envs = SB3VecEnv("LWM-Pong-v0", 2)
    envs.seed(0)
    frames, policy = envs.reset(), open_agent(tmp_path / "agent", envs, "cpu")

    facts, own = read_facts(tmp_path / "agent"), WorldModel.load("LWM-Pong-v0").motion.movers.state_dict()
    assert facts["movers"] == 5 and facts["spaces"]["observations"] == str(envs.observation_space)
    for seen in (policy.sight, model.get_env().sight):
        eyes = seen.eyes.state_dict()
        assert eyes.keys() <= own.keys() and all(torch.equal(value, own[name]) for name, value in eyes.items())
    actions = policy.predict(frames, deterministic=True)[0]
    assert actions.tolist() == model.predict(policy.sight(frames), deterministic=True)[0].tolist()
    assert policy.predict(frames[1], deterministic=True)[0] == actions[1]
    with pytest.raises(ConfigMismatch, match="sees the places of 5"):
        load_agent(tmp_path / "agent", make_ppo(envs, 0, "cpu"))


def test_places_are_told_beside_how_they_lie_to_each_other():
    sight = Sight(2, (8, 8))
    with torch.no_grad():
        sight.eyes.seek.weight.zero_()[:2, :2, 2, 2] = torch.eye(2)  # a red mover and a green one
        sight.eyes.tell.weight.zero_()[:, :2] = torch.eye(2)[..., None, None]
    sight.eyes.usual.fill_(-1.0)
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    frames[0, 2, 3, 0], frames[0, 7, 0, 1], frames[1, 0, 7, 1] = 255, 255, 255

    seen = 16 * sight(frames)

    red, green = [2 - 3.5, 3 - 3.5], [7 - 3.5, 0 - 3.5]
    assert seen[0].tolist() == pytest.approx([*red, *green, 5, -3, 16, 16], abs=0.01)
    assert seen[1].tolist() == pytest.approx([0, 0, -3.5, 3.5, 0, 0, 0, 16], abs=0.01)


def test_envs_that_show_places_show_those_of_every_frame_the_last_of_an_episode_too(tiny_world):
    def opened():
        envs = SB3VecEnv(tiny_world, 2, max_episode_steps=2)
        envs.seed(0)
        return envs

    plain, sight, actions = opened(), Sight(2, (16, 16)), np.ones(2, int)
    seen = SeePlaces(opened(), sight)

    assert np.array_equal(seen.reset(), sight(plain.reset())) and seen.observation_space.shape == (8,)
    for _ in range(2):
        (told, _, dones, infos), (frames, _, _, raw) = seen.step(actions), plain.step(actions)
        assert np.array_equal(told, sight(frames))
    assert dones.all()
    for own, other in zip(infos, raw, strict=True):
        assert np.array_equal(own["terminal_observation"], sight(other["terminal_observation"][None])[0])


def test_places_of_a_world_without_movers_are_refused(tiny_world, tmp_path):
    with pytest.raises(ConfigMismatch, match="has no movers"):
        train_in_dream(str(tiny_world), tmp_path, ImaginationConfig(**CONFIG, sees="places"), "cpu", **FAST)


def test_episodes_of_a_dream_may_begin_at_given_pictures(tiny_world):
    seen, pictures = [], np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)

    class Watching:
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            seen.append(observation.copy())
            return np.zeros(2, int), None

    play(Watching(), LwmVectorEnv(tiny_world, 2, autoreset_mode="SameStep", max_episode_steps=3), 2, pictures=pictures)

    assert np.array_equal(seen[0], pictures) and not np.array_equal(seen[1], pictures)

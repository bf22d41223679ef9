"""The planner: plans drawn and improved as worked out by hand, played in the dream and outside, misuse."""

import json

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
from lwm_agents.evaluation import play
from lwm_agents.planning import Planner, PlannerConfig, draw_plans, elite_odds
from lwm_env import cli
from lwm_env.envs import LwmVectorEnv
from lwm_env.errors import ConfigMismatch, InvalidInput
from lwm_env.world_model import WorldModel

QUICK = {"num_plans": 4, "horizon": 3, "replan_every": 2}


def make_real(world, num_envs, seed, split, autoreset_mode):
    """Stands for the real game: it tells nothing of its state."""
    return LwmVectorEnv(world, num_envs, autoreset_mode=autoreset_mode, max_episode_steps=6)


@pytest.fixture(scope="module")
def lively_world(tiny_world, enliven, tmp_path_factory) -> str:
    """The tiny world, but half of its rewards are 10 and depend on the actions; it does not end."""
    model = WorldModel.load(tiny_world)
    model.spec = model.spec.model_copy(update={"termination_threshold": 1.0})
    enliven(model)
    path = tmp_path_factory.mktemp("worlds") / "lively"
    model.save(path, provenance={"data": "random weights of the tests"})
    return str(path)


def test_plans_follow_their_odds_and_are_held():
    rng, odds = np.random.default_rng(0), np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.5, 0.0, 0.5]])

    plans = draw_plans(rng, odds, 4000, hold=0.0)
    held = draw_plans(rng, odds, 4000, hold=0.75)

    assert (plans[0] == 1).all() and (plans[1] != 1).all()
    assert np.mean(plans[1] == 0) == pytest.approx(0.5, abs=0.03)
    assert np.mean(held[1] == 1) == pytest.approx(0.75, abs=0.03)
    assert np.mean(held[2] == 1) == pytest.approx(0.75**2, abs=0.03)


def test_the_odds_of_the_best_plans_leave_no_action_out():
    odds = elite_odds(np.array([[0, 0, 1], [2, 2, 2]]), num_actions=4)

    assert np.allclose(odds, [[2.25 / 4, 1.25 / 4, 0.25 / 4, 0.25 / 4], [0.25 / 4, 0.25 / 4, 3.25 / 4, 0.25 / 4]])


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_planner_wins_more_than_chance_in_the_dream_it_forks(lively_world, iterations):
    envs = LwmVectorEnv(lively_world, 2, autoreset_mode="SAME_STEP", max_episode_steps=8)
    config = PlannerConfig(num_plans=12, horizon=4, replan_every=2, iterations=iterations, hold=0.0)

    planned = play(Planner(lively_world, config, envs), envs, 4, seed=3).summary()
    chance = play(None, envs, 12, seed=3).summary()

    assert planned["mean"] > chance["mean"]


def test_the_dream_that_is_played_gives_what_was_planned(lively_world):
    envs = LwmVectorEnv(lively_world, 1, autoreset_mode="SAME_STEP")
    planner = Planner(lively_world, PlannerConfig(num_plans=6, horizon=3, replan_every=3, discount=1, survival=0), envs)
    observations, _ = envs.reset(seed=0)
    start, state, earned, alive, actions = envs.get_state(0), None, 0.0, 1.0, []

    for _ in range(3):
        action, state = planner.predict(observations, state)
        actions.append(int(action[0]))
        observations, rewards, _, _, infos = envs.step(action)
        earned += alive * rewards[0] / 10  # in units of the largest reward, as far as the world goes on
        alive *= 1 - infos["termination_prob"][0]

    plan = np.repeat(np.array(actions)[:, None], 6, 1)
    alone = Planner(lively_world, PlannerConfig(num_plans=6, horizon=3, replan_every=3, discount=1, survival=0))
    assert alone._scores(start, plan) == pytest.approx(np.full(6, earned))


def test_outside_the_dream_it_plans_from_the_last_frames_it_saw(tiny_world):
    planner = Planner(str(tiny_world), PlannerConfig(**QUICK, context_frames=3))
    frames, state = np.random.default_rng(0).integers(0, 256, (6, 2, 16, 16, 3), np.uint8), None

    for step, observations in enumerate(frames):
        starts = np.array([step == 0, step == 4])
        actions, state = planner.predict(observations, state, starts)
        assert actions.shape == (2,) and set(actions) <= {0, 1, 2}

    first, second = state
    assert [len(memory.frames) for memory in state] == [3, 2]  # the second env began anew two steps ago
    assert (np.stack(first.frames) == frames[3:, 0]).all() and (np.stack(second.frames) == frames[4:, 1]).all()
    assert len(first.plan) == 0 and len(first.actions) == 2


def test_the_same_seed_plans_the_same(tiny_world):
    observations = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)

    chosen = [Planner(str(tiny_world), PlannerConfig(**QUICK), seed=5).predict(observations)[0] for _ in range(2)]

    assert (chosen[0] == chosen[1]).all()


def test_misuse_is_refused(tiny_world, lively_world):
    with pytest.raises(InvalidInput, match="horizon"):
        PlannerConfig(horizon=0)
    with pytest.raises(InvalidInput, match="replan_every"):
        PlannerConfig(horizon=3)
    with pytest.raises(InvalidInput, match="hold"):
        PlannerConfig(hold=1.5)
    with pytest.raises(ConfigMismatch, match="other weights"):
        Planner(str(tiny_world), PlannerConfig(**QUICK), LwmVectorEnv(lively_world, 1))
    with pytest.raises(InvalidInput, match="observations"):
        Planner(str(tiny_world), PlannerConfig(**QUICK)).predict(np.zeros((1, 8, 8, 3), np.uint8))


def test_the_command_measures_a_planner_in_the_dream_and_in_the_real_game(tiny_world, capsys, monkeypatch):
    args = ["agent", "evaluate", str(tiny_world), "--planner", "--num-plans", "4", "--horizon", "3"]
    args += ["--replan-every", "3", "--episodes", "2", "--envs", "2", "--device", "cpu"]
    monkeypatch.setattr("lwm_agents.command_parts.resolve", lambda name: make_real)

    assert cli.main([*args, "--json"]) == 0

    results = json.loads(capsys.readouterr().out)["results"]
    assert list(results) == ["dream, planner", "dream, random", "real, planner", "real, random"]
    assert cli.main([*args, "--agent", "somewhere"]) == 2

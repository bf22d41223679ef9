"""The real games of the recipes for Racing and Doom: what their sources show, that their players play, and that a
world can be begun from them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lwm_env.envs.env import LwmEnv
from lwm_env.errors import MissingExtra
from lwm_env.scripts import load_script
from lwm_env.spec import WorldSpec
from lwm_training.clips import nearest_rewards
from lwm_training.held_out import SEED_OFFSET
from lwm_training.policies import Players, parse_policy
from lwm_training.recipe import Recipe, load_recipe
from lwm_training.source import Source
from lwm_training.sources import open_spec_source

RECIPES = Path(__file__).parent.parent / "training/recipes"


def recipe_of(name: str) -> Recipe:
    """The recipe, where its game can be played."""
    pytest.importorskip("envpool", reason='needs the extra: pip install "lwm-env[data]"')
    recipe = load_recipe(RECIPES / name)
    try:
        open_spec_source(recipe.world, 1, 0, "train").close()
    except MissingExtra as error:
        pytest.skip(f"{recipe.world.real.source} cannot be played here: {error}")
    return recipe


@pytest.fixture(scope="module")
def racing() -> WorldSpec:
    return recipe_of("racing.toml").world


@pytest.fixture(scope="module")
def doom() -> WorldSpec:
    return recipe_of("doom.toml").world


def played(source: Source, act, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T + 1, N, H, W, 3) and rewards (T, N)."""
    frames, rewards, over = [source.reset()], [], np.zeros(source.num_envs, bool)
    for _ in range(num_steps):
        step = source.step(act(frames[-1], over))
        over = step.terminations | step.truncations
        frames.append(step.observations)
        rewards.append(step.rewards[:, 0])
    source.close()
    return np.stack(frames), np.stack(rewards)


def policy_of(spec: WorldSpec, text: str, num_envs: int):
    return parse_policy(text, Players.of(spec, num_envs, seed=0)).act


def grey(frames: np.ndarray) -> np.ndarray:
    """Where CarRacing's road is seen."""
    return (np.ptp(frames.astype(int), axis=-1) < 20) & (frames.max(-1) > 80)


def test_racing_begins_after_the_zoom_on_a_road_of_full_width_without_digits(racing):
    frames, _ = played(open_spec_source(racing, 3, 0, "train"), policy_of(racing, "sticky", 3), 3)

    first = frames[0]
    road, car = grey(first)[:, 45].sum(1), first[:, 50:58, 31:33].astype(int)
    assert first.shape == (3, 64, 64, 3)
    assert ((road >= 12) & (road <= 16)).all()
    assert (car[..., 0] - car[..., 1] > 100).mean((1, 2)).min() > 0.5  # red
    assert frames.max((2, 3, 4)).min() > 150 and (frames.max(-1) < 30).mean() < 0.02  # no black bar


def test_racing_drivers_follow_the_road_and_earn_what_the_spec_says(racing):
    script = load_script(racing)
    _, rewards = played(open_spec_source(racing, 2, 0, "train"), lambda seen, _: script(seen), 70)

    values = nearest_rewards(rewards, racing.reward_values)
    assert rewards.sum(0).min() > 60  # a random player earns next to nothing
    assert np.abs(rewards - values).max() < 1.3
    assert {-0.3, 3.0} <= {round(value, 1) for value in values.ravel().tolist()}


def test_a_race_depends_on_its_own_seed_alone(racing):
    def race(num_envs: int, seed: int):
        script = load_script(racing)
        return played(open_spec_source(racing, num_envs, seed, "train"), lambda seen, _: script(seen), 25)

    (together, earned), (alone, own), (other, _) = race(2, 5), race(1, 6), race(1, SEED_OFFSET)

    assert (together[:, 1] == alone[:, 0]).all() and (earned[:, 1] == own[:, 0]).all()
    assert (other != alone).mean() > 0.1


def shift_of(before: np.ndarray, after: np.ndarray) -> int:
    """How many columns to the right (H, W, 3) moved, by the upper half of the picture."""
    before, after = before[:40].astype(int), after[:40].astype(int)
    errors = {}
    for shift in range(-8, 9):
        kept, moved = before[:, max(0, -shift) : 64 - max(0, shift)], after[:, max(0, shift) : 64 - max(0, -shift)]
        errors[shift] = np.square(kept - moved).mean()
    return min(errors, key=errors.get)


def test_doom_is_seen_in_colour_and_turns_as_its_actions_say(doom):
    meanings = doom.actions.meanings
    names = ("NOOP", "RIGHT", "LEFT", "FORWARD", "FORWARDRIGHT", "FORWARDLEFT")
    actions = np.array([[meanings.index(name)] for name in names])
    source = open_spec_source(doom, 6, 0, "train")
    source.reset(seed=[8] * 6)
    frames = np.stack([source.step(actions).observations for _ in range(12)])
    source.close()

    turned = np.array([[shift_of(*pair) for pair in pairwise(row[4:])] for row in frames.swapaxes(0, 1)])
    moved = np.abs(frames[-1].astype(int) - frames[0]).mean((1, 2, 3))
    assert frames.shape[2:] == (64, 64, 3) and np.ptp(frames.astype(int), axis=-1).max() > 60
    assert dict(zip(names, np.sign(np.median(turned, 1)).tolist(), strict=True)) == {
        "NOOP": 0, "RIGHT": -1, "LEFT": 1, "FORWARD": 0, "FORWARDRIGHT": -1, "FORWARDLEFT": 1,
    }  # fmt: skip
    assert moved[0] < 0.5 < moved[3]


def test_doom_rewards_medkits_and_ends_for_want_of_them(doom):
    source = open_spec_source(doom, 2, 3, "train")
    act, seen, over = policy_of(doom, "sticky:0.1", 2), source.reset(), np.zeros(2, bool)
    rewards, ends = [], 0
    while not ends and len(rewards) < doom.max_episode_steps:
        step = source.step(act(seen, over))
        seen, over = step.observations, step.terminations | step.truncations
        rewards.append(step.rewards)
        ends += step.terminations.sum()
    source.close()

    values = nearest_rewards(np.stack(rewards), doom.reward_values)
    given = np.round(np.unique(rewards), 3)
    assert ends and len(rewards) > 100
    assert given.min() == -0.024 and given.max() <= 0.125
    assert (values[np.stack(rewards) < 0] == 0).all() and (values[np.stack(rewards) > 0.039] > 0).all()


def test_doom_leaves_nothing_in_the_working_directory(doom, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = open_spec_source(doom, 1, 0, "train")
    source.reset()
    source.reset(seed=1)
    source.close()

    assert Path.cwd() == tmp_path and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["racing.toml", "doom.toml"])
def test_a_world_is_begun_by_its_recipe_and_steps_as_its_game_does(name, tmp_path):
    from lwm_training.train import train_world

    recipe_of(name)
    small = ["train.steps=1", "train.batch_size=2", "data.num_envs=2", "data.shard_steps=40"]
    recipe = load_recipe(RECIPES / name, small)
    stages = [f"train.stages.{stage.name}.batch_size=2" for stage in recipe.train.stages]
    world = train_world(load_recipe(RECIPES / name, small + stages), tmp_path, device="cpu")

    env = LwmEnv(world)
    observation, _ = env.reset(seed=0)
    _, reward, *_ = env.step(env.action_space.sample())
    assert observation.shape == (64, 64, 3) and env.action_space == recipe.world.action_space()
    assert np.float32(reward) in np.float32(recipe.world.reward_values)
    env.close()

"""What is drawn while training: the same clips for the same (seed, step), each of one episode as far as it is valid."""

from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from lwm_env.errors import ConfigMismatch, MissingExtra
from lwm_env.registration import sight
from lwm_env.spec import DiscreteActions, RealSource, WorldSpec
from lwm_env.tokenizer import to_pixels
from lwm_training.clips import Clips
from lwm_training.prompts import LENGTH, NUM_PROMPTS, choose, prompt_bank
from lwm_training.recipe import Data, Stage
from lwm_training.stream import Shard, Stored, Stream, open_data

GAME = "LwmTest/Lives-v0"
DATA = Data(num_envs=3, shard_steps=40, policy="random")


class Lives(gym.Env):
    """Red counts the episode's steps, green the episodes, blue shows the last action; 4 to 9 steps, then 10 points."""

    observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = spaces.Discrete(3)
    episodes = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number, self.episodes = 0, self.episodes + 1
        self.length = self.np_random.integers(4, 10)
        return self._frame(0), {}

    def step(self, action):
        self.step_number += 1
        over = self.step_number >= self.length
        return self._frame(action), 10.0 * over, bool(over), False, {}

    def _frame(self, action):
        return np.full((16, 16, 3), [self.step_number, self.episodes, action], np.uint8)


@pytest.fixture(scope="module", autouse=True)
def registered_game():
    gym.register(GAME, Lives)
    yield
    gym.registry.pop(GAME)


@pytest.fixture(scope="module")
def spec() -> WorldSpec:
    return WorldSpec(
        id="LWM-Lives-v0",
        description="a world of the tests",
        frame_size=(16, 16),
        actions=DiscreteActions(meanings=("NOOP", "LEFT", "RIGHT"), source_actions=(0, 1, 2)),
        reward_values=(0.0, 10.0),
        real=RealSource(source=f"gymnasium:{GAME}"),
    )


@pytest.fixture(scope="module")
def drawn(spec) -> Clips:
    """Many clips of 8 steps, of which the first 2 stay in one episode."""
    return Stream(spec, DATA, seed=1).clips(5, 200, 8, 2)


def assert_equal(one: Clips, other: Clips) -> None:
    for field in fields(Clips):
        assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


def test_sightings_that_come_along_are_those_of_the_frames(spec, drawn):
    sighted = Stream(spec, DATA, seed=1).clips(5, 200, 8, 2, sight=sight)

    pixels = to_pixels(torch.from_numpy(sighted.observations))
    motion, sure, _ = sight(pixels[:, 3], pixels[:, 4])
    assert drawn.sightings is None and np.array_equal(sighted.observations, drawn.observations)
    assert np.allclose(sighted.sightings[:, 3, :2], motion, atol=1e-3)
    assert np.array_equal(sighted.sightings[:, 3, 2], sure)


def test_clips_have_the_documented_shapes_and_types(drawn):
    assert drawn.observations.shape == (200, 9, 16, 16, 3) and drawn.observations.dtype == np.uint8
    assert drawn.actions.shape == (200, 8, 1) and drawn.actions.dtype == np.int64
    assert drawn.rewards.shape == (200, 8, 1) and drawn.rewards.dtype == np.float32
    assert drawn.terminations.shape == drawn.valid.shape == (200, 8)


@pytest.mark.parametrize("step", [0, 7, DATA.shard_lasts, 3 * DATA.shard_lasts + 1])
def test_a_new_stream_draws_the_same_clips_at_a_step(spec, step):
    used = Stream(spec, DATA, seed=3)
    for earlier in (0, DATA.shard_lasts, 1):
        used.clips(earlier, 2, 3)

    assert_equal(used.clips(step, 4, 6, 2), Stream(spec, DATA, seed=3).clips(step, 4, 6, 2))


def test_a_stage_may_say_how_long_a_shard_lasts_and_what_share_has_events(spec):
    stage = Stage(name="x", trains="movers", steps=1, learning_rate=1e-3, shard_lasts=5, event_share=0.5)

    def played(step: int, data: Data) -> bytes:
        stream = Stream(spec, data, seed=3)
        stream.clips(step, 1, 3)
        return stream._shard.actions.tobytes()

    short = stage.data(DATA)
    assert played(9, short) == played(5, short) != played(4, short) == played(199, DATA)
    assert short.event_share == 0.5 and short.shard_steps == DATA.shard_steps


def test_other_steps_shards_seeds_and_processes_draw_other_clips(spec):
    seen = {
        Stream(spec, DATA, seed, rank=rank).clips(step, 8, 6).actions.tobytes()
        for seed, step, rank in [(0, 0, 0), (0, 1, 0), (0, DATA.shard_lasts, 0), (1, 0, 0), (0, 0, 1), (0, 1, 1)]
    }

    assert len(seen) == 6


def test_valid_steps_never_leave_the_first_episode(drawn):
    episode = drawn.observations[:, :, 0, 0, 1].astype(int)

    assert np.array_equal(drawn.valid, episode[:, 1:] == episode[:, :1])
    assert drawn.valid.any() and not drawn.valid.all()
    assert (np.diff(drawn.valid.astype(int), axis=1) <= 0).all()  # once over, it stays over


def test_the_context_lies_in_one_episode(drawn):
    episode = drawn.observations[:, :, 0, 0, 1]

    assert (episode[:, :3] == episode[:, :1]).all()


def test_an_action_leads_to_the_frame_after_it(drawn):
    led_to = drawn.observations[:, 1:, 0, 0, 2]

    assert np.array_equal(led_to[drawn.valid], drawn.actions[:, :, 0][drawn.valid])


def test_terminations_and_rewards_belong_to_the_step_to_the_last_frame(drawn):
    count = drawn.observations[:, :, 0, 0, 0].astype(int)
    last = np.zeros_like(drawn.terminations)
    last[:, :-1] = drawn.valid[:, :-1] & ~drawn.valid[:, 1:]  # the next step shows the next episode

    assert (drawn.terminations[:, :-1][drawn.valid[:, :-1]] == last[:, :-1][drawn.valid[:, :-1]]).all()
    assert np.array_equal(drawn.rewards[:, :, 0] == 10, drawn.terminations)
    assert (count[:, 1:][drawn.terminations] >= 4).all()
    restarts = ~drawn.valid & (count[:, 1:] == 0)
    assert not drawn.terminations[restarts].any() and not drawn.rewards[restarts].any()


def test_a_share_of_the_clips_is_drawn_where_something_happens(spec):
    clips = Stream(spec, DATA.model_copy(update={"event_share": 1.0}), seed=1).clips(5, 100, 4, 2)

    assert clips.terminations[:, 2:].any(1).all()
    assert not clips.terminations[:, 0].any() and clips.valid[:, :2].all()


def test_every_start_with_enough_of_an_episode_left_is_drawn(spec):
    shard = Shard(spec, DATA.model_copy(update={"num_envs": 1, "shard_steps": 12}), seed=0, split="train")
    possible = {t for t in range(12 - 4 + 1) if shard.episode[0, t] == shard.episode[0, t + 3]}

    clips = shard.clips(np.random.default_rng(0), 300, 4, 3)

    frames = [clips.observations[b, 0].tobytes() for b in range(300)]
    assert {frames.index(frame) for frame in frames} and len(set(frames)) == len(possible)


@pytest.mark.parametrize(("length", "min_steps"), [(41, 0), (60, 3), (30, 20)])
def test_clips_that_no_play_has_are_refused(spec, length, min_steps):
    with pytest.raises(ConfigMismatch, match=f"no clip of {length} steps has its first {min_steps}"):
        Stream(spec, DATA, seed=0).clips(0, 4, length, min_steps)


def test_stored_play_is_drawn_by_seed_step_and_process(spec, tmp_path):
    pytest.importorskip("h5py", reason="data sets are HDF5 files")
    from lwm_training.collect import CollectPlan, collect

    collect(CollectPlan(source=spec, out=tmp_path / "lives", frames=120, num_envs=3, policy="random"))
    data = Data(kind="store", path=str(tmp_path / "lives"))

    stored, again, beside = open_data(spec, data, 4), open_data(spec, data, 4), open_data(spec, data, 4, rank=1)
    stored.clips(0, 4, 5, 2)

    assert isinstance(stored, Stored)
    assert_equal(stored.clips(9, 4, 5, 2), again.clips(9, 4, 5, 2))
    assert not np.array_equal(stored.clips(9, 40, 5, 2).actions, beside.clips(9, 40, 5, 2).actions)
    assert stored.clips(9, 4, 5, 2).valid[:, :2].all()


def test_prompts_are_stretches_of_one_episode_in_which_nothing_ends(spec):
    prompts = prompt_bank(spec, DATA, seed=0)

    seen = prompts.frames[:, :, 0, 0].int()
    assert len(prompts.frames) == NUM_PROMPTS and prompts.actions.shape == (NUM_PROMPTS, LENGTH - 1, 1)
    assert (seen[..., 0].diff(dim=1) == 1).all() and (seen[..., 1] == seen[:, :1, 1]).all()
    assert (seen[:, 1:, 2] == prompts.actions[..., 0]).all()


def test_others_may_play_the_prompts(spec):
    held = DATA.model_copy(update={"prompt_policy": "sticky:0.01"})

    prompts = prompt_bank(spec, held, seed=0)

    assert torch.equal(prompts.actions, prompt_bank(spec, DATA.model_copy(update={"policy": "sticky:0.01"}), 0).actions)
    assert not torch.equal(prompts.actions, prompt_bank(spec, DATA, seed=0).actions)


def test_a_game_whose_play_always_ends_has_no_prompts(drawn):
    ended = Clips(drawn.observations, drawn.actions, drawn.rewards, np.ones_like(drawn.terminations), drawn.valid)

    with pytest.raises(ConfigMismatch, match="nothing to start from"):
        choose(ended)


def test_real_coinrun_is_the_same_again_and_with_other_threads(monkeypatch):
    from lwm_training.sources import open_source

    try:
        open_source("envpool:CoinrunEasy-v0").close()
    except MissingExtra as error:
        pytest.skip(f"CoinRun cannot be played here: {error}")
    coinrun = WorldSpec(
        id="LWM-Coinrun-v0",
        description="CoinRun",
        actions=DiscreteActions(meanings=("NOOP", "LEFT", "RIGHT"), source_actions=(4, 1, 7)),
        reward_values=(0.0, 10.0),
        max_episode_steps=9,
        real=RealSource(source="envpool:CoinrunEasy-v0", splits={"train": {"start_level": 0, "num_levels": 1000}}),
    )
    data = Data(num_envs=4, shard_steps=24, policy="sticky:0.2")

    monkeypatch.setattr("os.cpu_count", lambda: 1)
    alone = Shard(coinrun, data, seed=5, split="train")
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    together = Shard(coinrun, data, seed=5, split="train")

    for name in ("observations", "actions", "rewards", "terminations", "episode"):
        assert np.array_equal(getattr(alone, name), getattr(together, name)), name
    assert alone.episode.max() == 2  # 9 steps and a restart, twice in 24
    assert alone.observations.std() > 10

"""The engine: the same bytes wherever a world is computed, counter-based randomness, snapshots."""

import threading

import numpy as np
import pytest
import torch

from lwm_env import noise, snapshot
from lwm_env.batch import ends
from lwm_env.engine import Engine
from lwm_env.errors import ConfigMismatch, CorruptFile, WrongOrder
from lwm_env.resident import Resident
from lwm_env.threads import share
from lwm_env.world_model import Prompts, WorldModel


@pytest.fixture(scope="module")
def model(tiny_config, tiny_spec) -> WorldModel:
    """Random weights, none of them zero, so that pictures follow the actions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(tiny_config, tiny_spec).eval().requires_grad_(False)
        for weight in model.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.3)
        frames = torch.randint(0, 256, (5, 3, 16, 16, 3), dtype=torch.uint8)
        model.prompts = Prompts(frames, torch.randint(0, 3, (5, 2, 1)))
    model.weights_hash = "a" * 64
    return model


def started(model: WorldModel, seeds: list[int], **options) -> Engine:
    engine = Engine(model, len(seeds), **options)
    engine.reset(np.ones(engine.num_envs, bool), seeds)
    return engine


def dream(engine: Engine, plan: np.ndarray) -> list[bytes]:
    """Play actions (T, N); everything that came out, as bytes for each slot."""
    slots = [b""] * engine.num_envs
    for actions in plan:
        result = engine.step(torch.from_numpy(actions)[:, None])
        for slot in range(engine.num_envs):
            slots[slot] += b"".join(column[slot].numpy().tobytes() for column in result)
    return slots


def plans(num_steps: int, num_envs: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 3, (num_steps, num_envs))


@pytest.fixture
def to_three(duel_world) -> WorldModel:
    """A game of two players to three points."""
    model = WorldModel.load(duel_world)
    model.spec = model.spec.model_copy(update={"points_to_win": 3})
    return model


def play(engine: Engine, num_steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rewards (T, N, P) and ends (T, N) of random actions; nothing is reset."""
    rng = np.random.default_rng(seed)
    steps = [engine.step(torch.from_numpy(rng.integers(0, 3, (engine.num_envs, 2)))) for _ in range(num_steps)]
    return tuple(np.stack([getattr(step, name).numpy() for step in steps]) for name in ("rewards", "terminated"))


# -- ends that are drawn -----------------------------------------------------------------------------------------------


@pytest.fixture
def mortal(duel_world) -> WorldModel:
    """A game whose ends are drawn."""
    model = WorldModel.load(duel_world)
    model.spec = model.spec.model_copy(update={"draw_ends": True})
    return model


def test_ends_are_drawn_with_their_probability_and_decided_by_the_threshold_at_temperature_0(tiny_spec):
    drawing = tiny_spec.model_copy(update={"draw_ends": True, "termination_threshold": 0.5})
    clocks = torch.arange(20_000) * 977, torch.arange(20_000) % 50

    for probability, spread in ((0.0, 0), (0.02, 0.005), (0.3, 0.015), (0.9, 0.01), (1.0, 0)):
        given = torch.full((20_000,), probability)
        assert abs(ends(drawing, given, clocks, 0.1).double().mean() - probability) <= spread
        for spec, temperature in ((drawing, 0.0), (tiny_spec.model_copy(update={"termination_threshold": 0.5}), 1.0)):
            assert ends(spec, given, clocks, temperature).all() == (probability >= 0.5)


def test_a_world_that_draws_its_ends_does_so_by_seed_and_step_alone(mortal):
    rng, seeds = np.random.default_rng(0), list(range(8))
    plan = torch.from_numpy(rng.integers(0, 3, (40, 8, 2)))
    together = started(mortal, seeds)
    steps = [together.step(actions) for actions in plan]
    ended, odds = (torch.stack([getattr(step, name) for step in steps]) for name in ("terminated", "end_prob"))

    assert abs(ended.sum() - odds.sum()) < 4 * (odds * (1 - odds)).sum().sqrt()
    assert ended.any() and (ended != (odds >= mortal.spec.termination_threshold)).any()
    alone = started(mortal, seeds[3:4])
    assert [bool(alone.step(actions[3:4]).terminated) for actions in plan] == ended[:, 3].tolist()


# -- games to so many points -----------------------------------------------------------------------------------------


def test_a_game_to_three_points_ends_when_a_player_has_earned_the_third(to_three):
    rewards, ends = play(started(to_three, [1, 2, 3, 4]), 30)

    scores = (rewards > 0).cumsum(0)
    won = ((scores >= 3) & (rewards > 0)).any(2)
    assert np.array_equal(ends, won) and won.any(0).sum() >= 2
    assert len(set(won.argmax(0)[won.any(0)])) > 1  # not all at once


def test_points_go_with_a_snapshot_and_a_fork_and_a_reset_forgets_them(to_three):
    engine = started(to_three, [1, 2, 3])
    rewards, _ = play(engine, 4)
    slot = int((rewards > 0).sum((0, 2)).argmax())
    other, kept = (slot + 1) % 3, engine.get_state(slot)
    assert (rewards[:, slot] > 0).any()
    engine.fork(slot, [other])
    again = Engine(to_three, 1)
    again.set_state(kept)

    assert engine._points[other].tolist() == again._points[0].tolist() == (rewards[:, slot] > 0).sum(0).tolist()
    engine.reset(np.eye(3, dtype=bool)[slot], None)
    assert not engine._points[slot].any() and engine._points[other].any()


def test_a_snapshot_without_points_begins_at_none_and_of_another_game_is_refused(to_three):
    engine = started(to_three, [1])
    facts, tensors = snapshot.decode(engine.get_state())
    old = {name: value for name, value in facts.items() if name != "points"}

    engine.set_state(snapshot.encode(old, tensors))
    assert engine._points.tolist() == [[0, 0]]
    for wrong in ([1], [1, -1], [0, 0.5], "no"):
        with pytest.raises(CorruptFile):
            engine.set_state(snapshot.encode({**facts, "points": wrong}, tensors))


# -- randomness ------------------------------------------------------------------------------------------------------


def test_the_hash_in_tensors_is_the_hash_in_python_integers():
    values = [0, 1, -1, 2**62 + 12345, -(2**63)]

    mixed = noise._mix_tensor(torch.tensor(values)).tolist()

    assert mixed == [noise._signed(noise._mix(value)) for value in values]


def test_splitmix64_gives_its_published_numbers():
    # The reference code seeded with 1234567; the state grows by the golden gamma before each number.
    numbers = [noise._mix(1234567 + (i + 1) * noise._GOLDEN) for i in range(3)]

    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_gumbel_noise_has_the_mean_and_variance_of_the_distribution():
    keys = torch.tensor([noise.episode_key(seed, 0) for seed in range(20)])

    drawn = noise.gumbel(keys, torch.zeros(20, dtype=torch.int64), 5001).double()

    assert drawn.shape == (20, 5001) and drawn.isfinite().all()
    assert abs(drawn.mean() - 0.5772) < 0.015  # Euler's constant; 4 standard errors
    assert abs(drawn.var() - np.pi**2 / 6) < 0.05


def test_noise_of_a_row_does_not_depend_on_the_other_rows():
    keys, steps = torch.tensor([5, -7, 11]), torch.tensor([0, 3, 8])

    together = noise.gumbel(keys, steps, 333)
    alone = torch.cat([noise.gumbel(keys[i : i + 1], steps[i : i + 1], 333) for i in range(3)])

    assert torch.equal(together, alone)


def test_every_seed_episode_and_step_has_its_own_noise():
    keys = torch.tensor([noise.episode_key(seed, episode) for seed in range(12) for episode in range(12)])
    drawn = torch.cat([noise.gumbel(keys, torch.full_like(keys, step), 4) for step in range(12)])

    assert len({tuple(row) for row in drawn.tolist()}) == 12**3


def test_seeds_of_any_size_fold_into_an_int64():
    assert noise.fold_seed(2**63 - 1) == 2**63 - 1
    assert 0 <= noise.fold_seed(2**200) < 2**63
    assert noise.fold_seed(2**200) != noise.fold_seed(2**200 + 1)


# -- slots -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_slot_equals_the_world_alone(model, num_envs, temperature):
    plan = plans(12, num_envs)

    batch = dream(started(model, [7 + i for i in range(num_envs)], temperature=temperature), plan)

    for slot in range(num_envs):
        alone = dream(started(model, [7 + slot], temperature=temperature), plan[:, slot : slot + 1])
        assert batch[slot] == alone[0]


@pytest.mark.parametrize("num_envs", [1, 3, 4, 5])
def test_a_slot_in_chunks_of_four_equals_any_other_slot_count(model, num_envs):
    plan = plans(6, num_envs)

    batch = dream(started(model, list(range(num_envs)), rows=4), plan)

    assert [dream(started(model, [i], rows=4), plan[:, i : i + 1])[0] for i in range(num_envs)] == batch


@pytest.mark.parametrize("rows", [1, 4])
def test_worlds_that_join_and_stand_still_do_not_touch_the_others(model, rows):
    plan = plans(9, 3)
    expected = dream(started(model, [4], rows=rows), plan[:, 1:2])[0]
    engine = started(model, [1, 4, 2], rows=rows)

    seen = b""
    for t, actions in enumerate(plan):
        engine.reset(np.array([t % 2 == 0, False, t == 4]), [t, None, None])
        result = engine.step(torch.from_numpy(actions)[:, None], np.array([t % 3 == 0, True, t > 5]))
        seen += b"".join(column[1].numpy().tobytes() for column in result)

    assert seen == expected


def test_actions_and_seeds_make_a_difference(model):
    left, right = np.full((4, 1), 1), np.full((4, 1), 2)

    assert dream(started(model, [0]), left) != dream(started(model, [0]), right)
    assert dream(started(model, [0], temperature=1.0), left) != dream(started(model, [1], temperature=1.0), left)


def test_the_callers_number_of_threads_is_kept_and_changes_nothing(model):
    before, plan = torch.get_num_threads(), plans(4, 1)
    expected = dream(started(model, [0]), plan)
    try:
        torch.set_num_threads(2)
        assert dream(started(model, [0]), plan) == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_was_handed_out_never_changes(model):
    engine = started(model, [0, 1])
    handed = [engine.frames, *engine.step(torch.zeros(2, 1, dtype=torch.int64))]
    copies = [tensor.clone() for tensor in handed]

    dream(engine, plans(5, 2))
    engine.reset(np.ones(engine.num_envs, bool))

    assert all(torch.equal(tensor, copy) for tensor, copy in zip(handed, copies, strict=True))


def test_an_exception_in_the_model_leaves_every_slot_as_it_was(model, monkeypatch):
    engine = started(model, [0, 1, 2])
    before, calls, step = [engine.get_state(i) for i in range(3)], [], WorldModel.step

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return step(*arguments)

    monkeypatch.setattr(WorldModel, "step", failing)
    with pytest.raises(MemoryError):
        engine.step(torch.zeros(3, 1, dtype=torch.int64))

    assert [engine.get_state(i) for i in range(3)] == before


@pytest.mark.parametrize("rows", [1, 4])
def test_numbers_that_are_not_finite_fail_their_slot_alone(model, rows):
    plan = plans(3, 3)
    control = dream(started(model, [0, 1, 2], rows=rows), plan)
    engine = started(model, [0, 1, 2], rows=rows)
    facts, tensors = snapshot.decode(engine.get_state(1))
    broken = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    engine.set_state(snapshot.encode(facts, {**tensors, broken: torch.full_like(tensors[broken], torch.nan)}), 1)
    last = engine.frames[1]

    result = engine.step(torch.from_numpy(plan[0])[:, None])

    assert result.failed.tolist() == [False, True, False]
    assert torch.equal(result.frames[1], last) and result.rewards[1] == 0 and result.surprise[1] == 0
    engine.reset(np.array([False, True, False]), [None, 1, None])
    rest = dream(engine, plan[1:])
    assert all(control[i].endswith(rest[i]) for i in (0, 2))


def test_a_world_without_prompts_says_how_to_start(tiny_config, tiny_spec):
    engine = Engine(WorldModel(tiny_config, tiny_spec).eval())

    with pytest.raises(ConfigMismatch, match="no prompt bank"):
        engine.reset(np.ones(engine.num_envs, bool), [0])
    assert not engine.ready.any()


def test_a_slot_must_be_reset_and_seeded_first(model):
    engine = Engine(model, 2)

    with pytest.raises(WrongOrder, match="no seed"):
        engine.reset(np.ones(engine.num_envs, bool))
    with pytest.raises(WrongOrder, match=r"\[0, 1\]"):
        engine.step(torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(WrongOrder, match="before its first reset"):
        engine.get_state(1)


# -- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_continues_in_another_slot_of_another_engine(model):
    plan = plans(20, 1)
    source = started(model, [9], temperature=1.0)
    dream(source, plan[:5])
    state = source.get_state()
    expected = dream(source, plan[5:])[0]
    target = Engine(model, 3, temperature=1.0)

    target.set_state(state, 2)

    assert target.frames[2].numpy().tobytes() == snapshot.decode(state)[1]["frame"].numpy().tobytes()
    target.reset(np.array([True, True, False]), [0, 1, None])
    assert dream(target, np.repeat(plan[5:], 3, 1))[2] == expected


def test_forked_worlds_go_on_alike(model):
    engine = started(model, [0, 1, 2, 3], temperature=1.0)
    dream(engine, plans(4, 4))

    engine.fork(1, [0, 3])

    zero, one, two, three = dream(engine, np.repeat(plans(5, 1), 4, 1))
    assert zero == one == three != two


def test_a_flipped_bit_in_a_snapshot_is_found_a_thousand_times_of_a_thousand(model):
    engine = started(model, [0])
    state, rng = engine.get_state(), np.random.default_rng(0)

    for position in rng.integers(0, len(state) * 8, 1000).tolist():
        damaged = bytearray(state)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises((CorruptFile, ConfigMismatch)):
            engine.set_state(bytes(damaged))
    assert engine.get_state() == state


@pytest.mark.parametrize("cut", [0, 3, 20, 500, -1])
def test_a_snapshot_cut_short_is_refused(model, cut):
    engine = started(model, [0])

    with pytest.raises(CorruptFile):
        engine.set_state(engine.get_state()[:cut])


FORGERIES = [{"seed": -1}, {"seed": 2**63}, {"steps": "3"}, {"ended": 1}, {"episode": None}, {"steps": True}]


@pytest.mark.parametrize("change", FORGERIES, ids=repr)
def test_a_forged_snapshot_is_refused(model, change):
    engine = started(model, [0])
    facts, tensors = snapshot.decode(engine.get_state())

    with pytest.raises(CorruptFile):
        engine.set_state(snapshot.encode({**facts, **change}, tensors))
    with pytest.raises(CorruptFile):
        engine.set_state(snapshot.encode(facts, {**tensors, "state.motion": torch.zeros(3)}))


def test_a_snapshot_of_other_weights_is_refused(model):
    engine = started(model, [0])
    facts, tensors = snapshot.decode(engine.get_state())

    with pytest.raises(ConfigMismatch, match="bbbb"):
        engine.set_state(snapshot.encode({**facts, "weights": "b" * 64}, tensors))


def test_tensors_of_every_kind_survive_a_snapshot():
    tensors = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in snapshot._DTYPES.values()}
    tensors["scalar"], tensors["empty"] = torch.tensor(1.5), torch.zeros(0, 3)

    facts, back = snapshot.decode(snapshot.encode({"a": 1}, tensors))

    assert facts == {"a": 1}
    assert all(back[name].dtype == value.dtype and torch.equal(back[name], value) for name, value in tensors.items())


# -- both kinds of batch ---------------------------------------------------------------------------------------------


def resident(model: WorldModel, seeds: list[int], temperature: float) -> Engine:
    """The engine as it is on CUDA without a graph, on a CPU."""
    engine = Engine(model, len(seeds), temperature=temperature)
    engine.batch = Resident(model, len(seeds))
    engine.reset(np.ones(engine.num_envs, bool), seeds)
    return engine


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tensors_written_in_place_give_the_bytes_of_a_chunk_of_as_many_rows(model, temperature):
    plan, seeds = plans(8, 3), [5, 6, 7]
    engine, chunk = resident(model, seeds, temperature), started(model, seeds, temperature=temperature, rows=3)

    assert dream(engine, plan) == dream(chunk, plan)

    for each in (engine, chunk):  # a masked reset, a fork, a world that stands still, a snapshot from the other kind
        each.reset(np.array([True, False, False]), [9, None, None])
        each.fork(0, [2])
        each.step(torch.ones(3, 1, dtype=torch.int64), np.array([True, False, True]))
    engine.set_state(chunk.get_state(2), 1), chunk.set_state(chunk.get_state(2), 1)
    assert dream(engine, plan) == dream(chunk, plan)
    assert [engine.get_state(i) for i in range(3)] == [chunk.get_state(i) for i in range(3)]


def test_what_a_batch_written_in_place_handed_out_never_changes(model):
    engine = resident(model, [0, 1], 1.0)
    handed = [engine.frames, *engine.step(torch.zeros(2, 1, dtype=torch.int64))]
    copies = [tensor.clone() for tensor in handed]

    dream(engine, plans(5, 2))
    engine.reset(np.ones(2, bool))

    assert all(torch.equal(tensor, copy) for tensor, copy in zip(handed, copies, strict=True))
    assert not any(tensor.is_inference() for tensor in handed)


def test_in_a_batch_written_in_place_a_failed_world_keeps_its_state_and_the_others_go_on(model):
    engine, control = resident(model, [0, 1], 0.0), resident(model, [0, 1], 0.0)
    facts, tensors = snapshot.decode(engine.get_state(1))
    broken = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    engine.set_state(snapshot.encode(facts, {**tensors, broken: torch.full_like(tensors[broken], torch.nan)}), 1)
    actions, before = torch.ones(2, 1, dtype=torch.int64), engine.get_state(1)

    result, expected = engine.step(actions), control.step(actions)

    assert result.failed.tolist() == [False, True] and result.surprise[1] == 0
    assert torch.equal(result.frames[0], expected.frames[0]) and torch.equal(result.surprise[0], expected.surprise[0])
    after = engine.get_state(1)
    assert snapshot.decode(after)[0]["steps"] == 1  # the time goes on, nothing else does
    assert after[-len(before) // 2 :] == before[-len(before) // 2 :]


def test_a_step_computed_in_bfloat16_keeps_the_types_of_state_and_numbers(model):
    engine = resident(model, [0, 1], 1.0)
    engine.batch.dtype = torch.bfloat16
    types = {name: value.dtype for name, value in engine.batch.layout().items()}

    result = engine.step(torch.ones(2, 1, dtype=torch.int64))

    assert not result.failed.any() and result.rewards.dtype == result.end_prob.dtype == torch.float32
    assert {name: value.dtype for name, value in engine.batch.layout().items()} == types


# -- threads ---------------------------------------------------------------------------------------------------------


def test_threads_that_share_the_chunks_change_no_byte(model):
    before, plan = torch.get_num_threads(), plans(6, 7)
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(dream(started(model, list(range(7)), temperature=1.0), plan))
    finally:
        torch.set_num_threads(before)

    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("error", [ValueError, IndexError])
@pytest.mark.parametrize("at", [0, 9])
def test_an_exception_in_a_thread_reaches_the_caller(error, at):
    def work(index: int) -> int:
        if index == at:
            raise error
        return index

    with pytest.raises(error):
        share(work, 10, 2)
    assert share(lambda index: index * index, 10, 2) == [index * index for index in range(10)]


def test_a_model_that_is_no_module_is_stepped_by_one_thread_unless_it_says_otherwise(model):
    class Wrapped:
        def __init__(self) -> None:
            self.threads, self.inside = set(), model
            self.spec, self.prompts, self.weights_hash = model.spec, model.prompts, model.weights_hash
            self.noise_dim, self.reward_values, self.start = model.noise_dim, model.reward_values, model.start

        def step(self, *arguments):
            self.threads.add(threading.get_ident())
            return model.step(*arguments)

    wrapped, plan = Wrapped(), plans(3, 6)

    assert dream(started(wrapped, list(range(6))), plan) == dream(started(model, list(range(6))), plan)
    assert wrapped.threads == {threading.get_ident()}

"""Movers: copies of a picture shifted by whole pixels, what becomes of a thing, and what is told of it."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lwm_env.appearance import HABIT
from lwm_env.errors import ConfigMismatch
from lwm_env.eyes import THERE, Places
from lwm_env.motion import Hints
from lwm_env.movers import (
    AGEING,
    COMES,
    FATES,
    GOES,
    GONE,
    NEAR,
    TOUCHES,
    Foresight,
    Going,
    Movers,
)
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch
from lwm_training.mover_loss import FEW, SHARING, event_error, fate_error, movers_errors, spread, walk, what_moves
from lwm_training.recipe import Stage, load_recipe
from lwm_training.replay import Replay
from lwm_training.stages import check_recipe, trained_parameters


def foretold(fates, shifts, reach: int = 2, size: int = 8) -> Foresight:
    """Of two movers, sure of what it says; it takes them to come in row 1 and column 6."""
    fates = F.one_hot(torch.tensor(fates), FATES).float()[None]
    shifts = F.one_hot(torch.tensor(shifts) + reach, 2 * reach + 1).float()[None]
    rows, columns = (F.one_hot(torch.tensor([[place] * 2]), size).float() for place in (1, 6))
    return Foresight(fates, shifts, rows, columns, torch.zeros(1, 3))


def test_a_copy_is_the_picture_moved_down_and_right_with_its_edge_drawn_out():
    picture = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    movers = Movers(2, 4, 3, (10, 12), 5, 3)
    shifts = torch.tensor([[[2, -1], [0, 0]]]).expand(2, -1, -1)

    copies = movers.move(picture[:, None].expand(-1, 2, -1, -1, -1), shifts)

    assert torch.equal(copies[:, 0, :, 2:, :-1], picture[:, :, :-2, 1:])
    assert torch.equal(copies[:, 0, :, 0, :-1], picture[:, :, 0, 1:])
    assert torch.equal(copies[:, 0, :, 2:, -1], picture[:, :, :-2, -1])
    assert torch.equal(copies[:, 1], picture)


def test_the_likeliest_fate_shift_and_spot_are_taken_whole_and_chance_may_change_the_fate():
    movers = Movers(2, 2, 3, (8, 8), 5, 3)
    foresight = foretold([GOES, COMES], [[1, -2], [0, 0]])

    still = torch.zeros(1, 2, 2)
    going = movers.likeliest(foresight, still)
    by_chance = movers.likeliest(foresight, still, torch.tensor([[0.0, 0.0, 1.5, 0.0, 0.0, 0.0]]))

    assert going.fates.tolist() == [[GOES, COMES]] and by_chance.fates.tolist() == [[GONE, COMES]]
    assert going.shifts[0, 0].tolist() == [1, -2] and going.spots[0, 1].tolist() == [1 - 3.5, 6 - 3.5]


def test_every_motion_within_reach_is_felt_at_first_and_what_is_not_there_cannot_go():
    movers = Movers(3, 8, 3, (12, 16), 5, 3)
    found = movers.find(movers.look(torch.rand(2, 3, 3, 12, 16)))
    there = torch.tensor([[1.0, 1.0, 0.0]]).expand(2, 3, 3)

    foresight, carry = movers(found._replace(there=there), torch.rand(2, 5), torch.zeros(2, movers.carry_dim))

    assert foresight.shifts.shape == (2, 3, 2, 17) and foresight.shifts.softmax(3)[..., 5:12].min() > 1e-3
    assert foresight.rows.shape == (2, 3, 12) and foresight.columns.shape == (2, 3, 16)
    assert foresight.events.shape == (2, 3) and carry.shape == (2, movers.carry_dim)
    going = foresight.fates.softmax(2)[..., GOES]
    assert going[:, :2].min() > 0.01 and going[:, 2].max() == 0


def test_a_place_is_the_mean_of_the_pixels_that_look_like_the_mover_and_needs_enough_of_them():
    movers = Movers(1, 2, 3, (5, 5), 5, 3)
    movers.common.fill_(10.0)
    looks = torch.zeros(1, 3, 1, 5, 5)
    looks[0, 0, 0, 1, 4] = 3.0
    looks[0, 0, 0, 1, 0] = 1.0
    looks[0, 1, 0, 4, 4] = 0.9 * THERE * 10

    found = movers.find(looks)

    assert torch.allclose(found.places[0, 0, 0], torch.tensor([-1.0, 1.0]), atol=1e-3)
    assert found.places[0, 1:, 0].tolist() == [[0, 0], [0, 0]] and found.there[0, :, 0].tolist() == [1, 0, 0]


def dots(*spots, size=8):
    """Looks of one mover (B = 1, T, 1, size, size), each frame with it at one row and column, or nowhere."""
    looks = torch.zeros(1, len(spots), 1, size, size)
    for frame, spot in zip(looks[0], spots, strict=True):
        if spot:
            frame[0, spot[0], spot[1]] = 1.0
    return looks


def test_in_real_frames_the_places_are_those_that_are_found():
    movers, looks = Movers(1, 2, 3, (8, 8), 5, 3), dots((1, 4), (2, 4), None, (6, 0))
    kept = torch.zeros(1, movers.places_dim)
    anywhere = Going(torch.zeros(1, 1), torch.ones(1, 1, 2), torch.zeros(1, 1, 2))
    every = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]  # the first frame stands for those before it

    for t, frames in enumerate(every):
        places, missing = movers.recall(looks[:, t], kept)
        kept = movers.landed(movers.keep(places, anywhere))

        assert not missing.any()
        assert all(torch.equal(*pair) for pair in zip(places, movers.find(looks[:, frames]), strict=True))


def test_in_a_dream_movers_are_where_they_went_or_a_little_beside_and_missing_where_they_were_not_drawn():
    movers = Movers(1, 2, 3, (16, 16), 5, 3)
    movers.common.fill_(1.0)
    fates = [(GOES, [1, 2], [0, 0]), (COMES, [1, 1], [0.5, -1.5]), (GONE, [1, 1], [0, 0]), (GONE, [1, 1], [0, 0])]
    went = [[-6.5, -3.5], [-5.5, -1.5], [0.5, -1.5], [0.0, 0.0]]

    def dream(*drawn):
        """The last places, which of them are missing, and the last three of them together."""
        kept, places, absent = torch.zeros(1, movers.places_dim), [], []
        for (fate, shift, spot), spots in zip(fates, drawn, strict=True):
            found, missing = movers.recall(dots(spots, size=16)[:, 0], kept)
            kept = movers.keep(found, Going(*(torch.tensor(x)[None, None] for x in (fate, shift, spot))))
            places.append(found.places[0, -1, 0].tolist()), absent.append(missing.item())
        return places, absent, found

    places, absent, last = dream((1, 4), None, None, (8, 6))
    assert [*places[0], *places[1], *places[2]] == pytest.approx([*went[0], *went[1], *went[2]], abs=0.02)
    assert places[3] == [0, 0] and absent == [False, True, True, False]  # it is gone, whatever was drawn
    assert last.there[0, :, 0].tolist() == [1, 1, 0] and last.places[0, 0, 0].tolist() == places[1]
    drawn, absent, _ = dream((1, 4), (2, 6), (8, 6), None)
    assert [*drawn[1], *drawn[2]] == pytest.approx([*went[1], *went[2]], abs=0.02) and not any(absent)
    beside, absent, _ = dream((1, 4), (2, 8), (15, 15), None)
    assert beside[1] == pytest.approx([-5.5, 0.5], abs=0.02) and absent == [False, False, True, False]


def test_what_is_missing_is_drawn_as_it_usually_looks():
    movers = Movers(2, 2, 3, (32, 32), 5, 3)
    frames = torch.zeros(1, 4, 3, 32, 32)
    for t, row in enumerate((10, 12, 14, 16)):  # a bar of three rows, whose upper end blinks, in each frame elsewhere
        frames[0, t, 1, row - (t == 0) : row + 2, 20] = 1.0
    places = torch.tensor([[[row - 15.5, 20 - 15.5], [0.0, 0.0]] for row in (10, 12, 14, 16)])[None]
    look = movers.appearance
    look.remember(frames, places, torch.tensor([1.0, 0.0]).expand(1, 4, 2), movers.usual)
    picture, at = torch.full((2, 3, 32, 32), -1.0), torch.tensor([[[-10.5, -12.5], [5.0, 5.0]]]).expand(2, 2, 2)

    drawn, covers = look.restore(picture, at, torch.tensor([[True, True], [False, True]]))

    bar = torch.zeros(32, 32)
    bar[5:7, 3] = 1.0
    assert torch.equal(covers[0, 0], bar) and covers.sum() == 2
    assert torch.equal(drawn[0, 1], 2 * bar - 1) and torch.equal(drawn[0, 0], bar - 1)
    assert torch.equal(drawn[1], picture[1])


def test_a_mover_goes_only_to_where_it_is_ever_found():
    movers = Movers(1, 2, 3, (8, 12), 5, 3)
    foresight, at = foretold([GOES], [[2, 2]]), torch.tensor([[[-0.5, 0.5]]])  # row 3, column 6
    rows = torch.tensor([[row - 3.5, 0.5] for row in range(8)]).view(1, 8, 1, 2)  # up and down in column 6

    anywhere = movers.likeliest(foresight, at)
    movers.appearance.remember(torch.zeros(1, 8, 3, 8, 12), rows, torch.ones(1, 8, 1), movers.usual)
    bound = movers.likeliest(foresight, at)
    astray = movers.likeliest(foresight, torch.tensor([[[-0.5, -4.5]]]))

    assert anywhere.shifts.tolist() == [[[2, 2]]] and bound.shifts[0, 0, 0] == 2
    assert bound.shifts[0, 0, 1].abs() <= 1  # a pixel beside at most
    assert astray.shifts.tolist() == [[[2, 2]]]  # where nothing is known


def test_around_movers_is_only_what_hardly_ever_looked_otherwise():
    movers = Movers(1, 2, 3, (32, 32), 5, 3)
    frames = torch.full((1, 8, 3, 32, 32), 0.25)
    places = torch.tensor([[0.5, step + 0.5] for step in range(-4, 4)]).view(1, 8, 1, 2)
    for t, column in enumerate(range(12, 20)):
        frames[0, t, :, 16, column] = 1.0  # the mover, which does not belong to the background
    frames[0, 3, :, 2, 30] = 1.0  # and what changes far from it
    movers.remember_usual(frames)
    look = movers.appearance
    look.remember(frames, places, torch.ones(1, 8, 1), movers.usual)
    at = torch.tensor([[[-9.5, -9.5]]])

    empty, alone = look.empty(at, torch.ones(1, 1)), look.empty(at, torch.zeros(1, 1))

    assert (empty != alone).nonzero()[:, 2:].tolist() == [[row, column] for row in (5, 6, 7) for column in (5, 6, 7)]
    assert alone.shape == (1, 1, 32, 32) and alone[0, 0, 2, 29] and not alone[0, 0, 2, 30]
    assert not alone[0, 0, 16, 16]  # never seen without it
    assert torch.equal(look.background[:3, 5, 13], torch.full((3,), 0.25))


def test_the_distance_is_that_to_a_mover_or_to_where_it_will_be():
    movers = Movers(2, 2, 3, (8, 8), 5, 3)
    places = torch.tensor([[[-2.5, 1.5], [0.0, 0.0]]])  # row 1, column 5; the second is not there
    there = torch.tensor([[1.0, 0.0]])
    fates, spot = torch.tensor([[GOES, COMES]]), torch.tensor([3.5, 1.5])  # row 7, column 5
    going = Going(fates, torch.tensor([[[2, 0], [0, 0]]]), spot.expand(1, 2, 2))

    distance = movers.distance(places, there, going)
    gone = movers.distance(places, there, going._replace(fates=torch.tensor([[GONE, GONE]])))

    assert distance[0, 0, [1, 3], 5].tolist() == [0, 0]
    assert distance[0, 0, 2, 5] == 1 / 4 and distance[0, 0, 3, 3] == 1 and distance[0, 0, 7, 5] == 16 / 4
    assert distance[0, 1, 7, 5] == 0 and distance[0, 1, 5, 3] == 2
    assert gone[0, 0, 1, 5] == 0 and gone[0, 0, 3, 5] == 1 and gone[0, 1].min() > 1000


def test_what_comes_is_marked_at_its_spot():
    movers = Movers(2, 2, 3, (8, 8), 5, 3)

    marks = movers.coming(movers.likeliest(foretold([GOES, COMES], [[0, 0], [0, 0]]), torch.zeros(1, 2, 2)))

    assert marks[0, 0].abs().max() == 0 and marks[0, 1, 1, 6] == 1
    assert marks[0, 1, 2, 7] == 0.5 and marks[0, 1].sum() == 1 + 8 * 0.5


def test_movers_spread_over_what_moves_each_drawn_to_the_nearest():
    movers = Movers(2, 2, 3, (8, 8), 5, 3)
    places = torch.tensor([[[-2.5, 1.5], [3.5, 1.5]]], requires_grad=True)  # row 1 and row 7
    weights = torch.zeros(1, 8, 8)
    weights[0, 1, 4] = 3.0  # left of the first by a column, half its reach
    weights[0, 7, 5] = 1.0

    error = spread(movers, places, weights)
    error.backward()

    assert error.item() == pytest.approx((3 * 0.25 + 0) / 4, abs=SHARING * 1e-3)
    assert places.grad[0, 0].tolist() == pytest.approx([0, 0.75 * 2 * 1 / 4], abs=1e-3)
    assert places.grad[0, 1].abs().max() < 1e-3


def test_what_differs_from_the_usual_picture_counts_where_something_happens_in_the_clip():
    movers = Movers(1, 2, 3, (8, 8), 5, 3)
    pixels = torch.zeros(2, 3, 3, 8, 8)
    pixels[0, :, :, 0, 0] = 1.0  # a figure that stays
    pixels[0, 1, :, 4, 4] = 0.5  # something that passes

    weights = what_moves(movers, pixels)

    expected = torch.zeros(2, 3, 8, 8)
    expected[0, 1, 4, 4] = 3 * 0.25
    assert torch.equal(weights, expected)


def test_what_walks_by_whole_pixels_stays_nearest_to_where_it_really_is():
    movers, down = Movers(1, 2, 3, (8, 8), 5, 3), torch.tensor([0.0, 0.6, 1.2, 1.8, 2.4])
    places = torch.stack([down, -down], 1)[None, :, None].repeat(2, 1, 1, 1)

    own, goings = walk(movers, Places(places, torch.ones(2, 5, 1)), torch.tensor([0, 2]))

    taken = torch.stack([going.shifts for going in goings], 1)
    assert taken[0, :, 0, 0].tolist() == [1, 0, 1, 0] and taken[0, :, 0, 1].tolist() == [-1, 0, -1, 0]
    assert own[0, :, 0, 0].tolist() == [0, 1, 1, 2, 2]
    assert taken[1, :, 0, 0].tolist() == [1, 1, 1, 0]  # from frame to frame first, then it walks on from 1.2
    assert own[1, :, 0, 0].tolist() == pytest.approx([0, 0.6, 1.2, 2.2, 2.2])


def test_what_vanishes_is_gone_and_what_jumps_comes():
    movers = Movers(1, 3, 3, (8, 8), 5, 3)
    places = torch.tensor([0.0, 1.0, 0.0, 7.0, 0.0])[None, :, None, None].repeat(1, 1, 1, 2)

    own, goings = walk(
        movers, Places(places, torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])[None, :, None]), torch.tensor([0])
    )

    assert [going.fates.item() for going in goings] == [GOES, GONE, COMES, COMES] and torch.equal(own, places)
    assert [going.shifts[0, 0, 0].item() for going in goings] == [1, 0, 0, 0] and goings[2].spots[0, 0, 0] == 7


def test_the_error_of_what_is_foretold_is_the_cross_entropy_of_the_parts_that_count():
    foresight = foretold([GOES, COMES], [[1, 0], [0, 0]])
    spots = torch.tensor([[[0.0, 0.0], [1 - 3.5, 6 - 3.5]]])
    real = Going(torch.tensor([[GOES, COMES]]), torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), spots)

    error = fate_error(foresight, real)

    one_of = {count: math.log(1 + (count - 1) / math.e) for count in (3, 5, 8)}
    assert error.item() == pytest.approx((2 * one_of[3] + one_of[5] + one_of[5] + 1 + 2 * one_of[8]) / 2, abs=1e-5)


def test_the_error_of_events_is_the_cross_entropy_of_rewards_and_the_end():
    events = torch.tensor([[0.0, 2.0, 0.0, 1.0, 0.0]])  # two players, two values; the end
    rewards = torch.tensor([[1, 0]])

    error = event_error(events, rewards, torch.tensor([1.0]))

    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.e)
    assert error.item() == pytest.approx((right + wrong) / 2 + math.log(2), abs=1e-5)


def test_a_trail_tells_where_a_mover_was_last_how_fast_and_how_long_ago_and_how_far_it_is_from_where_it_was_thought():
    movers, kept = Movers(1, 2, 3, (8, 8), 5, 3), torch.zeros(1, 7)

    def seen(places, there):
        rows = torch.tensor(places)[None, :, None, None].expand(-1, -1, -1, 2)
        return Places(rows, torch.tensor(there)[None, :, None])

    def keep(trail, thought):
        return torch.cat([torch.full((1, 2), thought), *(part.flatten(1) for part in trail)], 1)

    first, apart = movers.trail(seen([0.0, 0.0, 1.0], [0.0, 0.0, 1.0]), kept)
    assert [part[0, 0, 0].item() for part in first] == [1, 0, 0] and apart.abs().max() == 0
    second, apart = movers.trail(seen([0.0, 1.0, 3.0], [0.0, 1.0, 1.0]), keep(first, 2.4))
    assert [part[0, 0, 0].item() for part in second] == [3, AGEING * 2, 0]
    assert apart[0, 0].tolist() == pytest.approx([0.4, 0.4])  # it was thought to go by 2.4, and went by 2
    third, apart = movers.trail(seen([1.0, 3.0, 0.0], [1.0, 1.0, 0.0]), keep(second, 2.4))
    fourth, _ = movers.trail(seen([3.0, 0.0, 0.0], [1.0, 0.0, 0.0]), keep(third, 2.4))
    assert [part[0, 0, 0].item() for part in fourth] == [3, AGEING * 2, 2] and apart.abs().max() == 0


def test_how_two_movers_lie_to_each_other_counts_the_less_the_further_apart_they_are():
    movers = Movers(3, 4, 2, (64, 64), 5, 3)
    now = torch.tensor([[10.0, -4.0], [11.0, 0.0], [10.0, -4.0 - NEAR]])
    places = torch.stack([torch.zeros(3, 2), now])[None].expand(2, -1, -1, -1)
    there = torch.tensor([[[1.0, 1, 1]] * 2, [[1, 1, 1], [1, 0, 1]]])

    met, gone = movers.meetings(Places(places, there)).view(2, 3, 3 + 4 * len(TOUCHES))

    near, turn = 1 - 4 / NEAR, 2 * math.pi / TOUCHES[1]
    assert met[0, :3].tolist() == pytest.approx([near, near * 1 / 4, near * 4 / 4])
    assert met[0, 5:7].tolist() == pytest.approx([near * math.sin(turn), near * math.sin(4 * turn)], abs=1e-5)
    assert not met[1:].any() and not gone.any()  # too far, and one that is not there


def test_what_was_seen_of_movers_overrules_what_is_foretold_where_they_are_led(tiny_config, tiny_spec):
    motion = WorldModel(tiny_config.override({"motion.movers": 2, "motion.reach": 2}), tiny_spec).motion
    foresight = Foresight(*(torch.cat([part, part]) for part in foretold([GOES, GONE], [[1, 0], [0, 0]])))
    still = torch.zeros(2, 2, 2)
    seen = Going(torch.full((2, 2), COMES), torch.full((2, 2, 2), -1.0), torch.full((2, 2, 2), 0.5))

    going = motion.foretold(foresight, still, Hints(movers=seen, led=torch.tensor([True, False])))

    assert going.fates.tolist() == [[COMES, COMES], [GOES, GONE]]
    assert going.shifts[:, 0].tolist() == [[-1, -1], [1, 0]] and going.spots[0, 0].tolist() == [0.5, 0.5]
    assert motion.foretold(foresight, still, Hints()).fates.tolist() == [[GOES, GONE]] * 2
    assert motion.foretold(foresight, still, Hints(movers=seen)) is seen


def test_a_mover_is_seen_to_go_by_whole_pixels_unless_it_is_gone_or_too_far_off():
    movers, pictures = Movers(1, 2, 3, (8, 8), 5, 3), torch.zeros(4, 2, 3, 8, 8)
    with torch.no_grad():  # it is what is bright
        movers.seek.weight.zero_()[:, :, 2, 2] = 1.0
        movers.tell.weight.fill_(1.0)
    pictures[0, 0, :, 4, 3] = pictures[0, 1, :, 3, 5] = 1.0
    pictures[1, 0, :, 4, 3] = 1.0
    pictures[2, 0, :, 4, 3] = pictures[2, 1, :, 4, 6] = 1.0
    pictures[3, 0, :, 4, 3] = pictures[3, 1, :, 4, 3:5] = 1.0  # half a pixel on

    before, after = pictures.unbind(1)
    seen = movers.sight(movers.find(movers.look(before[:, None])), after)

    assert seen.fates[:, 0].tolist() == [GOES, GONE, COMES, GOES]
    assert seen.shifts[0, 0].tolist() == [-1, 2] and seen.shifts[3, 0].abs().max() <= 1
    assert seen.spots[2, 0].tolist() == pytest.approx([0.5, 2.5], abs=1e-3)


def test_what_is_usual_is_the_mean_of_what_was_seen_lately():
    movers = Movers(1, 2, 3, (8, 8), 5, 3)

    movers.remember_usual(torch.full((2, 3, 3, 8, 8), 0.5))
    first = movers.usual.clone()
    movers.remember_usual(torch.full((2, 3, 3, 8, 8), 1.0))

    assert torch.equal(first, torch.full((3, 8, 8), 0.5))
    assert torch.allclose(movers.usual, torch.full((3, 8, 8), 0.5 + HABIT * 0.5))
    movers.remember_common(torch.ones(2, 3, 1, 8, 8))
    movers.remember_common(torch.zeros(2, 3, 1, 8, 8))
    assert movers.common.tolist() == pytest.approx([64 * (1 - HABIT)])


def test_movers_learn_along_whole_clips_what_no_frame_shows(tiny_config, tiny_spec):
    """A dot moves right by two at every second press only: how often was pressed is in no frame."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {"camera.max_motion": 0, "motion.movers": 1, "motion.reach": 2}
        model = WorldModel(tiny_config.override(settings), tiny_spec)
    random = torch.Generator().manual_seed(2)

    def play(count: int, steps: int = 9) -> Batch:
        presses = torch.randint(0, 2, (count, steps), generator=random)
        row = torch.randint(16, (count,), generator=random)
        column = 2 + torch.cat([torch.zeros(count, 1, dtype=torch.long), presses.cumsum(1) // 2 * 2], 1)
        pixels = torch.full((count, steps + 1, 3, 16, 16), -0.5)
        for t in range(steps + 1):
            pixels[torch.arange(count), t, :, row, column[:, t]] = 1.0
        nothing = torch.zeros(count, steps)
        return Batch(pixels, presses[..., None], nothing[..., None].long(), nothing, nothing + 1)

    replay = Replay(FEW)

    def errors(count: int) -> dict[str, torch.Tensor]:
        return movers_errors(model, play(count), torch.zeros(count, 9, 2), 1, replay, random)

    optimiser = torch.optim.AdamW(model.motion.movers.parameters(), lr=3e-3)
    for _ in range(120):
        optimiser.zero_grad()
        sum(errors(32).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.motion.movers.parameters(), 1.0)
        optimiser.step()

    with torch.no_grad():
        replay = Replay(FEW)
        learned, found = errors(256), model.motion.movers.find(model.motion.movers.look(play(64).pixels))
    assert learned["spots"] < 0.01 and found.places.diff(dim=1)[..., 1].round().unique().tolist() == [0, 2]
    # a press seen alone moves the dot in half of the cases: 0.69 nats, for half of the steps
    assert learned["course"] < 0.5 * 0.69 / 2
    with torch.no_grad():
        standing = movers_errors(model, play(8), torch.zeros(8, 9, 2), 1, replay, random, standing=False)
    assert list(standing) == ["course", "told"]


def test_movers_and_the_camera_learn_in_stages_of_their_own(tiny_config, tiny_spec):
    model = WorldModel(tiny_config.override({"motion.movers": 1}), tiny_spec)

    def trained(kind):
        trained_parameters(model, Stage(name="x", trains=kind, steps=1, learning_rate=1e-3))
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    movers = {f"motion.movers.{name}" for name, _ in model.motion.movers.named_parameters()}
    frozen = movers | {name for name, _ in model.named_parameters() if name.startswith(("camera.", "tokenizer.enc"))}
    assert trained("dynamics") == {name for name, _ in model.named_parameters()} - frozen
    assert trained("movers") == movers


def test_a_stage_for_movers_asks_for_movers():
    recipe = load_recipe(Path(__file__).parent.parent / "training/recipes/pong.toml", ["model.overrides={}"])

    with pytest.raises(ConfigMismatch, match="motion.movers"):
        check_recipe(recipe, num_processes=1)

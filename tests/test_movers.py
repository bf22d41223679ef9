"""Movers: copies of a picture shifted by whole pixels, and how far a thing moves."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lwm_env.errors import ConfigMismatch
from lwm_env.movers import CARRY, HABIT, Movers, Places, likeliest
from lwm_env.registration import Sighting
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch
from lwm_training.mover_loss import FEW, SHARING, movers_errors, shifts_to_take, spread, what_moves
from lwm_training.recipe import Stage, load_recipe
from lwm_training.replay import Replay
from lwm_training.stages import check_recipe, trained_parameters


def test_a_copy_is_the_picture_moved_down_and_right_with_its_edge_drawn_out():
    picture = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    movers = Movers(2, 4, 3, (10, 12), 5)
    shares = F.one_hot(torch.tensor([[4 + 2, 4 - 1], [4, 4]]), 9).float().expand(2, -1, -1, -1)  # (2, -1) and (0, 0)

    copies = movers.move(picture[:, None].expand(-1, 2, -1, -1, -1), shares)

    assert torch.equal(copies[:, 0, :, 2:, :-1], picture[:, :, :-2, 1:])
    assert torch.equal(copies[:, 0, :, 0, :-1], picture[:, :, 0, 1:])
    assert torch.equal(copies[:, 0, :, 2:, -1], picture[:, :, :-2, -1])
    assert torch.equal(copies[:, 1], picture)


def test_the_likeliest_shift_is_taken_whole():
    assert likeliest(torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_shares_add_up_to_one_and_every_motion_within_reach_is_felt_at_first():
    movers = Movers(3, 8, 3, (12, 16), 5)

    found = movers.find(movers.look(torch.rand(2, 3, 3, 12, 16)))
    shares = movers(movers.course(found), torch.rand(2, 5), torch.zeros(2, CARRY))[0].softmax(3)

    assert shares.shape == (2, 3, 2, 17) and torch.allclose(shares.sum(3), torch.ones(2, 3, 2))
    assert shares[..., 5:12].min() > 1e-3


def test_a_place_is_the_mean_of_the_pixels_that_look_like_the_mover_and_needs_some():
    looks = torch.zeros(1, 1, 2, 5, 5)
    looks[0, 0, 0, 1, 4] = 3.0
    looks[0, 0, 0, 1, 0] = 1.0

    found = Movers.find(looks)

    assert torch.allclose(found.places[0, 0, 0], torch.tensor([-1.0, 1.0]), atol=1e-3)
    assert found.places[0, 0, 1].tolist() == [0, 0] and found.amounts[0, 0].tolist() == pytest.approx([4.001, 0.001])


def test_the_distance_is_that_to_a_mover_or_to_where_it_goes():
    movers = Movers(2, 2, 3, (8, 8), 5)
    places = torch.tensor([[[-2.5, 1.5], [3.5, 1.5]]])  # row 1 and row 7, both in column 5
    shares = F.one_hot(torch.tensor([[4, 2], [2, 2]]), 5).float()[None]  # the first moves down by two

    distance = movers.distance(places, shares, (8, 8))

    assert distance[0, 0, [1, 3], 5].tolist() == [0, 0]
    assert distance[0, 0, 2, 5] == 1 / 4 and distance[0, 0, 3, 3] == 1 and distance[0, 0, 7, 5] == 16 / 4
    assert distance[0, 1, 7, 5] == 0 and distance[0, 1, 5, 3] == 2


def test_movers_spread_over_what_moves_each_drawn_to_the_nearest():
    movers = Movers(2, 2, 3, (8, 8), 5)
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
    movers = Movers(1, 2, 3, (8, 8), 5)
    pixels = torch.zeros(2, 3, 3, 8, 8)
    pixels[0, :, :, 0, 0] = 1.0  # a figure that stays
    pixels[0, 1, :, 4, 4] = 0.5  # something that passes

    weights = what_moves(movers, pixels)

    expected = torch.zeros(2, 3, 8, 8)
    expected[0, 1, 4, 4] = 3 * 0.25
    assert torch.equal(weights, expected)


def test_shifts_keep_what_walks_by_whole_pixels_nearest_to_where_it_really_is():
    down = torch.tensor([0.0, 0.6, 1.2, 1.8, 2.4])
    places = torch.stack([down, -down], 1)[None, :, None].repeat(2, 1, 1, 1)
    found = Places(places, torch.ones(2, 5, 1))

    own, taken = shifts_to_take(found, torch.tensor([0, 2]), reach=2)

    assert taken[0, :, 0, 0].tolist() == [1, 0, 1, 0] and taken[0, :, 0, 1].tolist() == [-1, 0, -1, 0]
    assert own[0, :, 0, 0].tolist() == [0, 1, 1, 2, 2]
    assert taken[1, :, 0, 0].tolist() == [1, 1, 1, 0]  # from frame to frame first, then it walks on from 1.2
    assert own[1, :, 0, 0].tolist() == pytest.approx([0, 0.6, 1.2, 2.2, 2.2])


def test_what_vanishes_or_jumps_is_not_followed():
    places = torch.tensor([0.0, 1.0, 0.0, 7.0])[None, :, None, None].repeat(1, 1, 1, 2)
    found = Places(places, torch.tensor([1.0, 1.0, 0.0, 1.0])[None, :, None])

    own, taken = shifts_to_take(found, torch.tensor([0]), reach=3)

    assert taken[0, :, 0, 0].tolist() == [1, 0, 0] and torch.equal(own, places)
    always_there = found._replace(amounts=torch.ones(1, 4, 1))
    assert shifts_to_take(always_there, torch.tensor([0]), reach=3)[1][0, 2].tolist() == [[0, 0]]


def test_a_shift_that_was_seen_overrules_the_likeliest_one():
    movers = Movers(2, 2, 3, (8, 8), 5)
    logits = F.one_hot(torch.tensor([[0, 2], [4, 2]]), 5).float()[None]  # up by two, and down by two
    seen = Sighting(torch.tensor([[[1.0, -1.0], [1.0, -1.0]]]), torch.tensor([[True, False]]))

    shares = movers.choose(logits, seen)

    assert shares.argmax(3)[0].tolist() == [[3, 1], [4, 2]] and torch.equal(movers.choose(logits, None), logits)


def test_a_mover_is_seen_to_go_by_whole_pixels_unless_it_is_gone_or_too_far_off():
    movers, pictures = Movers(1, 2, 3, (8, 8), 5), torch.zeros(4, 2, 3, 8, 8)
    with torch.no_grad():  # it is what is bright
        movers.seek.weight.zero_()[:, :, 2, 2] = 1.0
        movers.tell.weight.fill_(1.0)
    pictures[0, 0, :, 4, 3] = pictures[0, 1, :, 3, 5] = 1.0
    pictures[1, 0, :, 4, 3] = 1.0
    pictures[2, 0, :, 4, 3] = pictures[2, 1, :, 4, 6] = 1.0
    pictures[3, 0, :, 4, 3] = pictures[3, 1, :, 4, 3:5] = 1.0  # half a pixel on

    seen = movers.sight(*pictures.unbind(1))

    assert seen.sure[:, 0].tolist() == [True, False, False, True]
    assert seen.motion[0, 0].tolist() == [-1, 2] and seen.motion[3, 0].abs().max() <= 1


def test_what_is_usual_is_the_mean_of_what_was_seen_lately():
    movers = Movers(1, 2, 3, (8, 8), 5)

    movers.remember_usual(torch.full((2, 3, 3, 8, 8), 0.5))
    first = movers.usual.clone()
    movers.remember_usual(torch.full((2, 3, 3, 8, 8), 1.0))

    assert torch.equal(first, torch.full((3, 8, 8), 0.5))
    assert torch.allclose(movers.usual, torch.full((3, 8, 8), 0.5 + HABIT * 0.5))


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
    assert list(standing) == ["course"]


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

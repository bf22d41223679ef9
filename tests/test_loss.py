"""Losses against arithmetic done by hand."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from lwm_env.errors import ConfigMismatch
from lwm_env.movers import GOES
from lwm_env.registration import Sighting
from lwm_env.tokenizer import to_frames
from lwm_env.world_model import WorldModel
from lwm_training import camera_loss
from lwm_training.batch import Batch, as_batch, at, mean_valid, sightings
from lwm_training.camera_loss import camera_errors, camera_unroll, motion_distance
from lwm_training.clips import Clips
from lwm_training.event_loss import event_errors
from lwm_training.loss import LossWeights, guidance, total_error, unroll_errors
from lwm_training.picture_loss import (
    PLAIN,
    changes,
    choice_error,
    elsewhere,
    emphasis,
    end_error,
    lost_error,
    picture_error,
)
from lwm_training.recipe import Stage
from lwm_training.stages import trained_parameters


@pytest.fixture(scope="module")
def model(tiny_config, tiny_spec) -> WorldModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WorldModel(tiny_config, tiny_spec)


def clips(batch: int = 2, steps: int = 4, valid: bool = True) -> Clips:
    """Noise that scrolls two pixels to the left each step."""
    random = np.random.default_rng(0)
    wall = random.integers(0, 256, (batch, 16, 16 + 2 * steps, 3), np.uint8)
    return Clips(
        observations=np.stack([wall[:, :, 2 * t : 2 * t + 16] for t in range(steps + 1)], 1),
        actions=random.integers(0, 3, (batch, steps, 1)),
        rewards=np.full((batch, steps, 1), 10.0, np.float32),
        terminations=np.zeros((batch, steps), bool),
        valid=np.full((batch, steps), valid),
    )


def test_a_picture_that_is_wrong_by_a_constant_has_no_wrong_edges():
    error = picture_error(torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4), edges=2.0)

    assert error.tolist() == [0.5, 0.5]


def test_one_wrong_column_counts_by_its_pixels_and_by_its_edges():
    drawn = torch.zeros(1, 1, 2, 4)
    drawn[..., 1] = 1.0  # a quarter of the pixels; of 3 differences along a row 2 are wrong, of those down none

    error = picture_error(drawn, torch.zeros(1, 1, 2, 4), edges=3.0)

    assert error.item() == pytest.approx(1 / 4 + 3.0 * (0 + 2 / 3) / 2)


def test_squared_errors_count_beside_absolute_ones_where_it_matters():
    drawn, weights = torch.zeros(1, 1, 2, 2), torch.tensor([[[[3.0, 1.0], [0.0, 0.0]]]])
    drawn[0, 0, 0] = torch.tensor([2.0, 0.5])

    error = picture_error(drawn, torch.zeros(1, 1, 2, 2), 0.0, weights, squared=10.0)

    assert error.item() == pytest.approx((3 * (2 + 10 * 4) + (0.5 + 10 * 0.25)) / 4)


def test_a_latent_is_drawn_back_from_the_ends_of_its_range(model):
    pixels = torch.zeros(2, 3, 64, 64)[:, :, : model.spec.frame_size[0], : model.spec.frame_size[1]]
    with torch.no_grad():
        model.tokenizer.encoder[-1].weight.zero_()
        model.tokenizer.encoder[-1].bias.fill_(1.5)
        model.tokenizer.encoder[-1].bias[0] = -3.5

    error = end_error(model.tokenizer, pixels)

    assert error.tolist() == pytest.approx([4 / model.config.tokenizer.latent_dim] * 2)


def test_what_is_not_valid_does_not_count():
    values = torch.tensor([[1.0, 3.0], [100.0, 100.0], [4.0, 8.0]])

    assert mean_valid(values, torch.tensor([1.0, 0.0, 1.0])).item() == (2 + 6) / 2
    assert mean_valid(values, torch.zeros(3)).item() == 0


def test_motion_counts_quadratically_up_to_two_pixels_then_linearly_then_no_more():
    estimated = torch.tensor([[1.0, 0.0], [4.0, 0.0], [50.0, 0.0]])

    distance = motion_distance(estimated, torch.zeros(3, 2))

    assert distance.tolist() == [0.5 * 1**2 / 2, 4 - 0.5 * 2, 10]


def test_the_total_is_the_weighted_sum():
    weights = LossWeights.from_recipe({"codec": 3.0, "end": 0.5})

    assert total_error({"codec": torch.tensor(2.0), "end": torch.tensor(4.0)}, weights).item() == 3 * 2 + 0.5 * 4


def test_an_unknown_loss_is_named():
    with pytest.raises(ConfigMismatch, match="unknown loss weights sharpness; known are codec"):
        LossWeights.from_recipe({"sharpness": 1.0})


def test_rewards_become_indices_of_the_nearest_reward_value(model):
    given = clips()
    given.rewards[0, 1] = 0.2

    batch = as_batch(given, model)

    assert batch.rewards[:, :, 0].tolist() == [[1, 0, 1, 1], [1, 1, 1, 1]]
    assert batch.pixels.min() >= -1 and batch.pixels.max() <= 1


def test_what_changed_is_a_pixel_wider_than_it_is():
    before, after = torch.zeros(1, 3, 5, 6), torch.zeros(1, 3, 5, 6)
    after[0, 1, 1, 4] = 0.2
    after[0, :, 4, 0] = 0.05  # too little

    rows, columns = changes(before, after)[0, 0].nonzero(as_tuple=True)

    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(r, c) for r in range(3) for c in (3, 4, 5)]


def test_a_thing_is_elsewhere_from_two_pixels_on_and_if_it_is_missing():
    drawn, real = torch.full((6, 3, 8, 8), -1.0), torch.full((6, 3, 8, 8), -1.0)
    real[:, :, 4, 4] = 0.0  # differs by 3 in all
    drawn[0, :, 4, 4] = 0.0  # there
    drawn[1, :, 5, 3] = 0.0  # a pixel off
    drawn[2, :, 4, 6] = 0.0  # two
    drawn[3, :, 4, 4] = -0.5  # faint: 1.5 too little, but
    drawn[3, :, 3, 4] = 0.0  # its neighbour is not
    drawn[4] = -1.0  # not there
    drawn[5, :, 4, 4] = -0.3  # faint by 0.9

    assert elsewhere(drawn, real).tolist() == [False, False, True, False, True, False]
    assert elsewhere(real, drawn).tolist() == [False, False, True, False, False, False]


def test_a_source_is_chosen_for_what_it_explains_however_little_of_it_is_there():
    target = torch.zeros(1, 3, 1, 2)
    sources = torch.stack([torch.zeros(3, 1, 2), torch.full((3, 1, 2), 1.0)])[None]  # right, and off by 3
    masks = torch.tensor([[[[0.001, 0.5]], [[0.999, 0.5]]]], requires_grad=True)

    error = choice_error(masks, sources, target)
    error.sum().backward()

    assert error.item() == pytest.approx(-(np.log(0.001 + 1e-3) + np.log(0.5 + 1e-3)) / 2, rel=1e-5)
    assert masks.grad[0, 0, 0].tolist() == pytest.approx([-0.5 / 0.002, -0.5 / 0.501])
    assert masks.grad[0, 1].abs().max() < 1e-9
    weights = torch.tensor([[[[0.0, 2.0]]]])
    assert choice_error(masks, sources, target, weights).item() == pytest.approx(-np.log(0.501), rel=1e-5)


def test_the_share_of_the_loss_that_was_asked_for_lies_on_what_changed():
    mask = torch.zeros(3, 1, 10, 10)
    mask[0, 0, 2, :4] = 1
    mask[1] = 1

    weights = emphasis(mask, 0.75)

    assert weights.mean((1, 2, 3)).tolist() == pytest.approx([1, 1, 1])
    assert weights[0, 0, 2, 0].item() == pytest.approx(0.25 + 0.75 * 100 / 4)
    assert weights[0, 0, 0, 0].item() == pytest.approx(0.25)
    assert torch.equal(weights[1:], torch.ones(2, 1, 10, 10))
    picture = torch.zeros(1, 3, 10, 10)
    wrong = picture.clone()
    wrong[..., 2, 0] = 1.0
    assert picture_error(wrong, picture, 0.0, weights[:1]).item() == pytest.approx((0.25 + 0.75 * 25) / 100)


def test_an_unroll_counts_what_changed_more(model):
    batch = as_batch(clips(), model)
    pixels = batch.pixels[:, :1].repeat(1, batch.pixels.shape[1], 1, 1, 1)
    pixels[:, 1::2, :, 4:6, 4:6] *= -1  # a small thing that blinks
    batch = replace(batch, pixels=pixels)

    def errors(share):
        return unroll_errors(model, batch, 2, LossWeights(changed=share), torch.Generator().manual_seed(0))

    plain, emphasised = errors(0.0), errors(0.5)

    assert emphasised["moved"] > 1.1 * plain["moved"] and emphasised["codec"] != plain["codec"]
    assert emphasised["reward"] == plain["reward"]


def test_off_policy_every_step_is_a_first_one(model):
    """Each goes on from the real frames, so an unroll of three is the mean of three unrolls of one."""
    batch = as_batch(clips(), model)
    weights = LossWeights(on_policy=0.0, true_tokens=0.0)

    def part(length):
        cut = {name: value[:, :length] for name, value in vars(batch).items() if name not in ("pixels", "sightings")}
        return replace(batch, pixels=batch.pixels[:, : length + 1], **cut)

    whole = unroll_errors(model, part(4), 2, weights, torch.Generator().manual_seed(0))
    steps = [unroll_errors(model, part(t), t, weights, torch.Generator().manual_seed(0)) for t in (2, 3, 4)]

    for name in ("moved", "tokens", "drawn", "reward", "end"):
        assert whole[name].item() == pytest.approx(sum(step[name].item() for step in steps) / 3, rel=1e-4), name


def test_compared_coarsely_a_picture_may_have_another_texture(model):
    batch = as_batch(clips(), model)
    batch = replace(batch, pixels=0.5 * batch.pixels)
    texture = 0.2 * ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2 - 1.0)
    textured = replace(batch, pixels=torch.cat([batch.pixels[:, :-1], batch.pixels[:, -1:] + texture], 1))

    def moved(coarse: float, batch: Batch) -> float:
        weights = LossWeights(coarse=coarse)
        return unroll_errors(model, batch, 4, weights, torch.Generator().manual_seed(0))["moved"].item()

    assert moved(4, textured) == pytest.approx(moved(4, batch), rel=1e-5)
    assert abs(moved(1, textured) - moved(1, batch)) > 1e-3


def test_a_dream_that_parted_from_the_game_is_compared_no_more(tiny_config, tiny_spec):
    """An untrained world draws nothing like the noise that really follows, so of three steps the first counts alone."""
    config = tiny_config.override({"camera.max_motion": 0, "motion.movers": 1})
    torch.manual_seed(0)
    model = WorldModel(config, tiny_spec)
    batch = as_batch(clips(), model)
    weights = LossWeights(on_policy=1.0, true_tokens=0.0)

    def part(length):
        cut = {name: value[:, :length] for name, value in vars(batch).items() if name not in ("pixels", "sightings")}
        return replace(batch, pixels=batch.pixels[:, : length + 1], **cut)

    whole = unroll_errors(model, part(4), 2, weights, torch.Generator().manual_seed(0))
    first = unroll_errors(model, part(2), 2, weights, torch.Generator().manual_seed(0))

    for name in ("moved", "tokens", "drawn", "reward", "end"):
        assert whole[name].item() == pytest.approx(first[name].item() / 3, rel=1e-4), name


def test_camera_and_movers_are_led_in_guided_clips_alone(tiny_config, tiny_spec):
    model = WorldModel(tiny_config.override({"motion.movers": 1}), tiny_spec)
    before, after = torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
    before[:, :, 4, 4] = after[:, :, 5, 6] = 1.0
    with torch.no_grad():  # a mover is what is bright
        model.motion.movers.seek.weight.zero_()[:, :, 2, 2] = 1.0
        model.motion.movers.tell.weight.fill_(1.0)
    camera = Sighting(torch.ones(2, 2), torch.tensor([True, True]))

    led, hints = guidance(model, model.believe(before), after, camera, torch.tensor([True, False]))

    assert led.sure.tolist() == hints.led.tolist() == [True, False]
    assert hints.movers.fates.tolist() == [[GOES], [GOES]] and hints.movers.shifts[0, 0].tolist() == [1, 2]
    proposal = model.propose(model.believe(before), torch.zeros(2, 1, dtype=torch.long), led, hints)
    assert proposal.sources[0, -1, 0, 5, 6] == 1.0  # the copy of the mover


def test_guided_clips_are_shown_what_comes_into_view_at_the_sides(model):
    pixels = torch.stack([torch.zeros(3, 3, 16, 16), torch.ones(3, 3, 16, 16)], 1)  # black, then white
    camera = Sighting(torch.tensor([[0.0, -2.0]] * 3), torch.tensor([True, True, False]))
    guided = torch.tensor([True, False, True])

    led, hints = guidance(model, model.believe(pixels[:, 0]), pixels[:, 1], camera, guided, torch.ones(3).bool())
    canvas = model.anticipate(model.believe(pixels[:, 0]), torch.zeros(3, 1, dtype=torch.long), led, hints).canvas

    view = model.canvas.views(canvas, torch.zeros(3, 2))
    assert (view.colours[0][0, :, :, -2:] == 1).all() and (view.known[0, 0, :, -2:] == 1).all()
    assert (view.colours[0][0, :, :, :-2] < 1).all() and not view.colours[0][1:].eq(1).any()


def test_a_small_thing_may_be_two_pixels_off_but_neither_missing_nor_too_much():
    real, near, far, nothing = (torch.zeros(1, 3, 16, 16) for _ in range(4))
    real[..., 5, 5] = near[..., 7, 4] = far[..., 5, 9] = 0.5
    one, everywhere = (0.5 - PLAIN) / 256, torch.ones(1, 1, 16, 16)

    def lost(*pictures: torch.Tensor) -> float:
        return lost_error(*pictures, everywhere).item()

    assert lost(near, real) == lost(real, real) == lost(0.5 * real, nothing) == 0
    assert lost(nothing, real) == lost(real, nothing) == pytest.approx(one)
    assert lost(far, real) == pytest.approx(2 * one)
    assert lost(-far, nothing) == pytest.approx(one)  # darker as well as brighter
    assert lost_error(nothing, real, everywhere * (torch.arange(16) > 5)).item() == 0


def test_clips_without_a_valid_step_teach_no_step(model):
    batch = as_batch(clips(valid=False), model)

    losses = unroll_errors(model, batch, 2, LossWeights(), torch.Generator().manual_seed(0))

    assert {name for name, value in losses.items() if value.item() == 0} == set(losses) - {"codec"}


def test_registration_is_as_exact_where_the_model_computes_in_bfloat16(model):
    batch = as_batch(clips(), model)
    seen = sightings(model, batch)

    with torch.autocast("cpu", torch.bfloat16):
        low = sightings(model, batch)

    assert torch.equal(seen.motion, low.motion) and seen.sure.all() and low.sure.all()
    assert (seen.motion - torch.tensor([0.0, -2.0])).abs().max() < 0.5


def test_a_camera_that_leads_to_the_seen_pixel_is_in_place_whatever_its_fraction(model):
    seen = Sighting(torch.tensor([[0.2, -2.0]]).expand(3, 2), torch.tensor([True, True, False]))
    estimate = torch.tensor([[0.3, -2.4], [0.3, -3.5], [9.0, 9.0]], requires_grad=True)

    offset, astray = torch.tensor([[0.0, 0.2]]), torch.tensor([[0.0, 0.3]])
    errors = camera_errors(model, estimate, offset, astray, seen, torch.tensor([True, True, True]))

    assert errors["place"].tolist() == pytest.approx([0, 0.5**2, 0])  # 0.5 - 3.5 + 2 = -1 is half a pixel too far
    assert errors["motion"].tolist() == pytest.approx([(0.1**2 + 0.4**2) / 4, (0.1**2 + 1.5**2) / 4, 0])


def test_a_guided_unroll_follows_the_real_camera_and_the_others_do_not(model):
    batch = as_batch(clips(), model)
    seen = sightings(model, batch)

    whole, motion, offset = model.correct(torch.zeros(2, 2), torch.zeros(2, 2), at(seen, 0))

    assert whole.tolist() == [[0, -2], [0, -2]]
    assert motion.tolist() == [[0, 0, 0, -1.5]] * 2  # the estimate, and its correction
    assert offset.tolist() == [[0, 0.5], [0, 0.5]]
    assert model.correct(torch.full((2, 2), 0.4), torch.full((2, 2), 0.3), None)[0].tolist() == [[1, 1], [1, 1]]


def test_a_camera_that_is_shown_its_dream_sees_what_the_world_draws(model):
    batch = as_batch(clips(), model)
    seen = []
    model.camera.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        losses = camera_loss.camera_unroll(model, batch, 2, dreamed=True)
    finally:
        model.camera._forward_pre_hooks.clear()

    state = model.start(to_frames(batch.pixels[:, :2]), batch.actions[:, :1])
    _, output = model.step(state, batch.actions[:, 1])  # its canvas is rounded to bytes
    shown = [(to_frames(picture).float() - output.frame.float()).abs().mean().item() for picture in seen]
    assert min(shown) < 1 and torch.equal(seen[0], batch.pixels[:, 0])
    assert losses["place"].requires_grad


@pytest.mark.parametrize("on_policy", [0.0, 1.0])
def test_the_head_of_events_learns_alone_what_an_unroll_teaches_it(model, on_policy):
    batch = as_batch(clips(), model)
    weights = LossWeights(guided=1.0, on_policy=on_policy, true_tokens=0.0)
    stage = Stage(name="events", trains="events", steps=1, learning_rate=1e-3)
    learning = trained_parameters(model, stage)

    losses = event_errors(model, batch, 2, weights, torch.Generator().manual_seed(0))
    sum(losses.values()).backward()

    whole = unroll_errors(model, batch, 2, weights, torch.Generator().manual_seed(0))
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(
        {name: whole[name].item() for name in ("reward", "end")}, rel=1e-5
    )
    assert {id(x) for x in learning} == {id(x) for x in model.events.parameters()}
    assert all(parameter.grad is not None for parameter in learning)
    model.requires_grad_(True).zero_grad()


def test_a_dream_of_the_camera_is_shown_the_real_world_from_where_it_has_gone(model, monkeypatch):
    model, batch, hints = deepcopy(model), as_batch(clips(steps=5), model), []
    model.camera.decide[-1].bias.data[:] = torch.tensor([0, -0.7, -20, -20])  # three pixels to the left, really two
    onward = camera_loss.dream_on
    monkeypatch.setattr(camera_loss, "dream_on", lambda *given: (hints.append(given[-1]), onward(*given))[1])

    camera_loss.camera_unroll(model, batch, 2, True, None, torch.tensor([True, False]))

    picture, known = hints[0].sides.split([3, 1], 1)
    assert known[0, 0, :3].all() and not known[1].any()
    assert torch.equal(picture[0, :, :3, :-1], batch.pixels[0, 2, :, :3, 1:])  # a pixel further than the real camera


@pytest.mark.parametrize("unroll", [1, 4])
def test_losses_and_gradients_are_finite_in_bfloat16(model, unroll):
    batch = as_batch(clips(steps=1 + unroll), model)
    model.requires_grad_(True).zero_grad()

    with torch.autocast("cpu", torch.bfloat16):
        losses = unroll_errors(model, batch, 2, LossWeights(), torch.Generator().manual_seed(0))
        losses["motion"] = losses["motion"] + camera_unroll(model, batch, 2)["motion"]
    total_error(losses, LossWeights()).backward()

    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) > 20 and all(torch.isfinite(gradient).all() for gradient in gradients)

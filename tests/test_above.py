"""Rows drawn above a view that turns."""

import math

import pytest
import torch

from lwm_env.above import Above, aside, upright
from lwm_env.ahead import AheadConfig
from lwm_env.errors import ConfigMismatch
from lwm_env.flow import Turn
from lwm_env.motion import FLOW
from lwm_env.world_model import WorldModel
from lwm_training.ahead_loss import ahead_errors
from lwm_training.batch import Batch, at, sightings
from lwm_training.beyond import BeyondAbove
from lwm_training.loss import LossWeights, guidance, moved_by, unroll_errors
from lwm_training.recipe import Stage
from lwm_training.stages import trained_parameters
from lwm_training.strips import find_rows

SIZE, MARGIN, STRIP = 16, 8, 8
TURNS = {
    "camera.max_motion": 0,
    "motion.flow": 2,
    "ahead.width": STRIP,
    "ahead.reach": 8,
    "ahead.beside": 4,
    "ahead.code_dim": 2,
}


@pytest.fixture
def above() -> Above:
    torch.manual_seed(0)
    return Above(AheadConfig(width=STRIP, reach=8, beside=4, dim=16, code_dim=2), 4, (SIZE, SIZE), MARGIN + 4)


@pytest.fixture
def model(tiny_config, tiny_spec) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(tiny_config.override({**TURNS, "margin": MARGIN + 4}), tiny_spec).eval()


def drive(step: float = 2.0) -> tuple[torch.Tensor, Batch]:
    """A long picture, and a clip of 7 views of it, each `step` rows further up; the motion is known."""
    tall = torch.rand(3, 5 * SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    tops = [3 * SIZE - round(step * t) for t in range(7)]
    nothing = torch.zeros(1, 6)
    motion = torch.tensor([step, 0, 0, 1]).expand(1, 6, 4)
    pixels = torch.stack([tall[:, y : y + SIZE] for y in tops])[None]
    return tall, Batch(pixels, nothing[..., None].long(), nothing[..., None].long(), nothing, nothing + 1, motion)


def test_a_crop_lies_on_its_side_and_stands_up_again():
    rows = torch.rand(1, 4, 6, SIZE)

    assert torch.equal(upright(aside(rows)), rows)
    assert torch.equal(aside(rows)[..., -1], rows[:, :, 0])  # what is farthest above is at the right end


def test_rows_are_drawn_once_and_again_when_some_of_the_nearest_are_gone(above):
    last, nothing = torch.rand(1, 3, SIZE, SIZE), torch.zeros(1, 4, STRIP, SIZE + 8)

    def drawn(rows: torch.Tensor) -> torch.Tensor:
        return above(torch.cat([rows, torch.zeros(1, 4, 8, SIZE + 8)], 2), last)

    once = drawn(nothing)
    moved = torch.cat([nothing[:, :, :1], once[:, :, :-1]], 2)  # a row has come into view, seven are left
    less = torch.cat([nothing[:, :, :3], once[:, :, :-3]], 2)

    assert (once[:, 3] == 1).all() and torch.equal(drawn(once), once)
    assert torch.equal(drawn(moved), moved)
    again = drawn(less)
    assert torch.equal(again[:, :, 3:], less[:, :, 3:]) and (again[:, 3] == 1).all()


def test_a_crop_has_the_picture_in_the_middle_and_what_the_map_knows_around_it(above):
    last, around = torch.rand(1, 3, SIZE, SIZE), torch.rand(1, 4, STRIP + 8, SIZE + 8)

    crop = upright(above.crop(around, last))

    assert torch.equal(crop[:, :3, STRIP:, 4:-4], last[:, :, :8]) and (crop[:, 3, STRIP:, 4:-4] == 1).all()
    assert torch.equal(crop[:, :, :STRIP], around[:, :, :STRIP])
    assert torch.equal(crop[..., :4], around[..., :4]) and torch.equal(crop[..., -4:], around[..., -4:])


def test_rows_to_learn_from_are_what_came_into_view(model):
    tall, batch = drive()

    many = Batch(*(x if x is None else x.expand(8, *x.shape[1:]) for x in vars(batch).values()))
    found = find_rows(model, many, sightings(model, many), torch.Generator().manual_seed(0))

    real = 0
    for strip, visible, crop in zip(found.strip, found.visible, found.crop, strict=True):
        rows, shown, view = (upright(x[None])[0] for x in (strip, visible, crop))
        assert shown.float().mean() >= 0.4
        assert torch.allclose(view[:3, :STRIP], rows * view[3:, :STRIP], atol=1e-4) and view[3, : STRIP // 2].sum() == 0
        if shown[..., :4].any() or shown[..., -4:].any():  # of a view beside the real one
            continue
        real += 1
        below = min(range(5 * SIZE - 7), key=lambda y: (view[:3, STRIP:, 4:-4] - tall[:, y : y + 8]).abs().max().item())
        assert torch.allclose(view[:3, STRIP:, 4:-4], tall[:, below : below + 8], atol=1e-4)
        assert torch.allclose(rows[..., 4:-4], (tall[:, below - STRIP : below] * shown[..., 4:-4]), atol=1e-4)
    assert 0 < real < len(found.strip)


def test_nothing_is_learned_across_an_end_or_where_the_view_is_lost(model):
    _, batch = drive()
    lost = Batch(**{**vars(batch), "sightings": batch.sightings * torch.tensor([1.0, 1, 1, 0])})
    ended = Batch(**{**vars(batch), "valid": batch.valid * 0})

    for other in (lost, ended):
        found = find_rows(model, other, sightings(model, other), torch.Generator().manual_seed(0))
        assert not len(found.strip)
        assert ahead_errors(model, other, torch.Generator().manual_seed(0), 2.0)["strip"] == 0


def test_a_dream_draws_above_and_what_was_drawn_comes_into_view(model):
    state = model.start(torch.randint(0, 256, (2, 1, SIZE, SIZE, 3), dtype=torch.uint8), torch.zeros(2, 0, 1).long())
    assert isinstance(model.ahead, Above) and isinstance(model.motion.flow, Turn)
    with torch.no_grad():
        model.motion.flow.whole[-1].bias.copy_(torch.tensor([0.5, 0, 0]))  # faster by two pixels at each step

    new, _ = model.step(state, torch.zeros(2, 1).long(), torch.randn(2, model.noise_dim), 1.0)
    belief = model._unpack(new)
    moved = model.motion.last_turn(belief.memory)[0, 0].item()

    ground, pose = model.motion.flow.ground, model.motion.pose(belief.memory)
    _, inside = ground.read(belief.canvas, pose, torch.ones(()))
    _, above = ground.read(belief.canvas, pose, torch.ones(()), ground.around(STRIP))
    gone = math.ceil(moved)
    assert moved > 1 and inside[:, :, 1:-gone, 1:-1].all()  # what was drawn, and what was seen in the first picture
    assert above[:, :, gone + 1 :, 1:-1].all() and not above[:, :, : gone - 1].any()


def test_clips_are_shown_what_other_frames_have_above_the_view(model):
    tall, batch = drive()
    beyond = BeyondAbove(model, batch, sightings(model, batch), 1)
    nothing = torch.zeros(1, 4, STRIP + 8, SIZE + 8)

    shown = beyond.at(2, torch.tensor([True]))(nothing, None)
    last = beyond.at(5, torch.tensor([True]))(nothing, None)

    top = 3 * SIZE - 4  # of the picture at the third step; four more follow, two rows each, of which the last is used
    view = shown[..., 4:-4]
    assert view[0, 3].all() and torch.allclose(view[0, :3], tall[:, top - STRIP : top], atol=1e-4)
    assert last[0, 3, -2:, 4:-4].all() and not last[0, 3, :-2].any() and not shown[..., :4].any()
    assert not beyond.at(2, torch.tensor([False]))(nothing, None).any()
    kept = beyond.at(2, torch.tensor([True]))(torch.ones_like(nothing), None)
    assert (kept == 1).all()  # what was known already stays


def test_an_unroll_is_led_by_what_is_seen_and_leaves_the_motion_as_it_is(model):
    """Rows of which none was in view before are all that differs from where the pictures are led."""
    _, batch = drive()
    trained_parameters(model, Stage(name="x", trains="dynamics", steps=1, learning_rate=1e-3))
    belief = model.believe(batch.pixels[:, 0])
    led, _ = guidance(model, belief, batch.pixels[:, 1], at(sightings(model, batch), 0), torch.tensor([True]))

    proposal = model.propose(belief, batch.actions[:, 0], led)
    losses = unroll_errors(model, batch, 2, LossWeights(guided=1.0), torch.Generator().manual_seed(0))

    assert torch.allclose(proposal.sources[0, FLOW, :, 2:], batch.pixels[0, 1, :, 2:], atol=1e-4)
    assert torch.allclose(moved_by(model, belief, proposal).motion, torch.tensor([[2.0, 0, 0]]))
    assert {"motion", "moved", "flow"} <= set(losses) and "place" not in losses
    assert not any(parameter.requires_grad for parameter in model.motion.flow.parameters())


def test_a_view_in_depth_has_nothing_drawn_ahead(tiny_config):
    with pytest.raises(ConfigMismatch, match=r"motion\.flow = 1"):
        tiny_config.override({**TURNS, "margin": MARGIN + 4, "motion.flow": 1})

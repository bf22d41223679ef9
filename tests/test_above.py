"""Rows drawn above a view that turns."""

import pytest
import torch

from lwm_env.above import Above, aside, upright
from lwm_env.ahead import AheadConfig
from lwm_env.errors import ConfigMismatch
from lwm_env.flow import Turn
from lwm_env.memory import to_bytes
from lwm_env.motion import FLOW
from lwm_env.world_model import WorldModel
from lwm_training.ahead_loss import ahead_errors
from lwm_training.batch import Batch, at, sightings
from lwm_training.loss import LossWeights, guidance, moved_by, unroll_errors
from lwm_training.recipe import Stage
from lwm_training.stages import trained_parameters
from lwm_training.strips import find_rows

SIZE, MARGIN, STRIP = 16, 8, 8
TURNS = {"camera.max_motion": 0, "motion.flow": 2, "ahead.width": STRIP, "ahead.reach": 8, "ahead.code_dim": 2}


@pytest.fixture
def above() -> Above:
    torch.manual_seed(0)
    return Above(AheadConfig(width=STRIP, reach=8, dim=16, code_dim=2), 4, (SIZE, SIZE), MARGIN + 4)


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


def test_what_is_laid_above_the_view_lies_there_and_nowhere_else(above):
    side, size = SIZE + 2 * above.margin, STRIP
    canvas = torch.zeros(2, 4, side, side, dtype=torch.uint8)
    rows = torch.rand(2, 4, size, SIZE)

    laid = above.lay(canvas, rows)

    assert torch.equal(above.lying(to_bytes(laid)), above.lying(laid))
    assert (above.lying(laid) - rows).abs().max() < 1 / 127
    across = slice(above.margin, above.margin + SIZE)
    assert torch.equal(laid[:, :, above.margin - size : above.margin, across], to_bytes(rows))
    assert not canvas.any() and (laid != 0).sum() == (to_bytes(rows) != 0).sum()


def test_a_crop_lies_on_its_side_and_stands_up_again():
    rows = torch.rand(1, 4, 6, SIZE)

    assert torch.equal(upright(aside(rows)), rows)
    assert torch.equal(aside(rows)[..., -1], rows[:, :, 0])  # what is farthest above is at the right end


def test_rows_are_drawn_once_and_again_when_some_of_the_nearest_are_gone(above):
    last, nothing = torch.rand(1, 3, SIZE, SIZE), torch.zeros(1, 4, STRIP, SIZE)

    once = above(nothing, last)
    moved = torch.cat([nothing[:, :, :1], once[:, :, :-1]], 2)  # a row has come into view, seven are left
    less = torch.cat([nothing[:, :, :3], once[:, :, :-3]], 2)

    assert (once[:, 3] == 1).all() and torch.equal(above(once, last), once)
    assert torch.equal(above(moved, last), moved)
    again = above(less, last)
    assert torch.equal(again[:, :, 3:], less[:, :, 3:]) and (again[:, 3] == 1).all()


def test_rows_to_learn_from_are_what_came_into_view(model):
    tall, batch = drive()

    found = find_rows(model, batch, sightings(model, batch), torch.Generator().manual_seed(0))

    assert len(found.strip)
    for strip, visible, crop in zip(found.strip, found.visible, found.crop, strict=True):
        rows, shown, view = upright(strip[None])[0], upright(visible[None])[0], upright(crop[None])[0, :3, STRIP:]
        below = next(y for y in range(5 * SIZE) if torch.equal(view, tall[:, y : y + SIZE // 2]))
        assert shown.float().mean() >= 0.5
        assert torch.allclose(rows, tall[:, below - STRIP : below] * shown, atol=1e-4)


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
    drawn = model.ahead(model.ahead.lying(state["canvas"]), model._unpack(state).frames[:, -1])
    moved = model.motion.last_turn(model._unpack(new).memory)[0, 0].item()

    known = model.ahead.lying(new["canvas"])[:, 3]
    gone = -(-round(moved * 64) // 64)
    assert moved > 1 and (drawn[:, 3] == 1).all()
    assert not known[:, :gone].any() and (known[:, gone:] == 1).all()


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

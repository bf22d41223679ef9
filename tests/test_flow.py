"""The flow: a picture sampled along a smooth field of motion."""

import math
from pathlib import Path

import pytest
import torch

from lwm_env.errors import ConfigMismatch
from lwm_env.flow import FREE, RIGID, STRIDE, TURN, Flow
from lwm_env.motion import FLOW
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch
from lwm_training.flow_loss import SCALES, flow_error, flow_unroll
from lwm_training.recipe import Stage, load_recipe
from lwm_training.stages import check_recipe, trained_parameters


def told(flow: Flow, whole: list[float], features: torch.Tensor) -> torch.Tensor:
    """What the flow makes of a random picture if the whole view goes like this."""
    with torch.no_grad():
        flow.whole.bias.copy_(torch.tensor(whole) / STRIDE)
        return flow(features, torch.rand(len(features), 3, 16, 16, generator=torch.Generator().manual_seed(0)))[0]


def test_nothing_told_is_the_picture_itself_and_shifts_are_pixels_down_and_right():
    flow, features = Flow(FREE, 4, (2, 2), (16, 16)), torch.zeros(2, 4, 2, 2)

    picture = told(flow, [0.0] * 6, features)
    shifted = told(flow, [2.0, -1.0, 0, 0, 0, 0], features)

    assert torch.allclose(picture, torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), atol=1e-5)
    assert torch.allclose(shifted[..., 2:, :-1], picture[..., :-2, 1:], atol=1e-4)
    assert torch.allclose(shifted[..., 0, :-1], picture[..., 0, 1:], atol=1e-4)  # the edge is drawn out


def test_a_quarter_turn_is_exact():
    """A point (y, x) from the middle comes from (-x, y), so it moves by (y + x, x - y); 1 is half of 15 pixels."""
    flow, features = Flow(FREE, 4, (2, 2), (16, 16)), torch.zeros(1, 4, 2, 2)

    picture = told(flow, [0.0] * 6, features)
    turned = told(flow, [0, 0, 7.5, -7.5, 7.5, 7.5], features)

    assert torch.allclose(turned, picture.rot90(-1, dims=(2, 3)), atol=1e-4)


def test_a_flat_world_turns_and_shifts_as_a_whole():
    flow, features = Flow(RIGID, 4, (2, 2), (16, 16)), torch.zeros(1, 4, 2, 2)

    picture = told(flow, [0.0] * 3, features)
    shifted = told(flow, [2.0, -1.0, 0], features)
    turned = told(flow, [0, 0, math.pi / 2 * STRIDE / TURN], features)

    assert torch.allclose(shifted[..., 2:, :-1], picture[..., :-2, 1:], atol=1e-4)
    assert torch.allclose(turned, picture.rot90(1, dims=(2, 3)), atol=1e-4)


def test_a_length_that_takes_half_as_many_rows_as_columns_is_turned_as_such():
    flow, features = Flow(RIGID, 4, (2, 2), (16, 16)), torch.zeros(1, 4, 2, 2)
    right = (torch.arange(16.0) - 7.5).expand(16, 16)
    with torch.no_grad():
        flow.aspect.fill_(math.log(0.5))
        flow.whole.bias.copy_(torch.tensor([0, 0, math.pi / 2 / TURN]))

        rights, downs = flow(features, torch.stack([right, right.T, right])[None])[0][0, :2]

    assert torch.allclose(rights, -2 * right.T.clamp(-3.75, 3.75), atol=1e-4)
    assert torch.allclose(downs, right / 2, atol=1e-4)


def test_between_grid_points_the_field_is_linear():
    flow = Flow(FREE, 1, (2, 2), (16, 16))
    with torch.no_grad():
        flow.out.weight.copy_(torch.tensor([0.0, 1.0])[:, None, None, None])
    stretch = torch.tensor([[[[0.0, 5.0], [0.0, 5.0]]]]) / STRIDE  # the right edge goes right by five pixels
    ramp = torch.arange(16.0).expand(1, 3, 16, 16)

    with torch.no_grad():
        stretched, inside = flow(stretch, ramp)
        _, in_sight = flow(stretch + 5 / STRIDE, ramp)  # x comes from 2/3 x - 5

    assert torch.allclose(stretched[0, 0, 7], torch.arange(16.0) * (1 - 5 / 15), atol=1e-4)
    assert inside.all() and in_sight[0, 0, 7].tolist() == [0.0] * 8 + [1.0] * 8


def test_the_error_is_felt_on_every_scale():
    copy, target = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    copy[0, :, 0, 0], target[0, :, 0, 1] = 1.0, 1.0  # a pixel off: alike from two pixels on

    assert flow_error(copy, target).item() == pytest.approx(2 / 256 / len(SCALES))
    assert flow_error(copy, torch.zeros_like(copy)).item() == pytest.approx(1 / 256)


def test_a_view_that_turns_as_it_is_told_is_learned(tiny_config, tiny_spec):
    """Smooth pictures turned by 0.15 either way, or not, by the action; copying errs fifty times as much squared."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(tiny_config.override({"camera.max_motion": 0, "motion.flow": 1}), tiny_spec)
    random, steps = torch.Generator().manual_seed(1), 3

    def play(count: int) -> Batch:
        actions = torch.randint(0, 3, (count, steps), generator=random)
        angle = 0.15 * torch.cat([torch.zeros(count, 1), (actions - 1).cumsum(1)], 1)
        wave = torch.rand(count, 1, 3, 1, 1, generator=random) * 2 * math.pi
        at = torch.linspace(-1, 1, 16)
        cos, sin = (f(angle)[..., None, None, None] for f in (torch.cos, torch.sin))
        pixels = torch.sin(4 * (cos * at[:, None] + sin * at) + wave) * torch.cos(3 * (cos * at - sin * at[:, None]))
        nothing = torch.zeros(count, steps)
        return Batch(pixels, actions[..., None], nothing[..., None].long(), nothing, nothing + 1)

    stage = Stage(name="x", trains="flow", steps=1, learning_rate=1e-3)
    optimiser = torch.optim.AdamW(trained_parameters(model, stage), lr=3e-3)
    for _ in range(200):
        optimiser.zero_grad()
        flow_unroll(model, play(16), 1).backward()
        optimiser.step()

    batch = play(64)
    with torch.no_grad():
        learned = flow_unroll(model, batch, 1).item()
    copied = flow_error(batch.pixels[:, :-1].flatten(0, 1), batch.pixels[:, 1:].flatten(0, 1)).mean().item()
    assert learned < 0.4 * copied


def test_the_flow_is_a_source_that_the_masks_choose_and_it_learns_in_a_stage_of_its_own(tiny_config, tiny_spec):
    model = WorldModel(tiny_config.override({"camera.max_motion": 0, "motion.flow": 1}), tiny_spec)
    picture = torch.rand(2, 3, 16, 16) * 2 - 1

    with torch.no_grad():
        proposal = model.propose(model.believe(picture), torch.zeros(2, 1, dtype=torch.long))

    assert torch.allclose(proposal.sources[:, FLOW], picture, atol=1e-4)
    assert (proposal.masks[:, FLOW] > 0.5).all()  # what stays where it is was in sight
    trained_parameters(model, Stage(name="x", trains="flow", steps=1, learning_rate=1e-3))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"motion"} and "motion.layers.weight" not in learning
    assert {"motion.flow.out.weight", "motion.recent.weight"} <= learning


def test_a_stage_for_the_flow_asks_for_one():
    recipe = load_recipe(Path(__file__).parent.parent / "training/recipes/racing.toml", ["model.overrides={}"])

    with pytest.raises(ConfigMismatch, match="motion.flow"):
        check_recipe(recipe, num_processes=1)

"""The flow: a picture sampled along a smooth field of motion."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lwm_env.errors import ConfigMismatch
from lwm_env.flow import STRIDE, Flow, Turn
from lwm_env.motion import FLOW
from lwm_env.registration import Sighting
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch
from lwm_training.flow_loss import SCALES, flow_distance, flow_error, flow_unroll, turn_errors
from lwm_training.optical_flow import sight_field
from lwm_training.recipe import Stage, load_recipe
from lwm_training.replay import Replay
from lwm_training.stages import check_recipe, trained_parameters


def told(flow: Flow, whole: list[float], features: torch.Tensor) -> torch.Tensor:
    """What the flow makes of a random picture if the whole view goes like this."""
    with torch.no_grad():
        flow.whole.bias.copy_(torch.tensor(whole) / STRIDE)
        return flow(features, picture(len(features)), torch.zeros(len(features), flow.kept_dim))[0]


def picture(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_nothing_told_is_the_picture_itself_and_shifts_are_pixels_down_and_right():
    flow, features = Flow(4, (2, 2), (16, 16)), torch.zeros(2, 4, 2, 2)

    still = told(flow, [0.0] * 6, features)
    shifted = told(flow, [2.0, -1.0, 0, 0, 0, 0], features)

    assert torch.allclose(still, picture(2), atol=1e-5)
    assert torch.allclose(shifted[..., 2:, :-1], still[..., :-2, 1:], atol=1e-4)
    assert torch.allclose(shifted[..., 0, :-1], still[..., 0, 1:], atol=1e-4)  # the edge is drawn out


def test_a_quarter_turn_is_exact():
    """A point (y, x) from the middle comes from (-x, y), so it moves by (y + x, x - y); 1 is half of 15 pixels."""
    flow, features = Flow(4, (2, 2), (16, 16)), torch.zeros(1, 4, 2, 2)

    turned = told(flow, [0, 0, 7.5, -7.5, 7.5, 7.5], features)

    assert torch.allclose(turned, picture(1).rot90(-1, dims=(2, 3)), atol=1e-4)


def turning(aspect: float = 1.0) -> Turn:
    turn = Turn((16, 16), action_dim=2)
    with torch.no_grad():
        turn.aspect.fill_(math.log(aspect))
    return turn


def test_a_flat_world_turns_and_shifts_as_a_whole():
    shifted, inside = turning().move(picture(1), torch.tensor([[2.0, -1.0, 0]]))
    turned, all_inside = turning().move(picture(1), torch.tensor([[0, 0, math.pi / 2]]))

    assert torch.allclose(shifted[..., 2:, :-1], picture(1)[..., :-2, 1:], atol=1e-4)
    assert inside[0, 0, 2:, :-1].all() and not inside[0, 0, :2].any() and not inside[0, 0, :, -1].any()
    assert torch.allclose(turned, picture(1).rot90(1, dims=(2, 3)), atol=1e-4)
    assert all_inside[0, 0, 1:-1, 1:-1].all()


def test_a_length_that_takes_half_as_many_rows_as_columns_is_turned_as_such():
    right = (torch.arange(16.0) - 7.5).expand(16, 16)

    moved, _ = turning(0.5).move(torch.stack([right, right.T, right])[None], torch.tensor([[0, 0, math.pi / 2]]))
    rights, downs = moved[0, :2]

    assert torch.allclose(rights, -2 * right.T.clamp(-3.75, 3.75), atol=1e-4)
    assert torch.allclose(downs, right / 2, atol=1e-4)


def test_what_was_seen_overrules_what_is_estimated_and_is_kept():
    turn = turning()
    kept = torch.cat([torch.tensor([[1.0, 2.0, 0.1]] * 2), torch.zeros(2, turn.kept_dim - 3)], 1)
    map_ = torch.zeros(2, 4, 24, 24)
    seen = Sighting(torch.tensor([[3.0, 0, 0], [5.0, 5.0, 1.0]]), torch.tensor([True, False]))

    flowed = turn(picture(2), map_, torch.zeros(2, 2), kept, seen)

    assert torch.allclose(flowed.motion, kept[:, :3])  # at first it goes on as it went
    assert torch.allclose(flowed.kept[:, :3], torch.tensor([[3.0, 0, 0], [1.0, 2.0, 0.1]]))
    assert torch.equal(flowed.picture[:1], turn.move(picture(1), seen.motion[:1])[0])  # nothing is on the map
    written = turn.ground.write(map_, picture(2), kept[:, -3:], torch.ones(()))
    known = turn(picture(2), written, torch.zeros(2, 2), kept, seen)
    assert not torch.equal(known.picture[1], flowed.picture[1])
    assert torch.allclose(known.picture[0, :, 5:-1, 1:-1], picture(2)[0, :, 2:-4, 1:-1], atol=1e-5)


def test_between_grid_points_the_field_is_linear():
    flow = Flow(1, (2, 2), (16, 16))
    with torch.no_grad():
        flow.out.weight.copy_(torch.tensor([0.0, 1.0])[:, None, None, None])
    stretch = torch.tensor([[[[0.0, 5.0], [0.0, 5.0]]]]) / STRIDE  # the right edge goes right by five pixels
    ramp = torch.arange(16.0).expand(1, 3, 16, 16)

    with torch.no_grad():
        stretched, inside = flow.move(ramp, flow.estimate(stretch))
        _, in_sight = flow.move(ramp, flow.estimate(stretch + 5 / STRIDE))  # x comes from 2/3 x - 5

    assert torch.allclose(stretched[0, 0, 7], torch.arange(16.0) * (1 - 5 / 15), atol=1e-4)
    assert inside.all() and in_sight[0, 0, 7].tolist() == [0.0] * 8 + [1.0] * 8


def test_a_field_is_found_between_pictures_and_believed_where_it_explains_them():
    """A landscape that is seen from two pixels further up and grows to the right."""
    flow = Flow(1, (4, 4), (32, 32))
    at = torch.linspace(-1, 1, 4)
    field = torch.stack([torch.full((4, 4), 2.0), 1.5 * (1 + at).expand(4, 4)])[None].flatten(1)
    smooth = F.interpolate(
        torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)), (32, 32), mode="bicubic"
    )
    after, inside = flow.move(smooth, field)
    other = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    seen = sight_field(flow, torch.cat([smooth, smooth]), torch.cat([after, other]))

    off = (flow.move(smooth, seen.motion[:1])[0] - after).abs()
    assert (off * inside).mean() < 0.3 * ((smooth - after).abs() * inside).mean()
    assert seen.sure.tolist() == [True, False]


def test_a_field_that_was_seen_overrules_what_is_estimated():
    flow, features = Flow(4, (2, 2), (16, 16)), torch.zeros(2, 4, 2, 2)
    seen = Sighting(torch.tensor([2.0, 2, 2, 2, 0, 0, 0, 0]).expand(2, 8), torch.tensor([True, False]))

    moved, _, field, _ = flow(features, picture(2), torch.zeros(2, flow.kept_dim), seen)

    assert torch.equal(moved[0, :, 2:], picture(2)[0, :, :-2])
    assert torch.equal(moved[1], picture(2)[1]) and not field.any()


def test_pixels_stay_whole_and_what_is_left_of_their_motion_is_kept():
    """A quarter of a pixel down at each step, three to the right: after four steps they are whole and not blurred."""
    flow, moved, apart = Flow(1, (2, 2), (16, 16)), picture(1), torch.zeros(1, 2, 16, 16)
    field = torch.tensor([0.25] * 4 + [0.75] * 4)[None]

    rows = []
    for _ in range(4):
        moved, apart = flow.step(moved, apart, field)
        rows.append(apart[0, 0, 8, 8].item())

    assert torch.equal(moved[..., 1:, 3:], picture(1)[..., :-1, :-3])
    assert rows == pytest.approx([0.25, 0.5, -0.25, 0])
    assert set(moved.flatten().tolist()) <= set(picture(1).flatten().tolist())


def test_the_surer_the_decision_the_less_is_mixed(tiny_config, tiny_spec):
    def masks_of(decision: float) -> torch.Tensor:
        torch.manual_seed(0)
        config = tiny_config.override({"camera.max_motion": 0, "motion.flow": 1, "motion.decision": decision})
        model = WorldModel(config, tiny_spec)
        with torch.no_grad():
            model.motion.layers.weight.normal_(0, 0.1)
        return model.propose(model.believe(picture(2)), torch.zeros(2, 1, dtype=torch.long)).masks

    mixed, surer = masks_of(1.0), masks_of(4.0)

    assert torch.equal(mixed.argmax(1), surer.argmax(1)) and surer.amax(1).mean() > mixed.amax(1).mean() + 0.05


def test_a_real_picture_has_its_pixels_where_they_belong(tiny_config, tiny_spec):
    config = tiny_config.override(
        {"camera.max_motion": 0, "motion.flow": 1, "motion.movers": 1, "motion.memory_dim": 2}
    )
    motion = WorldModel(config, tiny_spec).motion
    memory = torch.ones(2, motion.kept_dim)

    landed = motion.landed(memory)

    dim = motion.flow.kept_dim
    assert dim == 2 * 16 * 16 and not landed[:, 2 : 2 + dim].any()
    assert landed[:, :2].all() and landed[:, 2 + dim : -1].all() and landed.shape == memory.shape
    assert not landed[:, -1].any()  # movers are looked for


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
        sum(flow_unroll(model, play(16), 1).values()).backward()
        optimiser.step()

    batch = play(64)
    with torch.no_grad():
        learned = flow_unroll(model, batch, 1)["flow"].item()
    copied = flow_error(batch.pixels[:, :-1].flatten(0, 1), batch.pixels[:, 1:].flatten(0, 1)).mean().item()
    assert learned < 0.4 * copied


def test_distances_count_turns_at_the_edge_of_the_view():
    """Off by 0.3 pixels and by 0.02 radians, which are 0.15 pixels 7.5 from the middle: 0.3 - 0.1 and 0.15^2 / 0.4."""
    seen = Sighting(torch.tensor([[0.3, 0, 0.02]] * 2), torch.tensor([True, False]))

    assert flow_distance(turning(), torch.zeros(2, 3), seen).tolist() == pytest.approx([(0.2 + 0.05625) / 3, 0])


def test_a_turn_that_builds_up_is_learned_without_what_is_seen(tiny_config, tiny_spec):
    """Left or right turns the view a little faster, as a steering wheel does; the view goes down ever faster."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(tiny_config.override({"camera.max_motion": 0, "motion.flow": 2}), tiny_spec)
    random, steps = torch.Generator().manual_seed(1), 12

    def play(count: int) -> Batch:
        actions = torch.randint(0, 3, (count, steps), generator=random)
        turns = 0.02 * (actions - 1).cumsum(1)
        motion = torch.stack([0.1 * torch.arange(steps).expand_as(turns), turns * 0, turns, turns * 0 + 1], 2)
        nothing = torch.zeros(count, steps)
        pixels = torch.zeros(count, steps + 1, 3, 16, 16)
        return Batch(pixels, actions[..., None], nothing[..., None].long(), nothing, nothing + 1, motion)

    def error(batch: Batch, replay: Replay) -> torch.Tensor:
        return turn_errors(model, batch, 4, replay, random)["motion"]

    stage = Stage(name="x", trains="flow", steps=1, learning_rate=1e-3)
    optimiser = torch.optim.AdamW(trained_parameters(model, stage), lr=1e-2)
    held_out, replay = play(256), Replay(64)
    before = error(held_out, Replay(1)).item()
    for _ in range(120):
        optimiser.zero_grad()
        error(play(16), replay).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    with torch.no_grad():
        assert error(held_out, Replay(1)).item() < 0.2 * before


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

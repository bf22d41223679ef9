"""Movers: copies of a picture shifted by whole pixels, and how far a thing moves."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lwm_env.errors import ConfigMismatch
from lwm_env.movers import CARRY, HABIT, Movers, likeliest
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch
from lwm_training.mover_loss import mover_error, movers_error
from lwm_training.picture_loss import SURE
from lwm_training.recipe import Stage, load_recipe
from lwm_training.stages import check_recipe, trained_parameters


def test_a_copy_is_the_picture_moved_down_and_right_with_its_edge_drawn_out():
    picture = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    movers = Movers(2, 4, 3, (10, 12), 5)
    shares = F.one_hot(torch.tensor([[4 + 2, 4 - 1], [4, 4]]), 9).float().expand(2, -1, -1, -1)  # (2, -1) and (0, 0)

    copies = movers.copies(picture, shares)

    assert torch.equal(copies[:, 0, :, 2:, :-1], picture[:, :, :-2, 1:])
    assert torch.equal(copies[:, 0, :, 0, :-1], picture[:, :, 0, 1:])
    assert torch.equal(copies[:, 0, :, 2:, -1], picture[:, :, :-2, -1])
    assert torch.equal(copies[:, 1], picture)


def test_the_likeliest_shift_is_taken_whole():
    assert likeliest(torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_shares_add_up_to_one_and_every_motion_within_reach_is_felt_at_first():
    movers = Movers(3, 8, 3, (12, 16), 5)

    shares = movers(movers.course(movers.find(torch.rand(2, 3, 3, 12, 16))), torch.rand(2, 5), torch.zeros(2, CARRY))[0]

    assert shares.shape == (2, 3, 2, 17) and torch.allclose(shares.sum(3), torch.ones(2, 3, 2))
    assert shares[..., 5:12].min() > 1e-3


def test_how_a_ball_flies_is_learned_within_seconds():
    """One bright square between white walls, at -2 to 2 pixels a step: what drawing it anew learns from millions."""
    side, random = 16, torch.Generator().manual_seed(0)

    def flights(count: int) -> torch.Tensor:
        pixels = torch.full((count, 4, 3, side, side), -0.5)
        pixels[..., [0, -1], :] = 0.85
        row, column, speed = (torch.randint(*span, (count,), generator=random) for span in ((3, 12), (6, 9), (-2, 3)))
        for t in range(4):
            for corner in range(4):
                pixels[range(count), t, :, row + corner // 2, column + corner % 2 + speed * (t - 1)] = 0.85
        return pixels

    def expected(pixels: torch.Tensor) -> torch.Tensor:
        blank = torch.zeros(len(pixels), 1), torch.zeros(len(pixels), CARRY)
        return movers.copies(pixels[:, 2], movers(movers.course(movers.find(pixels[:, :3])), *blank)[0])[:, 0]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        movers = Movers(1, 4, 3, (side, side), 1)
        movers.remember_usual(flights(512))
    optimiser = torch.optim.AdamW(movers.parameters(), lr=3e-3)
    for _ in range(300):
        pixels = flights(32)
        error = 100 * (expected(pixels) - pixels[:, 3])[..., 2:-2, :].square().mean()
        optimiser.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(movers.parameters(), 1.0)
        optimiser.step()

    pixels = flights(64)
    with torch.no_grad():
        copies = expected(pixels)
    ball = pixels[:, 3, 0, 2:-2] > 0.8
    assert ((copies[:, 0, 2:-2] > 0.2) == ball).flatten(1).all(1).float().mean() > 0.9


def test_what_changed_is_owned_by_the_copy_that_explains_it_best():
    frames, target = torch.zeros(1, 2, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    target[0, :, 1, 1] = target[0, :, 6, 6] = 1.0  # two things appear, far from each other
    copies = torch.zeros(1, 2, 3, 8, 8)
    copies[0, 0, :, 1, 1] = 1.0  # the first copy has the one, the second one a faint picture of the other
    copies[0, 1, :, 6, 6] = 0.5

    error = mover_error(copies, torch.zeros(1, 2, 8, 8), frames, target)
    nobody = mover_error(torch.zeros_like(copies), torch.zeros(1, 2, 8, 8), frames, target)

    changed = 18  # nine pixels around each
    assert nobody.item() == pytest.approx(3 * 2 / changed)
    # around (6, 6) the second copy is better by (3 - 0.75) / 9 of a squared error, so it owns most of the pixel
    share = torch.sigmoid(torch.tensor((3 - 0.75) / 9 / SURE)).item()
    # and around (1, 1) the first, by 3 / 9
    rest = torch.sigmoid(torch.tensor(-3 / 9 / SURE)).item()
    assert error.item() == pytest.approx((share * 0.75 + (1 - share) * 3 + rest * 3) / changed)


def test_of_two_alike_the_nearer_mover_owns_a_thing_and_is_drawn_to_it():
    movers = Movers(2, 2, 3, (8, 8), 5)
    places = torch.tensor([[[-2.5, 1.5], [3.5, 1.5]]], requires_grad=True)  # row 1 and row 7, both in column 5
    shares = F.one_hot(torch.tensor([[4, 2], [2, 2]]), 5).float()[None]  # the first moves down by two

    distance = movers.distance(places, shares, (8, 8))

    assert distance[0, 0, 2, 5] == 0 and distance[0, 0, 2, 3] == 1 and distance[0, 0, 7, 5] == 25 / 4
    assert distance[0, 1, 7, 5] == 0 and distance[0, 1, 5, 3] == 2
    frames, target = torch.zeros(1, 2, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    target[0, :, 2, 4] = 1.0
    mover_error(torch.zeros(1, 2, 3, 8, 8), distance, frames, target).sum().backward()
    assert places.grad[0, 0, 1] > 50 * places.grad[0, 1, 1].abs()  # the thing is left of it, by a column
    assert places.grad[0, 1, 0].abs() < 0.1 * places.grad[0, 0].norm()


def test_what_is_usual_is_the_mean_of_what_was_seen_lately():
    movers = Movers(1, 2, 3, (8, 8), 5)

    movers.remember_usual(torch.full((2, 3, 3, 8, 8), 0.5))
    first = movers.usual.clone()
    movers.remember_usual(torch.full((2, 3, 3, 8, 8), 1.0))

    assert torch.equal(first, torch.full((3, 8, 8), 0.5))
    assert torch.allclose(movers.usual, torch.full((3, 8, 8), 0.5 + HABIT * 0.5))


def test_what_stops_counts_as_long_as_it_was_seen_to_move():
    frames = torch.zeros(1, 3, 3, 8, 8)
    frames[0, 0, :, 4, 2] = frames[0, 1:, :, 4, 4] = 1.0  # it moved, and then stood
    on = frames[:, -1:].roll(2, dims=-1)  # as if it went on

    near = torch.zeros(1, 1, 8, 8)

    assert mover_error(on, near, frames, frames[:, -1]).item() > 0.1
    assert mover_error(frames[:, -1:], near, frames, frames[:, -1]).item() == 0
    assert mover_error(on, near, frames[:, 1:], frames[:, -1]).item() == 0  # it was not seen to move: nothing is taught


def test_movers_learn_along_whole_clips_what_no_frame_shows(tiny_config, tiny_spec):
    """A dot moves right by two at every second press only: how often was pressed is in no frame."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {"camera.max_motion": 0, "motion.movers": 1, "motion.reach": 2}
        model = WorldModel(tiny_config.override(settings), tiny_spec)
    random = torch.Generator().manual_seed(2)

    def play(count: int, steps: int = 9) -> Batch:
        presses = torch.randint(0, 2, (count, steps), generator=random)
        column = 2 + torch.cat([torch.zeros(count, 1, dtype=torch.long), presses.cumsum(1) // 2 * 2], 1)
        pixels = torch.full((count, steps + 1, 3, 16, 16), -0.5)
        for t in range(steps + 1):
            pixels[torch.arange(count), t, :, 8, column[:, t]] = 1.0
        nothing = torch.zeros(count, steps)
        return Batch(pixels, presses[..., None], nothing[..., None].long(), nothing, nothing + 1)

    still = torch.zeros(32, 9, 2)
    optimiser = torch.optim.AdamW(model.motion.movers.parameters(), lr=3e-3)
    errors = []
    for _ in range(100):
        error = movers_error(model, play(32), still, context=1)
        optimiser.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(model.motion.movers.parameters(), 1.0)
        optimiser.step()
        errors.append(error.item())

    # a press seen alone moves the dot in half of the cases; the distance of a pixel beside it counts 0.04
    assert sum(errors[-10:]) < 0.25 * sum(errors[:10])


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

"""Tiles that are drawn at whole pixels, each for itself: a game of such tiles, drawn here, is followed and moved."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lwm_env.lattice import BINS, Lattice
from lwm_env.memory import move_lines, move_whole
from lwm_env.world_model import WorldModel
from lwm_training.batch import as_batch, at, context_belief, sightings
from lwm_training.camera_loss import camera_errors, camera_unroll, strayed_on
from lwm_training.clips import Clips
from lwm_training.loss import LossWeights, guidance, total_error, unroll_errors

PITCH, SIDE = 64 / 13, 64
WALK = [(0.4, -2.4), (-1.7, -2.3), (0.0, -2.6), (1.3, -1.45), (2.2, 0.6), (-0.6, 2.3), (0.3, -2.4), (-1.2, -2.2)]


def drawn(places: np.ndarray) -> torch.Tensor:
    """Views (T, 3, SIDE, SIDE) of a wall of tiles, each of one colour, whose first corner is at places (T, 2)."""
    tiles = np.random.default_rng(0).uniform(-1, 1, (40, 40, 3))

    def tile(place: float) -> np.ndarray:
        corners = np.floor(PITCH * np.arange(41) + place + 0.5)
        return np.searchsorted(corners, np.arange(SIDE), "right") - 1

    views = [tiles[tile(down)][:, tile(right)] for down, right in places]
    return torch.tensor(np.stack(views), dtype=torch.float32).permute(0, 3, 1, 2)


def walked(start: tuple[float, float] = (-80.7, -70.15)) -> tuple[torch.Tensor, torch.Tensor]:
    """Views along a walk, (T + 1, 3, SIDE, SIDE), and their places."""
    places = np.cumsum([start, *WALK], 0)
    return drawn(places), torch.tensor(places, dtype=torch.float32)


def test_each_line_moves_by_the_pixels_of_its_tile():
    lattice = Lattice(2.5, (8, 8), margin=1)

    # Lines lie at -1.8, 0.7, 3.2, 5.7 and 8.2, drawn at -2, 1, 3, 6 and 8; then at -2.2, 0.3, 2.8, 5.3 and 7.8, drawn
    # at -2, 0, 3, 5 and 8. The canvas begins a pixel before the picture.
    rows, columns = lattice.shifts(torch.tensor([[0.7, 0.2]]), torch.tensor([[-0.4, 0.0]]))

    assert rows.tolist() == [[0, -1, -1, -1, 0, 0, -1, -1, -1, 0]]
    assert columns.tolist() == [[0] * 10]


def test_a_line_moves_by_one_of_the_two_whole_motions_next_to_its_own():
    lattice = Lattice(PITCH, (SIDE, SIDE), margin=8)
    generator = torch.Generator().manual_seed(0)
    phase = torch.rand(200, 2, generator=generator) * PITCH
    motion = torch.rand(200, 2, generator=generator) * 8 - 4

    for axis, shifts in enumerate(lattice.shifts(phase, motion)):
        wanted = motion[:, axis, None]
        assert ((shifts == wanted.floor()) | (shifts == wanted.ceil())).all()
        assert (shifts.mean(1) - motion[:, axis]).abs().mean() < 0.1  # as often by either as its fraction says


def test_a_moved_canvas_is_the_next_picture_where_it_was_seen():
    lattice = Lattice(PITCH, (SIDE, SIDE), margin=8)
    pictures, places = walked()
    canvas = torch.nn.functional.pad(torch.cat([pictures, torch.ones_like(pictures[:, :1])], 1), (8,) * 4)

    for t, motion in enumerate(WALK):
        moved = move_lines(canvas[t : t + 1], *lattice.shifts(lattice.wrap(places[t : t + 1]), torch.tensor([motion])))
        view, known = moved[..., 8:-8, 8:-8].split([3, 1], 1)
        differs = ((view - pictures[t + 1]).abs().amax(1) > 1e-6) & (known[:, 0] > 0)
        assert known.mean() > 0.8 and differs.float().mean() < 0.07  # where a tile of four pixels became one of five


def test_real_frames_tell_phase_and_motion():
    lattice = Lattice(PITCH, (SIDE, SIDE), margin=8)
    pictures, places = walked()
    doubt = None
    for t in range(len(WALK) - 1):
        seen = lattice.sight(pictures[t : t + 1], pictures[t + 1 : t + 2])
        estimate = torch.tensor([WALK[t]]) + 0.1
        phase, doubt = lattice.settle(doubt, estimate, seen)
    now = lattice.wrap(phase + lattice.motion(phase, estimate, seen))

    # A pixel more or less, which moves the lines between tiles but not the tiles, may be as good.
    apart = now - lattice.wrap(places[-2:-1])
    assert (apart - apart.round()).abs().max() < 2 * lattice.bin
    last = lattice.sight(pictures[-2:-1], pictures[-1:])
    assert (
        lattice.motion(now, torch.tensor([WALK[-1]]) - 0.1, last) - torch.tensor([WALK[-1]])
    ).abs().max() < 3 * lattice.bin
    assert seen.cost.shape == (1, 2 * BINS * (2 * lattice.reach + 1)) and doubt.shape == (1, 2, BINS)


def test_a_phase_stays_within_the_pitch_and_carries_gradients():
    lattice, estimate = Lattice(4.0, (8, 8), 1), torch.tensor([[1.0, -0.75]], requires_grad=True)

    motion, corrected, phase = lattice.correct(torch.tensor([[3.5, 0.25]]), estimate, None)

    assert phase.tolist() == [[0.5, 3.5]] and motion.tolist() == [[1.0, -0.75]]
    assert corrected.tolist() == [[1.0, -0.75, 0.0, 0.0]] and not motion.requires_grad
    assert torch.autograd.grad(phase.sum(), estimate)[0].tolist() == [[1, 1]]
    assert lattice.scaled(torch.tensor([0.0, 2.0, 3.0])).tolist() == [-1, 0, 0.5]


# -- in a world --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_config, tiny_spec) -> WorldModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = tiny_config.override({"frame_size": (SIDE, SIDE), "margin": 12, "camera.lattice": PITCH})
        return WorldModel(config, tiny_spec.model_copy(update={"frame_size": (SIDE, SIDE)}))


def clips(batch: int = 2) -> Clips:
    random, steps = np.random.default_rng(0), len(WALK)
    views = torch.stack([walked((-80.7 - n, -70.15 + 0.7 * n))[0] for n in range(batch)])
    return Clips(
        observations=((views + 1) * 127.5).round().byte().movedim(2, -1).numpy(),
        actions=random.integers(0, 3, (batch, steps, 1)),
        rewards=np.zeros((batch, steps, 1), np.float32),
        terminations=np.zeros((batch, steps), bool),
        valid=np.ones((batch, steps), bool),
    )


def test_a_guided_step_puts_every_tile_where_it_is_drawn(model):
    batch = as_batch(clips(), model)
    seen, context = sightings(model, batch), len(WALK) - 1
    belief = context_belief(model, batch, seen, context)
    camera, hints = guidance(model, belief, batch.pixels[:, context], at(seen, context - 1), torch.tensor([True, True]))

    def wrong(canvas: torch.Tensor) -> float:
        views = model.canvas.views(canvas, torch.zeros(2, 2))
        differs = (views.colours[0] - batch.pixels[:, context]).abs().amax(1) > 0.02
        return (differs & (views.known[:, 0] > 0)).float().mean().item()

    canvas = model.anticipate(belief, batch.actions[:, context - 1], camera, hints).canvas
    painted = model.canvas.write(belief.canvas, belief.frames[:, -1], torch.ones(2, 1, SIDE, SIDE))

    assert wrong(canvas) < 0.5 * wrong(move_whole(painted, seen.motion[:, context - 1].round()))


def test_frames_of_a_prompt_are_seen_as_those_of_a_clip_are(model):
    batch = as_batch(clips(), model)
    belief = context_belief(model, batch, sightings(model, batch), 5)

    state = model.start(torch.from_numpy(clips().observations[:, :5]), batch.actions[:, :4])

    assert torch.allclose(state["offset"], belief.offset, atol=1e-5)
    assert ((state["offset"] >= 0) & (state["offset"] < PITCH)).all()
    state, _ = model.step(state, batch.actions[:, 4])
    assert ((state["offset"] >= 0) & (state["offset"] < PITCH)).all()


def test_a_dream_is_astray_by_what_its_motions_lack(model):
    batch = as_batch(clips(), model)
    seen = sightings(model, batch)
    belief, here = context_belief(model, batch, seen, 5), at(seen, 4)
    estimate = here.motion + torch.tensor([0.3, -0.5])
    real = model.lattice.motion(belief.offset, estimate, here)
    everywhere = torch.ones(2, dtype=torch.bool)

    errors = camera_errors(model, estimate, belief.offset, torch.zeros(2, 2), here, everywhere)
    further = strayed_on(model, estimate, belief.offset, belief.offset + estimate, torch.zeros(2, 2), here)

    assert torch.equal(further, estimate - real) and (further.abs() < 0.7).all()
    quadratic = torch.where(further.abs() < 0.5, further.square(), further.abs() - 0.25)  # up to half a pixel
    assert torch.allclose(errors["motion"], quadratic.sum(1))
    # From a phase that is astray the real one is known, and the same motion with it.
    moved = model.lattice.wrap(belief.offset + further)
    assert torch.equal(strayed_on(model, estimate, moved, moved + estimate, further, here), further)


def test_the_camera_sees_where_in_its_tile_each_pixel_lies(model):
    angles = torch.tensor([[0.5, 1.25]]) * (2 * math.pi / PITCH)

    planes = model.camera.in_tiles(angles.sin(), angles.cos())

    middle = torch.arange(SIDE // 4, 3 * SIDE // 4) + 0.5
    down, right = ((middle - phase) * (2 * math.pi / PITCH) for phase in (0.5, 1.25))
    assert planes.shape == (1, 4, SIDE // 2, SIDE // 2)
    assert torch.allclose(planes[0, :2, :, 3], torch.stack([down.sin(), down.cos()]), atol=1e-5)
    assert torch.allclose(planes[0, 2:, 7], torch.stack([right.sin(), right.cos()]), atol=1e-5)
    estimates = [
        model.camera(torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, 3), torch.zeros(1, 4), phase, torch.zeros(1, 8))[1]
        for phase in (torch.tensor([[0.5, 1.25]]), torch.tensor([[0.5 + PITCH, 1.25]]))
    ]
    assert torch.allclose(*estimates, atol=1e-5)  # a pitch further on is the same phase


def test_all_losses_reach_their_networks(model):
    batch = as_batch(clips(), model)
    model.requires_grad_(True).zero_grad()

    losses = unroll_errors(model, batch, 4, LossWeights(guided=0.5), torch.Generator().manual_seed(0))
    losses["place"] = camera_unroll(model, batch, 4)["place"]
    total_error(losses, LossWeights()).backward()

    for part in (model.camera, model.motion, model.dynamics):
        gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
    assert model.camera.decide[-1].weight.grad.abs().sum() > 0


def test_what_was_seen_before_is_what_is_seen_now(model):
    given = clips()
    seen = sightings(model, as_batch(given, model))
    known = torch.cat([seen.motion, seen.cost, seen.sure[..., None].float()], 2).numpy()

    again = sightings(model, as_batch(replace(given, sightings=known), model))

    assert torch.equal(again.cost, seen.cost) and torch.equal(again.sure, seen.sure)
    assert torch.equal(again.motion, seen.motion)

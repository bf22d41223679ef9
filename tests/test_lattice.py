"""Tiles that are drawn at whole pixels, each for itself: a game of such tiles, drawn here, is followed and moved."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lwm_env.belief import Anticipation
from lwm_env.lattice import BINS, BYTES, HARD, LINES, Lattice
from lwm_env.memory import Canvas, move_lines, move_whole
from lwm_env.nearby import REACH, Nearby
from lwm_env.registration import Sighting
from lwm_env.world_model import WorldModel
from lwm_training.batch import as_batch, at, context_belief, sightings
from lwm_training.beyond import Beyond, begin
from lwm_training.camera_loss import camera_errors, camera_unroll, strayed_on
from lwm_training.clips import Clips
from lwm_training.loss import LossWeights, guidance, total_error, unroll_errors

PITCH, SIDE = 64 / 13, 64
MORE = {"camera.edges": 0.5, "camera.tile_dim": 2, "motion.lines": LINES}
ANYWHERE = Anticipation(*[None] * len(Anticipation._fields))
WALK = [(0.4, -2.4), (-1.7, -2.3), (0.0, -2.6), (1.3, -1.45), (2.2, 0.6), (-0.6, 2.3), (0.3, -2.4), (-1.2, -2.2)]


def drawn(places: np.ndarray, over: float = 0.0) -> torch.Tensor:
    """Views (T, 3, SIDE, SIDE) of a wall of tiles, each of one colour, whose first corner is at places (T, 2). Each is
    drawn `over` pixels beyond its lines, the brighter ones over the others."""
    tiles = np.random.default_rng(0).uniform(-1, 1, (40, 40, 3))
    views = np.zeros((len(places), SIDE, SIDE, 3), np.float32)
    for view, place in zip(views, places, strict=True):
        begins, ends = (
            np.floor(PITCH * np.arange(40)[:, None] + place + shift + 0.5).astype(int)
            for shift in (-over, PITCH + over)
        )
        begins, ends = begins.clip(0, SIDE), ends.clip(0, SIDE)
        for index in tiles.sum(2).argsort(axis=None):
            row, column = divmod(index, 40)
            view[begins[row, 0] : ends[row, 0], begins[column, 1] : ends[column, 1]] = tiles[row, column]
    return torch.from_numpy(views).permute(0, 3, 1, 2)


def walked(start: tuple[float, float] = (-80.7, -70.15), over: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Views along a walk, (T + 1, 3, SIDE, SIDE), and their places."""
    places = np.cumsum([start, *WALK], 0)
    return drawn(places, over), torch.tensor(places, dtype=torch.float32)


def apart(phases: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """How many pixels phases are from those of places."""
    tiles = (phases - places) / PITCH
    return (tiles - tiles.round()).abs() * PITCH


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
    lattice = Lattice(PITCH, (SIDE, SIDE), margin=8, edges=0.5)
    pictures, places = walked(over=lattice.over)
    doubt = None
    for t in range(len(WALK) - 1):
        seen = lattice.sight(pictures[t : t + 1], pictures[t + 1 : t + 2])
        estimate = torch.tensor([WALK[t]]) + 0.1
        phase, doubt = lattice.settle(doubt, estimate, seen)
    now = lattice.wrap(phase + lattice.motion(phase, estimate, seen))

    assert apart(now, places[-2:-1]).max() < 2 * lattice.bin
    last = lattice.sight(pictures[-2:-1], pictures[-1:])
    assert (
        lattice.motion(now, torch.tensor([WALK[-1]]) - 0.1, last) - torch.tensor([WALK[-1]])
    ).abs().max() < 3 * lattice.bin
    assert seen.cost.shape == (1, 2 * BINS * (2 * lattice.reach + 1)) and doubt.shape == (1, 2, BINS)


def test_phases_of_a_whole_clip_lead_to_one_another_and_begin_anew_where_nothing_was_seen():
    lattice = Lattice(PITCH, (SIDE, SIDE), margin=8, edges=0.5)
    before, after = walked(over=lattice.over), walked((-82.1, -71.9), over=lattice.over)
    pictures, places = (torch.cat([ours[:5], theirs[5:]]) for ours, theirs in zip(before, after, strict=True))
    seen = lattice.sight(pictures[:-1], pictures[1:])
    sure = torch.tensor([True] * 4 + [False] + [True] * 3)
    seen = Sighting(seen.motion[None], sure[None], seen.cost[None])

    phases, motions = lattice.path(seen)

    assert phases.shape == (1, len(WALK) + 1, 2) and motions.shape == (1, len(WALK), 2)
    assert apart(phases[0, :-1] + motions[0], phases[0, 1:])[sure].max() < 1e-4
    assert apart(phases[0], places).max() < 3 * lattice.bin
    assert (motions[0] - torch.tensor(WALK))[sure].abs().max() < 3 * lattice.bin


def test_a_hard_edge_costs_what_it_differs_by_unless_its_brighter_side_ends_on_a_line():
    lattice, picture = Lattice(8.0, (32, 32), margin=8, edges=0.5), torch.full((1, 3, 32, 32), -1.0)
    picture[:, :, 9:, 20:] = 1.0  # of columns 20 to 26, those that count, above row 9; and of rows 9 to 26 left of 20

    beyond = 3 * (round(2 * BYTES) - round(HARD * BYTES)) ** 2 / BYTES**2
    for sign in (1, -1):  # below row 9 it is brighter, or darker
        cost = lattice.off_line(sign * picture, 0)[0]
        lines = torch.arange(BINS) * 8 / BINS - sign * lattice.over
        on = (lines + 0.5).floor() == 1  # the line of phase 1 is drawn at rows 1, 9, 17, ...
        assert 6 <= on.sum() < 10 and cost[on].tolist() == [0] * int(on.sum())
        assert torch.allclose(cost[~on], torch.tensor(0.5 * 7 * beyond))
    assert (lattice.off_line(picture.clamp(max=-0.8), 0) == 0).all()  # that is texture


def test_one_picture_tells_the_phase_to_a_pixel():
    lattice = Lattice(PITCH, (SIDE, SIDE), margin=8, edges=0.5)
    pictures, places = walked(over=lattice.over)

    for axis in (0, 1):
        phases = lattice.off_line(pictures, axis).argmin(1) * lattice.bin
        assert apart(phases, places[:, axis]).max() < 0.5


def test_wherever_a_tile_ends_one_of_the_views_is_the_next_picture():
    lattice = Lattice(PITCH, (SIDE, SIDE), margin=8, edges=0.5)
    pictures, places = walked(over=lattice.over)
    canvas = torch.nn.functional.pad(torch.cat([pictures, torch.ones_like(pictures[:, :1])], 1), (8,) * 4)
    wrong, nominal = [], []
    for t, motion in enumerate(torch.tensor(WALK)[:, None]):
        moved = move_lines(canvas[t : t + 1], *lattice.shifts(lattice.wrap(places[t : t + 1]), motion))
        next_ = ANYWHERE._replace(before=canvas[t : t + 1], travel=motion, offset=lattice.wrap(places[t + 1 : t + 2]))
        views = lattice.views(Canvas((SIDE, SIDE), 8), next_, None)
        seen = (views.known > 0).all(1)
        apart = torch.stack([(view - pictures[t + 1]).abs().amax(1) > 1e-6 for view in views.colours]).all(0)
        wrong.append((apart & seen).float().mean())
        nominal.append((((moved[:, :3, 8:-8, 8:-8] - pictures[t + 1]).abs().amax(1) > 1e-6) & seen).float().mean())
    assert min(nominal) > 0.03 and max(wrong) == 0


def test_a_phase_stays_within_the_pitch_and_carries_gradients():
    lattice, estimate = Lattice(4.0, (8, 8), 1), torch.tensor([[1.0, -0.75]], requires_grad=True)

    motion, corrected, phase = lattice.correct(torch.tensor([[3.5, 0.25]]), estimate, None)

    assert phase.tolist() == [[0.5, 3.5]] and motion.tolist() == [[1.0, -0.75]]
    assert corrected.tolist() == [[1.0, -0.75, 0.0, 0.0]] and not motion.requires_grad
    assert torch.autograd.grad(phase.sum(), estimate)[0].tolist() == [[1, 1]]
    assert lattice.scaled(torch.tensor([0.0, 2.0, 3.0])).tolist() == [-1, 0, 0.5]


def test_tiles_near_the_middle_are_cut_out_wherever_the_lattice_lies():
    nearby, places = Nearby(4, PITCH, (SIDE, SIDE), 3), np.array([(-80.7, -70.15), (-83.2, -68.9), (-81.6, -71.3)])

    cut = nearby.cut(drawn(places), torch.tensor(places % PITCH, dtype=torch.float32))

    around = np.arange(-REACH, REACH + 1)
    for view, place in zip(cut, places, strict=True):
        rows, columns = (int((SIDE / 2 - at) // PITCH) + around for at in place)  # of the wall
        tiles = np.random.default_rng(0).uniform(-1, 1, (40, 40, 3))[rows][:, columns].reshape(-1, 3, 1)
        assert np.allclose(view.view(-1, 3, 25).numpy(), np.broadcast_to(tiles, (49, 3, 25)), atol=1e-6)


def test_where_in_its_tile_the_middle_lies():
    nearby = Nearby(4, 10.0, (64, 44), 3)  # the middle is at 32, 22

    assert torch.allclose(nearby.within(torch.tensor([[1.0, 0.0], [2.0, 9.0]])), torch.tensor([[0.1, 0.2], [0.0, 0.3]]))


# -- in a world --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_config, tiny_spec) -> WorldModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = tiny_config.override(
            {"frame_size": (SIDE, SIDE), "margin": 12, "camera.lattice": PITCH, "camera.tile_dim": 2}
        )
        return WorldModel(config, tiny_spec.model_copy(update={"frame_size": (SIDE, SIDE)}))


@pytest.fixture(scope="module")
def tiled(model) -> WorldModel:
    more = {"ahead.tiles": 1, "ahead.width": 10, "ahead.rows": 10, "ahead.reach": 10, "ahead.dim": 8}
    with torch.random.fork_rng(devices=[]):
        return WorldModel(model.config.override(more), model.spec)


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


def test_what_comes_into_view_is_laid_where_it_will_be_seen(model):
    batch = as_batch(clips(3), model)
    phases, motions = model.lattice.path(sightings(model, batch))
    seen = Sighting(motions, sightings(model, batch).sure)
    batch = replace(batch, valid=torch.tensor([[1.0] * 7 + [0.0]] * 3))
    shown = torch.tensor([True, True, False])
    beyond = Beyond(model, batch, seen, phases, first=2)

    new, wrong = [], []
    for t in range(2, len(WALK)):
        belief = model.believe(batch.pixels[:, t])._replace(offset=phases[:, t])
        camera = Sighting(motions[:, t], seen.sure[:, t])
        before = model.anticipate(belief, batch.actions[:, t], camera).canvas
        after = model.anticipate(belief, batch.actions[:, t], camera, ahead=beyond.at(t, shown)).canvas
        before, after = (model.canvas.view(canvas) for canvas in (before, after))
        came = (after[:, 3] > 0.5) & (before[:, 3] < 0.5)
        assert ((before - after)[:, :3, 9:-9, 9:-9].abs() < 0.01).all()  # what was seen stays
        new.append(came.sum((1, 2)))
        wrong.append(((after[:, :3] - batch.pixels[:, t + 1]).abs().amax(1) > 0.02) & came)
    new = torch.stack(new)
    assert (new[:5, :2] > 30).all() and not new[:, 2].any() and not new[5].any()  # the last step is not valid
    assert torch.stack(wrong).sum() < 0.1 * new.sum()


@pytest.mark.parametrize("shown", [0.0, 1.0])
def test_only_worlds_that_draw_tiles_show_what_lies_beyond(model, tiled, shown):
    batch = as_batch(clips(), model)

    assert begin(model, batch, 3, shows=True)[2] is None
    seen, belief, beyond = begin(tiled, batch, 3, shows=shown > 0)

    assert (beyond is not None) == (seen.cost is None) == (shown > 0)
    assert belief.offset.shape == (2, 2)
    losses = unroll_errors(tiled, batch, 3, LossWeights(shown=shown, guided=1.0), torch.Generator().manual_seed(0))
    total_error(losses, LossWeights()).backward()
    assert all(value.isfinite() for value in losses.values())


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

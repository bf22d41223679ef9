"""The map that a view from above drives over."""

import math

import pytest
import torch

from lwm_env.ground import AHEAD, Ground
from lwm_env.turning import affine, places, sample, sources, then
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch
from lwm_training.flow_loss import turn_errors
from lwm_training.replay import Replay

SIZE, SIDE, S = 16, 40, 4
ONE = torch.ones(())


def meadow(motion: torch.Tensor, aspect: float = 1.0, size: int = SIZE) -> torch.Tensor:
    """A smooth landscape (B, 3, size, size), seen after a motion (B, 3)."""
    at = torch.arange(float(size)) - (size - 1) / 2
    down, right = sources(affine(motion, torch.tensor(aspect)), places(at, at)).unbind(-1)
    right = right * aspect
    return torch.stack([torch.sin(0.5 * down + phase) * torch.cos(0.4 * right) for phase in (0.0, 1.0, 2.0)], 1)


def blank(count: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(count, 4, SIDE, SIDE, dtype=dtype)


@pytest.mark.parametrize("aspect", [1.0, 1.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_what_is_laid_is_read_wherever_the_view_has_gone(aspect, dtype):
    ground, ratio = Ground((SIZE, SIZE)), torch.tensor(aspect)
    motions = [torch.tensor([[1.3, -0.6, 0.2]]), torch.tensor([[2.1, 0.4, -0.35]]), torch.tensor([[0.5, 1.7, 0.6]])]
    pose, before = torch.zeros(1, 3), torch.eye(2, 3)[None]
    map_ = ground.write(blank(dtype=dtype), meadow(pose, aspect), pose, ratio)

    for motion in motions:
        map_, pose = ground.centre(map_, ground.go(pose, motion, ratio))
        before = then(before, affine(motion, ratio))

    shown, known = ground.read(map_, pose, ratio)
    where = sources(before, places(ground.rows_at, ground.columns_at))
    first = meadow(torch.zeros(1, 3), aspect, 64)
    expected = sample(first, where, (31.5, 31.5), "bicubic")
    inside = (where.abs() <= (SIZE - 1) / 2 - 2).all(3)[:, None]
    assert (pose[:, :2].abs() <= 0.5).all()
    assert known[inside].all() and not known[(where.abs() > SIZE / 2 + 1).any(3)[:, None]].any()
    assert ((shown - expected).abs() * inside * known).max() < 0.12  # interpolated twice
    assert inside.float().mean() > 0.3


def test_a_cell_shows_the_first_dream_that_had_it_in_sight_but_a_real_picture_replaces_it():
    ground, here = Ground((SIZE, SIZE)), torch.zeros(1, 3)
    light, dark = torch.full((1, 3, SIZE, SIZE), 0.8), torch.full((1, 3, SIZE, SIZE), -0.8)
    further = torch.tensor([[-4.0, 0, 0]])

    once = ground.write(blank(dtype=torch.uint8), light, here, ONE)
    dreamed = ground.write(once, dark, further, ONE)
    real = ground.write(once, dark, further, ONE, replace=True)

    overlap, new = (slice(12, 24), slice(12, 28)), (slice(8, 12), slice(12, 28))
    assert torch.equal(dreamed[:, :, *overlap], once[:, :, *overlap])
    assert (dreamed[:, :3, *new] < 100).all() and (real[:, :3, *overlap] < 100).all()
    assert torch.equal(ground.write(dreamed, light, here, ONE), dreamed)


def test_what_was_only_drawn_ahead_gives_way_to_what_the_view_makes_of_it():
    ground, here = Ground((SIZE, SIZE)), torch.zeros(1, 3)
    light, above = torch.full((1, 3, SIZE, SIZE), 0.8), torch.full((1, 4, S, SIZE + 6), 1.0)
    above[:, :3], above[:, 3, :, :11] = -0.8, 0  # nothing was drawn in the left half

    map_ = ground.write(blank(), light, here, ONE, above)
    colours, known = ground.read(map_, here, ONE, ground.around(S))
    driven = ground.write(map_, light, torch.tensor([[-float(S), 0, 0]]), ONE)

    rows = slice(12 - S, 12)
    assert (map_[0, 3, rows, 20:31] == AHEAD).all() and not map_[0, 3, rows, 9:20].any()
    assert torch.allclose(colours[0, :, 1:-2, 10:-2], torch.tensor(-0.8), atol=1e-5)
    assert known[0, 0, 1:, 9:-1].all() and not known[..., :8].any()
    assert (driven[0, 0, rows, 12:28] > 0.79).all() and (driven[0, 3, rows, 12:28] == 1).all()


def test_what_is_mounted_on_the_view_is_noticed_and_not_laid_on_the_map():
    ground = Ground((SIZE, SIZE))
    motion = torch.tensor([[1.5, 0.0, 0.1]]).expand(8, 3)
    last, after = meadow(torch.zeros(8, 3)), meadow(motion)
    for picture in (last, after):
        picture[:, :, 11:14, 6:9] = 1.0
    source = sources(affine(motion, ONE), places(ground.rows_at, ground.columns_at))
    inside = (source.abs() <= (SIZE - 1) / 2).all(3)[:, None].float()
    copy = sample(last, source, ground.middle)

    ground.notice(last, copy, inside, after, torch.zeros(8, 3))
    assert ground.lies.all()  # a view that stands still tells nothing
    for _ in range(3):
        ground.notice(last, copy, inside, after, motion)
    map_ = ground.write(blank(), last[:1], torch.zeros(1, 3), ONE)

    assert not ground.lies[11:14, 6:9].any() and ground.lies[:9].all() and ground.lies[:, 11:].all()
    lost = last.clone()
    lost[:4, :, 11:14, 6:9] = -0.5
    restored = ground.restore(lost)
    back = restored[:4, :, 11:14, 6:9] == 1  # but for two pixels that the motion of the landscape explains as well
    assert back.float().mean() > 0.7 and torch.equal(restored[4:], lost[4:])
    assert torch.equal(restored[:, :, :9], lost[:, :, :9])
    assert not map_[0, 3, 12 + 11 : 12 + 14, 12 + 6 : 12 + 9].any() and map_[0, 3, 12:20, 12:28].all()


def test_a_whole_turn_leads_back():
    ground, pose = Ground((SIZE, SIZE)), torch.tensor([[0.2, -0.3, 0.0]])
    for _ in range(8):
        pose = ground.go(pose, torch.tensor([[0.0, 0.0, math.pi / 4]]), torch.tensor(1.4))
    ahead = ground.go(pose, torch.tensor([[3.0, 0, 0]]), torch.tensor(1.4))

    assert torch.allclose(pose, torch.tensor([[0.2, -0.3, 2 * math.pi]]), atol=1e-5)
    assert torch.allclose(ahead[:, :2], torch.tensor([[0.2 - 3.0, -0.3]]), atol=1e-5)  # content goes down, the view up


def test_the_flow_stage_notices_what_is_mounted(tiny_config, tiny_spec):
    config = tiny_config.override({"camera.max_motion": 0, "motion.flow": 2})
    model = WorldModel(config, tiny_spec)
    motion = torch.tensor([1.5, 0.0, 0.1])
    pixels = torch.stack([meadow(torch.zeros(8, 3)), meadow(motion.expand(8, 3))], 1)
    pixels[..., 11:14, 6:9] = 1.0
    nothing = torch.zeros(8, 1)
    seen = torch.cat([motion, torch.ones(1)]).expand(8, 1, 4)
    batch = Batch(pixels, nothing[..., None].long(), nothing[..., None].long(), nothing, nothing + 1, seen)

    turn_errors(model, batch, 1, Replay(1), torch.Generator().manual_seed(0))

    assert not model.motion.flow.ground.lies[11:14, 6:9].any() and model.motion.flow.ground.lies[:9].all()

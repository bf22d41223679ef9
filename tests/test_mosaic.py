"""What the real camera saw, as one picture, against a world that is known whole."""

import pytest
import torch

from lwm_training.mosaic import Mosaic

SIDE, STEPS = 32, 6
MIDDLE = slice(14, 18)  # the player


@pytest.fixture(scope="module")
def world() -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) / 2


def seen_from(world: torch.Tensor, place: torch.Tensor, player: bool = True) -> torch.Tensor:
    top, left = (16 - place[:, axis].long() for axis in (0, 1))
    frame = torch.stack([w[:, y : y + SIDE, x : x + SIDE] for w, y, x in zip(world, top, left, strict=True)])
    if player:
        frame[:, :, MIDDLE, MIDDLE] = -1.0
    return frame


@pytest.fixture(scope="module")
def mosaic(world) -> Mosaic:
    motions = torch.tensor([[0, -4], [2, -4], [2, -4], [-2, -4], [-2, -4], [0, -4]]).float()
    motions = torch.stack([motions, motions.flip(0)])
    places = torch.cat([torch.zeros(2, 1, 2), motions.cumsum(1)], 1)
    frames = torch.stack([seen_from(world, places[:, t]) for t in range(STEPS + 1)], 1)
    return Mosaic(frames, motions + 0.3, torch.ones(2, STEPS + 1, dtype=torch.bool))


def test_it_shows_the_world_from_where_the_camera_went_astray_to(mosaic, world):
    astray = torch.tensor([[1.0, 2.0], [0.0, -3.0]])

    shown = mosaic.show(3, astray)

    expected = seen_from(world, mosaic.places[:, 3] + astray)
    known = mosaic._look(mosaic.places[:, 3] + astray)[:, 3:].bool().expand_as(shown)
    assert known.float().mean() > 0.9
    assert torch.equal(shown[known], expected[known])


def test_the_player_stays_in_the_middle_and_leaves_no_ghost(mosaic, world):
    shown = mosaic.show(3, torch.tensor([[3.0, 3.0], [-3.0, 0.0]]))

    assert (shown == -1).all(1).sum((1, 2)).tolist() == [16, 16]
    assert (shown[:, :, MIDDLE, MIDDLE] == -1).all()


def test_who_is_not_astray_sees_the_frame_itself(mosaic):
    assert torch.equal(mosaic.show(2, torch.zeros(2, 2)), mosaic.frames[:, 2])


def test_frames_that_are_not_valid_are_not_laid_out(world):
    frames = torch.stack([seen_from(world, torch.zeros(2, 2)), torch.full((2, 3, SIDE, SIDE), 9.0)], 1)

    mosaic = Mosaic(frames, torch.zeros(2, 1, 2), torch.tensor([[True, False]] * 2))

    assert mosaic.picture.max() == 1

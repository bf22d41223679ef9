"""The motion teacher finds the motion that was applied."""

import torch

from lwm_env.registration import global_motion


def scenes(count: int) -> torch.Tensor:
    """Blocky pictures, 96 x 96, as games draw them."""
    small = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(small, (96, 96), mode="nearest")


def window(scene: torch.Tensor, motions: torch.Tensor) -> torch.Tensor:
    """The middle 64 x 64 of each scene after it moved by whole pixels."""
    parts = [
        s[:, 16 - dy : 80 - dy, 16 - dx : 80 - dx] for s, (dy, dx) in zip(scene, motions.int().tolist(), strict=True)
    ]
    return torch.stack(parts)


def test_a_known_motion_is_found():
    motions = torch.tensor([[0.0, 0.0], [3.0, -2.0], [-7.0, 1.0], [1.0, 6.0]])
    scene = scenes(4)

    found, confidence = global_motion(window(scene, torch.zeros(4, 2)), window(scene, motions))

    assert (found - motions).abs().max() <= 0.5  # a fraction is a guess from the neighbours
    assert confidence.min() > 0.9


def test_a_player_that_stays_in_the_middle_does_not_hide_the_motion():
    motions, scene = torch.tensor([[-5.0, 0.0]]), 0.15 * scenes(1)
    before, after = window(scene, torch.zeros(1, 2)), window(scene, motions)
    for frame in (before, after):
        frame[:, :, 28:36, 29:35] = 1.0

    found, _ = global_motion(before, after)

    assert (found - motions).abs().max() <= 0.5


def test_a_flat_picture_has_no_confidence():
    flat = torch.full((1, 3, 64, 64), 0.5)

    _, confidence = global_motion(flat, flat)

    assert confidence.item() < 0.01

"""The motion teacher finds the motion that was applied."""

import torch

from lwm_env.memory import read_shifted
from lwm_training.registration import global_motion


def test_a_known_motion_is_found_to_a_fifth_of_a_pixel():
    small = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = torch.nn.functional.interpolate(small, (64, 64), mode="bicubic", align_corners=True)
    applied = torch.tensor([[0.0, 0.0], [3.0, -2.0], [-4.3, 1.6], [0.5, 7.25]])

    motion, confidence = global_motion(before, read_shifted(before, applied, (0, 0), (64, 64)))

    assert (motion - applied).abs().max() < 0.2
    assert confidence.min() > 0.9


def test_a_flat_picture_has_no_confidence():
    _, confidence = global_motion(torch.full((1, 3, 64, 64), 0.5), torch.full((1, 3, 64, 64), 0.5))

    assert confidence.item() < 0.01

"""Motions of a view from above, and finding them between two pictures."""

import math

import pytest
import torch

from lwm_env.turning import affine, inverse, places, sample, sight_turn, sources, then

AT = torch.arange(64.0) - 31.5
ONE = torch.tensor(1.0)


def landscape(motion: torch.Tensor, aspect: torch.Tensor = ONE) -> torch.Tensor:
    """A field of waves as a view shows it after a motion (B, 3): (B, 3, 64, 64)."""
    down, right = sources(affine(motion, aspect), places(AT, AT)).unbind(-1)
    right = right * aspect  # a column is as long as `aspect` rows
    waves = [torch.sin(0.3 * down + 0.2 * right), torch.sin(0.17 * down - 0.4 * right), torch.cos(0.13 * right)]
    return torch.stack(waves, 1)


def test_one_motion_after_another_is_as_both_and_the_inverse_leads_back():
    first, second = (affine(torch.tensor([m]), torch.tensor(1.4)) for m in ([3.0, -2, 0.3], [1.0, 4, -0.5]))
    where = torch.tensor([[[2.0, 5.0]]])

    both = sources(then(first, second), where)

    assert torch.allclose(both, sources(first, sources(second, where)[0]), atol=1e-5)
    assert torch.allclose(sources(inverse(second), sources(second, where)[0]), where, atol=1e-5)


def test_a_place_comes_from_where_it_was_before_the_view_shifted_and_turned():
    """A quarter turn of the content after a shift by (1, 2): what is now at (0, 10) was at (8, 1) before."""
    map_ = affine(torch.tensor([[1.0, 2.0, math.pi / 2]]), ONE)

    assert torch.allclose(sources(map_, torch.tensor([[[0.0, 10.0]]])), torch.tensor([8.0, 1.0]), atol=1e-5)


def test_pictures_are_read_at_places_and_beyond_the_edge_the_edge_is():
    picture = torch.arange(16.0).view(1, 1, 4, 4)
    where = torch.tensor([[[[0.5, 0.5], [-1.5, 0.0], [9.0, -9.0]]]])

    assert torch.allclose(sample(picture, where, (1.5, 1.5)), torch.tensor([[[[10.0, 1.5, 12.0]]]]))


@pytest.mark.parametrize("aspect", [1.0, 1.43])
def test_a_motion_is_found_though_something_else_stays_where_it_is(aspect):
    aspect = torch.tensor(aspect)
    motion = torch.tensor([[0.0, 0, 0], [5.0, 0, 0], [3.5, -2.0, 0.1], [1.0, 2.5, -0.15]])
    before, after = landscape(torch.zeros(4, 3), aspect), landscape(motion, aspect)
    for shown in (before, after):
        shown[:, :, 40:52, 26:38] = torch.tensor([1.0, -1, -1]).view(3, 1, 1)  # a car

    seen = sight_turn(before, after, aspect)

    assert seen.sure.all()
    assert torch.allclose(seen.motion, motion, atol=0.05)


def test_pictures_without_structure_or_resemblance_do_not_break_it():
    still = sight_turn(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), ONE)
    noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1

    assert torch.equal(still.motion, torch.zeros(1, 3))
    assert sight_turn(noise, noise.roll(20, 2), ONE).motion.isfinite().all()

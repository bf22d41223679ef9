"""Movers: copies of a picture shifted by whole pixels, and how far a thing moves."""

import torch
import torch.nn.functional as F

from lwm_env.movers import CARRY, Movers


def test_a_copy_is_the_picture_moved_down_and_right_with_its_edge_drawn_out():
    picture = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    movers = Movers(2, 4, 3, 5)
    shares = F.one_hot(torch.tensor([[4 + 2, 4 - 1], [4, 4]]), 9).float().expand(2, -1, -1, -1)  # (2, -1) and (0, 0)

    copies = movers.copies(picture, shares)

    assert torch.equal(copies[:, 0, :, 2:, :-1], picture[:, :, :-2, 1:])
    assert torch.equal(copies[:, 0, :, 0, :-1], picture[:, :, 0, 1:])
    assert torch.equal(copies[:, 0, :, 2:, -1], picture[:, :, :-2, -1])
    assert torch.equal(copies[:, 1], picture)


def test_shares_add_up_to_one_and_every_motion_within_reach_is_felt_at_first():
    movers = Movers(3, 8, 3, 5)

    shares = movers(movers.look(torch.rand(2, 3, 3, 12, 16)), torch.rand(2, 5), torch.zeros(2, CARRY))[0]

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
        return movers.copies(pixels[:, 2], movers(movers.look(pixels[:, :3]), *blank)[0])[:, 0]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        movers = Movers(1, 4, 3, 1)
    optimiser = torch.optim.AdamW(movers.parameters(), lr=3e-3)
    for _ in range(400):
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

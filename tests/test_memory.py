"""The canvas: whole moves are exact, fractions are carried, and it remembers what scrolled out of view."""

import torch

from lwm_env.memory import Canvas, move_whole

SIZE = (16, 16)


def picture(batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_move_whole_brings_in_unseen_pixels_and_works_row_by_row():
    canvas = torch.arange(1.0, 10).view(1, 1, 3, 3).repeat(2, 4, 1, 1)

    moved = move_whole(canvas, torch.tensor([[1.0, 0.0], [0.0, -1.0]]))

    assert moved[0, 0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert moved[1, 3].tolist() == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]


def test_fractions_of_a_pixel_add_up_to_whole_moves():
    canvas, offset, motion = torch.zeros(1, 4, 3, 3), torch.zeros(1, 2), torch.tensor([[0.4, -1.3]])
    offsets = []

    for _ in range(3):
        canvas, offset = Canvas((1, 1), 1).move(canvas, offset, motion)
        offsets.append([round(value, 4) for value in offset[0].tolist()])

    assert offsets == [[0.4, -0.3], [-0.2, 0.4], [0.2, 0.1]]  # 0.4, 0.8, 1.2 down and -1.3, -2.6, -3.9 right


def test_the_canvas_gives_back_exactly_what_scrolled_out_of_view():
    canvas, seen, offset = Canvas(SIZE, margin=8), picture(), torch.zeros(1, 2)
    state = canvas.write(canvas.blank(1), seen)

    for motion in ([[0.0, -3.3]], [[0.0, -2.4]]):  # the camera walks right, over a blank picture
        state, offset = canvas.move(state, offset, torch.tensor(motion))
        state = canvas.write(state, torch.zeros(1, 3, *SIZE))
    state, _ = canvas.move(state, offset, torch.tensor([[0.0, 5.7]]))  # and all the way back
    colours, known = canvas.view(state)

    assert known.min() == 1
    assert torch.equal(colours[..., :3], seen[..., :3])
    assert colours[..., 10].abs().max() == 0  # what was painted over on the way is what was painted


def test_the_canvas_says_what_was_never_seen():
    canvas = Canvas(SIZE, margin=8)
    state = canvas.write(canvas.blank(1), picture())

    state, _ = canvas.move(state, torch.zeros(1, 2), torch.tensor([[0.0, -6.0]]))

    assert canvas.view(state)[1][0, 0, 8].tolist() == [1] * 10 + [0] * 6


def test_what_leaves_the_margin_is_forgotten():
    canvas, still = Canvas(SIZE, margin=8), torch.zeros(1, 2)
    state = canvas.write(canvas.blank(1), picture())

    for motion in ([[0.0, -30.0]], [[0.0, 30.0]]):
        state, _ = canvas.move(state, still, torch.tensor(motion))

    assert canvas.view(state)[1].sum() == 0

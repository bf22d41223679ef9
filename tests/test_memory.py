"""The canvas: exact whole moves, sharp fractional ones, and what it remembers when the camera comes back."""

import torch

from lwm_env.memory import Canvas, inside, lanczos_matrix, move_whole, read_shifted

SIZE = (16, 16)


def smooth_picture(batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(batch, 3, 5, 5, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(small, SIZE, mode="bicubic", align_corners=True).clamp(-1, 1)


def test_lanczos_rows_sum_to_one_and_whole_positions_read_one_pixel():
    rows = lanczos_matrix(torch.tensor([[0.0, 3.0, 4.5, 15.0, 99.0]]), 16)[0]

    assert torch.allclose(rows.sum(-1), torch.ones(5))
    assert rows[[0, 1, 3, 4]].argmax(-1).tolist() == [0, 3, 15, 15]
    assert torch.allclose(rows[[0, 1, 3, 4]].max(-1).values, torch.ones(4), atol=1e-6)
    assert torch.allclose(rows[2, 4], rows[2, 5])  # half way between two pixels they count alike


def test_a_whole_motion_moves_pixels_exactly():
    picture = smooth_picture(1)

    moved = read_shifted(picture, torch.tensor([[2.0, -3.0]]), (0, 0), SIZE)

    assert torch.allclose(moved[:, :, 2:, :-3], picture[:, :, :-2, 3:], atol=1e-6)


def test_there_and_back_by_a_fraction_keeps_the_middle_of_the_picture():
    picture = smooth_picture()
    motion = torch.tensor([[0.4, -0.3], [0.5, 0.5]])

    back = read_shifted(read_shifted(picture, motion, (0, 0), SIZE), -motion, (0, 0), SIZE)

    assert (back - picture)[:, :, 5:-5, 5:-5].abs().max() < 0.02


def test_inside_marks_what_a_moved_picture_still_covers():
    covered = inside(torch.tensor([[1.0, -2.0]]), (4, 4))[0, 0]

    assert covered.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_move_whole_brings_in_unseen_pixels_and_works_row_by_row():
    canvas = torch.arange(1.0, 10).view(1, 1, 3, 3).repeat(2, 4, 1, 1)

    moved = move_whole(canvas, torch.tensor([[1.0, 0.0], [0.0, -1.0]]))

    assert moved[0, 0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert moved[1, 3].tolist() == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]


def test_the_canvas_gives_back_what_scrolled_out_of_view():
    canvas = Canvas(SIZE, margin=8)
    picture = smooth_picture(1)
    still = torch.zeros(1, 2)
    state, offset = canvas.write(canvas.blank(1), still, picture), still
    blank = torch.zeros(1, 3, *SIZE)

    for motion in (torch.tensor([[0.0, -3.3]]), torch.tensor([[0.0, -2.4]])):  # the camera walks right
        state, offset = canvas.move(state, offset, motion)
        state = canvas.write(state, offset, blank)
    colours, known = canvas.read(state, offset, torch.tensor([[0.0, 5.7]]))  # and all the way back

    assert known[0, 0, 8, :4].min() > 0.98
    assert (colours - picture)[..., 4:-4, :4].abs().max() < 0.06
    assert colours[0, :, 8, 10].abs().max() < 0.06  # what was painted over on the way is what was painted


def test_the_canvas_says_what_was_never_seen():
    canvas = Canvas(SIZE, margin=8)
    state = canvas.write(canvas.blank(1), torch.zeros(1, 2), smooth_picture(1))

    _, known = canvas.read(state, torch.zeros(1, 2), torch.tensor([[0.0, -6.0]]))

    assert known[0, 0, 8].round().tolist() == [1] * 10 + [0] * 6

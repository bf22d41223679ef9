"""The canvas: whole moves are exact, it remembers what scrolled out of view, and it is looked at from four places."""

import torch
import torch.nn.functional as F

from lwm_env.memory import Canvas, move_whole, to_bytes

SIZE = (16, 16)


def picture(batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def painted(canvas: Canvas, pixels: torch.Tensor, state: torch.Tensor | None = None) -> torch.Tensor:
    state = canvas.blank(len(pixels)) if state is None else state
    return canvas.write(state, pixels, torch.ones(len(pixels), 1, *SIZE))


def test_move_whole_brings_in_unseen_pixels_and_works_row_by_row():
    canvas = F.pad(torch.arange(1.0, 10).view(1, 1, 3, 3), (1, 1, 1, 1)).repeat(2, 4, 1, 1)

    moved = move_whole(canvas, torch.tensor([[1.0, 0.0], [0.0, -1.0]]))

    assert moved[0, 0].tolist() == [[0, 0, 0, 0, 0]] * 2 + [[0, 1, 2, 3, 0], [0, 4, 5, 6, 0], [0, 0, 0, 0, 0]]
    assert moved[1, 3].tolist() == [[0] * 5, [0, 2, 3, 0, 0], [0, 5, 6, 0, 0], [0, 8, 9, 0, 0], [0] * 5]
    assert torch.equal(move_whole(canvas.byte(), torch.tensor([[1.0, 0.0], [0.0, -1.0]])), moved.byte())


def test_the_canvas_gives_back_exactly_what_scrolled_out_of_view():
    canvas, seen = Canvas(SIZE, margin=8), picture()
    state = painted(canvas, seen)

    for right in (-3.0, -3.0):  # the camera walks right, over a blank picture
        state = painted(canvas, torch.zeros(1, 3, *SIZE), move_whole(state, torch.tensor([[0.0, right]])))
    views = canvas.views(move_whole(state, torch.tensor([[0.0, 6.0]])), torch.zeros(1, 2))  # and all the way back

    assert views.known[:, :1].min() == 1
    assert torch.equal(views.colours[0][..., :3], seen[..., :3])
    assert views.colours[0][..., 10].abs().max() == 0  # what was painted over on the way is what was painted


def test_the_canvas_says_what_was_never_seen():
    canvas = Canvas(SIZE, margin=8)

    state = move_whole(painted(canvas, picture()), torch.tensor([[0.0, -6.0]]))

    assert canvas.views(state, torch.zeros(1, 2)).known[0, 0, 8].tolist() == [1] * 10 + [0] * 6


def test_what_leaves_the_margin_is_forgotten():
    canvas = Canvas(SIZE, margin=8)
    state = painted(canvas, picture())

    for right in (-30.0, 30.0):
        state = move_whole(state, torch.tensor([[0.0, right]]))

    assert canvas.views(state, torch.zeros(1, 2)).known.sum() == 0


def test_a_closed_gate_keeps_what_was_on_the_canvas():
    canvas, old, new = Canvas(SIZE, margin=8), picture(), -picture()
    gate = torch.zeros(1, 1, *SIZE)
    gate[..., 8:] = 1

    views = canvas.views(canvas.write(painted(canvas, old), new, gate), torch.zeros(1, 2))

    assert torch.equal(views.colours[0][..., :8], old[..., :8])
    assert torch.equal(views.colours[0][..., 8:], new[..., 8:])


def test_the_views_are_the_whole_motions_around_the_fractional_one_nearest_first():
    canvas, pixels = Canvas(SIZE, margin=8), picture(2)

    views = canvas.views(painted(canvas, pixels), torch.tensor([[0.25, -0.4], [-0.25, 0.4]]))

    down_left, up_right = ([view[world] for view in views.colours] for world in (0, 1))
    assert torch.equal(down_left[0], pixels[0])
    assert torch.equal(down_left[1][:, 1:], pixels[0][:, :-1])  # one further down
    assert torch.equal(down_left[2][..., :-1], pixels[0][..., 1:])  # one further left
    assert torch.equal(down_left[3][:, 1:, :-1], pixels[0][:, :-1, 1:])
    assert torch.equal(up_right[3][:, :-1, 1:], pixels[1][:, 1:, :-1])
    squares = [0.25**2 + 0.4**2, 0.75**2 + 0.4**2, 0.25**2 + 0.6**2, 0.75**2 + 0.6**2]
    assert torch.allclose(views.distance, torch.tensor([squares, squares]))


def test_a_canvas_of_bytes_is_written_moved_and_looked_at_like_one_of_numbers():
    canvas, pixels = Canvas(SIZE, margin=8), (picture() * 127.5 + 127.5).round() / 127.5 - 1
    gate, where = torch.full((1, 1, *SIZE), 1.0), torch.tensor([[2.0, -3.0]])
    numbers = canvas.blank(1)

    views = [
        canvas.views(move_whole(canvas.write(kind, pixels, gate), where), torch.tensor([[0.2, -0.1]]))
        for kind in (numbers, to_bytes(numbers))
    ]

    assert torch.equal(views[0].known, views[1].known)
    seen = views[0].known[:, :1]
    assert torch.allclose(views[0].colours[0] * seen, views[1].colours[0] * seen, atol=1e-6)
    assert to_bytes(to_bytes(numbers)).unique().tolist() == [0, 128]  # unseen, grey


def test_sides_are_filled_where_columns_came_into_view_and_nothing_was_seen():
    canvas, new = Canvas(SIZE, margin=4), picture()
    moved = move_whole(painted(canvas, torch.zeros(1, 3, *SIZE)), torch.tensor([[1.0, -3.0]]))
    allowed = torch.ones(1, 1, *SIZE)
    allowed[..., 5, :] = 0.0

    filled = canvas.fill_sides(moved, torch.cat([new, allowed], 1), torch.tensor([[-3.0]]))

    view = canvas.views(filled, torch.zeros(1, 2))
    expected, known = torch.zeros(1, 3, *SIZE), torch.ones(1, *SIZE)
    expected[..., 13:] = new[..., 13:] * allowed[..., 13:]
    known[:, 0, :13], known[:, 5, 13:] = 0.0, 0.0  # a new row is no side
    assert torch.equal(view.colours[0], expected) and torch.equal(view.known[:, 0], known)

    back = canvas.fill_sides(moved, torch.cat([new, allowed], 1), torch.tensor([[3.0]]))
    assert torch.equal(back[:, :, 5:], moved[:, :, 5:])  # at the left everything was seen but the row that is new

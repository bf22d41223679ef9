"""What is drawn ahead tile by tile, where a game draws tiles each at whole pixels of its own."""

import math

import pytest
import torch

from lwm_env.ahead import AheadConfig
from lwm_env.ahead_tiles import AheadTiles
from lwm_env.errors import ConfigMismatch
from lwm_env.lattice import Lattice
from lwm_env.registration import Sighting
from lwm_training.ahead_loss import LIKE, palette_error
from lwm_training.batch import Batch
from lwm_training.tile_strips import find_tiles, learn_by_heart, turn_aside

PITCH, SIZE, MARGIN = 32 / 6.5, 32, 20  # as in CoinRun a tile is a little less than 5 pixels wide
TILE = math.ceil(PITCH)
CONFIG = AheadConfig(tiles=1, width=2 * TILE, rows=3 * TILE, reach=3 * TILE, dim=16, code_dim=2, words=2, palette=6)


@pytest.fixture
def ahead() -> AheadTiles:
    torch.manual_seed(0)
    return AheadTiles(CONFIG, Lattice(PITCH, (SIZE, SIZE), MARGIN))


def level() -> torch.Tensor:
    """Colours of 40 x 40 tiles: (3, 40, 40)."""
    return torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


def look_at(place: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """The view whose upper left corner is so many pixels (2,) down and right in the level: (3, size, size)."""
    down, right = (((torch.arange(size) + 0.5 + at) / PITCH).floor().long() for at in place)
    return level()[:, down][:, :, right]


def phase_of(place: torch.Tensor) -> torch.Tensor:
    """Where the first lines of the lattice lie in views with such corners (..., 2)."""
    return (-place) % PITCH


def walk(step: tuple[float, float], steps: int = 16) -> tuple[Batch, Sighting, torch.Tensor, torch.Tensor]:
    """A clip through the level, how the camera went to the whole pixel, its phases (1, T + 1, 2), and its places."""
    places = torch.tensor([70.3, 70.7]) + torch.arange(steps + 1)[:, None] * torch.tensor(step)
    nothing = torch.zeros(1, steps)
    pixels = torch.stack([look_at(place) for place in places])[None]
    batch = Batch(pixels, nothing[..., None].long(), nothing[..., None].long(), nothing, nothing + 1)
    motion = (places[:-1] - places[1:]).round()[None]
    return batch, Sighting(motion, torch.ones(1, steps, dtype=torch.bool)), phase_of(places)[None], places


@pytest.mark.parametrize("left", [False, True])
def test_what_is_cut_out_of_a_canvas_and_laid_back_is_the_same(ahead, left):
    torch.manual_seed(1)
    side = SIZE + 2 * MARGIN
    canvas = torch.cat([torch.rand(5, 3, side, side) * 2 - 1, torch.ones(5, 1, side, side)], 1)
    phase, edge = torch.rand(5, 2) * PITCH, torch.full((5,), left)
    unseen = canvas.clone()
    unseen[:, 3, :, slice(None, MARGIN) if left else slice(MARGIN + SIZE, None)] = 0

    strip = ahead.sides.crop(canvas, edge, phase)[:, :3, :, -CONFIG.width :]
    laid = ahead.sides.paste(unseen, strip, edge, ~torch.zeros(5, dtype=torch.bool), phase)

    assert torch.equal(laid[:, :3], canvas[:, :3])
    new = (laid[:, 3] - unseen[:, 3]).sum(1)  # of each column, rows that were laid
    columns = (new == SIZE).sum(1)
    assert ((new == 0) | (new == SIZE)).all() and ((columns >= TILE - 1) & (columns < 2 * TILE)).all()


@pytest.mark.parametrize("step", [(0.0, 2.4), (0.0, -2.4), (1.3, 2.1), (3.7, 0.0), (-3.7, 0.9)])
def test_tiles_to_learn_from_are_those_that_came_into_view(ahead, step):
    """Every cell of a strip has the colour of the level's tile there, though the camera was only seen to go by whole
    pixels."""
    batch, seen, phase, places = walk(step)
    across = abs(step[1]) > 1
    tiles = ahead.sides if across else ahead.rows
    known = (batch, seen, phase) if across else turn_aside(batch, seen, phase)

    found = find_tiles(tiles, *known, torch.Generator().manual_seed(0))

    forwards = step[1] > 0 if across else step[0] > 0
    assert len(found.left) and (found.left == (not forwards)).all()
    whole = torch.cat([found.crop[:, :3, :, : CONFIG.reach], found.strip], 3)
    shown = torch.cat([found.crop[:, 3:, :, : CONFIG.reach] > 0, found.visible.expand_as(found.strip[:, :1])], 3)
    cells = whole.unflatten(2, (-1, TILE)).unflatten(4, (-1, TILE))  # (N, 3, rows, TILE, columns, TILE)
    inside = shown.unflatten(2, (-1, TILE)).unflatten(4, (-1, TILE))
    colours = level() if across else level().transpose(1, 2)
    colours = colours if forwards else colours.flip(2)
    for picture, mask in zip(cells, inside, strict=True):
        full = mask[0].all(3).all(1)  # tiles of which all was in view
        one = picture[:, :, 0, :, 0]
        assert (picture == one[:, :, None, :, None]).all(dim=(0, 2, 4))[full].all()
        rows, columns = one.shape[1:]
        places = [
            (y, x)
            for y in range(41 - rows)
            for x in range(41 - columns)
            if torch.equal(colours[:, y : y + rows, x : x + columns][:, full], one[:, full])
        ]
        assert len(places) == 1 and full.sum() > rows * columns / 2


def test_a_step_draws_whole_tiles_where_it_goes_once(ahead):
    batch, _, phase, _ = walk((0.0, 2.4), 1)
    canvas = torch.zeros(1, 4, SIZE + 2 * MARGIN, SIZE + 2 * MARGIN)
    view = (slice(None), slice(None), *[slice(MARGIN, MARGIN + SIZE)] * 2)
    canvas[view] = torch.cat([batch.pixels[:, 0], torch.ones(1, 1, SIZE, SIZE)], 1)

    right = ahead(canvas, torch.tensor([[0.0, -3.0]]), phase[:, 0])
    below = ahead(canvas, torch.tensor([[-3.0, 0.0]]), phase[:, 0])

    for drawn, beyond in (
        (right, right[0, 3, MARGIN : MARGIN + SIZE]),
        (below, below[0, 3, :, MARGIN : MARGIN + SIZE].T),
    ):
        assert torch.equal(drawn[view], canvas[view])
        ends = beyond[:, MARGIN + SIZE :].sum(1)
        assert (ends == ends[0]).all() and not beyond[:, :MARGIN].any()
        line = (phase[0, 0, 0 if drawn is below else 1] - SIZE - ends[0]) / PITCH
        assert abs(line - line.round()) * PITCH <= 0.5  # it ends on a line
    assert torch.equal(ahead(right, torch.tensor([[0.0, -3.0]]), phase[:, 0]), right)
    assert torch.equal(ahead(canvas, torch.zeros(1, 2), phase[:, 0]), canvas)


def test_each_word_is_told_those_before(ahead):
    """Untrained, a word is any of 16 about as likely, and the second depends on the first."""
    features = torch.randn(4, 16, *(ahead.sides.frame_size[0] // TILE, 5))
    numbers = ahead.sides.choose(features, None, 0.0)
    strips = torch.rand(4, 3, ahead.sides.frame_size[0], CONFIG.width)

    told, indices = ahead.sides.recognise(features, strips)

    assert numbers.shape == told.shape == (4, 4) and indices.shape == (4, 2) and ahead.sides.noise_dim == 32
    assert torch.allclose(ahead.sides.codes[indices].flatten(1), told, atol=1e-6)
    assert ahead.sides.unlikely(features, told, indices).item() == pytest.approx(2 * math.log(16), abs=1.0)
    first = [ahead.sides.logits(features, ahead.sides.codes[[word] * 4]) for word in (0, 15)]
    assert not torch.allclose(*first)


def test_a_palette_is_of_tiles_that_were_seen_often_and_differ(ahead):
    """The camera stands still, so all tiles come often but for one that is there in one frame only."""
    batch, _, phase, _ = walk((0.0, 0.0))
    down, right = (ahead.sides.pixels(at, -1, ahead.sides.rows_of_tiles)[0].long() for at in phase[:, 0].T[..., None])
    batch.pixels[0, 12, :, down[TILE] : down[TILE] + TILE, right[TILE] : right[TILE] + TILE] = 1.0

    learn_by_heart(ahead.sides, batch, phase)

    tiles = ahead.sides.palette.unflatten(1, (3, -1))
    assert (tiles == tiles[..., :1]).all() and len(tiles[..., 0].unique(dim=0)) == CONFIG.palette
    assert (torch.cdist(tiles[..., 0], level().flatten(1).T).amin(1) < 1e-3).all()


def test_a_tile_is_as_likely_as_the_best_that_explains_it(ahead):
    """Of a white strip, all equally likely: 1 / LIKE nats where all are grey, ln 7 where one of seven is white."""
    strip, unseen = (torch.ones(2, planes, ahead.sides.frame_size[0], CONFIG.width) for planes in (3, 1))
    votes = torch.zeros(2, CONFIG.palette + 1, ahead.sides.rows_of_tiles, 2)
    grey = torch.zeros_like(strip)
    none = palette_error(ahead.sides, grey, votes, strip, unseen, unseen)
    ahead.sides.palette[3] = 1
    one = palette_error(ahead.sides, grey, votes, strip, unseen, unseen)

    assert none.item() == pytest.approx(1 / LIKE, rel=1e-4)
    assert one.item() == pytest.approx(math.log(CONFIG.palette + 1), rel=1e-4)


def test_what_is_drawn_is_of_the_palette_or_free(ahead):
    tiles = ahead.sides
    features, numbers = torch.randn(3, 16, tiles.rows_of_tiles, 5), torch.zeros(3, 4)
    torch.nn.init.normal_(tiles.palette)
    free, votes = tiles.candidates(features, numbers)

    drawn = torch.nn.functional.pixel_unshuffle(tiles.draw(features, numbers), TILE).movedim(1, 3)

    best = votes.argmax(1)
    assert len(best.unique()) > 2
    for index in best.unique():
        expected = free.movedim(1, 3) if index == CONFIG.palette else tiles.palette[index].expand_as(drawn)
        assert torch.equal(drawn[best == index], expected[best == index])


def test_strips_of_tiles_need_a_lattice(tiny_config):
    with pytest.raises(ConfigMismatch, match="need a lattice"):
        tiny_config.override({"ahead.tiles": 1, "ahead.width": 8, "ahead.reach": 8})
    with pytest.raises(ConfigMismatch, match="multiples of the pixels of a tile"):
        tiny_config.override({"ahead.tiles": 1, "ahead.width": 12, "ahead.reach": 15, "camera.lattice": 4.9})

"""What is drawn ahead: strips of the canvas beyond the edge that the camera goes to."""

import pytest
import torch

from lwm_env.ahead import Ahead, AheadConfig
from lwm_env.errors import ConfigMismatch
from lwm_env.noise import episode_key, gumbel
from lwm_env.registration import Sighting
from lwm_env.world_model import WorldModel
from lwm_training.ahead_loss import rarity
from lwm_training.batch import Batch
from lwm_training.picture_loss import picture_error
from lwm_training.recipe import load_recipe
from lwm_training.stages import check_recipe
from lwm_training.strips import find_strips

SIZE, MARGIN, STRIP = 16, 8, 4
RIGHT, LEFT = torch.tensor([[0.0, -2.0]]), torch.tensor([[0.0, 2.0]])  # where the content goes
NONE = torch.zeros(1, 2)  # left over


@pytest.fixture
def ahead() -> Ahead:
    torch.manual_seed(0)
    return Ahead(AheadConfig(width=STRIP, reach=8, dim=16, code_dim=2), 4, (SIZE, SIZE), MARGIN)


def seen_view(batch: int = 1) -> torch.Tensor:
    """A canvas whose view alone was seen, in random colours."""
    side = SIZE + 2 * MARGIN
    canvas = torch.zeros(batch, 4, side, side)
    view = (slice(None), slice(None), slice(MARGIN, MARGIN + SIZE), slice(MARGIN, MARGIN + SIZE))
    canvas[view] = torch.rand(batch, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    canvas[view][:, 3] = 1
    return canvas


def scroll(step: int, down: int = 0) -> tuple[torch.Tensor, Batch, Sighting]:
    """A wide picture and a clip of 9 views of it, each `step` columns further right and `down` rows further down."""
    wide = torch.rand(3, 3 * SIZE, 5 * SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    tops, lefts = [SIZE + down * t for t in range(9)], [2 * SIZE + step * t for t in range(9)]
    views = [wide[:, y : y + SIZE, x : x + SIZE] for y, x in zip(tops, lefts, strict=True)]
    nothing = torch.zeros(1, 8)
    batch = Batch(torch.stack(views)[None], nothing[..., None].long(), nothing[..., None].long(), nothing, nothing + 1)
    motion = torch.tensor([-float(down), -float(step)]).expand(1, 8, 2)
    return wide, batch, Sighting(motion, torch.ones(1, 8, dtype=torch.bool))


@pytest.mark.parametrize("left", [False, True])
def test_a_pasted_strip_is_what_a_crop_ends_with_and_the_rest_stays(ahead, left):
    canvas, strip = seen_view(), torch.rand(1, 3, SIZE, STRIP)
    edge = torch.tensor([left])

    new = ahead.paste(canvas, strip, edge, torch.tensor([True]))
    crop = ahead.crop(new, edge)

    assert torch.equal(crop[:, :3, :, -STRIP:], strip) and (crop[:, 3, :, -STRIP:] == 1).all()
    view = canvas[:, :, MARGIN : MARGIN + SIZE, MARGIN : MARGIN + SIZE]
    half = view[..., : SIZE // 2].flip(3) if left else view[..., SIZE // 2 :]
    assert torch.equal(crop[..., : SIZE // 2], half)
    assert (new != canvas).any(1).sum() == SIZE * STRIP


def test_what_was_seen_and_what_is_not_wanted_stays(ahead):
    strip, no = torch.rand(2, 3, SIZE, STRIP), torch.zeros(2, dtype=torch.bool)
    seen = seen_view(2)
    seen[:, 3] = 1

    assert torch.equal(ahead.paste(seen, strip, no, ~no), seen)
    assert torch.equal(ahead.paste(seen_view(2), strip, no, no), seen_view(2))


def test_strips_are_drawn_where_the_camera_goes_once(ahead):
    canvas = seen_view()

    right, left = ahead(canvas, RIGHT, NONE)[0, 3], ahead(canvas, LEFT, NONE)[0, 3]
    rows = slice(MARGIN, MARGIN + SIZE)

    assert right[rows, MARGIN + SIZE :][:, :STRIP].all() and not right[:, :MARGIN].any()
    assert left[rows, MARGIN - STRIP : MARGIN].all() and not left[:, MARGIN + SIZE :].any()
    assert torch.equal(ahead(canvas, torch.zeros(1, 2), NONE), canvas)
    once = ahead(canvas, RIGHT, NONE)
    assert torch.equal(ahead(once, RIGHT, NONE), once)


def test_noise_chooses_the_strip_and_temperature_zero_the_likeliest(ahead):
    canvas = seen_view()
    noise = [gumbel(torch.tensor([episode_key(seed, 0)]), torch.tensor([0]), len(ahead.codes)) for seed in range(8)]

    drawn = [ahead(canvas, RIGHT, NONE, numbers, 50.0) for numbers in noise]

    assert len({strip.detach().numpy().tobytes() for strip in drawn}) > 2
    assert torch.equal(ahead(canvas, RIGHT, NONE, noise[0], 0.0), ahead(canvas, RIGHT, NONE))


def test_the_code_that_is_recognised_is_the_one_of_its_index(ahead):
    edge = torch.zeros(5, dtype=torch.bool)
    features = ahead.look(ahead.crop(seen_view(5), edge), edge)
    torch.nn.init.normal_(ahead.posterior[-1].weight, std=3)
    brightness = torch.linspace(-30, 30, 5)[:, None, None, None]

    code, index = ahead.recognise(features, brightness.expand(5, 3, SIZE, STRIP))

    assert torch.allclose(code, ahead.codes[index[:, 0]], atol=1e-6)
    assert len(set(index[:, 0].tolist())) > 1


@pytest.mark.parametrize("step", [2, -2])
def test_strips_to_learn_from_are_what_came_into_view(ahead, step):
    wide, batch, seen = scroll(step)

    found = find_strips(ahead, batch, seen, torch.Generator().manual_seed(0))

    assert len(found.left) and (found.left == (step < 0)).all() and found.visible.all()
    columns = [wide[:, SIZE : 2 * SIZE, x : x + SIZE // 2 + STRIP] for x in range(4 * SIZE)]
    whole = torch.cat([found.crop[:, :3, :, : SIZE // 2], found.strip], 3)
    for picture in whole.flip(3) if step < 0 else whole:
        assert any(torch.equal(picture, column) for column in columns if column.shape == picture.shape)


def test_rows_that_were_not_in_view_do_not_count(ahead):
    _, batch, seen = scroll(2, down=1)  # after two steps the first two rows are out of sight

    found = find_strips(ahead, batch, seen, torch.Generator().manual_seed(0))

    assert (found.visible[:, 0, :, 0].sum(1) == SIZE - 2).all() and not found.visible[:, 0, :2].any()


def test_nothing_is_learned_across_an_end_or_where_the_camera_is_lost(ahead):
    _, batch, seen = scroll(2)
    batch.valid[:] = 0
    _, other, lost = scroll(2)

    assert not len(find_strips(ahead, batch, seen, torch.Generator().manual_seed(0)).left)
    unsure = Sighting(lost.motion, torch.zeros_like(lost.sure))
    assert not len(find_strips(ahead, other, unsure, torch.Generator().manual_seed(0)).left)


def test_rare_colours_count_more():
    """One yellow pixel and 63 dark ones, of which the last row is out of sight: 1 to the root of 1 / 55."""
    strip = torch.full((1, 3, 8, 8), -1.0)
    strip[0, :2, 3, 3] = 1
    visible = (torch.arange(8) < 7).view(1, 1, 8, 1)

    weights = rarity(strip, visible)[0, 0]

    assert weights[3, 3] / weights[0, 0] == pytest.approx(55**0.5) and not weights[7].any()
    assert weights[:7].mean() == pytest.approx(1)


def test_of_two_things_that_may_come_one_is_drawn_whole(ahead):
    """Red three times in four, blue else, whatever the picture shows: drawn so, and never the purple between them."""
    canvas, generator = seen_view(64), torch.Generator().manual_seed(0)
    colours = torch.tensor([[1.0, -1, -1], [-1, -1, 1]])
    optimiser = torch.optim.Adam(ahead.parameters(), 3e-3)
    edge = torch.zeros(64, dtype=torch.bool)
    for _ in range(150):
        blue = (torch.rand(64, generator=generator) < 0.25).long()
        strip = colours[blue][:, :, None, None].expand(-1, -1, SIZE, STRIP)
        features = ahead.look(ahead.crop(canvas, edge), edge)
        code, index = ahead.recognise(features, strip)
        unlikely = ahead.unlikely(features, code, index)
        loss = picture_error(ahead.draw(features, code), strip, 2.0, squared=2.0).mean() + unlikely
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    keys = torch.tensor([episode_key(0, row) for row in range(64)])
    noise = gumbel(keys, torch.zeros(64, dtype=torch.int64), len(ahead.codes))

    with torch.no_grad():
        drawn = ahead(canvas, RIGHT.expand(64, 2), NONE.expand(64, 2), noise, 1.0)
        likeliest = ahead(canvas, RIGHT.expand(64, 2), NONE.expand(64, 2))
    first = (slice(None), slice(None, 3), slice(MARGIN, MARGIN + SIZE), slice(MARGIN + SIZE, MARGIN + SIZE + STRIP))
    nearest = torch.cdist(drawn[first].mean((2, 3)), colours)

    assert nearest.amin(1).max() < 0.3
    assert 0.1 < nearest.argmin(1).float().mean() < 0.45
    assert (torch.cdist(likeliest[first].mean((2, 3)), colours).argmin(1) == 0).all()


def test_codes_far_less_likely_than_the_likeliest_are_never_drawn():
    """Of probabilities 0.6, 0.3, 0.06 and 0.04 the last two are below a fifth of the first, and left out."""
    config = AheadConfig(width=STRIP, reach=8, dim=8, code_dim=1, least=0.2)
    ahead, likely = Ahead(config, 4, (16, 16), 8), torch.tensor([0.6, 0.3, 0.06, 0.04])
    ahead.logits = lambda features, told: likely.log().expand(len(features), -1)
    noise = -torch.log(-torch.log(torch.rand(4000, 4, generator=torch.Generator().manual_seed(0))))

    numbers = ahead.choose(torch.zeros(4000, 1), noise, 1.0)
    drawn = (numbers == ahead.codes[:, 0]).float().mean(0)

    assert drawn[2:].sum() == 0 and drawn[0].item() == pytest.approx(2 / 3, abs=0.03)


def test_a_world_draws_ahead_in_dreams_and_samples_nothing_else(tiny_config, tiny_spec):
    torch.manual_seed(0)
    model = WorldModel(tiny_config.override({"ahead.width": STRIP, "ahead.code_dim": 2}), tiny_spec).eval()
    state = model.start(torch.randint(0, 256, (2, 1, 16, 16, 3), dtype=torch.uint8), torch.zeros(2, 0, 1).long())

    new, _ = model.step(state, torch.zeros(2, 1).long(), torch.randn(2, model.noise_dim), 1.0)

    assert model.noise_dim == 16
    assert {name: value.shape for name, value in new.items()} == {name: value.shape for name, value in state.items()}
    logits = torch.randn(2, *model.token_shape)
    assert torch.equal(model.sample(logits, torch.randn(2, 16), 9.0), logits.argmax(2))


def test_sizes_that_do_not_fit_are_told(tiny_config):
    with pytest.raises(ConfigMismatch, match=r"ahead\.width 6, .* multiples of the tokenizer's patch, 4"):
        tiny_config.override({"ahead.width": 6})
    with pytest.raises(ConfigMismatch, match=r"ahead\.beside is 4, but the view does not turn"):
        tiny_config.override({"ahead.width": 4, "ahead.beside": 4})
    with pytest.raises(ConfigMismatch, match=r"ahead\.width 40 and ahead\.rows 0 must be below the margin"):
        tiny_config.override({"ahead.width": 40})
    with pytest.raises(ValueError, match="4096 codes"):
        AheadConfig(code_dim=9)
    recipe = load_recipe("training/recipes/platformer.toml", ('model.overrides={"ahead.width"=0}',))
    with pytest.raises(ConfigMismatch, match=r"ahead\.width is 0"):
        check_recipe(recipe, 1)

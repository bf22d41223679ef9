"""A recipe says all that is wrong with it before a training run starts, and is the same on every machine."""

from pathlib import Path

import pytest

from lwm_env.errors import ConfigMismatch
from lwm_training.recipe import Recipe, load_recipe

RECIPE = """
[world]
id = "LWM-Tiny-v0"
description = "A corridor."
frame_size = [64, 64]
reward_values = [0, 10]

[world.actions]
kind = "discrete"
meanings = ["NOOP", "LEFT"]
source_actions = [4, 1]
keys = { LEFT = ["a"] }

[world.real]
source = "envpool:CoinrunEasy-v0"
options = { num_threads = 2, use_backgrounds = true }
splits = { train = { start_level = 0, num_levels = 500_000_000 } }

[model]
preset = "nano"
[model.overrides]
margin = 16
motion.dim = 48

[data]
kind = "stream"
num_envs = 32
policy = "sticky"
shard_steps = 128

[train]
seed = 7
batch_size = 16
checkpoint_minutes = 2
log_every = 20

[[train.stages]]
name = "codec"
trains = "tokenizer"
minutes = 1.5
learning_rate = 1e-3

[[train.stages]]
name = "unroll"
trains = "joint"
steps = 500
learning_rate = 3e-4
warmup = 50
unroll = 4
loss = { reward = 1, tokens = 0.25 }
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def with_line(path, old, new):
    assert RECIPE.count(old) == 1
    path.write_text(RECIPE.replace(old, new))
    return path


def test_recipe_has_every_value_of_the_file(path):
    recipe = load_recipe(path)

    assert recipe.world.actions.meanings == ("NOOP", "LEFT")
    assert recipe.world.real.options == {"num_threads": 2, "use_backgrounds": True}
    assert recipe.model.overrides == {"margin": 16, "motion.dim": 48}
    assert (recipe.data.kind, recipe.data.num_envs, recipe.data.path) == ("stream", 32, None)
    first, second = recipe.train.stages
    assert (first.minutes, first.steps, first.unroll) == (1.5, None, 1)
    assert (second.steps, second.trains, second.loss) == (500, "joint", {"reward": 1.0, "tokens": 0.25})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("batch_size = 16", 'batch_size = "16"', 'train.batch_size: got "16", expected a valid integer'),
        ("batch_size = 16", "batch_size = 0", "train.batch_size: got 0, expected greater than or equal to 1"),
        ("batch_size = 16", "batch_size = 16.0", "train.batch_size: got 16.0, expected a valid integer"),
        ("batch_size = 16", "batch_size = true", "train.batch_size: got true, expected a valid integer"),
        ("batch_size = 16", "", "train.batch_size is missing"),
        ("batch_size = 16", "batchsize = 16", "train.batchsize is no key of a recipe. Did you mean batch_size?"),
        ("warmup = 50", "wamrup = 50", "train.stages[1].wamrup is no key of a recipe. Did you mean warmup?"),
        ("source_actions = [4, 1]", "sources = [4, 1]", "world.actions.source_actions is missing"),
        ("source_actions = [4, 1]", "meening = 1", "world.actions.meening is no key of a recipe. Did you mean m"),
        ("source_actions = [4, 1]", 'source_actions = [4, "1"]', 'world.actions.source_actions[1]: got "1", expected'),
        ('kind = "discrete"', "", "expected a key kind of 'discrete' or 'continuous'"),
        ("frame_size = [64, 64]", "frame_size = [64]", "world.frame_size[1] is missing"),
        ("motion.dim = 48", "motion.dim = true", "model.overrides.motion.dim: got true, expected a valid integer"),
        ("options = { num_threads = 2,", "options = { num_threads = [2],", "world.real.options.num_threads: got [2], "),
        ('preset = "nano"', 'preset = "nono"', "model.preset: got \"nono\", expected 'pico', 'nano'"),
        ('kind = "stream"', 'kind = "store"', "expected a path with kind = \"store\""),
        ('kind = "stream"', 'kind = "store"\npath = "x"\nprompt_policy = "random"', "expected no prompt_policy"),
        ("num_envs = 32", 'path = "x.h5"', "expected no path with kind = \"stream\""),
        ("steps = 500", "steps = 500\nminutes = 1", "expected either steps or minutes, not both"),
        ("steps = 500", "", "expected either steps or minutes, not both"),
        ('name = "unroll"', 'name = "codec"', "expected another name for each stage, got codec, codec"),
        ("learning_rate = 3e-4", "learning_rate = nan", "train.stages[1].learning_rate: got nan, expected a finite"),
        ("reward = 1", 'reward = "much"', 'train.stages[1].loss.reward: got "much", expected a valid number'),
        ("reward = 1", "reward = 2026-01-01", "train.stages[1].loss.reward: got 2026-01-01, expected text or a number"),
        ("seed = 7", "seed = ", "is not valid TOML"),
        ("[train]", "[trian]", "trian is no key of a recipe. Did you mean train?"),
    ],
)  # fmt: skip
def test_error_names_file_field_what_came_and_what_was_expected(path, old, new, expected):
    with pytest.raises(ConfigMismatch) as error:
        load_recipe(with_line(path, old, new))

    assert expected in str(error.value)
    assert str(path) in str(error.value)


def test_all_problems_are_named_at_once(path):
    with pytest.raises(ConfigMismatch) as error:
        load_recipe(path, ["train.seed=x", "data.num_env=3", "world.render_fps=1.5"])

    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert "train.seed=x data.num_env=3" in lines[0]


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"[" * 100_000, b"x = " + b"[" * 100_000])
def test_unreadable_file_is_a_config_mismatch(path, content):
    path = path.with_name("other.toml")
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigMismatch, match=r"other\.toml"):
        load_recipe(path)


def test_absent_file_suggests_its_neighbour(path):
    with pytest.raises(ConfigMismatch, match=r"Did you mean .*tiny\.toml\?"):
        load_recipe(path.with_name("tyni.toml"))


def test_file_with_a_byte_order_mark_loads(path):
    path.write_bytes(b"\xef\xbb\xbf" + RECIPE.encode())

    assert load_recipe(path).train.seed == 7


def test_overrides_reach_tables_stages_and_model_settings(path):
    recipe = load_recipe(
        path,
        [
            "train.batch_size = 8",
            "train.stages.unroll.unroll=2",
            "train.stages[0].loss.codec=2",
            "train.stages.0.steps=3",
            "model.preset=small",
            "model.overrides.motion.bottleneck_dim=64",
            "world.frame_size=[32, 48]",
            "data.kind=store",
            'data.path="runs/a=b.h5"',
        ],
    )

    assert recipe.train.batch_size == 8
    first, second = recipe.train.stages
    assert (first.steps, first.minutes, first.loss) == (3, None, {"codec": 2.0})
    assert (second.steps, second.unroll) == (500, 2)
    assert recipe.model.preset == "small"
    assert recipe.model.overrides == {"margin": 16, "motion.dim": 48, "motion.bottleneck_dim": 64}
    assert recipe.world.frame_size == (32, 48)
    assert (recipe.data.kind, recipe.data.path) == ("store", "runs/a=b.h5")


def test_train_steps_is_short_for_the_same_in_every_stage(path):
    stages = load_recipe(path, ["train.steps=10"]).train.stages

    assert [(stage.steps, stage.minutes) for stage in stages] == [(10, None), (10, None)]


@pytest.mark.parametrize(
    "override",
    ["train.seed", "=3", "train..seed=1", "train.seed.x=1", "train.stages.9.steps=1", "train.stages.codecs.steps=1",
     "world.frame_size.0=32", "train.seed=1\nx=2"],
)  # fmt: skip
def test_bad_override_is_a_config_mismatch_that_quotes_it(path, override):
    with pytest.raises(ConfigMismatch) as error:
        load_recipe(path, [override])

    assert override in str(error.value) or repr(override) in str(error.value)


def test_json_and_hash_depend_on_values_and_not_on_how_they_were_written(path):
    recipe = load_recipe(path)
    head, data, rest = RECIPE.partition("[data]")
    data, train, rest = (data + rest).partition("[train]")
    path.write_text(train + rest.replace("checkpoint_minutes = 2", "checkpoint_minutes = 2.0") + data + head)

    again = load_recipe(path)

    assert again.to_json() == recipe.to_json()
    assert again.hash == recipe.hash
    assert load_recipe(path, ["train.seed=8"]).hash != recipe.hash
    assert Recipe.model_validate_json(recipe.to_json(), strict=True) == recipe


def test_recipe_is_frozen(path):
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(path).train.seed = 1


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "training" / "recipes").glob("*.toml")))
def test_every_recipe_describes_a_world_that_steps(path):
    """Without memory, on the meta device: the shapes of a step fit at that size."""
    torch = pytest.importorskip("torch")
    from lwm_env.card import work_of_a_frame
    from lwm_env.presets import PRESETS
    from lwm_env.world_model import WorldModel
    from lwm_training.stages import check_recipe

    recipe = load_recipe(path)
    check_recipe(recipe, 1)
    overrides = {"frame_size": recipe.world.frame_size, **recipe.model.overrides}
    with torch.device("meta"):
        model = WorldModel(PRESETS[recipe.model.preset].override(overrides), recipe.world)

    flops, _ = work_of_a_frame(model)

    assert flops > 5e7

"""A teacher follows its student, and what it tells is what is learned; a whole distillation, killed and resumed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lwm_env import worlds
from lwm_env.errors import ConfigMismatch
from lwm_env.registration import Sighting
from lwm_env.world_model import Prompts, WorldModel

pytest.importorskip("accelerate", reason="needs the extra `train`")
pytest.importorskip("tensorboard", reason="needs the extra `train`")
pytest.importorskip("h5py", reason="needs the extra `data`")

from lwm_env.cli import main as lwm
from lwm_training import loss
from lwm_training.batch import as_batch, at, context_belief, sightings
from lwm_training.checkpoint import load_latest
from lwm_training.clips import Clips
from lwm_training.distill_recipe import distill_recipe, without_teacher
from lwm_training.episode import Layout, pack_episode
from lwm_training.episode_writer import EpisodeWriter
from lwm_training.loss import LossWeights, unroll_errors
from lwm_training.recipe import Recipe, Stage
from lwm_training.stages import Objective, check_recipe, trained_parameters
from lwm_training.teacher import Teaching, divergence, on_grid, take_parts
from lwm_training.train import Run, make_accelerator, train_world
from lwm_training.train_log import TrainLog

LARGER = {
    "tokenizer.patch": 2, "tokenizer.latent_dim": 6, "motion.dim": 12, "dynamics.dim": 12, "camera.carry_dim": 12,
}  # fmt: skip
SMALLER = {
    "frame_size": (16, 16), "margin": 8, "tokenizer.encoder_dim": 8, "tokenizer.encoder_blocks": 1,
    "tokenizer.fine_dim": 8, "tokenizer.decoder_dim": 8, "tokenizer.decoder_blocks": 1, "camera.middle_dim": 8,
    "camera.whole_dim": 4, "camera.hidden_dim": 16, "camera.carry_dim": 8, "motion.dim": 8,
    "motion.bottleneck_dim": 16, "motion.bottleneck_blocks": 1, "dynamics.dim": 8, "dynamics.blocks": 1,
    "dynamics.event_dim": 8,
}  # fmt: skip


def scrolling(batch: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (B, T + 1, 16, 16, 3) of a wall of blocks that moves two pixels left or right, and actions (B, T)."""
    random = np.random.default_rng(0)
    wall = random.integers(0, 256, (batch, 4, 20, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    actions = random.integers(0, 3, (batch, steps))
    places = 32 + np.cumsum(np.pad(np.array([0, -2, 2])[actions], ((0, 0), (1, 0))), 1).clip(-30, 30)
    frames = [[wall[row, :, place : place + 16] for place in places[row]] for row in range(batch)]
    return np.array(frames), actions


STILL = Sighting(torch.zeros(4, 2), torch.ones(4, dtype=torch.bool))


def clips(batch: int = 4, steps: int = 5) -> Clips:
    frames, actions = scrolling(batch, steps)
    return Clips(
        observations=frames,
        actions=actions[..., None],
        rewards=np.zeros((batch, steps, 1), np.float32),
        terminations=np.zeros((batch, steps), bool),
        valid=np.ones((batch, steps), bool),
    )


def made(config, spec, seed: int, enliven=None) -> WorldModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WorldModel(config, spec)
        frames, actions = scrolling(4, 2)
        model.prompts = Prompts(torch.from_numpy(frames), torch.from_numpy(actions[..., None]))
        if enliven is not None:
            enliven(model)
    return model


@pytest.fixture(scope="module")
def large(tiny_config, tiny_spec, enliven) -> WorldModel:
    """A teacher of another shape in everything."""
    return made(tiny_config.override(LARGER), tiny_spec, 1, enliven)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Recorded play of the teacher's game."""
    folder = tmp_path_factory.mktemp("data") / "scroll"
    layout = Layout((16, 16), ("player_0",), num_actions=3)
    frames, actions = scrolling(6, 20)
    with EpisodeWriter(folder, layout, {"source": "tests", "licences": {"pictures": "CC0"}}) as writer:
        for row in range(len(frames)):
            ends = np.arange(20) == 19
            steps = {"actions": actions[row], "rewards": 10.0 * ends, "terminations": ends, "truncations": 0 * ends}
            writer.append(pack_episode(layout, frames[row], steps, seed=row))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, large, data) -> Path:
    """The folder of the large teacher, which tells what it learned from."""
    path = tmp_path_factory.mktemp("teacher") / "large"
    recipe = {"data": {"kind": "store", "path": str(data)}}
    large.save(path, provenance={"licences": {"weights": "of the teacher"}, "recipe": recipe, "restricted": ["r-1"]})
    return path


STAGES = """[
    { name = "tokenizer", trains = "tokenizer", steps = 2, learning_rate = 3e-3 },
    { name = "camera", trains = "camera", steps = 1, learning_rate = 2e-3, context = 2, unroll = 2 },
    { name = "offline", trains = "dynamics", steps = 2, learning_rate = 2e-3, context = 2, loss.on_policy = 0.0 },
    { name = "relabel", trains = "joint", steps = 2, learning_rate = 1e-3, context = 2, unroll = 3,
      loss.teacher_tokens = 0.5, loss.on_policy = 0.5 },
]"""


@pytest.fixture(scope="module")
def changes() -> list[str]:
    """Overrides that make a distillation tiny."""
    model = [f"model.overrides.{name}={value}" for name, value in SMALLER.items() if name != "frame_size"]
    stages = "train.stages=" + " ".join(STAGES.split())
    quick = ["train.batch_size=3", "train.checkpoint_minutes=1e-7", "train.log_every=1"]
    return [*model, stages, *quick]


@pytest.fixture(scope="module")
def recipe(teacher, changes) -> Recipe:
    return distill_recipe(str(teacher), "nano", None, changes)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """The folder of a distillation that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train_world(recipe, out, "cpu")
    return out


def weights_for(**changes: float) -> LossWeights:
    return LossWeights.from_recipe(changes)


@pytest.mark.parametrize("on_policy", [0.0, 0.5, 1.0])
def test_a_teacher_with_the_students_weights_has_nothing_to_tell_wherever_the_student_goes(
    tiny_config, tiny_spec, enliven, on_policy
):
    student, twin = (made(tiny_config, tiny_spec, 0, enliven) for _ in range(2))
    teaching = Teaching(twin, student)
    teaching.compare_tokens(student)
    batch = as_batch(clips(), student)

    told = unroll_errors(
        student, batch, 2, weights_for(on_policy=on_policy), torch.Generator().manual_seed(1), teaching
    )

    assert teaching.shares_tokens
    assert told["tokens"] > 0.1 and told["drawn"] > 0.1  # the real frames do have something to tell
    assert told["teacher_motion"].abs() < 1e-5 and told["teacher_tokens"].abs() < 1e-4


def test_off_policy_the_targets_are_what_the_teacher_predicts_from_real_frames(tiny_config, tiny_spec, enliven):
    student, other = made(tiny_config, tiny_spec, 0, enliven), made(tiny_config, tiny_spec, 2, enliven)
    other.tokenizer.load_state_dict(student.tokenizer.state_dict())
    teaching = Teaching(other, student)
    teaching.compare_tokens(student)
    batch, context, steps = as_batch(clips(), student), 2, 5
    seen = sightings(student, batch)

    told = unroll_errors(
        student, batch, context, weights_for(on_policy=0.0), torch.Generator().manual_seed(1), teaching
    )

    expected = 0.0
    for t in range(context - 1, steps):  # both observe the real frames up to t, as an env is started
        ours, theirs = (context_belief(world, batch, seen, t + 1) for world in (student, other))
        proposal = student.propose(ours, batch.actions[:, t], at(seen, t))
        target = other.propose(theirs, batch.actions[:, t], loss.moved_by(student, ours, proposal))
        expected += divergence(target.logits, proposal.logits, 2).mean().item() / (steps - context + 1)
    assert told["teacher_tokens"].item() == pytest.approx(expected, rel=1e-3)


def test_on_policy_the_teacher_sees_the_pictures_that_the_student_has_drawn(tiny_config, tiny_spec, large, enliven):
    student = made(tiny_config, tiny_spec, 0, enliven)
    teaching, seen, drawn = Teaching(large, student), [], []
    batch = as_batch(clips(), student)
    follow, commit = teaching.follow, student.commit
    teaching.follow = lambda belief, told, picture: (seen.append(picture), follow(belief, told, picture))[1]
    student.commit = lambda belief, proposal, picture: (drawn.append(picture), commit(belief, proposal, picture))[1]

    unroll_errors(student, batch, 2, weights_for(on_policy=1.0), torch.Generator().manual_seed(1), teaching)

    assert len(seen) == len(drawn) == 4
    for t, (theirs, ours) in enumerate(zip(seen, drawn, strict=True)):
        assert torch.equal(theirs, ours)
        assert (ours - batch.pixels[:, t + 2]).abs().mean() > 0.1


def test_where_tokens_mean_something_else_the_teachers_picture_is_encoded_anew(tiny_config, tiny_spec, large):
    student = made(tiny_config, tiny_spec, 0)
    teaching = Teaching(large, student)
    teaching.compare_tokens(student)
    batch = as_batch(clips(), student)
    belief = student.believe(batch.pixels[:, 0])
    told = teaching.tell(large.believe(batch.pixels[:, 0]), batch.actions[:, 0], STILL)
    sure_of_it = torch.nn.functional.one_hot(student.tokenizer.indices(student.tokenizer.encode(told.picture)), 8)
    proposal = student.propose(belief, batch.actions[:, 0])
    right = proposal._replace(logits=50.0 * sure_of_it.movedim(-1, 2))
    drawn = loss.Drawn(told.picture, torch.zeros(4, 1, 2), torch.zeros(4))

    errors = teaching.step_errors(student, told, right, drawn, told.picture, edges=2.0)

    assert not teaching.shares_tokens
    assert errors["teacher_tokens"].max() < 1e-5 and errors["teacher_drawn"].abs().max() == 0


def test_reward_and_end_are_taught_as_the_teacher_sees_them_in_what_comes_next(tiny_config, tiny_spec, large):
    student = made(tiny_config, tiny_spec, 0)
    teaching = Teaching(large, student)
    batch = as_batch(clips(), student)
    told = teaching.tell(large.believe(batch.pixels[:, 0]), batch.actions[:, 0], STILL)
    latent = large.tokenizer.quantize(large.tokenizer.encode(batch.pixels[:, 1]))
    reward, end = large.happenings(told.proposal, latent)
    proposal = student.propose(student.believe(batch.pixels[:, 0]), batch.actions[:, 0])

    def errors(reward, end):
        drawn = loss.Drawn(told.picture, reward, end)
        return teaching.step_errors(student, told, proposal, drawn, batch.pixels[:, 1], edges=2.0)

    same, other = errors(reward, end), errors(reward + torch.tensor([0.0, 3.0]), end + 2)

    entropy = torch.nn.functional.binary_cross_entropy_with_logits(end, end.sigmoid(), reduction="none")
    assert same["teacher_reward"].abs().max() < 1e-5 and torch.allclose(same["teacher_end"], entropy)
    assert (other["teacher_reward"] > 1e-3).all() and (other["teacher_end"] > same["teacher_end"]).all()


def test_a_student_learns_what_its_teacher_tells(tiny_config, tiny_spec, large, enliven):
    student = made(tiny_config, tiny_spec, 0, enliven)
    stage = Stage(name="s", trains="joint", steps=1, learning_rate=1e-3, context=2)
    objective = Objective(student, stage, LossWeights(), Teaching(large, student))
    parameters = trained_parameters(student, stage, objective.teaching)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)

    def learn() -> dict[str, float]:
        losses = objective(clips(2, 2), 2, torch.Generator().manual_seed(1))
        taught = {name: value for name, value in losses.items() if name.startswith("teacher_")}
        optimizer.zero_grad()
        torch.stack(list(taught.values())).sum().backward()
        optimizer.step()
        return {name: value.item() for name, value in taught.items()}

    first = learn()
    last = [learn() for _ in range(15)][-1]

    assert set(first) == {
        f"teacher_{name}" for name in ("latent", "tokens", "drawn", "hidden", "reward", "end", "motion")
    }
    for name in ("teacher_latent", "teacher_drawn", "teacher_hidden"):
        assert last[name] < 0.9 * first[name], name
    assert not any(weight.requires_grad or weight.grad is not None for weight in large.parameters())


def test_tokens_are_not_shared_with_an_encoder_that_is_trained(tiny_config, tiny_spec):
    student, twin = (made(tiny_config, tiny_spec, 0) for _ in range(2))
    teaching, shared = Teaching(twin, student), []

    for trains in ("dynamics", "joint"):
        trained_parameters(student, Stage(name="s", trains=trains, steps=1, learning_rate=1e-3))
        teaching.compare_tokens(student)
        shared.append(teaching.shares_tokens)

    assert shared == [True, False]


def test_features_keep_their_mean_on_a_coarser_grid_and_a_constant_on_a_finer_one():
    features = torch.arange(16.0).view(1, 1, 4, 4)

    assert on_grid(features, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert on_grid(torch.ones(1, 1, 2, 2), (4, 4)).unique().tolist() == [1.0]
    assert on_grid(features, (4, 4)) is features


def test_parts_are_taken_as_they_are_and_only_where_they_fit(tiny_config, tiny_spec, large):
    student, twin = made(tiny_config, tiny_spec, 0), made(tiny_config, tiny_spec, 5)

    take_parts(student, twin, ("tokenizer",))

    assert torch.equal(student.tokenizer.stem.weight, twin.tokenizer.stem.weight)
    assert not torch.equal(student.camera.look.weight, twin.camera.look.weight)
    with pytest.raises(ConfigMismatch, match="distill.take names the camera"):
        take_parts(student, large, ("camera",))


def test_a_student_of_the_same_settings_takes_tokenizer_and_camera_and_does_not_learn_them(tmp_path, large, data):
    recipe = {"data": {"kind": "store", "path": str(data)}}
    large.save(tmp_path / "teacher", provenance={"recipe": recipe})
    alike = {**SMALLER, **LARGER, "dynamics.dim": 6, "motion.dim": 6}
    changes = [f"model.overrides.{name}={value}" for name, value in alike.items() if name != "frame_size"]

    recipe = distill_recipe(str(tmp_path / "teacher"), "nano", None, changes)

    assert recipe.distill.take == ("tokenizer", "camera")
    assert [stage.name for stage in recipe.train.stages] == ["offline", "relabel-8", "relabel-16"]
    control = without_teacher(recipe)
    assert [stage.name for stage in control.train.stages][:2] == ["tokenizer", "camera"]
    student = Run(recipe, tmp_path / "run", make_accelerator("cpu")).model
    given = WorldModel.load(tmp_path / "teacher")
    assert all(torch.equal(a, b) for a, b in zip(student.camera.parameters(), given.camera.parameters(), strict=True))


def test_a_control_takes_as_many_steps_as_the_student_took(whole, recipe, tiny_world):
    took = {stage["name"]: stage["steps"] for stage in worlds.verify(whole / "world").provenance["stages"]}
    stages = [stage.model_copy(update={"minutes": 9.0, "steps": None}) for stage in recipe.train.stages]
    timed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"stages": tuple(stages)})})

    control = without_teacher(timed, str(whole / "world"))

    assert {stage.name: (stage.steps, stage.minutes) for stage in control.train.stages} == {
        name: (steps, None) for name, steps in took.items()
    }
    with pytest.raises(ConfigMismatch, match="does not tell how many steps"):
        without_teacher(timed, str(tiny_world))


def test_a_distillation_ends_in_a_world_that_tells_its_teacher_and_all_licences(whole, teacher, recipe):
    manifest = worlds.verify(whole / "world")
    told = manifest.provenance

    assert recipe.distill.take == () and len(told["stages"]) == 4
    assert told["teacher"]["weights"] == WorldModel.load(teacher).weights_hash
    assert told["teacher"]["parameters"] == sum(p.numel() for p in WorldModel.load(teacher).parameters())
    assert told["licences"] == {"pictures": "CC0", "weights": "of the teacher"}
    assert told["restricted"] == ["r-1"]
    assert not [name for name in WorldModel.load(whole / "world").state_dict() if "adapter" in name]


def test_the_log_has_the_teachers_terms_of_each_stage(whole):
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    terms = {line["stage"]: {name for name in line if name.startswith("teacher_")} for line in lines}

    assert terms["tokenizer"] == {"teacher_latent"} and terms["camera"] == {"teacher_motion"}
    assert "teacher_latent" not in terms["offline"] and len(terms["offline"]) == 6 and len(terms["relabel"]) == 7


class Stop(Exception):
    """Stands for a kill."""


class StoppingLog(TrainLog):
    def step(self, bar, place, losses, frames, share):
        super().step(bar, place, losses, frames, share)
        if place["total_steps"] == self.stop_at:
            raise Stop


@pytest.mark.parametrize("step", [4, 6, 7])
def test_a_distillation_that_was_killed_goes_on_bit_equal(recipe, whole, tmp_path, step):
    with StoppingLog(tmp_path, enabled=True, log_every=1) as log_book, pytest.raises(Stop):
        log_book.stop_at = step
        Run(recipe, tmp_path, make_accelerator("cpu")).train(log_book)

    train_world(recipe, tmp_path, "cpu")

    ours, expected = (load_latest(out / "checkpoints").tensors for out in (tmp_path, whole))
    assert any(name.startswith("teaching.latent_adapter") for name in expected)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_without_the_teacher_the_same_student_begins_with_the_same_weights(recipe, tmp_path):
    alone = without_teacher(recipe)

    taught, control = (Run(given, tmp_path, make_accelerator("cpu")).model for given in (recipe, alone))

    own = [{}, {}, {"on_policy": 0.0}, {"on_policy": 0.5}]
    assert alone.distill is None and [stage.loss for stage in alone.train.stages] == own
    assert all(torch.equal(a, b) for a, b in zip(taught.parameters(), control.parameters(), strict=True))


def test_the_command_distils_and_tells_the_compression(teacher, changes, tmp_path, capsys):
    given = [option for change in [*changes, "train.steps=1", 'train.only=["offline"]'] for option in ("-o", change)]

    code = lwm(["distill", str(teacher), "nano", "--out", str(tmp_path / "run"), "--device", "cpu", "--json", *given])

    told = json.loads(capsys.readouterr().out)
    student = WorldModel.load(told["world"])
    assert code == 0 and told["student_parameters"] == sum(p.numel() for p in student.parameters())
    assert told["teacher_parameters"] == sum(p.numel() for p in WorldModel.load(teacher).parameters())


def own_recipe(tmp_path: Path) -> Path:
    """A recipe of the same game under another name."""
    path = tmp_path / "own.toml"
    path.write_text(
        '[world]\nid = "LWM-Own-v0"\ndescription = "d"\nframe_size = [16, 16]\nreward_values = [0.0, 10.0]\n'
        'real.source = "tests"\nactions = { kind = "discrete", meanings = ["NOOP", "LEFT", "RIGHT"], '
        'source_actions = [0, 1, 2] }\n[licences]\nweights = "MIT"\n[train]\nbatch_size = 2\nstages = '
        + " ".join(STAGES.split())
    )
    return path


def test_fine_tuning_begins_with_the_base_and_carries_its_licences_on(whole, changes, data, tmp_path, capsys):
    base = whole / "world"
    new = ["train.stages=[{name='all',trains='joint',steps=1,learning_rate=1e-3,context=2}]", "data.kind=store"]
    overrides = [*(change for change in changes if "stages" not in change), *new, f"data.path={data}"]
    given = [option for change in overrides for option in ("-o", change)]

    code = lwm(
        ["train", str(own_recipe(tmp_path)), "--from", str(base), "--out", str(tmp_path / "run"), "--json", *given]
    )

    provenance = worlds.read_manifest(json.loads(capsys.readouterr().out)["world"]).provenance
    assert code == 0 and provenance["started_from"]["weights"] == WorldModel.load(base).weights_hash
    assert provenance["started_from"]["fresh"] == [] and provenance["restricted"] == ["r-1"]
    licences = {"pictures": "CC0", "weights": "MIT", "weights (base)": "of the teacher"}
    assert provenance["licences"] == licences
    teacher = worlds.read_manifest(base).provenance["teacher"]
    assert teacher["weights"] and provenance["started_from"]["teacher"] == teacher and provenance["teacher"] is None


def test_a_recipe_of_ones_own_gets_the_teacher_and_the_size(teacher, changes, recipe, tmp_path):
    own = distill_recipe(str(teacher), "small", own_recipe(tmp_path), ["train.seed=3"])

    assert (own.world.id, own.model.preset, own.distill.teacher) == ("LWM-Own-v0", "small", str(teacher))
    assert own.train.seed == 3 and own.distill.take == ()


def test_a_teacher_of_another_game_is_refused(teacher, changes, tmp_path):
    other = distill_recipe(str(teacher), "nano", None, [*changes, "world.reward_values=[0.0, 1.0]"])

    with pytest.raises(ConfigMismatch, match=r"has reward_values \(0.0, 10.0\), the student LWM-Tiny-v0 has"):
        train_world(other, tmp_path, "cpu")


def test_terms_of_a_teacher_need_one(recipe):
    alone = recipe.model_copy(update={"distill": None})

    with pytest.raises(ConfigMismatch, match="the stage relabel weighs teacher_tokens, but the recipe has no teacher"):
        check_recipe(alone, 1)


def test_a_teacher_that_does_not_tell_its_data_needs_a_recipe(tiny_world):
    with pytest.raises(ConfigMismatch, match="--recipe RECIPE"):
        distill_recipe(str(tiny_world), "nano", None)

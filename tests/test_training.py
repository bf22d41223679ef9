"""A tiny run of every kind of stage, what a kill leaves of it, and what several processes make of it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces

from lwm_env import worlds
from lwm_env.errors import ConfigMismatch, StorageError, TrainingDiverged
from lwm_env.world_model import WorldModel

pytest.importorskip("accelerate", reason="needs the extra `train`")
pytest.importorskip("tensorboard", reason="needs the extra `train`")

from lwm_env.cli import main as lwm
from lwm_training.checkpoint import load_latest
from lwm_training.recipe import Recipe, load_recipe
from lwm_training.stages import check_recipe
from lwm_training.train import Run, make_accelerator, train_world
from lwm_training.train_log import TrainLog

GAME = "LwmTest/Scroll-v0"
RECIPE = f"""
[world]
id = "LWM-Scroll-v0"
description = "a world of the tests"
frame_size = [16, 16]
reward_values = [0.0, 10.0]
max_episode_steps = 12
real.source = "gymnasium:{GAME}"
actions = {{ kind = "discrete", meanings = ["NOOP", "LEFT", "RIGHT"], source_actions = [0, 1, 2] }}

[model.overrides]
margin = 8
tokenizer = {{ encoder_dim = 8, encoder_blocks = 1, fine_dim = 8, decoder_dim = 8, decoder_blocks = 1 }}
camera = {{ middle_dim = 8, whole_dim = 4, hidden_dim = 16, carry_dim = 8 }}
motion = {{ dim = 8, bottleneck_dim = 16, bottleneck_blocks = 1 }}
dynamics = {{ dim = 8, blocks = 1, event_dim = 8 }}

[data]
num_envs = 4
shard_steps = 40

[train]
batch_size = 4
log_every = 1
checkpoint_minutes = 1e-7 # after every step
stages = [
    {{ name = "tokenizer", trains = "tokenizer", steps = 2, learning_rate = 3e-3 }},
    {{ name = "camera", trains = "camera", steps = 2, learning_rate = 2e-3, context = 3 }},
    {{ name = "unroll", trains = "dynamics", steps = 2, learning_rate = 2e-3, context = 2, unroll = 2 }},
    {{ name = "all", trains = "joint", steps = 2, learning_rate = 1e-3, context = 3, unroll = 4 }},
]
"""
NUM_STEPS = 8


class Scroll(gym.Env):
    """A window on a wall of coloured blocks that moves with the player; leaving its middle ends the episode."""

    observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        blocks = self.np_random.integers(0, 256, (4, 16, 3), np.uint8)
        self.wall, self.x = blocks.repeat(4, 0).repeat(4, 1), 24
        return self._frame(), {}

    def step(self, action):
        self.x += (0, -2, 2)[action]
        out = abs(self.x - 24) >= 10
        return self._frame(), 10.0 * out, out, False, {}

    def _frame(self):
        return self.wall[:, self.x : self.x + 16].copy()


class Stop(Exception):
    """Stands for a kill."""


class StoppingLog(TrainLog):
    """Ends the run after a step, before that step is saved."""

    stop_at = 0

    def step(self, bar, place, losses, frames, share):
        super().step(bar, place, losses, frames, share)
        if place["total_steps"] == self.stop_at:
            if "RANK" not in os.environ:
                raise Stop
            os.kill(os.getpid(), signal.SIGKILL)


def driver(command: str, *arguments: str) -> None:
    """What the processes of `torchrun` do."""
    gym.register(GAME, Scroll)
    if command == "lwm":
        sys.exit(lwm(list(arguments)))
    path, out, stop_at, *overrides = arguments
    run = Run(load_recipe(path, overrides), Path(out), make_accelerator("cpu"))
    with StoppingLog(run.out, run.accelerator.is_main_process, 1) as log_book:
        log_book.stop_at = int(stop_at)
        run.train(log_book)
    run.accelerator.wait_for_everyone()
    (run.out / f"rank{run.accelerator.process_index}").write_text(digest(run.model.state_dict()))


@pytest.fixture(scope="module", autouse=True)
def registered_game():
    gym.register(GAME, Scroll)
    yield
    gym.registry.pop(GAME)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "scroll.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def recipe(recipe_file) -> Recipe:
    return load_recipe(recipe_file)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """The folder of a run that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train_world(recipe, out, "cpu")
    return out


def digest(tensors: dict[str, torch.Tensor]) -> str:
    seen = hashlib.sha256()
    for name in sorted(tensors):
        seen.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return seen.hexdigest()


def logged(out: Path) -> list[dict]:
    """The loss log without the clock."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "frames_per_second"} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimiser and loss log are equal to the bit."""
    first, second = load_latest(one / "checkpoints"), load_latest(other / "checkpoints")
    assert first.step == second.step
    assert digest(first.tensors) == digest(second.tensors)
    assert logged(one) == logged(other)


def stopped(recipe: Recipe, out: Path, step: int) -> int:
    """Stop a run after a step; returns the step that was saved last."""
    with StoppingLog(out, enabled=True, log_every=1) as log_book, pytest.raises(Stop):
        log_book.stop_at = step
        Run(recipe, out, make_accelerator("cpu")).train(log_book)
    return load_latest(out / "checkpoints").step


def with_stages(recipe_file: Path, tmp_path: Path, stages: str) -> Recipe:
    """The recipe with other stages."""
    path = tmp_path / "other.toml"
    path.write_text(RECIPE[: RECIPE.index("stages = [")] + f"stages = [{stages}]\n")
    return load_recipe(path)


def test_a_run_of_all_kinds_of_stages_ends_in_a_world_that_steps(whole):
    model = WorldModel.load(whole / "world")
    state = model.start(model.prompts.frames[:2], model.prompts.actions[:2])

    _, out = model.step(state, torch.tensor([[1], [2]]))

    assert out.frame.shape == (2, 16, 16, 3) and out.frame.dtype == torch.uint8
    assert torch.isfinite(out.surprise).all()


def test_the_world_says_what_it_was_made_from(whole, recipe):
    provenance = json.loads((whole / "world" / "world.json").read_text())["provenance"]

    assert [(stage["name"], stage["steps"]) for stage in provenance["stages"]] == [
        (stage.name, 2) for stage in recipe.train.stages
    ]
    assert provenance["recipe_sha256"] == recipe.hash and provenance["source"] == f"gymnasium:{GAME}"


def test_the_log_has_the_losses_of_each_stage_alone(whole):
    log = logged(whole)

    assert [line["total_steps"] for line in log] == list(range(1, NUM_STEPS + 1))
    assert "codec" in log[1] and "codec" not in log[2] and "motion" in log[2] and "reward" in log[-1]


# The first steps of a stage, of the middle of one, and of the last: steps 1 and 2 are the first stage's.
@pytest.mark.parametrize(("step", "saved"), [(1, None), (2, 1), (3, 2), (5, 4), (6, 5), (8, 7)])
def test_a_run_that_was_killed_and_resumed_is_bit_equal(recipe, whole, tmp_path, step, saved):
    if saved is not None:
        assert stopped(recipe, tmp_path, step) == saved

    train_world(recipe, tmp_path, "cpu")

    assert_same_run(whole, tmp_path)


def test_starting_a_finished_run_again_writes_the_same_world(recipe, whole):
    before = WorldModel.load(whole / "world").weights_hash

    train_world(recipe, whole, "cpu")

    assert WorldModel.load(whole / "world").weights_hash == before
    assert len(logged(whole)) == NUM_STEPS


FINE = '{ name = "fine", trains = "tokenizer", steps = 2, learning_rate = 1e-3 }'


def test_a_step_whose_loss_is_not_finite_changes_nothing_and_is_counted(recipe_file, tmp_path):
    bad = '{ name = "bad", trains = "joint", steps = 3, learning_rate = 1e-3, context = 2, loss.codec = 1e39 }'
    train_world(with_stages(recipe_file, tmp_path, FINE), tmp_path / "fine", "cpu")

    train_world(with_stages(recipe_file, tmp_path, f"{FINE}, {bad}"), tmp_path / "bad", "cpu")

    fine, found = (load_latest(tmp_path / name / "checkpoints") for name in ("fine", "bad"))
    for name in (name for name in found.tensors if name.startswith("model.")):
        assert torch.equal(found.tensors[name], fine.tensors[name]), name
    assert found.facts["guard"]["skipped"] == 3 and found.step == 5
    assert [line["skipped"] for line in logged(tmp_path / "bad")] == [0, 0, 1, 2, 3]


def test_a_run_that_stays_not_finite_falls_back_three_times_then_gives_up(recipe_file, tmp_path):
    bad = '{ name = "bad", trains = "joint", steps = 99, learning_rate = 1e-3, context = 2, loss.codec = 1e39 }'
    recipe = with_stages(recipe_file, tmp_path, f"{FINE}, {bad}")
    slow = recipe.model_copy(update={"train": recipe.train.model_copy(update={"checkpoint_minutes": 9.0})})

    with pytest.raises(TrainingDiverged, match="after 3 rollbacks, at 0.125 of the learning rate"):
        train_world(slow, tmp_path / "run", "cpu")

    assert load_latest(tmp_path / "run" / "checkpoints").step == 2


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.stages.all.loss.sharpness=1.0", "unknown loss weights sharpness; known are codec"),
        ("data.shard_steps=5", "clips of up to 6 steps"),
        ("model.overrides.motion.width=3", "motion.width"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(recipe_file, tmp_path, override, told):
    with pytest.raises(ConfigMismatch, match=told):
        train_world(load_recipe(recipe_file, [override]), tmp_path, "cpu")

    assert not (tmp_path / "checkpoints").exists()


def test_a_batch_must_have_a_clip_for_every_process(recipe):
    check_recipe(recipe, 4)
    with pytest.raises(ConfigMismatch, match="batch_size is 4, but 5 processes"):
        check_recipe(recipe, 5)


def test_resuming_with_another_model_is_refused(recipe_file, recipe, tmp_path):
    stopped(recipe, tmp_path, 2)

    with pytest.raises(ConfigMismatch, match="another shape"):
        train_world(load_recipe(recipe_file, ["model.overrides.motion.dim=16"]), tmp_path, "cpu")


def test_no_resume_does_not_touch_another_run(recipe, whole):
    with pytest.raises(StorageError, match="holds the checkpoints of a run"):
        train_world(recipe, whole, "cpu", resume=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_is_not_replaced_by_the_cpu_in_silence(recipe, tmp_path):
    with pytest.raises(ConfigMismatch, match="no CUDA device"):
        train_world(recipe, tmp_path, "cuda")


def test_a_dry_run_prints_the_recipe_with_its_overrides_and_writes_nothing(recipe_file, tmp_path, capsys):
    out, changes = tmp_path / "run", ["-o", "train.steps=7", "-o", "data.num_envs=2"]

    code = lwm(["train", str(recipe_file), "--dry-run", "--out", str(out), *changes])

    shown = json.loads(capsys.readouterr().out)
    assert code == 0 and not out.exists()
    assert [stage["steps"] for stage in shown["train"]["stages"]] == [7, 7, 7, 7] and shown["data"]["num_envs"] == 2


def torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`driver` with these arguments in two processes, on the CPU."""
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    script += "import test_training; test_training.driver(*sys.argv[1:])\n"
    (folder / "driver.py").write_text(script)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launch, str(folder / "driver.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)


def ranks(out: Path) -> list[str]:
    return [(out / f"rank{rank}").read_text() for rank in range(2)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo and kill -9 as on Linux")
def test_two_processes_learn_the_same_weights_and_a_killed_run_goes_on_bit_equal(recipe_file, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    done = torchrun(tmp_path, "train", str(recipe_file), str(whole), "0")
    assert done.returncode == 0, done.stderr
    assert torchrun(tmp_path, "train", str(recipe_file), str(killed), "6").returncode != 0
    assert load_latest(killed / "checkpoints").step == 5
    done = torchrun(tmp_path, "train", str(recipe_file), str(killed), "0")
    assert done.returncode == 0, done.stderr

    assert len({*ranks(whole), *ranks(killed)}) == 1
    assert_same_run(whole, killed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo as on Linux")
def test_two_processes_agree_when_minutes_decide(recipe_file, tmp_path):
    """Checkpoints in the middle of a stage, and its end, come at the same step in both, or they would wait for ever."""
    changes = ("train.minutes=0.03", "train.checkpoint_minutes=0.005")

    done = torchrun(tmp_path, "train", str(recipe_file), str(tmp_path / "run"), "0", *changes)

    assert done.returncode == 0, done.stderr
    first, second = ranks(tmp_path / "run")
    assert first == second
    assert load_latest(tmp_path / "run" / "checkpoints").facts["progress"]["stage"] == 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo as on Linux")
def test_lwm_train_runs_under_torchrun(recipe_file, tmp_path):
    changes = ("-o", "train.steps=1", "--device", "cpu", "--json")

    done = torchrun(tmp_path, "lwm", "train", str(recipe_file), *changes, "--out", str(tmp_path / "run"))

    assert done.returncode == 0, done.stderr
    assert WorldModel.load(tmp_path / "run" / "world").prompts is not None


def test_a_run_begins_with_the_weights_of_a_world_and_runs_the_chosen_stages(recipe_file, whole, tmp_path):
    stages = [stage.name for stage in load_recipe(recipe_file).train.stages]
    overrides = [f"train.start={whole / 'world'}", f"train.only=['{stages[-1]}']"]
    before = WorldModel.load(whole / "world")

    run = Run(load_recipe(recipe_file, overrides), tmp_path / "run", make_accelerator("cpu"))
    begun = digest(run.model.state_dict())
    world = train_world(load_recipe(recipe_file, overrides), tmp_path / "run", "cpu")

    provenance = worlds.read_manifest(world).provenance
    assert begun == digest(before.state_dict())
    assert [stage["name"] for stage in provenance["stages"]] == stages[-1:]
    assert provenance["started_from"]["weights"] == before.weights_hash
    assert [stage["name"] for stage in provenance["started_from"]["stages"]] == stages


def test_what_does_not_fit_of_the_weights_begun_with_starts_anew_and_is_named(recipe_file, whole, tmp_path):
    start = f"train.start={whole / 'world'}"
    before = WorldModel.load(whole / "world").state_dict()

    run = Run(
        load_recipe(recipe_file, [start, "model.overrides.dynamics.event_dim=12"]), tmp_path, make_accelerator("cpu")
    )

    assert run.started_from["fresh"] == ["events.out.0.bias", "events.out.0.weight", "events.out.2.weight"]
    assert all(
        torch.equal(tensor, before[name])
        for name, tensor in run.model.state_dict().items()
        if name not in run.started_from["fresh"]
    )


def test_a_run_does_not_begin_with_weights_of_which_none_fits(recipe_file, tiny_world, tmp_path):
    folder = tmp_path / "world"
    shutil.copytree(tiny_world, folder)
    other = {"a": torch.zeros(1)}
    spec, manifest = worlds.read_manifest(folder).spec, worlds.read_manifest(folder)
    files = {"model.safetensors": safetensors.torch.save(other)}
    worlds.write_world(folder, spec=spec, model=manifest.model, provenance={}, files=files)

    with pytest.raises(ConfigMismatch, match="no tensor of the same name and shape"):
        train_world(load_recipe(recipe_file, [f"train.start={folder}"]), tmp_path / "run", "cpu")

"""A checkpoint outlives kills, flipped bits and full disks, and the optimizer in it goes on as if nothing happened."""

import errno
import logging
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, StorageError, TrainingDiverged
from lwm_training.checkpoint import flatten_optimizer, load_latest, restore_optimizer, save_checkpoint
from lwm_training.guard import LossGuard, Verdict

posix = pytest.mark.skipif(os.name == "nt", reason="needs fork, signals and limits of POSIX")


def sample(step: int, size: int = 1000) -> tuple[dict, dict]:
    return {"weight": torch.arange(size, dtype=torch.float32) + step}, {"step": step, "note": "a"}


def save(root: Path, step: int, **options) -> Path:
    return save_checkpoint(root, step, *sample(step), **options)


def names(root: Path) -> list[str]:
    return sorted(os.listdir(root))


def test_load_gives_back_tensors_and_facts_bit_for_bit(tmp_path):
    tied, root = torch.randn(4, 3), tmp_path / "new" / "run"
    tensors = {
        "one": tied, "tied": tied, "transposed": tied.T, "half": torch.randn(5).bfloat16(), "scalar": torch.tensor(7),
        "empty": torch.ones(0, 3), "mask": torch.tensor([True, False]), "slice": torch.arange(9)[2:5],
    }  # fmt: skip
    facts = {"losses": [0.1, 1e-300, 5], "nested": {"text": "ü\n", "none": None, "yes": True}}

    assert load_latest(root) is None
    path = save_checkpoint(root, 12, tensors, facts)
    loaded = load_latest(root)

    assert (loaded.step, loaded.facts, loaded.path, path.name) == (12, facts, path, "step_000000012")
    torch.testing.assert_close(loaded.tensors, tensors, rtol=0, atol=0, check_stride=False)


def test_the_newest_two_are_kept_and_leftovers_are_removed(tmp_path):
    (tmp_path / ".saving" / "half").mkdir(parents=True)

    for step in (1, 20, 300):
        save(tmp_path, step)

    assert names(tmp_path) == ["step_000000020", "step_000000300"]


def test_old_ones_stay_until_enough_valid_ones_are_newer(tmp_path, caplog):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "facts.json").write_text("{}")

    save(tmp_path, 3)
    shutil.rmtree(tmp_path / "step_000000003")

    assert load_latest(tmp_path).step == 1
    assert "step_000000002 is altered: facts.json" in caplog.text


def test_the_same_step_is_replaced_and_loads_even_between_the_two_renames(tmp_path):
    os.rename(save(tmp_path, 5), tmp_path / "step_000000005.replaced")
    assert load_latest(tmp_path).step == 5

    save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, {"weight": torch.zeros(2)}, {"note": "b"})

    assert load_latest(tmp_path).facts == {"note": "b"}
    assert names(tmp_path) == ["step_000000005"]


def test_a_later_run_in_the_folder_is_not_buried(tmp_path):
    later = save(tmp_path, 9)

    with pytest.raises(StorageError, match="step_000000009 of another run"):
        save(tmp_path, 8)
    (later / "manifest.json").unlink()
    save(tmp_path, 8)

    assert load_latest(tmp_path).step == 8


@pytest.mark.parametrize(
    ("weight", "facts"),
    [
        (torch.tensor([1.0, float("nan")]), {}), (torch.tensor(float("inf")), {}), ([1.0], {}),
        (torch.ones(1), {"loss": float("nan")}), (torch.ones(1), {"betas": (1, 2)}), (torch.ones(1), {1: "one"}),
    ],
)  # fmt: skip
def test_what_would_not_come_back_is_refused(tmp_path, weight, facts):
    with pytest.raises(InvalidInput):
        save_checkpoint(tmp_path, 1, {"weight": weight}, facts)

    assert names(tmp_path) == []


def test_every_flipped_bit_and_a_wrong_name_is_detected(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    path = save_checkpoint(tmp_path, 3, *sample(3, size=20))
    draw = random.Random(0)

    for file in sorted(path.iterdir()) * 67:  # 201 flips, 67 in each file
        original = file.read_bytes()
        flipped = bytearray(original)
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(CorruptFile):
            load_latest(tmp_path)
        file.write_bytes(original)

    assert load_latest(tmp_path).step == 3
    os.rename(path, tmp_path / "step_000000004")
    with pytest.raises(CorruptFile, match=r"manifest\.json"):
        load_latest(tmp_path)


@pytest.mark.parametrize("name", ["tensors.safetensors", "facts.json", "manifest.json"])
@pytest.mark.parametrize("size", [None, 0, -1, 1])  # missing, empty, a byte shorter, a byte longer
def test_the_one_before_is_loaded_and_the_damaged_one_reported(tmp_path, caplog, name, size):
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    if size is None:
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size + size if size else 0)

    assert load_latest(tmp_path).step == 1
    assert "step_000000002" in caplog.text


@posix
def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    order: list[int | str] = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.fstat(file).st_ino), sync(file)))
    monkeypatch.setattr(os, "rename", lambda *paths: (order.append("rename"), rename(*paths)))

    path = save(tmp_path, 1)

    files = [path / "tensors.safetensors", path / "facts.json", path / "manifest.json", path]
    assert order == [*(file.stat().st_ino for file in files), "rename", tmp_path.stat().st_ino]


KILLS = """
import itertools, os, random, signal, sys, time
from pathlib import Path
import torch
from lwm_training.checkpoint import load_latest, save_checkpoint

def content(step):
    return {"weight": torch.full((512, 1024), float(step))}, {"step": step}  # 2 MB

def loop(root, first, ready, die_at):
    count = itertools.count(1)
    def hook(event, arguments):  # dies before the die_at-th call to the file system
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and next(count) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    os.write(ready, b"x")
    for step in range(first, first + 1000):
        save_checkpoint(root, step, *content(step))

def trials(root, way, count):
    begin = time.perf_counter()
    save_checkpoint(root, 0, *content(0))
    duration, draw, last = time.perf_counter() - begin, random.Random(way), 0
    for trial in range(count):
        receive, ready = os.pipe()
        child = os.fork()
        if child == 0:
            loop(root, last + (way != "same"), ready, 0 if way == "time" else trial + 1)
        os.read(receive, 1)
        if way == "time":
            time.sleep(draw.uniform(0, 3 * duration))
            os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        found = load_latest(root)
        assert found.step >= last and found.facts == {"step": found.step}, (found.step, last)
        assert torch.equal(found.tensors["weight"], content(found.step)[0]["weight"])
        last = found.step
    assert last > 0 or way == "same"

for way in ("time", "event", "same"):
    trials(Path(sys.argv[1]) / way, way, int(sys.argv[2]))
"""


@posix
def test_a_kill_at_any_moment_of_a_save_leaves_a_valid_checkpoint(tmp_path):
    """30 kills after a random time, 30 before each file operation in turn, 30 likewise while replacing a step."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLS, str(tmp_path), "30"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr


def test_a_file_that_may_not_grow_is_a_storage_error(tmp_path):
    resource = pytest.importorskip("resource")
    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="saved before are intact"):
            save_checkpoint(tmp_path, 2, *sample(2, size=200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert load_latest(tmp_path).step == 1
    assert names(tmp_path) == ["step_000000001"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["mkdir", "open", "fsync", "rename"])
def test_any_refused_call_of_the_system_is_a_storage_error(tmp_path, monkeypatch, call, error):
    save(tmp_path, 1)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="Step 2 could not be saved"):
        patch.setattr(os, call, Mock(side_effect=OSError(error, os.strerror(error))))
        save(tmp_path, 2)

    assert load_latest(tmp_path).step == 1


def tiny(seed: int = 0, width: int = 5, **options) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    groups = [{"params": net[0].parameters(), "lr": 0.01}, {"params": net[2].parameters(), "weight_decay": 0.3}]
    return net, torch.optim.AdamW(groups, lr=1 / 3, **options)


def train(net: nn.Module, optimizer: torch.optim.AdamW, steps: range) -> list[float]:
    losses = []
    for step in steps:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        losses.append((net(x) - x[:, :2]).square().mean())
        losses[-1].backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.9
    return [loss.item() for loss in losses]


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "betas": (0.8, 0.95)}, {"foreach": True}, {"fused": True}])
def test_ten_steps_equal_five_a_restore_and_five(tmp_path, options):
    net, optimizer = tiny(**options)
    straight = train(net, optimizer, range(10))
    half, half_optimizer = tiny(**options)
    begun = train(half, half_optimizer, range(5))
    tensors, facts = flatten_optimizer(half_optimizer)
    save_checkpoint(tmp_path, 5, {**half.state_dict(), **tensors}, facts)
    loaded = load_latest(tmp_path)
    again, again_optimizer = tiny(seed=1)
    again.load_state_dict({name: loaded.tensors[name] for name in again.state_dict()})
    restore_optimizer(again_optimizer, loaded.tensors, loaded.facts)

    assert begun + train(again, again_optimizer, range(5, 10)) == straight
    wanted, found = optimizer.state_dict(), again_optimizer.state_dict()
    assert found["param_groups"] == wanted["param_groups"]
    torch.testing.assert_close(found["state"], wanted["state"], rtol=0, atol=0)
    assert torch.equal(loaded.tensors["optimizer.0.exp_avg"], tensors["optimizer.0.exp_avg"])  # copied, not shared
    torch.testing.assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_optimizer_state_of_another_net_is_refused(tmp_path):
    net, optimizer = tiny()
    train(net, optimizer, range(1))
    tensors, facts = flatten_optimizer(optimizer)

    for other in (tiny(width=6)[1], torch.optim.AdamW(net.parameters())):
        with pytest.raises(ConfigMismatch, match="Resume with the recipe"):
            restore_optimizer(other, tensors, facts)
        assert not other.state


def test_guard_skips_then_falls_back_then_gives_up():
    guard, nan = LossGuard(), float("nan")
    assert guard.check(1.0, torch.tensor(2.0)) is Verdict.STEP
    assert [guard.check(nan) for _ in range(9)] == [Verdict.SKIP] * 9
    assert guard.check(1.0) is Verdict.STEP  # not ten in a row
    for rollbacks in (1, 2, 3):
        assert [guard.check(1.0, float("inf")) for _ in range(10)] == [Verdict.SKIP] * 9 + [Verdict.ROLLBACK]
        assert guard.learning_rate_scale == 0.5**rollbacks
    resumed = LossGuard()
    resumed.restore(guard.facts())
    assert [resumed.check(torch.tensor(nan)) for _ in range(9)] == [Verdict.SKIP] * 9
    with pytest.raises(TrainingDiverged, match="after 3 rollbacks"):
        resumed.check(nan)
    assert (guard.skipped, resumed.skipped) == (39, 49)

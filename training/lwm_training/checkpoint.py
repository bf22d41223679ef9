"""Checkpoints that a kill, a full disk or a flipped bit cannot take away. No pickle.

A checkpoint is a folder `step_000001000` of `tensors.safetensors`, `facts.json` (plain JSON) and `manifest.json`
(sha256 and size of the other two). It is built under a temporary name and gets its own by a rename, once all of it
is on the disk. One process saves to a root at a time; any number may load.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.optim import Optimizer

from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, StorageError
from lwm_env.worlds.storage import sync_folder

Tensors = dict[str, Tensor]
Facts = dict[str, Any]

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_TENSORS, _FACTS, _MANIFEST = "tensors.safetensors", "facts.json", "manifest.json"
_NAME = re.compile(r"step_(\d{9,})(\.replaced)?")


@dataclass(frozen=True)
class Checkpoint:
    """What `load_latest` found: CPU tensors of its own memory, and the facts as they were given."""

    step: int
    tensors: Tensors
    facts: Facts
    path: Path


def save_checkpoint(root: Path | str, step: int, tensors: Tensors, facts: Facts, keep: int = 2) -> Path:
    """Write one checkpoint and return its folder; when this returns, it survives a power cut.

    A kill at any moment leaves the new one or what was there before. One of the same step is replaced, and everything
    older than the newest `keep` valid ones is removed at the end.

    Args:
        root: the folder of all checkpoints of one training run, made if absent.
        tensors: any dense tensors by name, on any device; tied ones are written once per name.
        facts: what JSON can hold and give back unchanged: string keys, lists (no tuples), finite numbers.

    Raises:
        InvalidInput: an argument is not as above, or holds NaN or infinity.
        StorageError: disk full, read-only, no permission, or a later step of another run is there. What was saved
            before is intact.
    """
    root = Path(root)
    if step < 0 or keep < 1:
        raise InvalidInput(f"step must be at least 0 and keep at least 1, got step={step} and keep={keep}")
    contents = {_TENSORS: _encode_tensors(tensors), _FACTS: _encode_facts(facts)}
    try:
        _refuse_if_newer(root, step)
        path = _write(root, step, contents)
    except OSError as error:
        raise StorageError(
            f"Step {step} could not be saved in {root}: {error}. The checkpoints saved before are intact. "
            f"Make room there or choose another folder, then resume."
        ) from error
    try:
        _prune(root, keep)
    except OSError as error:  # the new one is safe, so the training goes on
        _LOG.warning("Old checkpoints in %s could not be removed: %s", root, error)
    return path


def load_latest(root: Path | str) -> Checkpoint | None:
    """The newest valid checkpoint under `root`, or None if there is none at all; logs a warning per invalid one.

    Raises:
        CorruptFile: there are checkpoints, but not one of them is valid.
        StorageError: a file may not be read.
    """
    faults = []
    try:
        for path in _saved(Path(root)):
            fault = _fault(path)
            if fault is None:
                return _decode(path)
            _LOG.warning("Skipped an invalid checkpoint: %s", fault)
            faults.append(fault)
    except OSError as error:
        raise StorageError(f"The checkpoints in {root} could not be read: {error}") from error
    if faults:
        raise CorruptFile(
            f"None of the {len(faults)} checkpoints in {root} is valid: {'; '.join(faults)}. "
            f"Restore one from a copy, or delete the folder to start again."
        )
    return None


def flatten_optimizer(optimizer: Optimizer, prefix: str = "optimizer.") -> tuple[Tensors, Facts]:
    """The state of an AdamW as (tensors, facts) for `save_checkpoint`; the facts hold learning rates and the like.

    The tensors, named `{prefix}{parameter index}.{key}`, are the optimizer's own: save or clone before its next step.
    """
    state = optimizer.state_dict()
    tensors = {f"{prefix}{i}.{key}": value for i, entry in state["state"].items() for key, value in entry.items()}
    groups = [{key: _plain(value) for key, value in group.items()} for group in state["param_groups"]]
    return tensors, {"param_groups": groups}


def restore_optimizer(optimizer: Optimizer, tensors: Tensors, facts: Facts, prefix: str = "optimizer.") -> None:
    """Put back what `flatten_optimizer` gave, bit for bit; settings such as the learning rate come back with it.

    Of `tensors` those that begin with `prefix` are read and copied; the others may be anything.

    Raises:
        ConfigMismatch: the state is of other parameters; the optimizer is unchanged.
    """
    here = optimizer.state_dict()["param_groups"]
    saved = facts.get("param_groups", [])
    if [group["params"] for group in saved] != [group["params"] for group in here]:
        raise ConfigMismatch(
            f"The saved optimizer has groups of {[len(group['params']) for group in saved]} parameters, this one of "
            f"{[len(group['params']) for group in here]}. Resume with the recipe that the checkpoint was made with."
        )
    state: dict[int, Tensors] = {}
    for name in (name for name in tensors if name.startswith(prefix)):
        index, _, key = name.removeprefix(prefix).partition(".")
        state.setdefault(int(index), {})[key] = tensors[name].clone()
    _check_state(optimizer, state)
    groups = [{key: _like(group[key], mine.get(key)) for key in group} for group, mine in zip(saved, here, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _plain(value: Any) -> Any:
    """A group's setting as JSON: betas are a tuple, a capturable learning rate is a tensor."""
    if isinstance(value, Tensor):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _like(value: Any, mine: Any) -> Any:
    """The inverse of `_plain`, with the type that the receiving optimizer uses."""
    if isinstance(mine, Tensor):
        return torch.full_like(mine, value)
    return tuple(value) if isinstance(value, list) and isinstance(mine, tuple) else value


def _check_state(optimizer: Optimizer, state: dict[int, Tensors]) -> None:
    shapes = [tuple(parameter.shape) for group in optimizer.param_groups for parameter in group["params"]]
    for index, entry in state.items():
        shape = shapes[index] if index < len(shapes) else None
        found = {key: tuple(tensor.shape) for key, tensor in entry.items()}
        expected = {"step": (), "exp_avg": shape, "exp_avg_sq": shape}  # and max_exp_avg_sq, with amsgrad
        if not expected.items() <= found.items():
            raise ConfigMismatch(
                f"The saved optimizer state of parameter {index} has the shapes {found}, expected {expected}. "
                f"Resume with the recipe that the checkpoint was made with."
            )


def _encode_tensors(tensors: Tensors) -> bytes:
    plain: Tensors = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise InvalidInput(f"Tensor {name!r} must be a dense torch.Tensor, got {type(tensor).__name__}")
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
            raise InvalidInput(f"Tensor {name!r} holds NaN or infinity; such a state is never saved")
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in storages else tensor  # safetensors refuses tied weights
        storages.add(storage)
    # Written by Python, not by save_file: its errors are no OSError, and the bytes are hashed on the way.
    return safetensors.torch.save(plain)


def _encode_facts(facts: Facts) -> bytes:
    try:
        text = json.dumps(facts, allow_nan=False, indent=1)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"The facts of a checkpoint must be plain JSON with finite numbers: {error}") from error
    if json.loads(text) != facts:
        raise InvalidInput("The facts of a checkpoint must survive JSON: string keys, and lists instead of tuples")
    return text.encode()


def _manifest(step: int, files: dict[str, Facts]) -> bytes:
    return json.dumps({"format": _FORMAT, "step": step, "files": files}, indent=1, sort_keys=True).encode()


def _write(root: Path, step: int, contents: dict[str, bytes]) -> Path:
    if not root.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        sync_folder(root.parent)
    temporary, path = root / ".saving", root / f"step_{step:09d}"
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed save
    try:
        temporary.mkdir()
        listed = {}
        for name, data in contents.items():
            _write_file(temporary / name, data)
            listed[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        _write_file(temporary / _MANIFEST, _manifest(step, listed))
        sync_folder(temporary)
        _commit(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def _commit(temporary: Path, path: Path) -> None:
    """Give a complete checkpoint its name. One of the same step steps aside under a name that still loads."""
    aside = path.with_name(f"{path.name}.replaced")
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
    os.rename(temporary, path)
    sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _saved(root: Path) -> list[Path]:
    """All checkpoint folders, the newest first, a replaced one after its successor."""
    if not root.exists():
        return []
    paths = [path for path in root.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(paths, key=lambda path: (_step_of(path), path.suffix == ""), reverse=True)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if every byte is as it was written. PermissionError if that is unknown."""
    try:
        written = (path / _MANIFEST).read_bytes()
        files = {}
        for name in (_TENSORS, _FACTS):
            with open(path / name, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                files[name] = {"sha256": digest, "size": os.fstat(file.fileno()).st_size}
    except PermissionError:
        raise
    except OSError as error:
        return f"{path} is incomplete: {error}"
    if written == _manifest(_step_of(path), files):
        return None
    altered = [name for name in files if files[name]["sha256"].encode() not in written] or [_MANIFEST]
    return f"{path} is altered: {' and '.join(altered)} is not what was written"


def _decode(path: Path) -> Checkpoint:
    try:
        tensors = safetensors.torch.load((path / _TENSORS).read_bytes())
        return Checkpoint(_step_of(path), tensors, json.loads((path / _FACTS).read_bytes()), path)
    except (safetensors.SafetensorError, ValueError) as error:  # whoever wrote it also wrote its checksum
        raise CorruptFile(f"{path} cannot be decoded: {error}") from error


def _refuse_if_newer(root: Path, step: int) -> None:
    for path in _saved(root):
        if _step_of(path) <= step:
            return
        if _fault(path) is None:
            raise FileExistsError(f"it holds {path.name} of another run, which `load_latest` would prefer")


def _prune(root: Path, keep: int) -> None:
    """Remove what is older than the newest `keep` valid ones; nothing goes unless that many were just read back."""
    valid = 0
    for path in _saved(root):
        if valid == keep:
            shutil.rmtree(path)
        elif _fault(path) is None:
            valid += 1

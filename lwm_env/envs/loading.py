"""Worlds opened for stepping: the device chosen, the files verified, one set of weights for all envs of a process."""

import hashlib
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lwm_env import worlds
from lwm_env.engine import CPU_ROWS, Engine
from lwm_env.envs import inputs
from lwm_env.errors import ConfigMismatch, InvalidInput
from lwm_env.world_model import WorldModel

if TYPE_CHECKING:
    from lwm_env.export.onnx_world import OnnxGroup, OnnxWorld

RENDER_MODES = ["rgb_array"]
BACKENDS = ["torch", "onnx"]

_lock = threading.Lock()
_models: weakref.WeakValueDictionary[tuple[str, str], WorldModel] = weakref.WeakValueDictionary()
_onnx_worlds: "weakref.WeakValueDictionary[tuple[WorldModel, int], OnnxWorld]" = weakref.WeakValueDictionary()
_onnx_groups: "weakref.WeakValueDictionary[tuple[WorldModel, int], OnnxGroup]" = weakref.WeakValueDictionary()


def choose_device(device: str) -> torch.device:
    """The torch device for "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".

    Raises:
        InvalidInput: no such device here.
        ConfigMismatch: CUDA in a forked child of a process that had already used it.
    """
    if device == "cpu":
        return torch.device("cpu")
    if torch.cuda._is_in_bad_fork():
        raise ConfigMismatch(
            f"device={device!r} was asked for in a forked child of a process that uses CUDA, which CUDA cannot do. "
            f"Use the native vector env (gym.make_vec(id, num_envs)), "
            f'AsyncVectorEnv(..., context="spawn"), or device="cpu".'
        )
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInput(f'device={device!r:.60} is not a device. Use "auto", "cpu", "cuda" or "cuda:1".') from error
    if chosen.type not in ("cpu", "cuda"):
        raise InvalidInput(f'device={device!r:.60} is not supported. Use "auto", "cpu", "cuda" or "cuda:1".')
    if chosen.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (chosen.index or 0) >= count:
        raise InvalidInput(
            f'device={device!r} was asked for, but torch sees {count} CUDA devices. Use "auto" or "cpu".'
        )
    return torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)


def load_world(world: str | Path, device: torch.device) -> WorldModel:
    """The model of a world by id, folder name or path, shared by all who hold it. Never write to it.

    The files are verified at every call, so that an altered world is refused even while its weights are in memory.

    Raises:
        UnknownWorld, CorruptFile, ConfigMismatch, StorageError: see `lwm_env.worlds`.
    """
    folder = worlds.find(world)
    manifest = worlds.verify(folder)
    key = (hashlib.sha256(manifest.model_dump_json().encode()).hexdigest(), str(device))
    with _lock:
        model = _models.get(key)
        if model is None:
            model = _models[key] = WorldModel.load(folder, device)
    return model


def load_onnx(world: str | Path, device: torch.device, num_envs: int) -> "OnnxWorld | OnnxGroup":
    """The same world with its step in ONNX Runtime for `num_envs` slots, shared like `load_world`'s.

    Raises:
        MissingExtra: the extra `onnx` is not installed. CorruptFile, StorageError: the cached export is damaged or
            cannot be written. And what `load_world` raises.
    """
    from lwm_env.export.onnx_world import OnnxGroup, rows_together

    model = load_world(world, device)
    with _lock:
        if device.type != "cpu":
            return _open_onnx(model, num_envs)
        single, rows = _open_onnx(model, CPU_ROWS), rows_together(num_envs)
        if rows == CPU_ROWS:
            return single
        group = _onnx_groups.get((model, rows))
        if group is None:
            group = _onnx_groups[model, rows] = OnnxGroup(single, _open_onnx(model, rows))
        return group


def _open_onnx(model: WorldModel, batch: int) -> "OnnxWorld":
    from lwm_env.export.onnx_world import open_cached

    opened = _onnx_worlds.get((model, batch))
    if opened is None:
        opened = _onnx_worlds[model, batch] = open_cached(model, batch)
    return opened


def open_engine(
    world: str, num_envs: int, device: str, temperature: float | None, modes: dict[str, str | None]
) -> Engine:
    """The engine behind an env, all arguments checked; see `LwmEnv` for them.

    Args:
        modes: render_mode, backend and output.
    """
    inputs.check_choice("render_mode", modes["render_mode"], [None, *RENDER_MODES])
    inputs.check_choice("backend", modes["backend"], BACKENDS)
    inputs.check_choice("output", modes["output"], ["numpy", "torch"])
    num_envs, temperature = inputs.check_count("num_envs", num_envs), inputs.check_temperature(temperature)
    chosen = choose_device(device)
    if modes["backend"] == "torch":
        return Engine(load_world(world, chosen), num_envs, temperature=temperature)
    return Engine(load_onnx(world, chosen, num_envs), num_envs, temperature=temperature)

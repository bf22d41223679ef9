"""A world whose step runs in ONNX Runtime; to the engine it is what `WorldModel` is."""

import os
import sys
import threading
from pathlib import Path

import torch
from torch import Tensor

from lwm_env import __version__
from lwm_env.errors import ConfigMismatch, StorageError
from lwm_env.export import onnx_file
from lwm_env.export.graph import ACTION, NEW, NOISE, example_state, export_step
from lwm_env.export.onnx_file import Facts
from lwm_env.export.session import Session, runtime
from lwm_env.world_model import Output, State, WorldModel

_exporting = threading.Lock()


class OnnxWorld:
    """`start` is the torch model's, `step` that of an exported file, for exactly `batch` worlds at a time.

    Same bytes for the same inputs on a CPU, though not those of torch: sums are taken in another order, and a token
    may flip where two are equally likely. Safe to share between threads.
    """

    thread_safe = True  # `lwm_env.chunks` shares a batch between threads

    def __init__(self, model: WorldModel, file: Path, batch: int) -> None:
        """Raises CorruptFile, ConfigMismatch (of another world or batch), StorageError, MissingExtra."""
        runtime()  # before anything is read
        self.model, self.file, self.batch = model, file, batch
        self.spec, self.prompts, self.weights_hash = model.spec, model.prompts, model.weights_hash
        self.reward_values, self.noise_dim = model.reward_values, model.noise_dim
        self.session = Session(file, onnx_file.verify(file), model.reward_values.device)
        self.sampled = NOISE in self.session.inputs
        facts = Facts.of(model, batch=batch, temperature="noise" if self.sampled else "none")
        onnx_file.check_facts(file, self.session.metadata, facts)
        self.no_noise = torch.zeros(batch, self.noise_dim, device=self.reward_values.device)
        self._check_layout()

    def _check_layout(self) -> None:
        state = example_state(self.model, self.batch)
        found = {name: self.session.inputs[name] for name in self.session.inputs if name not in (ACTION, NOISE)}
        if found != {name: (value.dtype, tuple(value.shape)) for name, value in state.items()}:
            raise ConfigMismatch(
                f"{self.file} holds another state than this version's model has. Delete it and export again."
            )

    def start(self, frames: Tensor, actions: Tensor) -> State:
        """See `WorldModel.start`; any number of worlds."""
        return self.model.start(frames, actions)

    def step(
        self, state: State, action: Tensor, noise: Tensor | None = None, temperature: float = 0.0
    ) -> tuple[State, Output]:
        """See `WorldModel.step`; `batch` worlds.

        Raises:
            ConfigMismatch: a temperature above 0, and a file that was exported without sampling.
        """
        inputs = {**state, ACTION: action}
        if self.sampled:
            inputs[NOISE] = self.no_noise if noise is None or temperature <= 0 else noise * temperature
        elif noise is not None and temperature > 0:
            raise ConfigMismatch(f"{self.file} always takes the likeliest tokens. Set temperature=0 or export it anew.")
        outputs = self.session.run(inputs)
        new = {name: outputs[NEW + name] for name in state}
        return new, Output(*(outputs[name] for name in Output._fields))


def cache_folder() -> Path:
    """Where exported steps are kept: `LWM_CACHE_DIR`, or a folder of the user's cache directory."""
    if named := os.environ.get("LWM_CACHE_DIR"):
        return Path(named)
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lwm-env"


def cached_file(model: WorldModel, batch: int) -> Path:
    """The exported step of a model and a batch in the cache; made where it is not there yet, which takes seconds.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
        StorageError: the cache cannot be written.
    """
    facts = Facts.of(model, batch=batch)
    name = f"{facts.weights[:32]}-{facts.model[:16]}-{__version__}-{batch}.onnx"
    try:
        file = cache_folder() / "onnx" / name
    except RuntimeError as error:  # a user without a home
        raise StorageError("There is no home folder to keep a cache in. Set LWM_CACHE_DIR to a folder.") from error
    with _exporting:
        if not file.exists():
            onnx_file.make_folder(file.parent)
            onnx_file.write(file, onnx_file.stamp(export_step(model, batch), facts))
    return file


def open_cached(model: WorldModel, batch: int) -> OnnxWorld:
    """The world on ONNX Runtime, exported on first use; raises what `OnnxWorld` and `cached_file` raise."""
    runtime()
    return OnnxWorld(model, cached_file(model, batch), batch)

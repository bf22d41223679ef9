"""A world whose step runs in ONNX Runtime; to the engine it is what `WorldModel` is."""

import os
import sys
import threading
from pathlib import Path

import torch
from torch import Tensor

from lwm_env import __version__
from lwm_env.belief import Output, State
from lwm_env.errors import ConfigMismatch, StorageError
from lwm_env.export import onnx_file
from lwm_env.export.graph import ACTION, NEW, NOISE, REVISION, example_action, example_state, export_step
from lwm_env.export.onnx_file import Facts
from lwm_env.export.session import Session, runtime
from lwm_env.world_model import WorldModel

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


class OnnxGroup:
    """The same world for one row and for `together` rows at a time, as a `lwm_env.batch.World` for any number of slots.

    A row's bytes do not depend on which of the two computes it. Whether ONNX Runtime keeps that promise on this machine
    is tried when the group is opened; where it does not, `together` is 1.
    """

    thread_safe = True

    def __init__(self, single: OnnxWorld, group: OnnxWorld) -> None:
        self.single, self.group = single, group
        self.model, self.spec, self.prompts = group.model, group.spec, group.prompts
        self.weights_hash = group.weights_hash
        self.reward_values, self.noise_dim = group.reward_values, group.noise_dim
        self.together = group.batch if self._agree() else 1

    def start(self, frames: Tensor, actions: Tensor) -> State:
        """See `WorldModel.start`; any number of worlds."""
        return self.model.start(frames, actions)

    def step(
        self, state: State, action: Tensor, noise: Tensor | None = None, temperature: float = 0.0
    ) -> tuple[State, Output]:
        """See `WorldModel.step`; one world or `together`."""
        world = self.single if len(action) == 1 else self.group
        return world.step(state, action, noise, temperature)

    def _agree(self) -> bool:
        """Three steps of random noise and noisy pictures, compared byte by byte."""
        rows, generator = self.group.batch, torch.Generator().manual_seed(0)
        state = {
            name: torch.randint(0, 256, value.shape, generator=generator, dtype=value.dtype)
            if value.dtype == torch.uint8
            else torch.rand(value.shape, generator=generator)
            for name, value in example_state(self.model, rows).items()
        }
        for _ in range(3):
            action = example_action(self.model, rows)
            noise = torch.randn(rows, self.noise_dim, generator=generator)
            together = self.group.step(state, action, noise, 1.0)
            for row in range(rows):
                one = {name: value[row : row + 1] for name, value in state.items()}
                alone = self.single.step(one, action[row : row + 1], noise[row : row + 1], 1.0)
                pairs = [
                    *((alone[0][name], together[0][name]) for name in state),
                    *zip(alone[1], together[1], strict=True),
                ]
                if not all(torch.equal(found[0], expected[row]) for found, expected in pairs):
                    return False
            state = together[0]
        return True


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
    name = f"{facts.weights[:32]}-{facts.model[:16]}-{__version__}-{REVISION}-{batch}.onnx"
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


def rows_together(num_envs: int) -> int:
    """How many of so many slots are computed in one call on a CPU: fewer turns of Python between them, and enough calls
    left for the cores to share."""
    return 8 if num_envs >= 32 else 4 if num_envs >= 8 else 2 if num_envs >= 4 else 1

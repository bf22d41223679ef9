"""The file of an exported step: its facts as ONNX metadata, and among them the sha256 of the file itself.

The digest is taken with 64 zeros in its own place, so one file can be checked before any parser sees it, by whoever has
it: the cache, a user, a browser. It says that nothing changed by accident; it does not prove where the file came from.
"""

import hashlib
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lwm_env import __version__
from lwm_env.errors import ConfigMismatch, CorruptFile, StorageError
from lwm_env.world_model import WorldModel
from lwm_env.worlds.storage import replace_file

_KEY, _MARK = "lwm.sha256", b"lwm-sha256:"
_EMPTY = _MARK + b"0" * 64
_DIGEST = re.compile(re.escape(_MARK) + rb"([0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the metadata says, each under `lwm.NAME`."""

    world: str
    weights: str  # sha256 of the world's weight file
    model: str  # sha256 of its configuration, see `model_hash`
    version: str = __version__
    batch: int = 1
    temperature: str = "noise"  # "noise": the input `noise` is Gumbel numbers times the temperature; "none": no input
    precision: str = "float32"  # or "int8"

    @classmethod
    def of(cls, model: WorldModel, **others: Any) -> "Facts":
        """The facts of a model's own step."""
        return cls(world=model.spec.id, weights=model.weights_hash, model=model_hash(model), **others)


def model_hash(model: WorldModel) -> str:
    """sha256 of everything besides the weights that decides what a step computes."""
    spec = model.spec
    parts = [model.config.to_json(), spec.players, spec.actions.kind, spec.actions.dim, spec.reward_values]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stamp(proto: Any, facts: Facts) -> bytes:
    """An `onnx.ModelProto` as the bytes of a file that carries its facts and its digest."""
    values = {f"lwm.{name}": str(value) for name, value in asdict(facts).items()}
    del proto.metadata_props[:]
    for key, value in {**values, _KEY: _EMPTY.decode()}.items():
        proto.metadata_props.add(key=key, value=value)
    data = proto.SerializeToString(deterministic=True)
    return data.replace(_EMPTY, _MARK + hashlib.sha256(data).hexdigest().encode())


def verify(file: Path) -> bytes:
    """The content of a file that `stamp` made and nobody changed.

    Raises:
        CorruptFile: it is something else, cut short or altered.
        StorageError: it cannot be read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror or error}.") from error
    found = _DIGEST.findall(data)
    if len(found) != 1:
        raise CorruptFile(f"{file} is not a whole file of `lwm export`. Delete it and export the world again.")
    if hashlib.sha256(data.replace(_MARK + found[0], _EMPTY)).hexdigest().encode() != found[0]:
        raise CorruptFile(f"{file} is cut short or altered (sha256). Delete it and export the world again.")
    return data


def check_facts(file: Path, metadata: dict[str, str], expected: Facts) -> None:
    """Raises ConfigMismatch unless a verified file's metadata says what is expected; its version may be another."""
    for field in fields(expected):
        found, wanted = metadata.get(f"lwm.{field.name}"), str(getattr(expected, field.name))
        if field.name not in ("version", "precision") and found != wanted:
            raise ConfigMismatch(
                f"{file} has {field.name} {str(found)[:40]!r}, expected {wanted[:40]!r}. "
                f"Export it again from this world, with the batch that is wanted."
            )


def make_folder(folder: Path) -> None:
    """Raises StorageError where it cannot be made or written, before anything long is begun."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror or error}. Name another place.") from error
    if not os.access(folder, os.W_OK):
        raise StorageError(f"{folder} cannot be written. Change its permissions or name another place.")


def write(file: Path, data: bytes) -> None:
    """Put a whole file in place or none; several writers at once are fine.

    Raises:
        StorageError: the disk is full, read-only or forbidden. What was there is intact.
    """
    make_folder(file.parent)
    try:
        replace_file(file, data, secrets.token_hex(4))
    except OSError as error:
        raise StorageError(
            f"{file} could not be written: {error.strerror or error}. Make room or name another place."
        ) from error

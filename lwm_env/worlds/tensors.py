"""Reads safetensors files from strangers: the header is checked against what is expected before anything is allocated.

Layout of the format: 8 bytes of header length (little endian), a JSON header, then the tensors' bytes without gaps.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lwm_env.errors import ConfigMismatch, CorruptFile, StorageError

MAX_HEADER_BYTES = 1 << 20
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8",
}  # fmt: skip

Shape = tuple[int | None, ...]  # None: any length


def read_tensors(path: str | os.PathLike, expected: Mapping[str, tuple[Shape, str]]) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as fresh numpy arrays.

    Args:
        path: the file.
        expected: for each tensor its shape (``None`` where any length will do) and its numpy dtype's name.
            The file must hold these tensors and no others.

    Raises:
        CorruptFile: the file is missing, truncated or not well-formed.
        ConfigMismatch: well-formed, but a tensor is missing, unknown, or has another shape or dtype.
        StorageError: the system would not let us read it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            entries, data_begin = _read_header(path, file, size)
            _compare(path, entries, expected)
            return {name: _read_one(path, file, data_begin, entries[name]) for name in expected}
    except FileNotFoundError as error:
        raise CorruptFile(f"{path} is missing. Restore it from where the world came from.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from error


class _Entry:
    """Where one tensor lies in its file, checked field by field."""

    def __init__(self, fields: Any) -> None:
        if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
            raise ValueError("needs exactly dtype, shape and data_offsets")
        dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"has the unknown dtype {dtype!r:.40}")
        if not _are_counts(shape) or len(shape) > 8:
            raise ValueError(f"has the impossible shape {shape!r:.40}")
        if not _are_counts(offsets) or len(offsets) != 2:
            raise ValueError(f"has the impossible offsets {offsets!r:.40}")
        self.dtype, self.shape, (self.begin, self.end) = DTYPES[dtype], tuple(shape), offsets
        needed = math.prod(shape) * np.dtype(self.dtype).itemsize
        if self.end - self.begin != needed:
            raise ValueError(f"is {needed} bytes by its shape but {self.end - self.begin} by its offsets")


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, _Entry], int]:
    """The checked entries, and the byte at which the tensors begin."""
    length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise _corrupt(path, f"its header claims {length} bytes of a file of {size} (at most {MAX_HEADER_BYTES})")
    entries = {}
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_duplicates)
        if not isinstance(header, dict):
            raise ValueError("the header is not an object")
        header.pop("__metadata__", None)
        for name, fields in header.items():
            try:
                entries[name] = _Entry(fields)
            except ValueError as error:
                raise ValueError(f"tensor {name!r:.60} {error}") from None
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, str(error)[:200]) from error
    _check_coverage(path, entries, size - 8 - length)
    return entries, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a name occurs twice in the header")
    return unique


def _check_coverage(path: Path, entries: dict[str, _Entry], num_bytes: int) -> None:
    """Tensors must follow each other without a gap or an overlap, up to the end of the file."""
    position = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            raise _corrupt(path, f"a tensor begins at byte {entry.begin} where {position} was expected")
        position = entry.end
    if position != num_bytes:
        raise _corrupt(path, f"its tensors take {position} bytes but {num_bytes} follow the header")


def _compare(path: Path, entries: dict[str, _Entry], expected: Mapping[str, tuple[Shape, str]]) -> None:
    missing, unknown = sorted(set(expected) - set(entries)), sorted(set(entries) - set(expected))
    if missing or unknown:
        raise ConfigMismatch(
            f"{path} lacks the tensors {missing[:3]} and has {unknown[:3]} that its configuration does not know"
            f" ({len(missing)} and {len(unknown)} in all). Weights and world.json come from different models."
        )
    for name, (shape, dtype) in expected.items():
        entry = entries[name]
        fits = len(entry.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, entry.shape, strict=True)
        )
        if not fits or entry.dtype != dtype:
            raise ConfigMismatch(
                f"{path}: tensor {name} is {entry.dtype} {entry.shape} but {dtype} {tuple(shape)} was expected."
                " Weights and world.json come from different models."
            )


def _read_one(path: Path, file: BinaryIO, data_begin: int, entry: _Entry) -> np.ndarray:
    data = bytearray(entry.end - entry.begin)  # not bytes: the array must be writable for torch
    file.seek(data_begin + entry.begin)
    if file.readinto(data) != len(data):
        raise _corrupt(path, "it became shorter while it was read")
    return np.ndarray(entry.shape, np.dtype(entry.dtype), buffer=data)


def _corrupt(path: Path, reason: str) -> CorruptFile:
    return CorruptFile(f"{path} is not a valid safetensors file: {reason}. Restore it from where the world came from.")

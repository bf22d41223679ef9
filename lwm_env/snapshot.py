"""One world as bytes: a fixed prefix, a JSON header, the raw tensors, all under one checksum.

Layout, little endian: magic "LWMS", uint16 version, uint32 CRC-32 of everything behind it, uint32 header length, uint64
payload length, header, payload. CRC-32 catches every flip of one bit, and four gigabytes a second keep a snapshot far
under a millisecond; a snapshot says where it came from, it does not prove it.
"""

import json
import struct
import zlib
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwm_env.errors import ConfigMismatch, CorruptFile

MAGIC, VERSION = b"LWMS", 1
_PREFIX = struct.Struct("<4sHI")
_LENGTHS = struct.Struct("<IQ")
_DTYPES = {
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def encode(facts: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """JSON-serialisable facts and tensors of any shape as bytes."""
    parts, layout = [], []
    for name, tensor in tensors.items():
        layout.append([name, _NAMES[tensor.dtype], list(tensor.shape)])
        parts.append(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    header = json.dumps({"facts": facts, "tensors": layout}, separators=(",", ":")).encode()
    body = b"".join([_LENGTHS.pack(len(header), sum(map(len, parts))), header, *parts])
    return _PREFIX.pack(MAGIC, VERSION, zlib.crc32(body)) + body


def decode(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Inverse of `encode`.

    Raises:
        CorruptFile: not a snapshot, cut short, or altered.
        ConfigMismatch: written by another version of the format.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise CorruptFile(f"a snapshot is bytes as get_state() returns them, got {type(data).__name__}.")
    data = bytes(data)
    if len(data) < _PREFIX.size + _LENGTHS.size or data[:4] != MAGIC:
        raise CorruptFile(f"these {len(data)} bytes are not a snapshot of lwm-env. Pass what get_state() returned.")
    _, version, checksum = _PREFIX.unpack_from(data)
    body = memoryview(data)[_PREFIX.size :]
    if zlib.crc32(body) != checksum:
        raise CorruptFile(f"the snapshot of {len(data)} bytes is cut short or altered (checksum). Take a new one.")
    if version != VERSION:
        raise ConfigMismatch(
            f"the snapshot has format {version}, this version of lwm-env reads format {VERSION}. "
            f"Use the version that wrote it, or take a new one."
        )
    try:
        return _parse(body)
    except (ValueError, LookupError, TypeError) as error:
        raise CorruptFile(f"the snapshot of {len(data)} bytes is malformed ({error}). Take a new one.") from error


def check(facts: dict[str, Any], tensors: dict[str, Tensor], like: dict[str, Tensor], num_players: int) -> None:
    """Raises CorruptFile unless the tensors are laid out as `like` and the facts are a slot's.

    A checksum only says that nothing changed by accident, and another version may pack its states differently.
    """
    layouts = [{name: (value.dtype, value.shape) for name, value in group.items()} for group in (tensors, like)]
    points = facts.get("points", [0] * num_players)  # older ones have none
    counts = [facts.get(name) for name in ("seed", "episode", "steps")] + (points if type(points) is list else [None])
    fine = all(type(count) is int and 0 <= count < 1 << 63 for count in counts) and type(facts.get("ended")) is bool
    fine = fine and len(points) == num_players
    if layouts[0] != layouts[1] or not fine:
        raise CorruptFile("the snapshot does not hold what a state of this model holds. Take a new one.")


def _parse(body: memoryview) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header_size, payload_size = _LENGTHS.unpack_from(body)
    start = _LENGTHS.size + header_size
    if len(body) - start != payload_size:
        raise ValueError(f"{len(body) - start} bytes of tensors, {payload_size} announced")
    header = json.loads(bytes(body[_LENGTHS.size : start]))
    payload, tensors, position = body[start:], {}, 0
    for name, dtype, shape in header["tensors"]:
        size = prod(shape) * _DTYPES[dtype].itemsize
        if any(type(side) is not int or side < 0 for side in shape) or position + size > payload_size:
            raise ValueError(f"tensor {name!r} does not fit")
        tensors[name] = torch.empty(shape, dtype=_DTYPES[dtype])
        if size:
            raw = np.frombuffer(payload[position : position + size], np.uint8).copy()
            tensors[name].view(-1).view(torch.uint8).copy_(torch.from_numpy(raw))
        position += size
    if position != payload_size:
        raise ValueError(f"{payload_size - position} bytes belong to no tensor")
    if not isinstance(header["facts"], dict):
        raise TypeError("no facts")
    return header["facts"], tensors

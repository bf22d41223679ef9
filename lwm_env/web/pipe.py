"""Messages between the two processes: JSON with bytes behind it, never pickles."""

import json
import struct
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

_LENGTH = struct.Struct("<I")


class Message(NamedTuple):
    """What is said, and bytes that come with it (a snapshot, a picture)."""

    facts: dict[str, Any]
    payload: bytes = b""


def send(connection: Connection, message: Message) -> None:
    text = json.dumps(message.facts, separators=(",", ":")).encode()
    connection.send_bytes(b"".join([_LENGTH.pack(len(text)), text, message.payload]))


def receive(connection: Connection) -> Message:
    """Blocks until a message is there; raises EOFError or OSError when the other process is gone."""
    data = connection.recv_bytes()
    (length,) = _LENGTH.unpack_from(data)
    start = _LENGTH.size + length
    return Message(json.loads(data[_LENGTH.size : start]), data[start:])

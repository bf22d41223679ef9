"""What a seat and the server say to each other over one WebSocket (docs/play.md describes it for other languages).

The server sends one binary message a frame: a header of 24 bytes, the picture, then reward and surprise as two float32.
Everything else is JSON text in both directions.
"""

import struct
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

VERSION = 1
HEADER = struct.Struct("<BBHIIQI")  # version, seat, flags, frame id, acknowledged action, server time in µs, length
TAIL = struct.Struct("<ff")  # reward of the seat since the frame sent before, surprise in nats
SPECTATOR = 255  # the seat of those who only watch
MAX_MESSAGE_BYTES = 4096  # from a client
WINDOW = 2  # frames on their way to a client that has not acknowledged them

TERMINATED, TRUNCATED, FIRST, PNG = 1, 2, 4, 8  # flags; FIRST: of an episode, or after a jump in time

# Why the server closes a WebSocket, beside the codes of RFC 6455.
GOING_AWAY, TRY_AGAIN_LATER = 1001, 1013
MALFORMED, FORBIDDEN, NO_ROOM, TOO_SLOW, REPLACED, FLOOD = 4400, 4403, 4404, 4408, 4409, 4429


class FrameMessage(NamedTuple):
    """One frame as a client gets it; `acked` is the `seq` of the last action that it shows."""

    seat: int
    flags: int
    frame_id: int
    acked: int
    server_time_us: int
    picture: bytes
    reward: float
    surprise: float

    def pack(self) -> bytes:
        head = HEADER.pack(
            VERSION, self.seat, self.flags, self.frame_id, self.acked, self.server_time_us, len(self.picture)
        )
        return head + self.picture + TAIL.pack(self.reward, self.surprise)

    @classmethod
    def unpack(cls, message: bytes) -> "FrameMessage":
        """Inverse of `pack`.

        Raises:
            ValueError: not such a message, or of another version of the protocol.
        """
        if len(message) < HEADER.size + TAIL.size or message[0] != VERSION:
            raise ValueError(f"{len(message)} bytes came that are no frame of protocol version {VERSION}.")
        _, seat, flags, frame_id, acked, time_us, length = HEADER.unpack_from(message)
        if len(message) != HEADER.size + length + TAIL.size:
            raise ValueError(f"a frame of {len(message)} bytes came whose header announces a picture of {length}.")
        picture = message[HEADER.size : HEADER.size + length]
        return cls(seat, flags, frame_id, acked, time_us, picture, *TAIL.unpack_from(message, HEADER.size + length))


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Name = Annotated[str, Field(max_length=64)]
Counter = Annotated[int, Field(ge=0, lt=1 << 32)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Temperature = Annotated[float, Field(ge=0, le=10)]
ActionValue = Annotated[int, Field(ge=0, lt=1 << 16)] | Annotated[list[float], Field(max_length=64)]


class Attach(_Message):
    """The first message: take a reserved seat by its token, or watch without one."""

    type: Literal["attach"]
    room: Name
    token: Name | None = None  # of the seat
    access: Annotated[str, Field(max_length=256)] | None = None  # of the server, where it asks for one
    lossless: bool = False  # PNG instead of JPEG


class Action(_Message):
    type: Literal["action"]
    seq: Counter
    action: ActionValue


class Ack(_Message):
    type: Literal["ack"]
    frame: Counter


class Pause(_Message):
    type: Literal["pause"]
    paused: bool


class Restart(_Message):
    type: Literal["restart"]
    seed: Seed | None = None


class Rewind(_Message):
    type: Literal["rewind"]
    frame: Counter  # the id of a frame of the last minute


class SetTemperature(_Message):
    type: Literal["temperature"]
    value: Temperature | None  # None: the world's own


Control = Pause | Restart | Rewind | SetTemperature
_adapter: TypeAdapter[Attach | Action | Ack | Control] = TypeAdapter(
    Annotated[Attach | Action | Ack | Pause | Restart | Rewind | SetTemperature, Field(discriminator="type")]
)


def parse(text: str | bytes) -> Attach | Action | Ack | Control:
    """A client's message; raises ValueError when it is none."""
    return _adapter.validate_json(text)

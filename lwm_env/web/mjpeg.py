"""Where no WebSocket gets through: a room as an endless multipart stream of JPEGs; actions are posted."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from lwm_env.web.lobby import Lobby
from lwm_env.web.rooms import Frame, Room, Seat

BOUNDARY = "frame"
MEDIA_TYPE = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
REPEAT_SECONDS = 1.0  # the last frame comes again, so that a reader who is gone is noticed


class MjpegViewer:
    """A `rooms.Viewer` that is sent the newest frame whenever its connection takes one."""

    def __init__(self) -> None:
        self.seat: Seat | None = None
        self._frame: Frame | None = None
        self._wake = asyncio.Event()
        self._closed = False

    def offer(self, frame: Frame) -> None:
        self._frame = frame
        self._wake.set()

    def tell(self, event: Mapping[str, Any]) -> None:
        """There is no place for events in a stream of pictures."""

    def close(self, code: int, reason: str) -> None:
        self._closed = True
        self._wake.set()

    async def parts(self, lobby: Lobby, room: Room) -> AsyncIterator[bytes]:
        """The body of the answer, until the reader leaves or is sent away."""
        self._frame = self._frame or room.frame
        try:
            while not self._closed:
                if self._frame is not None:
                    jpeg = self._frame.jpeg
                    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    yield head.encode() + jpeg + b"\r\n"
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), REPEAT_SECONDS)
                except TimeoutError:
                    continue
        finally:
            lobby.leave(room, self)

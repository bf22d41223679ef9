"""One WebSocket: a person or a program in a seat, or someone who watches."""

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from lwm_env.errors import LwmError
from lwm_env.web import protocol
from lwm_env.web.guard import grants_access
from lwm_env.web.hosting import Busy
from lwm_env.web.lobby import Lobby, NoSuchRoom
from lwm_env.web.protocol import Ack, Action, Attach, FrameMessage
from lwm_env.web.rooms import Forbidden, Frame, Room, Seat
from lwm_env.web.supervisor import EngineLost

ATTACH_SECONDS = 5.0  # within which the first message comes
MAX_EVENTS = 64  # that wait for a reader
MESSAGES_PER_SECOND, BURST = 120.0, 240.0


class TokenBucket:
    """Lets `rate` things a second pass, and `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._left, self._at = burst, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self.burst, self._left + (now - self._at) * self.rate) - 1
        self._at = now
        return self._left >= 0


class Connection:
    """Sends the newest frame whenever fewer than `protocol.WINDOW` are unacknowledged.

    Frames between are left out; what happened in them, rewards and ends of episodes, comes with the next one.
    """

    def __init__(self, websocket: WebSocket, lobby: Lobby) -> None:
        self.seat: Seat | None = None
        self._websocket, self._lobby = websocket, lobby
        self._lossless = False
        self._frame: Frame | None = None  # the newest that was not sent
        self._flags, self._reward = 0, 0.0  # since the last frame that was sent
        self._in_flight: deque[int] = deque()
        self._events: deque[str] = deque()
        self._closing: tuple[int, str] | None = None
        self._wake = asyncio.Event()
        self._bucket = TokenBucket(MESSAGES_PER_SECOND, BURST)

    # -- what a room calls (rooms.Viewer) ----------------------------------------------------------------------------

    def offer(self, frame: Frame) -> None:
        if self._frame is not None:
            self._lobby.metrics.dropped.inc()
        self._frame = frame
        self._flags |= frame.flags
        if self.seat is not None:
            self._reward += float(frame.row.rewards[self.seat.index])
        self._wake.set()

    def tell(self, event: Mapping[str, Any]) -> None:
        if len(self._events) >= MAX_EVENTS:
            self.close(protocol.TOO_SLOW, "too many messages were not read")
            return
        self._events.append(json.dumps(event, separators=(",", ":")))
        self._wake.set()

    def close(self, code: int, reason: str) -> None:
        self._closing = self._closing or (code, reason)
        self._wake.set()

    # -- the connection ----------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """From the first message to the end."""
        await self._websocket.accept()
        room = None
        try:
            room = await self._attach()
            await self._talk(room)
        except _Rejected as error:
            self.close(error.code, str(error))
        except WebSocketDisconnect:
            pass
        finally:
            if room is not None:
                self._lobby.leave(room, self)
            await self._say_goodbye()

    async def _talk(self, room: Room) -> None:
        """Read and write until one of both ends."""
        tasks = [asyncio.ensure_future(work) for work in (self._write(), self._read(room))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _attach(self) -> Room:
        try:
            message = protocol.parse(await asyncio.wait_for(self._receive(), ATTACH_SECONDS))
        except TimeoutError as error:
            raise _Rejected(protocol.TOO_SLOW, "no attach message came") from error
        except ValueError as error:
            raise _Rejected(protocol.MALFORMED, "the first message must be an attach message") from error
        if not isinstance(message, Attach):
            raise _Rejected(protocol.MALFORMED, "the first message must be an attach message")
        lobby = self._lobby
        if not grants_access(lobby.settings, message.access):
            raise _Rejected(protocol.FORBIDDEN, "this server asks for an access token")
        self._lossless = message.lossless
        try:
            room = lobby.find(message.room)
            token = await lobby.enter(room, message.token, self)
        except NoSuchRoom as error:
            raise _Rejected(protocol.NO_ROOM, str(error)) from error
        except Forbidden as error:
            lobby.metrics.rejected.labels("token").inc()
            raise _Rejected(protocol.FORBIDDEN, str(error)) from error
        except (Busy, EngineLost) as error:
            raise _Rejected(protocol.TRY_AGAIN_LATER, str(error)) from error
        seat = self.seat
        told = {"seat": protocol.SPECTATOR if seat is None else seat.index, "player": seat and seat.player}
        self._events.appendleft(json.dumps({"type": "attached", "token": token, **told, **room.describe()}))
        if room.frame is not None and self._frame is None:
            self.offer(room.frame)
        return room

    async def _receive(self) -> str:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        if message.get("text") is None:
            raise ValueError("binary messages are not taken")
        return message["text"]

    async def _read(self, room: Room) -> None:
        while self._closing is None:
            try:
                message = protocol.parse(await self._receive())
            except ValueError:
                self.close(protocol.MALFORMED, "a message is not of the protocol")
                return
            if not self._bucket.take():
                self._lobby.metrics.rejected.labels("flood").inc()
                self.close(protocol.FLOOD, f"more than {MESSAGES_PER_SECOND:g} messages a second")
                return
            try:
                await self._obey(room, message)
            except LwmError as error:
                self.tell({"type": "error", "message": str(error)})

    async def _obey(self, room: Room, message: Any) -> None:
        if isinstance(message, Ack):
            while self._in_flight and self._in_flight[0] <= message.frame:
                self._in_flight.popleft()
            self._wake.set()
        elif isinstance(message, Attach):
            self.close(protocol.MALFORMED, "attached twice")
        elif self.seat is None:
            raise Forbidden("only those in a seat can do this. Take one.")
        elif isinstance(message, Action):
            self._lobby.act(room, self.seat, message.action, message.seq)
        else:
            await self._lobby.control(room, message)

    async def _write(self) -> None:
        while self._closing is None:
            await self._wake.wait()
            self._wake.clear()
            while self._events and self._closing is None:
                await self._websocket.send_text(self._events.popleft())
            frame = self._frame
            if frame is not None and self._closing is None and len(self._in_flight) < protocol.WINDOW:
                message = self._pack(frame)
                self._frame, self._flags, self._reward = None, 0, 0.0
                self._in_flight.append(frame.row.frame_id)
                await self._websocket.send_bytes(message)
                self._lobby.metrics.sent.inc()

    def _pack(self, frame: Frame) -> bytes:
        row, index = frame.row, 0 if self.seat is None else self.seat.index
        return FrameMessage(
            seat=protocol.SPECTATOR if self.seat is None else index,
            flags=self._flags | (protocol.PNG if self._lossless else 0),
            frame_id=row.frame_id,
            acked=0 if self.seat is None else int(row.acked[index]),
            server_time_us=frame.time_us,
            picture=frame.png if self._lossless else frame.jpeg,
            reward=self._reward,
            surprise=row.surprise,
        ).pack()

    async def _say_goodbye(self) -> None:
        """Close from this side, if the other one has not."""
        if self._websocket.client_state is WebSocketState.DISCONNECTED:
            return
        code, reason = self._closing or (1000, "")
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
            async with asyncio.timeout(1):
                for event in self._events:
                    await self._websocket.send_text(event)
                await self._websocket.close(code, reason[:120])


class _Rejected(Exception):
    """The connection is closed with a code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code

"""Between a client and the host of its room: requests, answers and WebSocket messages go through as they are."""

import asyncio
import logging
from collections.abc import AsyncIterator

import aiohttp
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response, StreamingResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from lwm_env.web.guard import INGRESS_HEADER
from lwm_env.web.host import Host

# Of one connection alone, or said anew for the next one.
PER_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "content-length", "expect", "forwarded", "x-forwarded-for", "x-forwarded-host",
    "x-forwarded-proto", INGRESS_HEADER,
}  # fmt: skip
OF_HANDSHAKE = "sec-websocket-"
SAID_ANEW = {"connection", "date", "keep-alive", "server", "transfer-encoding"}  # in answers
GOODBYE_SECONDS = 2.0

log = logging.getLogger("lwm.ingress")


def headers_for(connection: HTTPConnection) -> list[tuple[str, str]]:
    """What a host is told of a request: the client's own headers and address."""
    kept = [
        (name, value)
        for name, value in connection.headers.items()
        if name not in PER_HOP and not name.startswith(OF_HANDSHAKE)
    ]
    return [*kept, ("x-forwarded-for", connection.client.host)] if connection.client else kept


def target_of(connection: HTTPConnection) -> str:
    """Path and query as they came."""
    query = connection.scope["query_string"].decode("latin-1")
    return connection.scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")


async def relay(request: Request, host: Host, body: bytes) -> Response:
    """A host's answer to a request, streamed; raises HostLost."""
    answer = await host.request(request.method, target_of(request), headers_for(request), body)
    return pass_on(answer, host)


def pass_on(answer: aiohttp.ClientResponse, host: Host) -> Response:
    """An answer of a host as ours."""
    response = StreamingResponse(_parts(answer, host), answer.status)
    response.raw_headers = [
        (name.lower(), value) for name, value in answer.raw_headers if name.lower().decode() not in SAID_ANEW
    ]
    return response


async def _parts(answer: aiohttp.ClientResponse, host: Host) -> AsyncIterator[bytes]:
    try:
        async for part in answer.content.iter_any():
            yield part
    except aiohttp.ClientError:
        log.warning("%s", host.lost())  # the status was sent: all that can be done is to end
    finally:
        answer.close()


async def relay_socket(websocket: WebSocket, host: Host, first: str) -> tuple[int, str] | None:
    """Join an accepted WebSocket to a host until one of both ends it.

    Args:
        first: the message that was read already.

    Returns:
        Code and reason with which the host ended it, None when the client did.

    Raises:
        HostLost: the host cannot be reached, or went away without a word. Busy: it takes no more connections.
    """
    upstream = await host.websocket(target_of(websocket), headers_for(websocket))
    async with upstream:
        up, down = (
            asyncio.ensure_future(work) for work in (_up(websocket, upstream, first), _down(websocket, upstream))
        )
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if not down.done() and up.exception() is not None:  # the host ends it: hear how
                await asyncio.wait((down,), timeout=GOODBYE_SECONDS)
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
    if down.cancelled() or isinstance(down.exception(), WebSocketDisconnect):
        return None
    goodbye = down.result()
    if goodbye is None:
        raise host.lost()
    return goodbye


async def _up(websocket: WebSocket, upstream: aiohttp.ClientWebSocketResponse, first: str) -> None:
    """What the client says, until it leaves."""
    await upstream.send_str(first)
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        if message.get("text") is not None:
            await upstream.send_str(message["text"])
        else:
            await upstream.send_bytes(message["bytes"])


async def _down(websocket: WebSocket, upstream: aiohttp.ClientWebSocketResponse) -> tuple[int, str] | None:
    """What the host says, until it ends the connection; how, or None when it just went away."""
    while True:
        message = await upstream.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            await websocket.send_text(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await websocket.send_bytes(message.data)
        elif message.type is aiohttp.WSMsgType.CLOSE:
            return message.data or 1000, message.extra or ""
        else:
            return None

"""The server of `lwm serve` with one more WebSocket, /echo, which sends back what it gets: for the Autobahn suite.

    python tests/echo_server.py PORT [WORLD]

PORT may be 0; the address is printed. WORLD is an id or a folder, the first shipped world unless given.
"""

import contextlib
import sys

from starlette.websockets import WebSocket, WebSocketDisconnect

from lwm_env import worlds
from lwm_env.web.server import Server
from lwm_env.web.settings import make_settings

LARGEST_MESSAGE = 1 << 18  # bytes, in case 7.1.6


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while (message := await websocket.receive())["type"] == "websocket.receive":
            await websocket.send({**message, "type": "websocket.send"})


def main(port: str, world: str | None = None) -> int:
    settings = make_settings(port=int(port), worlds=[world or next(iter(worlds.shipped()))])
    server = Server(settings, lambda url: print(url, flush=True))
    server.app.add_api_websocket_route("/echo", echo)
    server.config.ws_max_size = LARGEST_MESSAGE
    return server.start()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

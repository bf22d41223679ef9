"""The web app: the page, the HTTP API (`/openapi.json` describes it), the WebSocket, health and metrics."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lwm_env import __version__, opponents
from lwm_env.errors import InvalidInput, LwmError, UnknownWorld, WrongOrder
from lwm_env.web import api_rooms, api_states
from lwm_env.web.connection import Connection
from lwm_env.web.guard import Allowed, Guard
from lwm_env.web.hosting import Busy
from lwm_env.web.lobby import RETRY_SECONDS, Lobby, NoSuchRoom
from lwm_env.web.metrics import Metrics
from lwm_env.web.rooms import Forbidden, Occupied
from lwm_env.web.settings import Settings
from lwm_env.web.supervisor import EngineLost, PlayedWorld, Refused

STATIC = Path(__file__).parent / "static"
MAX_DETAIL = 1000  # characters
STATUS = {
    NoSuchRoom: 404, UnknownWorld: 404, Forbidden: 403, Occupied: 409, WrongOrder: 409, Refused: 409,
    InvalidInput: 422, Busy: 503, EngineLost: 503,
}  # fmt: skip


def create_app(
    worlds: dict[str, PlayedWorld], settings: Settings, allowed: Callable[[], Allowed], on_end: Callable[[], None]
) -> FastAPI:
    """The app of one server; `app.state.lobby` is its lobby.

    Args:
        allowed: the Hosts and Origins, once the port is known.
        on_end: called when the engine has ended for good.
    """
    metrics = Metrics()
    lobby = Lobby(worlds, settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(lobby.run())
        running.add_done_callback(lambda _: on_end())
        yield
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    app = FastAPI(title="lwm-env", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.lobby = lobby
    app.add_exception_handler(LwmError, tell_error)
    app.add_exception_handler(RequestValidationError, _tell_wrong_request)
    app.add_middleware(Guard, settings=settings, allowed=allowed, metrics=metrics)
    for add in (_add_health, _add_worlds, api_rooms.add, api_states.add):
        add(app, lobby)

    @app.websocket("/ws")
    async def play(websocket: WebSocket) -> None:
        await Connection(websocket, lobby).serve()

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC))
    return app


async def tell_error(request: Request, error: Exception) -> Response:
    """An error of ours as status and `{"detail": text}`."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else {}
    return JSONResponse({"detail": _speakable(str(error))}, status, headers)


async def _tell_wrong_request(request: Request, error: Any) -> Response:
    """FastAPI's own answer repeats what came, and fails where that is no text."""
    problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
    return JSONResponse({"detail": _speakable("; ".join(problems)[:MAX_DETAIL])}, 422)


def _speakable(text: str) -> str:
    """The same text; halves of surrogate pairs, which UTF-8 cannot say, are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _add_health(app: FastAPI, lobby: Lobby) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """Whether rooms can be played now: 200, or 503 while no engine is there or the server is being stopped."""
        engines = [{"ready": engine.healthy, "restarts": engine.restarts} for engine in lobby.hosting.engines]
        told = {"ready": lobby.ready, "draining": lobby.hosting.draining, "engines": engines}
        return JSONResponse(told, 200 if lobby.ready else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(lobby.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_worlds(app: FastAPI, lobby: Lobby) -> None:
    @app.get("/api/worlds")
    async def list_worlds() -> list[dict[str, Any]]:
        """What can be played: spaces, players, keys, steps per second, bots that can take a seat."""
        return [
            {**world.spec.model_dump(mode="json"), "fps": world.fps, "bots": opponents.names_for(world.spec)}
            for world in lobby.worlds.values()
        ]

    @app.get("/api/worlds/{world_id}/preview", response_class=Response)
    async def preview(world_id: str) -> Response:
        """A JPEG of the world as a script plays it; it goes on from request to request."""
        if world_id not in lobby.worlds:
            raise UnknownWorld(f"no world {world_id!r:.60} here; there are {', '.join(lobby.worlds)}.")
        return Response(await lobby.preview(world_id), media_type="image/jpeg")

"""The web app: the page, the HTTP API (`/openapi.json` describes it), the WebSocket, health and metrics."""

import asyncio
import base64
import contextlib
import io
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response, WebSocket
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from lwm_env import __version__, demo
from lwm_env.errors import InvalidInput, LwmError, UnknownWorld, WrongOrder, missing_extra
from lwm_env.web import pictures
from lwm_env.web.connection import Connection
from lwm_env.web.guard import Allowed, Guard
from lwm_env.web.hosting import Busy
from lwm_env.web.lobby import RETRY_SECONDS, Lobby, NoSuchRoom
from lwm_env.web.metrics import Metrics
from lwm_env.web.mjpeg import MEDIA_TYPE, MjpegViewer
from lwm_env.web.protocol import TERMINATED, TRUNCATED, ActionValue, Counter, Name, Seed, Temperature
from lwm_env.web.rooms import Clock, Forbidden, Frame, Occupied, PlayedBy, Room
from lwm_env.web.settings import Settings
from lwm_env.web.supervisor import EngineLost, PlayedWorld, Refused

STATIC = Path(__file__).parent / "static"
STATUS = {
    NoSuchRoom: 404, UnknownWorld: 404, Forbidden: 403, Occupied: 409, WrongOrder: 409, Refused: 409,
    InvalidInput: 422, Busy: 503, EngineLost: 503,
}  # fmt: skip


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class NewRoom(_Body):
    """A room to create."""

    world: Name
    seed: Seed | None = None
    temperature: Temperature | None = None  # null: the world's own
    clock: Clock = "realtime"  # "manual": stepped by POST .../step alone
    public: bool = False  # whether GET /api/rooms lists it
    seats: dict[Name, PlayedBy] = Field(default_factory=dict)  # player -> "human" (also when left out) or a script


class NewSeat(_Body):
    player: Name | None = None  # null: the first free seat


class Step(_Body):
    actions: dict[Name, ActionValue] = Field(default_factory=dict)  # of every player that is played by people


class RoomStep(Step):
    room: Name
    token: Name


class BatchedStep(_Body):
    steps: Annotated[list[RoomStep], Field(min_length=1, max_length=256)]


class SeatAction(_Body):
    action: ActionValue
    seq: Counter = 0


class Reset(_Body):
    seed: Seed | None = None  # null: the next episode of the room's stream


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
    app.add_exception_handler(LwmError, _tell_error)
    app.add_middleware(Guard, settings=settings, allowed=allowed, metrics=metrics)
    for add in (_add_health, _add_worlds, _add_rooms, _add_fallback, _add_steps, _add_states):
        add(app, lobby)

    @app.websocket("/ws")
    async def play(websocket: WebSocket) -> None:
        await Connection(websocket, lobby).serve()

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC))
    return app


async def _tell_error(request: Request, error: Exception) -> Response:
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else {}
    return JSONResponse({"detail": str(error)}, status, headers)


def _add_health(app: FastAPI, lobby: Lobby) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """Whether rooms can be played now: 200, or 503 while the engine is away or the server is being stopped."""
        told = {
            "ready": lobby.ready,
            "draining": lobby.hosting.draining,
            "engine_restarts": lobby.hosting.supervisor.restarts,
        }
        return JSONResponse(told, 200 if lobby.ready else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(lobby.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_worlds(app: FastAPI, lobby: Lobby) -> None:
    @app.get("/api/worlds")
    async def list_worlds() -> list[dict[str, Any]]:
        """What can be played: spaces, players, keys, steps per second."""
        return [{**world.spec.model_dump(mode="json"), "fps": world.fps} for world in lobby.worlds.values()]

    @app.get("/api/worlds/{world_id}/preview", response_class=Response)
    async def preview(world_id: str) -> Response:
        """A JPEG of the world as a script plays it; it goes on from request to request."""
        if world_id not in lobby.worlds:
            raise UnknownWorld(f"no world {world_id!r:.60} here; there are {', '.join(lobby.worlds)}.")
        return Response(await lobby.preview(world_id), media_type="image/jpeg")


def _find_room(request: Request, room_id: str) -> Room:
    return request.app.state.lobby.find(room_id)


def _find_own_room(room: "AnyRoom", x_lwm_token: Annotated[str | None, Header()] = None) -> Room:
    room.authorise(x_lwm_token)
    return room


AnyRoom = Annotated[Room, Depends(_find_room)]
OwnRoom = Annotated[Room, Depends(_find_own_room)]  # of somebody who has a token of it


def _add_rooms(app: FastAPI, lobby: Lobby) -> None:
    @app.get("/api/rooms")
    async def list_rooms() -> list[dict[str, Any]]:
        """The public rooms."""
        return [room.describe() for room in lobby.rooms.values() if room.public]

    @app.post("/api/rooms", status_code=201)
    async def create_room(new: NewRoom) -> dict[str, Any]:
        """A new room and the token of its owner. 503 when the server is full or the engine is being started."""
        room, token = await lobby.create(
            new.world,
            seed=new.seed,
            temperature=new.temperature,
            clock=new.clock,
            public=new.public,
            played_by=new.seats,
        )
        return {"token": token, **room.describe()}

    @app.get("/api/rooms/{room_id}")
    async def show_room(room: AnyRoom) -> dict[str, Any]:
        """State, seats, seed and temperature."""
        return room.describe()

    @app.delete("/api/rooms/{room_id}", status_code=204)
    async def delete_room(room: AnyRoom, x_lwm_token: Annotated[str | None, Header()] = None) -> None:
        """Close a room; needs its owner's token."""
        if not room.owner.fits(x_lwm_token):
            raise Forbidden("this needs the token of the room's owner, in the header X-Lwm-Token.")
        await lobby.close(room)

    @app.post("/api/rooms/{room_id}/seats", status_code=201)
    async def join(room: AnyRoom, new: NewSeat) -> dict[str, Any]:
        """Reserve a seat; its token takes it over the WebSocket. 409 when none is free."""
        seat, token = lobby.reserve(room, new.player)
        return {"player": seat.player, "seat": seat.index, "token": token, "seconds": lobby.settings.reserve_seconds}


def _add_fallback(app: FastAPI, lobby: Lobby) -> None:
    """For those whom no WebSocket reaches."""

    @app.get("/api/rooms/{room_id}/stream", response_class=StreamingResponse)
    async def stream(room: AnyRoom, x_lwm_token: Annotated[str | None, Header()] = None) -> StreamingResponse:
        """The room as multipart MJPEG. A seat's token takes the seat; its new token is in the header X-Lwm-Token of the
        answer. Without a token one watches."""
        viewer = MjpegViewer()
        token = await lobby.enter(room, x_lwm_token, viewer)
        headers = {"X-Lwm-Token": token} if token else {}
        return StreamingResponse(viewer.parts(lobby, room), headers=headers, media_type=MEDIA_TYPE)

    @app.post("/api/rooms/{room_id}/act", status_code=204)
    async def act(room: AnyRoom, order: SeatAction, x_lwm_token: Annotated[str | None, Header()] = None) -> None:
        """Hold an action in the taken seat of a token."""
        room.authorise(x_lwm_token)
        lobby.act(room, room.seat_of(x_lwm_token), order.action, order.seq)


def _tell_step(frame: Frame, room: Room, with_picture: bool) -> dict[str, Any]:
    row, players = frame.row, room.world.spec.players
    told = {
        "room": room.id,
        "frame": row.frame_id,
        "rewards": dict(zip(players, row.rewards.tolist(), strict=True)),
        "terminated": bool(frame.flags & TERMINATED),
        "truncated": bool(frame.flags & TRUNCATED),
        "surprise": row.surprise,
    }
    return {**told, "png": base64.b64encode(frame.png).decode()} if with_picture else told


def _add_steps(app: FastAPI, lobby: Lobby) -> None:
    @app.post("/api/rooms/{room_id}/step")
    async def step(room: OwnRoom, order: Step, picture: bool = True) -> dict[str, Any]:
        """One step of a room whose clock is manual. The step after the end of an episode ignores the actions and gives
        the first frame of the next one."""
        (frame,) = await lobby.step([(room, order.actions)])
        return _tell_step(frame, room, picture)

    @app.post("/api/step")
    async def step_batch(batch: BatchedStep, picture: bool = True) -> list[dict[str, Any]]:
        """One step of many rooms, those of a world in one batch of the engine."""
        rooms = [lobby.find(order.room) for order in batch.steps]
        for room, order in zip(rooms, batch.steps, strict=True):
            room.authorise(order.token)
        orders = [(room, order.actions) for room, order in zip(rooms, batch.steps, strict=True)]
        frames = await lobby.step(orders)
        return [_tell_step(frame, room, picture) for frame, room in zip(frames, rooms, strict=True)]

    @app.post("/api/rooms/{room_id}/reset")
    async def reset(room: OwnRoom, order: Reset) -> dict[str, Any]:
        """Begin an episode."""
        await lobby.restart(room, order.seed)
        return _tell_step(room.frame, room, with_picture=True)


def _add_states(app: FastAPI, lobby: Lobby) -> None:
    octets: Any = {200: {"content": {"application/octet-stream": {}}}}

    @app.get("/api/rooms/{room_id}/frame", response_class=Response)
    async def frame(room: AnyRoom) -> Response:
        """The current frame as PNG."""
        if room.frame is None:
            raise EngineLost("the room has no frame yet. Try again.")
        return Response(room.frame.png, media_type="image/png")

    @app.get("/api/rooms/{room_id}/snapshot", response_class=Response, responses=octets)
    async def snapshot(room: OwnRoom) -> Response:
        """The state, as `env.unwrapped.get_state()` gives it; any env of the same weights goes on from it."""
        return Response(await lobby.snapshot(room), media_type="application/octet-stream")

    @app.post("/api/rooms/{room_id}/restore")
    async def restore(room: OwnRoom, request: Request) -> dict[str, Any]:
        """Go on from a snapshot, the body of the request."""
        await lobby.restore(room, await request.body())
        return room.describe()

    @app.post("/api/rooms/{room_id}/fork", status_code=201)
    async def fork(room: OwnRoom) -> dict[str, Any]:
        """A new room that goes on from where this one is, and its owner's token."""
        state = await lobby.snapshot(room)
        copy, token = await lobby.create(
            room.world.spec.id,
            seed=room.seed,
            temperature=room.temperature,
            clock=room.clock,
            public=room.public,
            played_by={seat.player: seat.played_by for seat in room.seats},
            snapshot=state,
        )
        return {"token": token, **copy.describe()}

    @app.post("/api/rooms/{room_id}/prompt")
    async def prompt(room: OwnRoom, request: Request) -> dict[str, Any]:
        """Begin an episode at a picture, the body of the request: PNG, JPEG or WebP. `warning` is null or says that it
        is far from what the world was trained on."""
        data, size = await request.body(), room.world.spec.frame_size
        warning = await lobby.start_from(room, await asyncio.to_thread(pictures.decode_prompt, data, size))
        return {**room.describe(), "warning": warning}

    recorder = asyncio.Semaphore(1)  # encoders are hungry

    @app.get("/api/rooms/{room_id}/recording", response_class=Response)
    async def recording(
        room: OwnRoom,
        format: Literal["mp4", "gif"] = "mp4",
        seconds: Annotated[float, Query(gt=0, le=600)] = 60.0,
    ) -> Response:
        """The last minute, or less of it, as a video."""
        jpegs = list(room.recording)[-max(1, round(seconds * room.world.fps)) :]
        if not jpegs:
            raise WrongOrder("nothing was played yet. Play first.")
        async with recorder:
            data = await asyncio.to_thread(_encode_video, jpegs, room.world.fps, format)
        return Response(data, media_type="video/mp4" if format == "mp4" else "image/gif")


def _encode_video(jpegs: list[bytes], fps: float, format: str) -> bytes:
    frames = [pictures.decode(jpeg) for jpeg in jpegs]
    if format == "gif":
        return pictures.encode_gif(frames, fps)
    try:
        import moviepy  # noqa: F401
    except ImportError as error:
        told = missing_extra("moviepy", "video")
        raise HTTPException(501, str(told)) from error
    with tempfile.TemporaryDirectory(prefix="lwm-") as folder:
        path = Path(folder) / "recording.mp4"
        demo.write_video(path, frames, fps)
        return io.BytesIO(path.read_bytes()).getvalue()

"""The HTTP API of what is in a room: frames, snapshots, forks, pictures to start from, videos."""

import asyncio
import io
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response

from lwm_env import demo
from lwm_env.errors import WrongOrder, missing_extra
from lwm_env.web import pictures
from lwm_env.web.api_rooms import AnyRoom, OwnRoom
from lwm_env.web.lobby import Lobby
from lwm_env.web.supervisor import EngineLost


def add(app: FastAPI, lobby: Lobby) -> None:
    """Add these calls to the app."""
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
        jpegs = [jpeg for _, jpeg in room.recording[-max(1, round(seconds * room.world.fps)) :]]
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

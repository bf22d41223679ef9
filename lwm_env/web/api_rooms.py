"""The HTTP API of rooms: create, join, watch, act, step. `lwm_env.web.app` puts it together."""

import base64
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from lwm_env.web.lobby import Lobby
from lwm_env.web.mjpeg import MEDIA_TYPE, MjpegViewer
from lwm_env.web.protocol import TERMINATED, TRUNCATED, ActionValue, Counter, Name, Seed, Temperature
from lwm_env.web.rooms import Clock, Forbidden, Frame, Room


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class NewRoom(_Body):
    """A room to create."""

    world: Name
    seed: Seed | None = None
    temperature: Temperature | None = None  # null: the world's own
    clock: Clock = "realtime"  # "manual": stepped by POST .../step alone
    public: bool = False  # whether GET /api/rooms lists it
    seats: dict[Name, Name] = Field(default_factory=dict)  # player -> "human" (also when left out), "neutral" or a bot


class NewSeat(_Body):
    player: Name | None = None  # null: the first free seat


class SeatGiven(_Body):
    played_by: Name  # "human", "neutral" or a bot of the world


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


def _find_room(request: Request, room_id: str) -> Room:
    return request.app.state.lobby.find(room_id)


def _find_own_room(room: "AnyRoom", x_lwm_token: Annotated[str | None, Header()] = None) -> Room:
    room.authorise(x_lwm_token)
    return room


AnyRoom = Annotated[Room, Depends(_find_room)]
OwnRoom = Annotated[Room, Depends(_find_own_room)]  # of somebody who has a token of it


def add(app: FastAPI, lobby: Lobby) -> None:
    """Add these calls to the app."""
    for part in (_add_rooms, _add_fallback, _add_steps):
        part(app, lobby)


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

    @app.put("/api/rooms/{room_id}/seats/{player}")
    async def give_seat(room: OwnRoom, player: str, given: SeatGiven) -> dict[str, Any]:
        """Who plays a free seat from now on: people, nobody ("neutral") or a bot. 409 while somebody has it."""
        lobby.give(room, player, given.played_by)
        return room.describe()


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


def tell_step(frame: Frame, room: Room, with_picture: bool) -> dict[str, Any]:
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
        return tell_step(frame, room, picture)

    @app.post("/api/step")
    async def step_batch(batch: BatchedStep, picture: bool = True) -> list[dict[str, Any]]:
        """One step of many rooms, those of a world in one batch of the engine."""
        rooms = [lobby.find(order.room) for order in batch.steps]
        for room, order in zip(rooms, batch.steps, strict=True):
            room.authorise(order.token)
        orders = [(room, order.actions) for room, order in zip(rooms, batch.steps, strict=True)]
        frames = await lobby.step(orders)
        return [tell_step(frame, room, picture) for frame, room in zip(frames, rooms, strict=True)]

    @app.post("/api/rooms/{room_id}/reset")
    async def reset(room: OwnRoom, order: Reset) -> dict[str, Any]:
        """Begin an episode."""
        await lobby.restart(room, order.seed)
        return tell_step(room.frame, room, with_picture=True)

"""Rooms and their seats: who may do what, and what was seen lately. No I/O; the lobby moves them along."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from lwm_env import opponents
from lwm_env.errors import InvalidInput, LwmError
from lwm_env.opponents import Opponent
from lwm_env.spec import DiscreteActions
from lwm_env.web import pictures
from lwm_env.web.ring import Ring
from lwm_env.web.room_ids import new_room_id
from lwm_env.web.slot_table import Row
from lwm_env.web.supervisor import PlayedWorld

PlayedBy = str  # "human": people and programs; "neutral": nobody, action 0; else the name of a bot (lwm_env.opponents)
Clock = Literal["realtime", "manual"]


class Forbidden(LwmError):
    """The token is wrong, outdated, or of somebody who may not do this."""


class Occupied(LwmError):
    """No such seat is free."""


class RoomState(StrEnum):
    CREATED = "created"
    WARMING = "warming"  # a slot of the engine is being filled
    RUNNING = "running"
    PAUSED = "paused"  # by a player, or because there is none
    SNAPSHOTTED = "snapshotted"  # holds no slot; goes on where it was when somebody comes
    CLOSED = "closed"


class SeatState(StrEnum):
    FREE = "free"
    RESERVED = "reserved"
    LIVE = "live"
    DROPPED = "dropped"


class Viewer(Protocol):
    """Someone at the other end of a connection, in a seat or not."""

    seat: "Seat | None"

    def offer(self, frame: "Frame") -> None: ...
    def tell(self, event: Mapping[str, Any]) -> None: ...
    def close(self, code: int, reason: str) -> None: ...


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class Secret:
    """A token of 128 bits of which only the digest is kept."""

    def __init__(self, hashed: bytes = b"") -> None:
        self.hashed = hashed  # b"" fits no token

    def renew(self) -> str:
        token = secrets.token_urlsafe(16)
        self.hashed = digest(token)
        return token

    def fits(self, token: str | None) -> bool:
        return token is not None and secrets.compare_digest(digest(token), self.hashed)


@dataclass
class Seat:
    """One player of a room."""

    index: int
    player: str
    played_by: PlayedBy = "human"
    state: SeatState = SeatState.FREE
    secret: Secret = field(default_factory=Secret)
    deadline: float = 0.0  # of a reservation, or of a return
    viewer: Viewer | None = None
    bot: Opponent | None = None
    sent_at: tuple[int, float] | None = None  # seq and arrival of an action that no frame has shown yet

    def expire(self, now: float) -> bool:
        """Free the seat when its time is over; whether it was."""
        if self.state not in (SeatState.RESERVED, SeatState.DROPPED) or now < self.deadline:
            return False
        self.state, self.secret = SeatState.FREE, Secret()
        return True


@dataclass
class Frame:
    """What a room shows at one moment, encoded once for all who watch."""

    row: Row
    flags: int
    time_us: int = field(default_factory=lambda: time.time_ns() // 1000)

    @cached_property
    def jpeg(self) -> bytes:
        return pictures.encode_jpeg(self.row.frame)

    @cached_property
    def png(self) -> bytes:
        return pictures.encode_png(self.row.frame)


class Room:
    """A world that people share.

    Args:
        seed: of its first episode.
        temperature: None is the world's own.
        played_by: who plays each player's seat; humans where nothing is said.
        num_snapshots: how many are kept, one a second.
    """

    def __init__(
        self,
        world: PlayedWorld,
        *,
        seed: int,
        temperature: float | None = None,
        clock: Clock = "realtime",
        public: bool = False,
        played_by: Mapping[str, PlayedBy] | None = None,
        num_snapshots: int = 60,
    ) -> None:
        played_by = played_by or {}
        if unknown := set(played_by) - set(world.spec.players):
            raise InvalidInput(f"seats {sorted(unknown)} were given; {world.spec.id} has {list(world.spec.players)}.")
        self.id = new_room_id()
        self.world, self.seed, self.temperature = world, seed, temperature
        self.clock, self.public = clock, public
        self.seats = [Seat(index, player) for index, player in enumerate(world.spec.players)]
        for seat in self.seats:
            self.give(seat.player, played_by.get(seat.player, "human"))
        self.owner = Secret()
        self.viewers: set[Viewer] = set()
        self.state = RoomState.CREATED
        self.held = False  # paused by a player
        self.hidden = False  # a preview
        self.slot: int | None = None
        self.frame: Frame | None = None
        self.frame_id = 0  # of the last frame shown
        self.snapshots = Ring(num_snapshots)  # frame ids and states
        self.recording = Ring(max(1, round(num_snapshots * world.fps)))  # frame ids and JPEGs
        self.used_at = time.monotonic()  # by a player, or by the API
        self.lock = asyncio.Lock()  # of whatever changes the engine's slot

    # -- seats -------------------------------------------------------------------------------------------------------

    def give(self, player: str, played_by: PlayedBy) -> Seat:
        """Let a seat be played by people ("human"), by nobody ("neutral") or by a bot.

        Raises:
            InvalidInput: there is no such player, or no such bot for this world.
            Occupied: somebody sits there, or may come back.
        """
        spec = self.world.spec
        if player not in spec.players:
            raise InvalidInput(f"no seat {player!r:.40}; {spec.id} has {list(spec.players)}.")
        seat = self.seats[spec.players.index(player)]
        if seat.state is not SeatState.FREE:
            raise Occupied(f"{player} is {seat.state.value}. A seat is given away once nobody has it.")
        known = played_by in opponents.RESERVED
        seat.bot = None if known else opponents.make(played_by, spec, player, self.seed + seat.index)
        seat.played_by = played_by
        return seat

    def reserve(self, player: str | None, until: float) -> tuple[Seat, str]:
        """A free seat for a person, the first one or that of a player, and its token.

        Raises:
            Occupied: none is free.
            InvalidInput: there is no such player.
        """
        if player is not None and player not in self.world.spec.players:
            raise InvalidInput(f"no seat {player!r:.40}; {self.world.spec.id} has {list(self.world.spec.players)}.")
        for seat in self.seats:
            if seat.state is SeatState.FREE and seat.played_by == "human" and player in (None, seat.player):
                seat.state, seat.deadline = SeatState.RESERVED, until
                return seat, seat.secret.renew()
        raise Occupied("no such seat is free in this room. Watch it, or try again later.")

    def take(self, token: str, viewer: Viewer) -> tuple[Seat, str, Viewer | None]:
        """Seat a connection by the seat's token: the seat, its new token, and the connection that had it before.

        Raises:
            Forbidden: the token is of no seat here. Nothing was changed.
        """
        seat = self.seat_of(token)
        before, seat.viewer, seat.state = seat.viewer, viewer, SeatState.LIVE
        return seat, seat.secret.renew(), before

    def seat_of(self, token: str | None) -> Seat:
        """The seat that a token is of; Forbidden when there is none."""
        for seat in self.seats:
            if seat.secret.fits(token):
                return seat
        raise Forbidden("the token is of no seat in this room. Join it again.")

    def authorise(self, token: str | None) -> None:
        """Raises Forbidden unless the token is the owner's or that of somebody in a seat."""
        seated = [seat.secret for seat in self.seats if seat.state in (SeatState.LIVE, SeatState.DROPPED)]
        if not any(secret.fits(token) for secret in (self.owner, *seated)):
            raise Forbidden("this needs the token of the room or of a taken seat, in the header X-Lwm-Token.")

    @property
    def has_player(self) -> bool:
        """Whether anybody is there for whom it should run: a person in a seat, or, without seats, someone watching."""
        for_people = [seat for seat in self.seats if seat.played_by == "human"]
        return any(seat.state is SeatState.LIVE for seat in for_people) or (not for_people and bool(self.viewers))

    # -- frames ------------------------------------------------------------------------------------------------------

    def show(self, row: Row, flags: int) -> Frame:
        """Make a new frame the current one and hand it to all who watch."""
        self.frame, self.frame_id = Frame(row, flags), row.frame_id
        self.recording.append((row.frame_id, self.frame.jpeg))
        for viewer in self.viewers:
            viewer.offer(self.frame)
        return self.frame

    def snapshot_before(self, frame_id: int) -> bytes | None:
        """The newest snapshot that is not newer than a frame; later ones are forgotten."""
        if not self.snapshots:
            return None
        while len(self.snapshots) > 1 and self.snapshots[-1][0] > frame_id:
            self.snapshots.pop()
        return self.snapshots[-1][1]

    def rest(self) -> None:
        """Keep nothing but the last snapshot."""
        self.state = RoomState.SNAPSHOTTED
        last = self.snapshots[-1]
        self.snapshots.clear()
        self.snapshots.append(last)
        self.recording.clear()

    # -- told --------------------------------------------------------------------------------------------------------

    def tell(self, event: Mapping[str, Any]) -> None:
        for viewer in self.viewers:
            viewer.tell(event)

    def describe(self) -> dict[str, Any]:
        """What everybody may know of the room."""
        return {
            "room": self.id,
            "world": self.world.spec.id,
            "state": self.state.value,
            "paused": self.held,
            "clock": self.clock,
            "public": self.public,
            "seed": self.seed,
            "temperature": self.world.spec.temperature if self.temperature is None else self.temperature,
            "frame": self.frame_id,
            "seats": [
                {"player": seat.player, "played_by": seat.played_by, "state": seat.state.value} for seat in self.seats
            ],
            "spectators": sum(viewer.seat is None for viewer in self.viewers),
        }


def check_action(action: Any, world: PlayedWorld) -> int | list[float]:
    """An action of a player of the world.

    Raises:
        InvalidInput: it is none.
    """
    space, actions = world.spec.action_space(), world.spec.actions
    if isinstance(actions, DiscreteActions):
        if type(action) is int and 0 <= action < actions.dim:
            return action
        raise InvalidInput(f"action {action!r:.40} came; {world.spec.id} takes integers from 0 to {actions.dim - 1}.")
    if isinstance(action, list) and space.contains(np.array(action, np.float32)):
        return action
    raise InvalidInput(
        f"action {action!r:.40} came; {world.spec.id} takes a list of {actions.dim} numbers "
        f"from {list(actions.low)} to {list(actions.high)}."
    )

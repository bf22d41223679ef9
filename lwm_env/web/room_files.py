"""Rooms on disk, over a restart of the server: what they are as JSON, and their last snapshot beside it."""

import logging
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lwm_env.errors import StorageError
from lwm_env.web import room_ids
from lwm_env.web.rooms import PlayedBy, Room
from lwm_env.web.supervisor import PlayedWorld
from lwm_env.worlds.storage import replace_file

Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
MAX_ROOM_BYTES = 1 << 16

log = logging.getLogger("lwm.lobby")


class SavedSeat(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    player: str
    played_by: PlayedBy
    digest: Digest  # of the token of whoever sits there; tokens themselves are never written


class SavedRoom(BaseModel):
    """What a room is besides its snapshot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    id: Annotated[str, Field(pattern=room_ids.PATTERN)]
    world: str
    seed: Annotated[int, Field(ge=0)]
    temperature: float | None
    clock: Literal["realtime", "manual"]
    public: bool
    frame_id: Annotated[int, Field(ge=0, lt=1 << 32)]
    owner: Digest
    seats: tuple[SavedSeat, ...]


def write(folder: Path, room: Room) -> None:
    """Keep a room that has a snapshot.

    Raises:
        StorageError: the disk is full or the folder cannot be written; what was there before is intact.
    """
    saved = SavedRoom(
        id=room.id,
        world=room.world.spec.id,
        seed=room.seed,
        temperature=room.temperature,
        clock=room.clock,
        public=room.public,
        frame_id=room.frame_id,
        owner=room.owner.hashed.hex(),
        seats=tuple(
            SavedSeat(player=seat.player, played_by=seat.played_by, digest=seat.secret.hashed.hex())
            for seat in room.seats
        ),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / f"{room.id}.lwms", room.snapshots[-1][1])
        replace_file(folder / f"{room.id}.json", saved.model_dump_json(indent=2).encode())
    except OSError as error:
        raise StorageError(f"a room could not be kept in {folder}: {error.strerror or error}. Make room.") from error


def read_all(folder: Path, worlds: dict[str, PlayedWorld]) -> list[Room]:
    """The rooms that were kept. One that is damaged, or of a world that is not here, is left out."""
    rooms = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            rooms.append(_read(path, worlds))
        except (OSError, ValueError, LookupError) as error:
            log.warning("the room in %s cannot be taken up: %s", path, error)
    return rooms


def _read(path: Path, worlds: dict[str, PlayedWorld]) -> Room:
    if path.stat().st_size > MAX_ROOM_BYTES or not re.fullmatch(room_ids.PATTERN, path.stem):
        raise ValueError("no file that a server wrote")
    saved = SavedRoom.model_validate_json(path.read_bytes())
    played_by = {seat.player: seat.played_by for seat in saved.seats}
    room = Room(
        worlds[saved.world],
        seed=saved.seed,
        temperature=saved.temperature,
        clock=saved.clock,
        public=saved.public,
        played_by=played_by,
    )
    room.id, room.frame_id, room.owner.hashed = saved.id, saved.frame_id, bytes.fromhex(saved.owner)
    for seat, kept in zip(room.seats, saved.seats, strict=True):
        seat.secret.hashed = bytes.fromhex(kept.digest)
    room.snapshots.append((saved.frame_id, path.with_suffix(".lwms").read_bytes()))
    return room


def remove(folder: Path, room_id: str) -> None:
    for suffix in (".json", ".lwms"):
        (folder / f"{room_id}{suffix}").unlink(missing_ok=True)

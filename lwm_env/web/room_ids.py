"""The names of rooms: random, and beginning with the number of their host where several hosts are served as one."""

import re
import secrets

PATTERN = r"^([0-9]{1,3}\.)?[A-Za-z0-9_-]{12}$"


def new_room_id(host: int | None = None) -> str:
    """A name that nobody guesses: 12 characters, behind the host's number and a dot if it has one."""
    name = secrets.token_urlsafe(9)
    return name if host is None else f"{host}.{name}"


def host_of(room_id: str) -> int | None:
    """The number of the host that a room is on, None when its name says none."""
    return int(room_id.partition(".")[0]) if "." in room_id and re.fullmatch(PATTERN, room_id) else None

"""What a server is told: by `lwm play` on the command line, by `lwm serve` in a TOML file."""

import os
import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lwm_env.errors import ConfigMismatch, StorageError

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
MIN_TOKEN_LENGTH = 22  # 128 bits in base64
ACCESS_TOKEN_VARIABLE = "LWM_ACCESS_TOKEN"


class Settings(BaseModel):
    """Every setting of a server. The defaults are those of `lwm play`: this machine only, all shipped worlds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8765  # 0: any that is free
    worlds: tuple[str, ...] = ()  # ids or folders; none: all shipped ones
    access_token: str | None = None  # asked of every client; needed on any address but loopback
    hosts: tuple[str, ...] = ()  # further values of the Host header, exactly as they come: "play.example.org"
    origins: tuple[str, ...] = ()  # further values of the Origin header: "https://play.example.org"
    forwarded_allow_ips: str | None = None  # addresses of reverse proxies whose X-Forwarded-For is believed
    state_dir: Path | None = None  # where rooms are kept over a restart; None: nowhere
    host_number: Annotated[int, Field(ge=0, le=999)] | None = None  # of one of several hosts; `lwm serve --ray` sets it

    device: str = "cpu"
    backend: Literal["torch", "onnx"] = "torch"
    engines: Annotated[int, Field(ge=1, le=64)] = 1  # processes that the rooms are shared among
    threads: Count | None = None  # of an engine; None: the machine's cores shared among the engines
    fps: Annotated[float, Field(gt=0, le=240)] | None = None  # steps per second; None: each world's own

    max_rooms: Annotated[int, Field(ge=1, le=256)] = 64  # of a world in an engine, stepped or paused
    max_load: Annotated[float, Field(gt=0)] = 0.85  # share of the engine's, or the machine's, time that rooms may take
    shed_seconds: Seconds | None = None  # of late steps, after which the newest room has to wait; None: all slow down
    max_viewers: Count = 256
    requests_per_minute: Count = 6000  # of one address
    rooms_per_minute: Count = 60  # that one address may create

    rewind_seconds: Seconds = 60.0
    reserve_seconds: Seconds = 15.0  # a seat waits so long for its player
    drop_seconds: Seconds = 30.0  # and so long for one that was cut off
    pause_seconds: Seconds = 5.0  # without a player, until a room is paused
    snapshot_seconds: Seconds = 600.0  # without a player, until a room gives its slot back
    close_seconds: Seconds = 3600.0  # without a player, until a room is forgotten

    @model_validator(mode="after")
    def _is_safe(self) -> "Settings":
        if not is_loopback(self.host) and not self.access_token:
            raise ValueError(
                f"host {self.host} can be reached from other machines, so access_token must be set. "
                'Make one with: python -c "import secrets; print(secrets.token_urlsafe(16))"'
            )
        if self.access_token is not None and len(self.access_token) < MIN_TOKEN_LENGTH:
            raise ValueError(
                f"access_token has {len(self.access_token)} characters, at least {MIN_TOKEN_LENGTH} needed"
            )
        return self


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_settings(path: Path, **changes: object) -> Settings:
    """The settings of a TOML file; an access token that it leaves out is taken from the environment's LWM_ACCESS_TOKEN.

    Args:
        changes: settings that count instead of the file's.

    Raises:
        StorageError: it cannot be read.
        ConfigMismatch: not TOML, an unknown setting, or a value out of its range.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigMismatch(f"{path} is not TOML ({error}). See docs/play.md for an example.") from error
    if os.environ.get(ACCESS_TOKEN_VARIABLE):
        values.setdefault("access_token", os.environ[ACCESS_TOKEN_VARIABLE])
    return make_settings(**{**values, **changes})


def make_settings(**values: object) -> Settings:
    """Checked settings; raises ConfigMismatch, naming every setting that is wrong."""
    try:
        return Settings(**values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        told = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'settings'}: {p['msg']}" for p in problems)
        raise ConfigMismatch(f"These settings do not work: {told}.") from error

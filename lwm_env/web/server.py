"""Starts the web process: sockets, uvicorn, a stop that loses nothing."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from lwm_env import worlds as shipped_worlds
from lwm_env.errors import ConfigMismatch, StorageError
from lwm_env.web.app import create_app
from lwm_env.web.guard import Allowed, IngressOnly
from lwm_env.web.protocol import MAX_MESSAGE_BYTES
from lwm_env.web.settings import Settings
from lwm_env.web.supervisor import PlayedWorld

DRAIN_SECONDS = 3.0  # for snapshots and goodbyes
CLOSE_SECONDS = 1  # for requests that are still being answered

log = logging.getLogger("lwm.server")


def find_worlds(settings: Settings) -> dict[str, PlayedWorld]:
    """The worlds that a server offers, by id.

    Raises:
        UnknownWorld, CorruptFile, ConfigMismatch, StorageError: one of them cannot be played, or there is none.
    """
    found = {}
    for folder in [shipped_worlds.find(name) for name in settings.worlds] or shipped_worlds.shipped().values():
        spec = shipped_worlds.verify(folder).spec
        found[spec.id] = PlayedWorld(spec, folder, settings.fps or spec.render_fps)
    if not found:
        raise ConfigMismatch("no world is shipped in this installation. Name the folder of one.")
    return found


class BoundServer(uvicorn.Server):
    """uvicorn with our limits, on a socket that is listened on already. The first signal drains, the second one stops
    at once.

    Args:
        on_listening: called with the address once requests are answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        listening: socket.socket,
        settings: Settings,
        on_listening: Callable[[str], None] | None = None,
    ) -> None:
        self.socket = listening
        self.port: int = listening.getsockname()[1]
        self._on_listening = on_listening
        self._stopping: asyncio.Task[None] | None = None
        super().__init__(
            uvicorn.Config(
                app,
                ws="wsproto",
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_per_message_deflate=False,
                access_log=False,
                log_config=None,
                server_header=False,
                limit_concurrency=4 * settings.max_viewers + 64,
                timeout_graceful_shutdown=CLOSE_SECONDS,
                proxy_headers=settings.forwarded_allow_ips is not None,
                forwarded_allow_ips=settings.forwarded_allow_ips,
            )
        )

    @property
    def url(self) -> str:
        host = self.socket.getsockname()[0]
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def drain(self) -> None:
        """What comes before the end: let nobody in any more, and lose nothing. Every kind of server has its own."""
        raise NotImplementedError

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self._on_listening is not None:
            self._on_listening(self.url)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._stopping is not None or not self.started:
            self.should_exit = self.force_exit = True
            return
        log.warning("%s: keeping the rooms, then stopping", signal.Signals(sig).name)
        self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        self._stopping = self._stopping or self._loop.create_task(self._stop())

    async def _stop(self) -> None:
        await self.drain()
        self.should_exit = True


@dataclass(frozen=True)
class Inside:
    """Where a server listens that an ingress alone may talk to."""

    address: str  # of this machine, as the ingress reaches it
    secret: str  # that the ingress sends along


class Server(BoundServer):
    """One server: bound when it is made, running within `run()`.

    Args:
        inside: for a host behind an ingress; `settings` are then those of the ingress, whose Hosts and Origins are
            allowed, and nobody else is answered.

    Raises:
        StorageError: the address cannot be had.
    """

    def __init__(
        self, settings: Settings, on_listening: Callable[[str], None] | None = None, inside: Inside | None = None
    ) -> None:
        worlds = find_worlds(settings)
        listening = bind(inside.address, 0) if inside else bind(settings.host, settings.port)
        allowed = Allowed(settings, settings.port or listening.getsockname()[1])
        self.app = create_app(worlds, settings, lambda: allowed, self._engine_ended)
        self.lobby = self.app.state.lobby
        if inside is None:
            super().__init__(self.app, listening, settings, on_listening)
        else:
            trusting = settings.model_copy(update={"forwarded_allow_ips": "*"})
            super().__init__(IngressOnly(self.app, inside.secret), listening, trusting, on_listening)

    def start(self) -> int:
        """Serve until a signal; the exit code."""
        asyncio.run(self.serve(sockets=[self.socket]))
        for engine in self.lobby.hosting.engines:
            if engine.failure is not None:
                raise ConfigMismatch(engine.failure)
        return 0

    async def drain(self) -> None:
        """Keep the rooms and send everybody away."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self.lobby.drain()
                while any(room.viewers for room in self.lobby.rooms.values()):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            log.warning("stopping although not everything was done in %g s", DRAIN_SECONDS)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.lobby.hosting.draining = True
        super().handle_exit(sig, frame)

    def _engine_ended(self) -> None:
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; raises StorageError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise StorageError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}. Name another port (0: any that is free)."
        ) from error
    return bound

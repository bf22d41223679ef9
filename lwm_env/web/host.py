"""One of the hosts behind an ingress: where it is, how it is, and the connections to it."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from yarl import URL

from lwm_env.web.guard import INGRESS_HEADER
from lwm_env.web.hosting import Busy
from lwm_env.web.supervisor import EngineLost

POLL_SECONDS = 1.0
ANSWER_SECONDS = 3.0
MAX_MISSES = 3  # answers that do not come, until a host counts as lost
CONNECT_SECONDS = 3.0
IDLE_SECONDS = 2.0  # that a connection is kept: less than uvicorn does, so that none is closed as it is used

Headers = Iterable[tuple[str, str]]

log = logging.getLogger("lwm.ingress")


class HostLost(EngineLost):
    """The host of a room does not answer: it is being replaced, or its machine is gone."""


@dataclass(frozen=True)
class HostFacts:
    """What a host tells of itself."""

    url: str  # inside the cluster
    node: str  # the machine's name in the cluster
    ready: bool
    load: float  # share of its time that is taken
    num_rooms: int
    engines: list[dict[str, Any]]  # as /readyz tells them
    worlds: dict[str, str]  # world id -> digest of its files


class HostLink(Protocol):
    """How a host is asked, whatever runs it. Both raise HostLost."""

    async def facts(self) -> HostFacts: ...
    async def drain(self) -> None: ...


class Host:
    """One host, as the ingress sees it.

    Args:
        number: that the ids of its rooms begin with.
        secret: without which it answers nobody.
    """

    def __init__(self, number: int, link: HostLink, secret: str) -> None:
        self.number = number
        self.facts: HostFacts | None = None  # None while it is lost
        self.placed = 0  # rooms since it told its facts
        self.drain = link.drain
        self._link, self._secret = link, secret
        self._session: aiohttp.ClientSession | None = None

    @property
    def ready(self) -> bool:
        """Whether rooms can be played there."""
        return self.facts is not None and self.facts.ready

    async def watch(self) -> None:
        """Ask how it is, again and again, until cancelled."""
        misses = 0
        try:
            while True:
                try:
                    await self._meet(await asyncio.wait_for(self._link.facts(), ANSWER_SECONDS))
                    misses = 0
                except (HostLost, TimeoutError) as error:
                    misses += 1
                    if misses == MAX_MISSES:
                        log.warning("host %d is lost: %s", self.number, str(error) or "no answer")
                        await self._lose()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await self._lose()

    async def _meet(self, facts: HostFacts) -> None:
        if self.facts is None or self.facts.url != facts.url:
            await self._lose()
            log.info("host %d is at %s on %s", self.number, facts.url, facts.node)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            )
        self.facts, self.placed = facts, 0

    async def _lose(self) -> None:
        """Cut every connection, so that nobody waits for what will not come."""
        session, self.facts, self._session = self._session, None, None
        if session is not None:
            await session.close()

    # -- connections -------------------------------------------------------------------------------------------------

    async def request(self, method: str, target: str, headers: Headers, body: bytes = b"") -> aiohttp.ClientResponse:
        """The beginning of the host's answer; the caller reads the rest and closes it.

        Args:
            target: path and query, percent-encoded.

        Raises:
            HostLost: there is none.
        """
        with self._reaching() as (session, url):
            told = [*headers, (INGRESS_HEADER, self._secret)]
            where = URL(url + target, encoded=True)
            return await session.request(method, where, headers=told, data=body or None, allow_redirects=False)

    async def fetch(self, method: str, target: str, headers: Headers, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the host's whole answer; raises HostLost."""
        async with await self.request(method, target, headers, body) as answer:
            with self._reaching():
                return answer.status, await answer.read()

    async def websocket(self, target: str, headers: Headers) -> aiohttp.ClientWebSocketResponse:
        """An open WebSocket to the host; raises HostLost, or Busy when it takes none."""
        with self._reaching() as (session, url):
            told = [*headers, (INGRESS_HEADER, self._secret)]
            where = URL(url + target, encoded=True)
            patience = aiohttp.ClientWSTimeout(ws_close=1.0)
            try:
                return await session.ws_connect(where, headers=told, max_msg_size=0, timeout=patience)
            except aiohttp.WSServerHandshakeError as error:
                raise Busy(f"host {self.number} takes no more connections now ({error.status}).") from error

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[tuple[aiohttp.ClientSession, str]]:
        """Gives the session and the address; raises HostLost for what goes wrong with the host within."""
        if self._session is None or self.facts is None:
            raise self.lost()
        try:
            yield self._session, self.facts.url
        except aiohttp.ClientConnectorError as error:
            self.facts = None  # nothing listens there: nobody else is sent there until it is asked again
            raise self.lost() from error
        except (aiohttp.ClientError, OSError, RuntimeError) as error:  # RuntimeError: the session is closed
            raise self.lost() from error

    def lost(self) -> HostLost:
        return HostLost(
            f"host {self.number} is not reached. Its rooms go on if it comes back, and are gone if its machine is. "
            f"Try again in a while, or create another room."
        )

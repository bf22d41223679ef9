"""The door of several hosts: every request about a room goes to the host that has it, which its id begins with.

New rooms go where most time is left; what no room is in, the page too, is any host's to answer. The guard stands here
as it stands before every host.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from lwm_env.errors import LwmError
from lwm_env.web import protocol, relay
from lwm_env.web.api_rooms import BatchedStep
from lwm_env.web.app import tell_error
from lwm_env.web.connection import ATTACH_SECONDS
from lwm_env.web.guard import Allowed, Guard
from lwm_env.web.host import Host, HostLost
from lwm_env.web.hosting import Busy
from lwm_env.web.lobby import NoSuchRoom
from lwm_env.web.merged_metrics import merge
from lwm_env.web.metrics import Metrics
from lwm_env.web.protocol import Attach
from lwm_env.web.room_ids import host_of
from lwm_env.web.settings import Settings

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

log = logging.getLogger("lwm.ingress")


class Ingress:
    """The hosts, and which of them a request belongs to."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.hosts, self.draining = hosts, False
        self.metrics = Metrics()

    @property
    def ready(self) -> bool:
        """Whether rooms can be played: at least one host can be."""
        return not self.draining and any(host.ready for host in self.hosts)

    def host(self, room_id: str) -> Host:
        """That of a room; raises NoSuchRoom where no host has such ids."""
        number = host_of(room_id)
        if number is None or number >= len(self.hosts):
            raise NoSuchRoom(f"there is no room {room_id!r:.40}. It may have been closed; create one.")
        return self.hosts[number]

    def any(self) -> Host:
        """The first that can be played on, or that is there at all."""
        return max(self.hosts, key=lambda host: (host.ready, host.facts is not None))

    def by_load(self) -> list[Host]:
        """Those that may take one more room, most time first.

        Raises:
            Busy: everything is being stopped. HostLost: there is none.
        """
        if self.draining:
            raise Busy("the server is being stopped. Try again in a moment.")
        ready = [host for host in self.hosts if host.ready]
        if not ready:
            raise HostLost("no host can be played on now. Try again in a few seconds.")
        return sorted(ready, key=lambda host: (host.facts.load, host.facts.num_rooms + host.placed))


def create_ingress(hosts: Sequence[Host], settings: Settings, allowed: Callable[[], Allowed]) -> Starlette:
    """The app before some hosts; `app.state.ingress` is its state.

    Args:
        settings: of the ingress: its access token and its limits.
        allowed: the Hosts and Origins.
    """
    ingress = Ingress(hosts)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watching = [asyncio.create_task(host.watch()) for host in hosts]
        yield
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)

    app = Starlette(
        routes=[
            Route("/healthz", _healthz),
            Route("/readyz", _readyz),
            Route("/metrics", _metrics),
            Route("/api/rooms", _list_rooms, methods=["GET"]),
            Route("/api/rooms", _create_room, methods=["POST"]),
            Route("/api/step", _step_batch, methods=["POST"]),
            Route("/api/rooms/{room_id}", _relay_to_room, methods=METHODS),
            Route("/api/rooms/{room_id}/{rest:path}", _relay_to_room, methods=METHODS),
            Route("/{rest:path}", _relay_to_any, methods=METHODS),
            WebSocketRoute("/ws", _play),
        ],
        middleware=[Middleware(Guard, settings=settings, allowed=allowed, metrics=ingress.metrics)],
        exception_handlers={LwmError: tell_error, HTTPException: _tell_refusal},
        lifespan=lifespan,
    )
    app.state.ingress = ingress
    return app


async def _tell_refusal(request: Request, error: Any) -> Response:
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


def _of(connection: Request | WebSocket) -> Ingress:
    return connection.app.state.ingress


# -- what the ingress says itself -------------------------------------------------------------------------------------


async def _healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _readyz(request: Request) -> Response:
    """200 while there is a host that can be played on; the state of each, and of all engines as one server tells it."""
    ingress = _of(request)
    unknown = [{"ready": False, "restarts": 0}]  # of a host that is lost
    hosts = [
        {
            "reached": host.facts is not None,
            "ready": host.ready,
            "engines": host.facts.engines if host.facts else unknown,
        }
        for host in ingress.hosts
    ]
    engines = [engine for host in hosts for engine in host["engines"]]
    told = {"ready": ingress.ready, "draining": ingress.draining, "engines": engines, "hosts": hosts}
    return JSONResponse(told, 200 if ingress.ready else 503)


async def _metrics(request: Request) -> Response:
    """Those of all hosts, each with its number as the label `host`, and of the ingress."""
    ingress = _of(request)
    told = await _ask_all(request)
    texts = {str(host.number): body.decode() for host, (status, body) in told.items() if status == 200}
    up = {str(host.number): host.facts is not None for host in ingress.hosts}
    return Response(merge(texts, ingress.metrics.registry, up), media_type=CONTENT_TYPE_LATEST)


async def _list_rooms(request: Request) -> Response:
    """The public rooms of all hosts that are reached."""
    told = await _ask_all(request)
    rooms: list[Any] = []
    for status, body in told.values():
        if status != 200:
            return Response(body, status, media_type="application/json")
        rooms += json.loads(body)
    return JSONResponse(rooms)


async def _ask_all(request: Request) -> dict[Host, tuple[int, bytes]]:
    """The answers of all hosts that are reached to one GET."""
    target, headers = relay.target_of(request), relay.headers_for(request)
    present = [host for host in _of(request).hosts if host.facts is not None]
    told = await asyncio.gather(*(host.fetch("GET", target, headers) for host in present), return_exceptions=True)
    for outcome in told:
        if isinstance(outcome, BaseException) and not isinstance(outcome, HostLost):
            raise outcome
    pairs = zip(present, told, strict=True)
    return {host: outcome for host, outcome in pairs if not isinstance(outcome, BaseException)}


# -- what a host says -------------------------------------------------------------------------------------------------


async def _relay_to_room(request: Request) -> Response:
    return await relay.relay(request, _of(request).host(request.path_params["room_id"]), await request.body())


async def _relay_to_any(request: Request) -> Response:
    return await relay.relay(request, _of(request).any(), await request.body())


async def _create_room(request: Request) -> Response:
    """On the host that has most time; on another one when that is full or just went away."""
    body = await request.body()
    *others, last = _of(request).by_load()
    for host in others:
        with contextlib.suppress(HostLost):
            host.placed += 1
            answer = await host.request("POST", relay.target_of(request), relay.headers_for(request), body)
            if answer.status != 503:
                return relay.pass_on(answer, host)
            answer.close()
    last.placed += 1
    return await relay.relay(request, last, body)


async def _step_batch(request: Request) -> Response:
    """One batch on each host that has some of the rooms; results in the order of the request.

    Where a host refuses its part, its answer is the answer, and other hosts may have stepped theirs.
    """
    ingress, body = _of(request), await request.body()
    try:
        steps = BatchedStep.model_validate_json(body).steps
    except ValidationError:
        return await relay.relay(request, ingress.any(), body)  # which says what is wrong
    shares: dict[Host, list[int]] = {}
    for index, step in enumerate(steps):
        shares.setdefault(ingress.host(step.room), []).append(index)
    target, headers = relay.target_of(request), relay.headers_for(request)

    async def step(host: Host, indices: list[int]) -> tuple[int, bytes]:
        part = {"steps": [steps[index].model_dump() for index in indices]}
        return await host.fetch("POST", target, headers, json.dumps(part).encode())

    told = await asyncio.gather(*(step(*share) for share in shares.items()), return_exceptions=True)
    results: list[Any] = [None] * len(steps)
    for indices, outcome in zip(shares.values(), told, strict=True):
        if isinstance(outcome, BaseException):
            raise outcome
        status, answer = outcome
        if status != 200:
            return Response(answer, status, media_type="application/json")
        for index, result in zip(indices, json.loads(answer), strict=True):
            results[index] = result
    return JSONResponse(results)


async def _play(websocket: WebSocket) -> None:
    """A client's WebSocket: its first message says to which host it goes."""
    await websocket.accept()
    try:
        text = await asyncio.wait_for(websocket.receive_text(), ATTACH_SECONDS)
        message = protocol.parse(text)
        if not isinstance(message, Attach):
            raise ValueError("the first message must be an attach message")
        code, reason = await relay.relay_socket(websocket, _of(websocket).host(message.room), text) or (None, "")
    except WebSocketDisconnect:
        return
    except TimeoutError:
        code, reason = protocol.TOO_SLOW, "no attach message came"
    except NoSuchRoom as error:
        code, reason = protocol.NO_ROOM, str(error)
    except (Busy, HostLost) as error:
        code, reason = protocol.TRY_AGAIN_LATER, str(error)
    except (ValueError, KeyError):  # KeyError: bytes came
        code, reason = protocol.MALFORMED, "the first message must be an attach message"
    if code is not None:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await websocket.close(code, reason[:120])

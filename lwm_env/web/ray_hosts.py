"""Rooms on several machines: servers that Ray Serve runs on the nodes of a cluster, and the ingress before them.

    lwm serve server.toml --ray 4

Each host is a Serve application of one replica, so Serve starts it again, elsewhere too, when it or its node is lost.
A host listens inside the cluster and answers nobody but the ingress, which is this process: browsers never meet Ray.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lwm_env import worlds
from lwm_env.errors import ConfigMismatch, InvalidInput, missing_extra
from lwm_env.web.guard import Allowed
from lwm_env.web.server import BoundServer, Inside, Server, bind, find_worlds
from lwm_env.web.settings import Settings

try:
    import ray
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    from lwm_env.web.host import Host, HostFacts, HostLost
    from lwm_env.web.ingress import create_ingress
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "ray", "ray") from error

START_SECONDS = 30.0  # for a host's first answer, once Serve says that it runs
STOP_SECONDS = 10.0  # that a host has to keep its rooms and end
SECRET_BYTES = 32
APP = "lwm-host-"  # and its number: what a host is called in Serve

log = logging.getLogger("lwm.ray")


class RoomHost:
    """What Serve runs on a node: a server, in the loop of its replica."""

    def __init__(self, settings: Settings, secret: str) -> None:
        self._server = Server(settings, inside=Inside(ray.util.get_node_ip_address(), secret))
        self._serving = asyncio.get_running_loop().create_task(self._server.serve(sockets=[self._server.socket]))
        self._worlds = {name: _digest(world.folder) for name, world in self._server.lobby.worlds.items()}
        self._node = ray.get_runtime_context().get_node_id()

    async def facts(self) -> HostFacts:
        lobby = self._server.lobby
        hosting = lobby.hosting
        engines = [engine for engine in hosting.engines if engine.healthy]
        least = min((hosting.load(engine) for engine in engines), default=0.0)
        return HostFacts(
            url=self._server.url,
            node=self._node,
            ready=lobby.ready and self._server.started,
            load=max(least, hosting.machine_load()),
            num_rooms=len(lobby.rooms),
            engines=[{"ready": engine.healthy, "restarts": engine.restarts} for engine in hosting.engines],
            worlds=self._worlds,
        )

    async def drain(self) -> None:
        """Keep the rooms, send everybody away; nothing is let in any more."""
        await self._server.drain()

    def check_health(self) -> None:
        """Called by Serve, which replaces a host where this raises."""
        if self._serving.done():
            failures = [engine.failure for engine in self._server.lobby.hosting.engines if engine.failure]
            raise RuntimeError(f"the server has ended: {'; '.join(failures) or 'it was told to'}")

    async def __del__(self) -> None:
        """Called by Serve before it ends the replica."""
        await self._server.drain()
        self._server.should_exit = True
        await asyncio.wait([self._serving], timeout=STOP_SECONDS)


class RayLink:
    """A `host.HostLink` by the handle of a Serve application."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def facts(self) -> HostFacts:
        return await self._ask("facts")

    async def drain(self) -> None:
        await self._ask("drain")

    async def _ask(self, method: str) -> Any:
        try:
            return await getattr(self._handle, method).remote()
        except (RayError, RayServeException) as error:
            raise HostLost(f"Ray does not reach it ({error!s:.200})") from error


class RayServer(BoundServer):
    """The ingress of `num_hosts` hosts, which it starts and stops.

    Connects to the cluster of `RAY_ADDRESS`, or to one that runs on this machine, or else starts Ray here.

    Args:
        settings: those of `lwm serve`; `max_rooms`, `max_viewers`, `engines` and `threads` are of each host. What
            `worlds` and `state_dir` name has to be on every machine.

    Raises:
        StorageError: the address cannot be had. InvalidInput: the cluster has no place for so many hosts.
        ConfigMismatch: a host cannot serve these worlds.
    """

    def __init__(self, settings: Settings, num_hosts: int, on_listening: Callable[[str], None] | None = None) -> None:
        find_worlds(settings)
        listening = bind(settings.host, settings.port)
        settings = settings.model_copy(update={"port": listening.getsockname()[1]})
        allowed, secret = Allowed(settings, settings.port), secrets.token_urlsafe(SECRET_BYTES)
        try:
            links = _deploy(settings, num_hosts, secret)
        except BaseException:
            listening.close()
            raise
        hosts = [Host(number, link, secret) for number, link in enumerate(links)]
        # A host refuses more than its `max_viewers`; all of them together must get through this door.
        own = settings.model_copy(update={"max_viewers": num_hosts * settings.max_viewers})
        self.app = create_ingress(hosts, own, lambda: allowed)
        super().__init__(self.app, listening, own, on_listening)

    def start(self) -> int:
        """Serve until a signal; the exit code. The hosts are ended with it."""
        try:
            asyncio.run(self.serve(sockets=[self.socket]))
        finally:
            _undeploy()
        return 0

    async def drain(self) -> None:
        """Let every host keep its rooms and send everybody away."""
        ingress = self.app.state.ingress
        ingress.draining = True
        draining = (asyncio.wait_for(host.drain(), STOP_SECONDS) for host in ingress.hosts if host.facts is not None)
        for outcome in await asyncio.gather(*draining, return_exceptions=True):
            if isinstance(outcome, BaseException):
                log.warning("a host did not stop as it should: %s", str(outcome) or "no answer")


def _deploy(settings: Settings, num_hosts: int, secret: str) -> list[RayLink]:
    """Hosts 0, 1, ... on the cluster, all up when this returns."""
    needs = {
        "num_cpus": settings.engines * (settings.threads or 1),
        "num_gpus": int(settings.device.startswith("cuda")),
    }
    _connect(num_hosts, needs)
    serve.start(proxy_location="Disabled")
    _undeploy()
    targets = []
    for number in range(num_hosts):
        folder = settings.state_dir and settings.state_dir / f"host-{number}"
        own = settings.model_copy(update={"host_number": number, "state_dir": folder})
        host = serve.deployment(
            RoomHost,
            num_replicas=1,
            ray_actor_options=needs,
            max_ongoing_requests=16,
            health_check_period_s=2,
            health_check_timeout_s=5,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=STOP_SECONDS,
        )
        targets.append(serve.RunTarget(host.bind(own, secret), name=f"{APP}{number}", route_prefix=None))
    try:
        links = [RayLink(handle) for handle in serve.run_many(targets)]
        _check_alike(asyncio.run(_ask_all(links)))
    except (RayError, RayServeException, HostLost, TimeoutError, RuntimeError) as error:
        _undeploy()
        raise ConfigMismatch(
            f"the hosts do not come up: {error!s:.1000}. See `serve status` and Ray's logs."
        ) from error
    except BaseException:
        _undeploy()
        raise
    return links


async def _ask_all(links: list[RayLink]) -> list[HostFacts]:
    return await asyncio.gather(*(asyncio.wait_for(link.facts(), START_SECONDS) for link in links))


def _connect(num_hosts: int, needs: dict[str, int]) -> None:
    """Join a cluster, or start one, that has room for the hosts; without room they would wait for ever."""
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers unasked
        ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    there = ray.cluster_resources()
    for name, kind in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        if there.get(name, 0) < num_hosts * needs[kind]:
            raise InvalidInput(
                f"{num_hosts} hosts need {needs[kind]} {name} each, Ray has {there.get(name, 0):g}. Take fewer, or add "
                f"machines by `ray start` first."
            )


def _undeploy() -> None:
    """End all hosts of the cluster, those too that an ingress left which was killed."""
    with contextlib.suppress(RayError, RayServeException, TimeoutError):
        for name in serve.status().applications:
            if name.startswith(APP):
                serve.delete(name)


def _check_alike(found: list[HostFacts]) -> None:
    """Raises ConfigMismatch where machines have other weights under the same name."""
    for name in {name for facts in found for name in facts.worlds}:
        digests = sorted({facts.worlds.get(name, "none")[:12] for facts in found})
        if len(digests) > 1:
            raise ConfigMismatch(f"the machines have the files {digests} of {name}. Copy one folder to all of them.")
    shared = len(found) - len({facts.node for facts in found})
    if shared:
        log.warning("%d hosts share a node with another one. Set `threads` to what a whole node has.", shared)


def _digest(folder: Path) -> str:
    files = worlds.read_manifest(folder).files
    told = json.dumps({name: record.sha256 for name, record in sorted(files.items())})
    return hashlib.sha256(told.encode()).hexdigest()

"""`lwm loadtest`: many players at once, over real sockets, and what each of them gets."""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from lwm_env.web import load_report
from lwm_env.web.client import Api, ServerError
from lwm_env.web.load_report import Sampler, Tally
from lwm_env.web.protocol import FrameMessage

ACTION_SECONDS = 0.25  # between two actions of a player
START_SECONDS = 120.0
WARM_UP_SECONDS = 2.0  # that do not count
STALE_SECONDS = 1.0
CHURN_SECONDS = 1.0
SILENCE_SECONDS = 30.0  # without a frame, after which a client gives up


@click.command()
@click.argument("url", required=False)
@click.option("--world", help="Id; by default the server's first. Without URL: an id or a folder.")
@click.option(
    "--clients", type=click.IntRange(1, 1024), default=16, show_default=True, help="Players; a room for each."
)
@click.option(
    "--stalled", type=click.IntRange(min=0), default=0, show_default=True, help="Of these, how many stop reading."
)
@click.option("--seconds", type=click.FloatRange(min=1), default=30.0, show_default=True)
@click.option("--fps", type=click.FloatRange(1, 240), help="Steps per second of a server that is started here.")
@click.option("--backend", type=click.Choice(["torch", "onnx"]), default="torch", show_default=True, help="Likewise.")
@click.option("--threads", type=click.IntRange(min=1), help="Likewise; by default a core for each.")
@click.option("--engines", type=click.IntRange(1, 64), default=1, show_default=True, help="Likewise.")
@click.option("--max-load", type=click.FloatRange(min=0.01), default=0.85, show_default=True, help="Likewise.")
@click.option("--churn", is_flag=True, help="Beside them, each second somebody makes a room, plays in it and leaves.")
@click.option(
    "--report", "out", type=click.Path(path_type=Path), help="A .json to write, with a table as .md beside it."
)
@click.option("--access-token", envvar="LWM_ACCESS_TOKEN", help="Of the server. [env: LWM_ACCESS_TOKEN]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def loadtest(
    url: str | None, world: str | None, clients: int, stalled: int, seconds: float, churn: bool, out: Path | None,
    access_token: str | None, as_json: bool, **own: Any,
) -> None:  # fmt: skip
    """Play with many clients on the server at URL, or on one that is started here for it, and print what they got."""
    if out is not None:
        load_report.check_path(out)
    facts = load_report.describe_machine()
    with contextlib.ExitStack() as stack:
        if url is None:
            worlds = [world] if world else []
            chosen = {name: value for name, value in own.items() if value is not None}
            facts["server"] = chosen
            url = stack.enter_context(started_server({"worlds": worlds, **chosen}))
            world = None
        else:
            wait_until_ready(url)
        api = Api(url, access_token)
        report = {**asyncio.run(measure(api, world, clients, min(stalled, clients), seconds, churn)), **facts}
    if out is not None:
        load_report.write(report, out, " ".join(["lwm", *sys.argv[1:]]))
    click.echo(json.dumps(report) if as_json else load_report.as_lines(report))


@contextlib.contextmanager
def started_server(settings: dict[str, Any]) -> Iterator[str]:
    """A server on a free port of this machine, in a process of its own; yields its address once it is ready."""
    with tempfile.TemporaryDirectory(prefix="lwm-") as folder:
        config = Path(folder) / "server.toml"
        lines = {"port": 0, "requests_per_minute": 100_000, "rooms_per_minute": 100_000, "max_rooms": 256, **settings}
        config.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in lines.items()), encoding="utf-8")
        command = [sys.executable, "-m", "lwm_env.cli", "serve", str(config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                url = server.stdout.readline().strip()
                if not url:
                    raise ServerError("the server did not start; its own words are above.")
                wait_until_ready(url)
                yield url
            finally:
                server.terminate()


def wait_until_ready(url: str, seconds: float = START_SECONDS) -> None:
    """Until all engines are there; raises ServerError when it takes longer."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            if all(engine["ready"] for engine in json.loads(answer.read())["engines"]):
                return
        time.sleep(0.1)
    raise ServerError(f"{url} was not ready within {seconds:g} s.")


async def measure(
    api: Api, world: str | None, clients: int, stalled: int, seconds: float, churn: bool = False
) -> load_report.Report:
    """Let clients play for some seconds; the figures of all of them together.

    Raises:
        ServerError: the server let nobody in, or a connection was lost.
    """
    offered = {spec["id"]: spec for spec in await asyncio.to_thread(api.call, "GET", "worlds")}
    spec = offered[world or next(iter(offered))]
    refused, seats = 0, []
    for _ in range(clients):
        try:
            seats.append(await asyncio.to_thread(_take_seat, api, spec["id"]))
        except ServerError as error:
            if error.status != 503:
                raise
            refused += 1
    if not seats:
        raise ServerError("the server let nobody in. Give it more time, or a larger max_load.", 503)
    begin = time.monotonic() + WARM_UP_SECONDS
    tallies = [Tally() for _ in seats]
    sampler = Sampler(api.url)
    beside = [asyncio.create_task(sampler.run(WARM_UP_SECONDS, seconds))]
    if churn:
        beside.append(asyncio.create_task(_come_and_go(api, spec, visits := {"visits": 0, "visits_refused": 0})))
    players = [
        _play(api, seat, spec, tally, (begin, begin + seconds), stalls=number < stalled)
        for number, (seat, tally) in enumerate(zip(seats, tallies, strict=True))
    ]
    beside.append(asyncio.create_task(_show_progress(WARM_UP_SECONDS + seconds)))
    try:
        await asyncio.gather(*players)
        await sampler.take()
        for task in beside:
            if task.done():
                task.result()  # it has failed: tell
    finally:
        for task in beside:
            task.cancel()
        for seat in seats:
            with contextlib.suppress(ServerError):
                await asyncio.to_thread(api.call, "DELETE", f"rooms/{seat['room']}", None, seat["owner"])
    report = load_report.summarise(spec, tallies, stalled, refused, seconds, sampler.samples)
    return {**report, **(visits if churn else {}), "samples": sampler.samples}


def _take_seat(api: Api, world: str) -> dict[str, Any]:
    room = api.call("POST", "rooms", {"world": world})
    seat = api.call("POST", f"rooms/{room['room']}/seats", {})
    return {"room": room["room"], "owner": room["token"], "token": seat["token"]}


async def _play(api: Api, seat: dict, spec: dict, tally: Tally, span: tuple[float, float], stalls: bool) -> None:
    """Play from now on to the end of the span; what comes before its beginning does not count."""
    begin, stop = span
    async with _attached(api, seat) as socket:
        acting = asyncio.create_task(_act(socket, spec["actions"], sent := {}))
        try:
            while time.monotonic() < stop:
                message = await asyncio.wait_for(socket.recv(), SILENCE_SECONDS)
                if not isinstance(message, bytes):
                    continue
                frame, now = FrameMessage.unpack(message), time.monotonic()
                tally.stale += time.time() - frame.server_time_us / 1e6 > STALE_SECONDS
                if now >= begin:
                    tally.arrivals.append(now)
                    tally.frame_ids.append(frame.frame_id)
                for seq in [seq for seq in sent if seq <= frame.acked]:
                    tally.latencies.append(now - sent.pop(seq))
                if stalls and len(tally.arrivals) == 10:
                    await asyncio.sleep(max(0.0, stop - time.monotonic() - 2))
                await socket.send(json.dumps({"type": "ack", "frame": frame.frame_id}))
        finally:
            acting.cancel()


async def _come_and_go(api: Api, spec: dict, visits: dict[str, int]) -> None:
    """A visitor each second, who stays for about as long; or is refused, where the server is full."""
    while True:
        begin = time.monotonic()
        try:
            seat = await asyncio.to_thread(_take_seat, api, spec["id"])
        except ServerError as error:
            if error.status != 503:
                raise
            visits["visits_refused"] += 1
        else:
            await _visit(api, seat, spec, begin)
            visits["visits"] += 1
        await asyncio.sleep(max(0.0, begin + CHURN_SECONDS - time.monotonic()))


async def _visit(api: Api, seat: dict[str, Any], spec: dict, begin: float) -> None:
    try:
        await _play(api, seat, spec, Tally(), (begin, begin + CHURN_SECONDS), stalls=False)
    finally:
        await asyncio.to_thread(api.call, "DELETE", f"rooms/{seat['room']}", None, seat["owner"])


@contextlib.asynccontextmanager
async def _attached(api: Api, seat: dict) -> AsyncIterator[ClientConnection]:
    try:
        async with connect(api.websocket_url, compression=None, max_size=1 << 24, close_timeout=1) as socket:
            attach = {"type": "attach", "room": seat["room"], "token": seat["token"], "access": api.access_token}
            await socket.send(json.dumps(attach))
            yield socket
    except (ConnectionClosed, OSError, TimeoutError) as error:
        told = str(error) or f"no frame in {SILENCE_SECONDS:g} s"
        raise ServerError(f"a client was cut off ({told}). The server's log tells more; try fewer clients.") from error


async def _act(socket: ClientConnection, actions: dict[str, Any], sent: dict[int, float]) -> None:
    rng, seq = np.random.default_rng(0), 0
    with contextlib.suppress(ConnectionClosed):
        while True:
            seq += 1
            discrete = actions["kind"] == "discrete"
            action = int(rng.integers(len(actions["meanings"]))) if discrete else list(actions["low"])
            sent[seq] = time.monotonic()
            await socket.send(json.dumps({"type": "action", "seq": seq, "action": action}))
            await asyncio.sleep(ACTION_SECONDS)


async def _show_progress(seconds: float) -> None:
    for _ in tqdm(range(int(seconds)), desc="playing", unit="s", disable=None):
        await asyncio.sleep(1)

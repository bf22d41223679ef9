"""`lwm loadtest`: many players at once, over real sockets, and what each of them gets."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from lwm_env.web.client import Api, ServerError
from lwm_env.web.protocol import FrameMessage

ACTION_SECONDS = 0.25  # between two actions of a player
START_SECONDS = 120.0
WARM_UP_SECONDS = 2.0  # that do not count
STALE_SECONDS = 1.0


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
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Likewise.")
@click.option("--max-load", type=click.FloatRange(min=0.01), default=0.85, show_default=True, help="Likewise.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def loadtest(
    url: str | None, world: str | None, clients: int, stalled: int, seconds: float, as_json: bool, **own: Any
) -> None:
    """Play with many clients on the server at URL, or on one that is started here for it, and print what they got."""
    with contextlib.ExitStack() as stack:
        if url is None:
            worlds = [world] if world else []
            url = stack.enter_context(
                started_server({"worlds": worlds, **{k: v for k, v in own.items() if v is not None}})
            )
            world = None
        report = asyncio.run(measure(Api(url), world, clients, min(stalled, clients), seconds))
    click.echo(json.dumps(report) if as_json else as_table(report))


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
    """Raises ServerError when it takes longer."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return
        time.sleep(0.1)
    raise ServerError(f"{url} was not ready within {seconds:g} s.")


@dataclass
class Tally:
    """What one client saw."""

    arrivals: list[float] = field(default_factory=list)  # seconds
    latencies: list[float] = field(default_factory=list)  # seconds from an action to the frame that shows it
    frame_ids: list[int] = field(default_factory=list)
    stale: int = 0  # frames older than a second when they came

    @property
    def rate(self) -> float:
        return (len(self.arrivals) - 1) / (self.arrivals[-1] - self.arrivals[0]) if len(self.arrivals) > 1 else 0.0


async def measure(api: Api, world: str | None, clients: int, stalled: int, seconds: float) -> dict[str, Any]:
    """Let clients play for some seconds; the figures of all of them together."""
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
    before = asyncio.create_task(_read_metrics(api.url, WARM_UP_SECONDS))
    players = [
        _play(api, seat, spec, tally, (begin, begin + seconds), stalls=number < stalled)
        for number, (seat, tally) in enumerate(zip(seats, tallies, strict=True))
    ]
    progress = asyncio.create_task(_show_progress(WARM_UP_SECONDS + seconds))
    try:
        await asyncio.gather(*players)
        after = await _read_metrics(api.url, 0)
    finally:
        progress.cancel()
        for seat in seats:
            with contextlib.suppress(ServerError):
                await asyncio.to_thread(api.call, "DELETE", f"rooms/{seat['room']}", None, seat["owner"])
    return _report(spec, tallies, stalled, refused, seconds, (await before, after))


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
                message = await asyncio.wait_for(socket.recv(), 30)
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


@contextlib.asynccontextmanager
async def _attached(api: Api, seat: dict) -> AsyncIterator[ClientConnection]:
    async with connect(api.websocket_url, compression=None, max_size=1 << 24, close_timeout=1) as socket:
        await socket.send(json.dumps({"type": "attach", "room": seat["room"], "token": seat["token"]}))
        yield socket


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


async def _read_metrics(url: str, delay: float) -> dict[str, float]:
    await asyncio.sleep(delay)

    def read() -> str:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            return answer.read().decode()

    wanted = "process_resident_memory_bytes|lwm_engine_memory_bytes|lwm_engine_restarts"
    found = re.findall(rf"^({wanted}) (\S+)$", await asyncio.to_thread(read), flags=re.MULTILINE)
    return {name: float(value) for name, value in found}


def _report(
    spec: dict, tallies: list[Tally], stalled: int, refused: int, seconds: float, metrics: tuple[dict, dict]
) -> dict[str, Any]:
    reading = tallies[stalled:] or tallies
    gaps = np.concatenate([np.diff(tally.arrivals) for tally in reading]) * 1000
    latencies = np.concatenate([tally.latencies for tally in reading]) * 1000
    rates = [tally.rate for tally in reading]
    shown = sum(len(tally.frame_ids) for tally in reading)
    made = sum(tally.frame_ids[-1] - tally.frame_ids[0] + 1 for tally in reading if tally.frame_ids)
    before, after = metrics

    def quantile(values: np.ndarray, share: float) -> float | None:
        return round(float(np.quantile(values, share)), 1) if len(values) else None

    return {
        "world": spec["id"],
        "steps_per_second": spec["fps"],
        "clients": len(tallies),
        "stalled": stalled,
        "refused": refused,
        "seconds": seconds,
        "cpu_count": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "rate_mean": round(float(np.mean(rates)), 2),
        "rate_min": round(float(np.min(rates)), 2),
        "interframe_ms_p50": quantile(gaps, 0.5),
        "interframe_ms_p95": quantile(gaps, 0.95),
        "action_to_frame_ms_p50": quantile(latencies, 0.5),
        "action_to_frame_ms_p95": quantile(latencies, 0.95),
        "frames_left_out": made - shown,
        "stale_frames_of_a_stalled_client": max((tally.stale for tally in tallies[:stalled]), default=0),
        "engine_restarts": int(after.get("lwm_engine_restarts", 0)),
        "web_memory_mb": [round(m.get("process_resident_memory_bytes", 0) / 1e6, 1) for m in (before, after)],
        "engine_memory_mb": [round(m.get("lwm_engine_memory_bytes", 0) / 1e6, 1) for m in (before, after)],
    }


def as_table(report: dict[str, Any]) -> str:
    """The report as lines of name and value; memory at the beginning and at the end."""
    width = max(map(len, report))
    return "\n".join(f"{name:{width}}  {value}" for name, value in report.items())

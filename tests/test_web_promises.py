"""Promises of docs/reliability.md that no other test shows, and that every test that it names is there."""

import asyncio
import base64
import inspect
import io
import json
import re
import struct
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

pytest.importorskip("fastapi", reason="the extra web is not installed")

from packaging.requirements import Requirement
from packaging.version import Version
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from lwm_env.web import pictures, protocol
from lwm_env.web.app import STATIC, create_app
from lwm_env.web.guard import Allowed
from lwm_env.web.rooms import Occupied, Room, Secret
from lwm_env.web.server import Server
from lwm_env.web.settings import make_settings
from lwm_env.web.supervisor import PlayedWorld

REPOSITORY = Path(__file__).parents[1]


def test_the_table_names_tests_that_are_there():
    table = REPOSITORY / "docs" / "reliability.md"
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", table.read_text()))

    assert len(named) > 30
    assert not [
        name for name in named if f"def {name}(" not in tests and not (REPOSITORY / f"tests/{name}.py").exists()
    ]


# -- seats and stops --------------------------------------------------------------------------------------------------


def test_of_fifty_who_join_at_once_four_get_the_four_seats_in_200_trials(tiny_spec, tiny_world):
    spec = tiny_spec.model_copy(update={"players": ("north", "east", "south", "west")})
    world = PlayedWorld(spec, tiny_world, fps=15.0)
    rng = np.random.default_rng(0)

    async def join(room, delay):
        await asyncio.sleep(delay)
        try:
            return room.reserve(None, until=1e12)[0].player
        except Occupied:
            return None

    async def trial(seed):
        room = Room(world, seed=seed)
        return await asyncio.gather(*(join(room, delay) for delay in rng.choice([0, 0, 0.0005], 50)))

    async def trials():
        return [await trial(seed) for seed in range(200)]

    for outcomes in asyncio.run(trials()):
        assert sorted(filter(None, outcomes)) == ["east", "north", "south", "west"]


@pytest.fixture
def app(tiny_spec, tiny_world):
    """The app without its engine."""
    settings = make_settings()
    world = PlayedWorld(tiny_spec, tiny_world, fps=15.0)
    return create_app({tiny_spec.id: world}, settings, lambda: Allowed(settings, 8765), lambda: None)


def ask(app, method, path, body=b""):
    """Status and headers of a call to the app itself."""
    headers = [(b"host", b"127.0.0.1:8765"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8765), "scheme": "http", "root_path": "",
    }  # fmt: skip
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}


def test_while_it_stops_a_server_is_not_ready_and_lets_nobody_in(app):
    (engine,) = app.state.lobby.hosting.engines
    engine.ready, engine._heard_at = True, 1e12
    assert ask(app, "GET", "/readyz")[0] == 200
    app.state.lobby.hosting.draining = True

    assert ask(app, "GET", "/readyz")[0] == 503 and ask(app, "GET", "/healthz")[0] == 200
    status, headers = ask(app, "POST", "/api/rooms", b'{"world": "LWM-Tiny-v0"}')
    assert status == 503 and int(headers["retry-after"]) > 0


def test_a_server_without_an_engine_is_alive_but_not_ready(app):
    assert ask(app, "GET", "/healthz")[0] == 200 and ask(app, "GET", "/readyz")[0] == 503
    status, headers = ask(app, "POST", "/api/rooms", b'{"world": "LWM-Tiny-v0"}')
    assert status == 503 and int(headers["retry-after"]) > 0


# -- transport --------------------------------------------------------------------------------------------------------


def test_the_header_has_24_bytes_and_the_window_two_frames():
    assert (protocol.HEADER.size, protocol.WINDOW, protocol.MAX_MESSAGE_BYTES) == (24, 2, 4096)


def test_small_jpegs_keep_their_colours_and_large_ones_are_subsampled():
    rng = np.random.default_rng(0)
    for side, sampling, quality in ((64, 0, 90), (128, 2, 80)):
        data = pictures.encode_jpeg(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        again = io.BytesIO()
        with Image.open(io.BytesIO(data)) as image:
            assert JpegImagePlugin.get_sampling(image) == sampling
            Image.new("RGB", (8, 8)).save(again, "JPEG", quality=quality)
            with Image.open(again) as control:
                assert image.quantization[0] == control.quantization[0]


def test_the_websocket_speaks_wsproto_without_compression_in_one_worker(play_server, tiny_world):
    with connect(play_server.websocket_url, compression="deflate", close_timeout=1) as socket:
        assert socket.protocol.extensions == []
    server = Server(make_settings(port=0, worlds=(str(tiny_world),)))
    try:
        config = server.config
        assert (config.ws, config.ws_per_message_deflate, config.ws_max_size) == ("wsproto", False, 4096)
        assert config.workers == 1 and config.access_log is False  # no address is logged
    finally:
        server.socket.close()


def test_the_server_for_the_autobahn_suite_echoes_64_kib_behind_the_guard(tiny_world):
    command = [sys.executable, str(REPOSITORY / "tests" / "echo_server.py"), "0", str(tiny_world)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip().replace("http", "ws", 1) + "/echo"
            with connect(url, compression=None, open_timeout=30, close_timeout=1) as socket:
                for message in (bytes(range(256)) * 256, "µ" * 1000, b"", ""):
                    socket.send(message)
                    assert socket.recv(timeout=30) == message
            with pytest.raises(InvalidStatus, match="403"):
                connect(url, origin="http://evil.example", open_timeout=30)
        finally:
            process.terminate()


# -- security ---------------------------------------------------------------------------------------------------------


def test_tokens_have_128_bits_and_only_their_digest_is_kept():
    secret = Secret()
    tokens = {secret.renew() for _ in range(100)}

    assert len(tokens) == 100
    assert all(len(base64.urlsafe_b64decode(token + "==")) == 16 for token in tokens)
    assert not any(token in repr(vars(secret)) for token in tokens)
    assert not Secret().fits("") and not Secret().fits(None)
    assert "compare_digest" in inspect.getsource(Secret.fits)


def test_loopback_is_the_default():
    assert make_settings().host == "127.0.0.1"


def test_the_page_shows_names_as_text_and_asks_nobody_else():
    for path in STATIC.iterdir():
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        assert not re.search(r"(?:src|href|import|from|fetch\()\s*[=(]?\s*[\"'`]https?://", text), path


def test_the_floors_of_what_was_found_elsewhere_are_declared():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *project["optional-dependencies"]["web"],
        *project["optional-dependencies"]["onnx"],
    ]
    declared = {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}

    floors = {"starlette": "1.3.1", "uvicorn": "0.52.1", "onnx": "1.21"}
    for name, floor in floors.items():
        (lowest,) = [Version(part.version) for part in declared[name] if part.operator == ">="]
        assert lowest >= Version(floor), name
    assert "12" not in declared["pillow"] and "python-multipart" not in declared  # forms are not parsed at all
    sources = [path.read_text() for path in STATIC.parent.glob("*.py")]
    assert not [source for source in sources if re.search(r"UploadFile|\bForm\(|\.form\(", source)]


def png(width, height, *chunks, depth=8, colour=2):
    """A PNG of a size that its pixels need not have."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(chunk(name, data) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def hostile_pictures():
    """30 of them: sizes that are not there, streams that grow a thousandfold, other formats, cuts."""
    zeros = zlib.compress(bytes(60_000_000), 9)
    sizes = [(9000, 9000), (60_000, 100), (1, 65_535 * 70), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 5), (5, 0)]
    made = [png(*size, (b"IDAT", zeros)) for size in sizes]
    made += [
        png(9000, 9000, (b"IDAT", zeros), depth=depth, colour=colour) for depth, colour in ((1, 0), (16, 6), (8, 3))
    ]
    made += [png(10, 10, (b"zTXt", b"a\0\0" + zeros), (b"IDAT", b"")), png(10, 10, (b"iCCP", b"a\0\0" + zeros))]
    made += [png(10, 10), png(10, 10, (b"IDAT", b"x" * 100)), png(10, 10, (b"IDAT", zlib.compress(b"")))]
    made += [png(3, 3, (b"acTL", struct.pack(">II", 9, 0)), (b"fcTL", bytes(26)), (b"IDAT", zlib.compress(b"x")))]
    grey = Image.new("L", (300, 300))
    for name in ("JPEG", "WEBP", "PNG"):
        file = io.BytesIO()
        grey.save(file, name)
        made += [file.getvalue()[:40], file.getvalue()[: len(file.getvalue()) // 2]]
    for name in ("GIF", "BMP", "TIFF", "PPM", "ICO"):
        file = io.BytesIO()
        grey.resize((32, 32)).save(file, name)
        made.append(file.getvalue())
    jpeg = io.BytesIO()
    grey.save(jpeg, "JPEG")
    start = jpeg.getvalue().index(b"\xff\xc0")  # the frame header: length, depth, then height and width
    wide = jpeg.getvalue()[: start + 5] + b"\xff\xff\xff\xff" + jpeg.getvalue()[start + 9 :]
    return [*made, wide, b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(5_000_001)]


MEASURE = """
import json, resource, sys
from pathlib import Path
from lwm_env.errors import InvalidInput
from lwm_env.web import pictures

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

good, *bombs = [Path(name).read_bytes() for name in sys.argv[1:]]
pictures.decode_prompt(good, (16, 16))
before, refused = peak(), 0
for bomb in bombs:
    try:
        pictures.decode_prompt(bomb, (16, 16))
    except InvalidInput:
        refused += 1
print(json.dumps({"refused": refused, "kib": peak() - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_thirty_hostile_pictures_are_refused_within_64_mb(tmp_path):
    good = io.BytesIO()
    Image.new("RGB", (100, 100)).save(good, "PNG")
    files = [good.getvalue(), *hostile_pictures()]
    for number, data in enumerate(files):
        (tmp_path / f"{number:02}").write_bytes(data)
    names = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", MEASURE, *names], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)

    assert len(files) - 1 >= 30 and told["refused"] == len(files) - 1
    assert told["kib"] < 64 * 1024

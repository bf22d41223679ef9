"""Who and what is let in: Hosts, Origins, sizes, pictures, settings. And the parts that need no server."""

import io
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra web is not installed")

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from lwm_env.errors import ConfigMismatch, InvalidInput, StorageError
from lwm_env.web import pictures
from lwm_env.web.connection import TokenBucket
from lwm_env.web.protocol import FrameMessage
from lwm_env.web.settings import make_settings, read_settings
from lwm_env.web.slot_table import Row, SlotTable


def port_of(api):
    return api.url.rpartition(":")[2]


HOSTILE_ORIGINS = [
    "null", "http://evil.example", "http://127.0.0.1.evil.example:{port}", "http://evil127.0.0.1:{port}",
    "http://user@127.0.0.1:{port}", "http://127.0.0.1", "http://127.0.0.1:1", "https://127.0.0.1:{port}",
    "HTTP://127.0.0.1:{port}", "http://LOCALHOST:{port}", "http://localhost.:{port}", "http://127.0.0.1:{port}/",
    "http://[::1]:1", "",
]  # fmt: skip


@pytest.mark.parametrize("origin", HOSTILE_ORIGINS)
def test_hostile_origins_are_refused(play_server, origin):
    origin = origin.format(port=port_of(play_server))
    with (
        pytest.raises(InvalidStatus) as refusal,
        connect(play_server.websocket_url, additional_headers={"Origin": origin}),
    ):
        pass
    assert refusal.value.response.status_code == 403
    assert post(play_server, "/api/rooms", {"Origin": origin}) == 403


def test_the_own_origin_is_let_in_and_a_cookie_without_origin_is_not(play_server):
    origin = f"http://127.0.0.1:{port_of(play_server)}"
    with connect(play_server.websocket_url, origin=origin, close_timeout=1):
        pass

    with pytest.raises(InvalidStatus), connect(play_server.websocket_url, additional_headers={"Cookie": "a=b"}):
        pass
    assert post(play_server, "/api/rooms", {"Cookie": "a=b"}) == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.:{port}", "LOCALHOST:{port}", "a@127.0.0.1:{port}"]
)
def test_hostile_hosts_are_refused(play_server, host):
    assert get(play_server, "/api/worlds", {"Host": host.format(port=port_of(play_server))})[0] == 421
    assert get(play_server, "/metrics", {"Host": host.format(port=port_of(play_server))})[0] == 421


def get(api, path, headers):
    request = urllib.request.Request(f"{api.url}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def post(api, path, headers, body=b'{"world": "LWM-Tiny-v0"}'):
    request = urllib.request.Request(f"{api.url}{path}", body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/api/worlds", "/api/nothing", "/openapi.json"])
def test_every_answer_has_the_security_headers(play_server, path):
    _, headers = get(play_server, path, {})

    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "uvicorn" not in str(headers.get("Server"))


def test_a_body_that_is_too_large_is_refused(play_server):
    assert post(play_server, "/api/rooms", {}, b"x" * (1 << 17)) == 413


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"world": 1}', b'{"world": "LWM-Tiny-v0", "seed": -1}',
     b'{"world": "LWM-Tiny-v0", "seats": {"nobody": "human"}}', b'{"world": "LWM-Tiny-v0", "more": 1}'],
)  # fmt: skip
def test_a_wrong_body_is_told_and_is_no_failure_of_the_server(play_server, body):
    assert post(play_server, "/api/rooms", {}, body) == 422


def test_the_api_describes_itself(play_server):
    with urllib.request.urlopen(f"{play_server.url}/openapi.json") as answer:
        paths = json.loads(answer.read())["paths"]

    assert {"/api/worlds", "/api/rooms", "/api/step", "/api/rooms/{room_id}/fork"} <= set(paths)


def test_the_metrics_name_no_room(play_server):
    room = play_server.call("POST", "rooms", {"world": "LWM-Tiny-v0"})["room"]
    expected, told, limit = ('lwm_engine_ready{engine="0"} 1.0', 'lwm_slots{world="LWM-Tiny-v0"}'), "", time.time() + 20
    while time.time() < limit and not all(line in told for line in expected):  # the engine tells of itself now and then
        with urllib.request.urlopen(f"{play_server.url}/metrics") as answer:
            told = answer.read().decode()

    assert all(line in told for line in expected) and room not in told


def test_the_web_process_imports_no_torch():
    code = "import sys, lwm_env.web.server, lwm_env.web.client, lwm_env.web.play; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# -- pictures ---------------------------------------------------------------------------------------------------------


def picture(size=(40, 30), format="PNG", **more):
    file = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(file, format, **more)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_cropped_and_resized_to_the_world(format):
    frame = pictures.decode_prompt(picture(format=format), (16, 24))

    assert frame.shape == (16, 24, 3) and frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - (10, 200, 30)).max() < 12


def bombs():
    animated = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 99)]
    frames[0].save(animated, "WEBP", save_all=True, append_images=frames[1:])
    return {
        "nothing": b"", "text": b"hello", "gif": picture(format="GIF"), "bmp": picture(format="BMP"),
        "tiff": picture(format="TIFF"), "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "9000x9000": picture((9000, 9000), optimize=True), "wide": picture((60_000, 100)),
        "jpeg of 25 megapixels": picture((5000, 5000), "JPEG"), "animated": animated.getvalue(),
        "cut short": picture((400, 300))[:-100], "cut jpeg": picture((400, 300), "JPEG")[:300],
        "too many bytes": picture() + bytes(5_000_000),
    }  # fmt: skip


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_is_decoded(play_server, name):
    with pytest.raises(InvalidInput):
        pictures.decode_prompt(BOMBS[name], (16, 16))
    room = play_server.call("POST", "rooms", {"world": "LWM-Tiny-v0", "clock": "manual"})
    headers = {"X-Lwm-Token": room["token"], "Content-Type": "application/octet-stream"}

    assert post(play_server, f"/api/rooms/{room['room']}/prompt", headers, BOMBS[name]) in (413, 422)


# -- parts ------------------------------------------------------------------------------------------------------------


def test_a_frame_message_comes_back_as_it_was():
    message = FrameMessage(1, 6, 70_000, 42, 1_700_000_000_000_000, b"picture", 2.5, -1.0)

    assert FrameMessage.unpack(message.pack()) == message
    for damaged in (message.pack()[:-1], b"", b"\x02" + message.pack()[1:]):
        with pytest.raises(ValueError, match="bytes"):
            FrameMessage.unpack(damaged)


def test_a_row_that_is_being_written_is_not_read(tiny_spec):
    table = SlotTable(tiny_spec, 2)
    other = SlotTable(tiny_spec, 2, table.name)
    row = Row(3, 1, np.array([7], np.uint32), np.array([1.5], np.float32), 0.25, np.full((16, 16, 3), 9, np.uint8))
    try:
        other.write(1, row)
        read = table.read(1)
        assert (read.frame_id, read.flags, read.acked.tolist(), read.rewards.tolist()) == (3, 1, [7], [1.5])
        assert read.surprise == 0.25 and (read.frame == 9).all()
        other._rows["lock"][1] += 1
        assert table.read(1) is None and table.read(0) is not None
        table.act(1, 0, 2, seq=5)
        actions, seqs = other.read_actions([0, 1])
        assert (actions.tolist(), seqs.tolist()) == ([[0], [2]], [[0], [5]])
        table.rest(1, 0)
        actions, seqs = other.read_actions([1])
        assert (actions.tolist(), seqs.tolist()) == ([[0]], [[0]])
    finally:
        other.close()
        table.close()


def test_a_bucket_lets_its_burst_pass_and_no_more():
    bucket = TokenBucket(rate=0.001, burst=5)

    assert [bucket.take() for _ in range(7)] == [True] * 5 + [False] * 2


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"host": "0.0.0.0"}, "access_token"),
        ({"host": "0.0.0.0", "access_token": "short"}, "at least 22"),
        ({"prot": 80}, "prot"),
        ({"port": 70_000}, "port"),
        ({"backend": "jax"}, "backend"),
        ({"max_rooms": 0}, "max_rooms"),
    ],
)
def test_settings_that_do_not_work_are_named(values, told):
    with pytest.raises(ConfigMismatch, match=told):
        make_settings(**values)


def test_a_settings_file_is_read_and_a_wrong_one_is_told(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text('port = 9000\nhosts = ["play.example.org"]')
    assert read_settings(path).port == 9000

    path.write_text("port = = 1")
    with pytest.raises(ConfigMismatch, match="not TOML"):
        read_settings(path)
    with pytest.raises(StorageError):
        read_settings(tmp_path / "none.toml")

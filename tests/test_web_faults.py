"""What goes wrong on a server, done to real processes: engines killed and hung, readers that stall, floods, stops."""

import contextlib
import json
import os
import signal
import socket as sockets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra web is not installed")

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from lwm_env import worlds
from lwm_env.web import protocol
from lwm_env.web.client import ServerError
from lwm_env.web.hosting import shard_of
from lwm_env.web.protocol import FrameMessage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc of Linux")


def status(api, path):
    try:
        with urllib.request.urlopen(f"{api.url}{path}", timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
    return found


def engines_of(process):
    """The processes that a server's engine runs in; the resource tracker is none."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def open_seat(api, **more):
    world = api.call("GET", "worlds")[-1]["id"]
    room = api.call("POST", "rooms", {"world": world, **more})
    return room["room"], room["token"], api.call("POST", f"rooms/{room['room']}/seats", {})["token"]


def read(socket, count, seconds=60.0):
    """So many frames, acknowledged."""
    frames, until = [], time.monotonic() + seconds
    while len(frames) < count:
        message = socket.recv(timeout=max(0.1, until - time.monotonic()))
        if isinstance(message, bytes):
            frames.append(FrameMessage.unpack(message))
            socket.send(json.dumps({"type": "ack", "frame": frames[-1].frame_id}))
    return frames


def code_of(socket, seconds=20.0):
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            socket.recv(timeout=seconds)
    except ConnectionClosed as closed:
        return closed.rcvd.code
    return None


@pytest.fixture(scope="module")
def kept(start_server, duel_world, tmp_path_factory):
    """A server with an access token that keeps its rooms: process, API, settings."""
    settings = {
        "worlds": [str(duel_world)],
        "access_token": "a-token-of-the-tests-0123456789",
        "max_rooms": 8,
        "state_dir": str(tmp_path_factory.mktemp("state")),
    }
    return *start_server(**settings), settings


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_engine_is_replaced_and_the_world_goes_on_from_its_snapshot(kept, enter, fault):
    process, api, settings = kept
    room, _, token = open_seat(api, seed=4)
    socket, _ = enter(room, token, api=api, access=settings["access_token"], lossless=True)
    seen = read(socket, 25)
    (engine,) = engines_of(process)
    os.kill(engine, fault)
    wait_for(lambda: status(api, "/readyz") == 503)
    with pytest.raises(ServerError) as refusal:
        api.call("POST", "rooms", {"world": "LWM-Duel-v0"})
    with contextlib.suppress(TimeoutError):
        while True:
            seen += read(socket, 1, seconds=0.3)  # what the lost engine had still drawn
    first, *following = read(socket, 3)

    assert refusal.value.status == 503
    wait_for(lambda: status(api, "/readyz") == 200)
    assert engines_of(process) != [engine]
    assert first.flags & protocol.FIRST and first.frame_id == seen[-1].frame_id + 1
    pictures = {frame.frame_id: frame.picture for frame in seen}
    moment = next(frame_id for frame_id, picture in pictures.items() if picture == first.picture)
    for frame in following:  # a slow reader misses some
        then = moment + frame.frame_id - first.frame_id
        assert pictures.get(then, frame.picture) == frame.picture


def test_of_two_engines_one_is_killed_and_the_rooms_of_the_other_go_on(start_server, tiny_world, enter):
    process, api = start_server(worlds=[str(tiny_world)], engines=2)
    rooms = [open_seat(api) for _ in range(2)]  # each where there is more time
    lost, other = sorted(rooms, key=lambda room: shard_of(room[0], 2))
    assert [shard_of(room[0], 2) for room in (lost, other)] == [0, 1]
    sockets = [enter(room, token, api=api)[0] for room, _, token in (lost, other)]
    before = [read(socket, 10)[-1].frame_id for socket in sockets]
    first, second = engines_of(process)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not engines_told(api)[0]["ready"])

    assert engines_told(api)[1] == {"ready": True, "restarts": 0} and status(api, "/readyz") == 200
    shown = api.call("GET", f"rooms/{other[0]}")["frame"]
    wait_for(lambda: read(sockets[1], 1)[0].frame_id > shown + 3)  # while the other engine is away
    assert not engines_told(api)[0]["ready"]
    open_seat(api)  # new rooms go where they can be played
    recovered = [{"ready": True, "restarts": 1}, {"ready": True, "restarts": 0}]
    wait_for(lambda: engines_told(api) == recovered)
    assert read(sockets[0], 6)[-1].frame_id > before[0] + 3  # two were on their way, the rest is new
    assert second in engines_of(process) and first not in engines_of(process)
    with urllib.request.urlopen(f"{api.url}/metrics") as answer:
        told = answer.read().decode()
    wanted = ('lwm_engine_restarts{engine="0"} 1.0', 'lwm_engine_restarts{engine="1"} 0.0', 'lwm_load{engine="1"}')
    assert all(line in told for line in wanted)


def engines_told(api):
    try:
        with urllib.request.urlopen(f"{api.url}/readyz", timeout=10) as answer:
            return json.loads(answer.read())["engines"]
    except urllib.error.HTTPError as error:
        return json.loads(error.read())["engines"]


def test_a_reader_that_stalls_is_sent_two_frames_and_then_the_newest(play_server, enter):
    room, _, token = open_seat(play_server)
    socket, _ = enter(room, token)
    time.sleep(2)
    late = []
    with contextlib.suppress(TimeoutError):
        while True:
            message = socket.recv(timeout=0.2)
            late += [FrameMessage.unpack(message)] if isinstance(message, bytes) else []
    assert len(late) == protocol.WINDOW
    shown = play_server.call("GET", f"rooms/{room}")["frame"]
    socket.send(json.dumps({"type": "ack", "frame": late[-1].frame_id}))

    assert read(socket, 1)[0].frame_id >= shown > late[-1].frame_id + 2


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", protocol.MALFORMED),
        ("[]", protocol.MALFORMED),
        ('{"type": "fly"}', protocol.MALFORMED),
        ('{"type": "ack", "frame": -1}', protocol.MALFORMED),
        ('{"type": "ack", "frame": "1"}', protocol.MALFORMED),
        ('{"type": "action", "seq": 1, "action": NaN}', protocol.MALFORMED),
        ('{"type": "ack", "frame": 1, "more": 1}', protocol.MALFORMED),
        ('{"type": "attach", "room": "x"}', protocol.MALFORMED),
        (b"\x00\x01", protocol.MALFORMED),
        ('{"type": "' + "x" * 5000 + '"}', 1009),
    ],
)
def test_a_message_that_is_none_ends_the_connection(play_server, enter, message, code):
    room = play_server.call("POST", "rooms", {"world": "LWM-Tiny-v0"})["room"]
    socket, _ = enter(room)
    socket.send(message)

    assert code_of(socket) == code


def test_an_action_out_of_range_is_told_and_changes_nothing(play_server, enter):
    room, _, token = open_seat(play_server)
    socket, _ = enter(room, token)
    socket.send(json.dumps({"type": "action", "seq": 1, "action": 3}))

    told = (json.loads(message) for message in iter(lambda: socket.recv(timeout=5), None) if isinstance(message, str))
    assert "0 to 2" in next(event["message"] for event in told if event["type"] == "error")


def test_a_flood_is_cut_and_others_go_on(play_server, enter):
    room, _, token = open_seat(play_server)
    socket, _ = enter(room, token)
    other, _ = enter(room)
    begin = time.monotonic()
    with contextlib.suppress(ConnectionClosed):
        for _ in range(2000):
            socket.send('{"type": "ack", "frame": 0}')

    assert code_of(socket) == protocol.FLOOD
    assert time.monotonic() - begin < 10
    assert len(read(other, 3)) == 3


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ({"type": "ack", "frame": 1}, protocol.MALFORMED),
        ({"type": "attach", "room": "nowhere"}, protocol.NO_ROOM),
        ({"type": "attach", "room": "ROOM", "token": "guessed"}, protocol.FORBIDDEN),
    ],
)
def test_who_does_not_attach_properly_is_sent_away(play_server, first, code):
    room = play_server.call("POST", "rooms", {"world": "LWM-Tiny-v0"})["room"]
    with connect(play_server.websocket_url, compression=None, close_timeout=1) as socket:
        socket.send(json.dumps({**first, **({"room": room} if first.get("room") == "ROOM" else {})}))

        assert code_of(socket) == code


def test_who_says_nothing_is_sent_away(play_server):
    with connect(play_server.websocket_url, compression=None, close_timeout=1) as socket:
        assert code_of(socket) == protocol.TOO_SLOW


def test_an_access_token_is_asked_for_everywhere(kept, enter):
    _, api, _ = kept
    api_of_a_stranger = type(api)(api.url)
    for path in ("worlds", "rooms"):
        with pytest.raises(ServerError, match="401"):
            api_of_a_stranger.call("GET", path)
    room, *_ = open_seat(api)

    with connect(api.websocket_url, compression=None, close_timeout=1) as socket:
        socket.send(json.dumps({"type": "attach", "room": room, "access": "wrong"}))
        assert code_of(socket) == protocol.FORBIDDEN


def test_a_full_server_says_so_at_once(kept):
    _, api, settings = kept
    rooms = []
    with contextlib.suppress(ServerError):
        for _ in range(settings["max_rooms"]):
            rooms.append(api.call("POST", "rooms", {"world": "LWM-Duel-v0"}))
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {settings['access_token']}"}
    request = urllib.request.Request(f"{api.url}/api/rooms", b'{"world": "LWM-Duel-v0"}', headers)
    begin = time.monotonic()
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request)
    seconds = time.monotonic() - begin
    for room in rooms:
        api.call("DELETE", f"rooms/{room['room']}", None, room["token"])

    assert refusal.value.code == 503 and int(refusal.value.headers["Retry-After"]) > 0
    assert seconds < 1
    assert open_seat(api)


def test_a_stop_keeps_the_rooms_and_a_new_server_goes_on_with_them(kept, start_server, enter):
    process, api, settings = kept
    access = settings["access_token"]
    room, _, token = open_seat(api, seed=9)
    socket, attached = enter(room, token, api=api, access=access, lossless=True)
    seen = read(socket, 12)
    engines = engines_of(process)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    told = []
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            message = socket.recv(timeout=20)
            if isinstance(message, bytes):
                seen.append(FrameMessage.unpack(message))
                with contextlib.suppress(ConnectionClosed):
                    socket.send(json.dumps({"type": "ack", "frame": seen[-1].frame_id}))
            else:
                told.append(json.loads(message)["type"])
    assert process.wait(timeout=30) == 0
    assert time.monotonic() - begin < 20
    assert closed.value.rcvd.code == protocol.GOING_AWAY and "bye" in told
    assert not any(Path(f"/proc/{pid}").exists() for pid in engines)
    assert (Path(settings["state_dir"]) / f"{room}.lwms").stat().st_size > 1000

    _, later = start_server(**settings)
    again, resumed = enter(room, attached["token"], api=later, access=access, lossless=True)
    (first,) = read(again, 1)

    assert resumed["seat"] == 0 and first.frame_id > seen[-1].frame_id
    assert first.picture in [frame.picture for frame in seen[-3:]]


def test_a_killed_server_leaves_neither_its_engine_nor_shared_memory(start_server, tiny_world):
    before = set(os.listdir("/dev/shm"))
    process, _ = start_server(worlds=[str(tiny_world)])
    engines = engines_of(process)
    own = {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")}
    assert engines and own
    process.kill()

    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in engines))
    wait_for(lambda: not own & set(os.listdir("/dev/shm")))


def test_a_world_that_the_engine_cannot_load_ends_the_server_with_an_error(tiny_world, tmp_path):
    manifest = worlds.read_manifest(tiny_world)
    broken = {"model.safetensors": b"not weights, though the manifest says that they are"}
    worlds.write_world(tmp_path / "broken", spec=manifest.spec, model=manifest.model, provenance={}, files=broken)
    config = tmp_path / "server.toml"
    config.write_text(f"port = 0\nworlds = [{json.dumps(str(tmp_path / 'broken'))}]")

    done = subprocess.run([sys.executable, "-m", "lwm_env.cli", "serve", str(config)], capture_output=True, text=True)

    assert done.returncode == 1 and done.stderr.startswith("error: ") and "model.safetensors" in done.stderr


def test_a_taken_port_is_told(play_server, tmp_path):
    port = int(play_server.url.rpartition(":")[2])
    done = subprocess.run(
        [sys.executable, "-m", "lwm_env.cli", "play", "--no-browser", "--port", str(port)],
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 1 and "Name another port" in done.stderr
    with sockets.socket() as probe:  # the other server is as it was
        assert probe.connect_ex(("127.0.0.1", port)) == 0

"""Rooms on two nodes of a Ray cluster of this machine, behind one ingress."""

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("ray.serve", reason="needs the extra `ray`")
pytest.importorskip("aiohttp", reason="needs the extra `ray`")
import ray
from ray import serve
from ray.cluster_utils import Cluster
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from lwm_env.web import room_files
from lwm_env.web.client import Api, ServerError
from lwm_env.web.loadtest import wait_until_ready
from lwm_env.web.protocol import FrameMessage
from lwm_env.web.room_ids import host_of
from lwm_env.web.server import find_worlds
from lwm_env.web.settings import make_settings

pytestmark = pytest.mark.slow
TOKEN = "a" * 22
PATIENCE = 300  # seconds, on a machine that has other things to do; an idle one takes a few


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, so that each takes one host."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.add_node(num_cpus=1)
        made.wait_for_nodes()
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def server(cluster, tiny_world, duel_world, state_dir, tmp_path_factory):
    """`lwm serve --ray 2`: its process and its API."""
    config = tmp_path_factory.mktemp("server") / "server.toml"
    settings = {"worlds": [str(tiny_world), str(duel_world)], "access_token": TOKEN, "state_dir": str(state_dir)}
    limits = {"port": 0, "max_load": 1000.0, "rooms_per_minute": 100_000, "requests_per_minute": 100_000}
    config.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in {**settings, **limits}.items()))
    command = [sys.executable, "-m", "lwm_env.cli", "serve", str(config), "--ray", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            wait_until_ready(url, PATIENCE)
            api = Api(url, TOKEN)
            yield process, api
        finally:
            process.terminate()


def wait_for(told):
    until = time.monotonic() + PATIENCE
    while not told():
        assert time.monotonic() < until, "it did not come in time"
        time.sleep(0.1)


def get(api, path, headers=()):
    """Status and body of a call beside the API's client."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(api.url + path, headers=dict(headers)), timeout=10
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def hosts_told(api):
    return json.loads(get(api, "/readyz")[1])["hosts"]


def room_on(api, number, **wanted):
    """A new room of two players on a host; asks again while that one is busy."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            room = api.call("POST", "rooms", {"world": "LWM-Duel-v0", **wanted})
        except ServerError as error:
            assert error.status == 503, error
        else:
            if host_of(room["room"]) == number:
                return room
            api.call("DELETE", f"rooms/{room['room']}", token=room["token"])
        time.sleep(0.2)
    raise AssertionError(f"no room on host {number} in {PATIENCE} s")


@pytest.fixture
def enter(server):
    """Opens a WebSocket into a room, in a seat of it or as a spectator."""

    def attach(room, player=None, access=TOKEN, **more):
        api = server[1]
        seat = api.call("POST", f"rooms/{room}/seats", {"player": player}) if player else {"token": None}
        socket = sockets.enter_context(connect(api.websocket_url, compression=None, max_size=1 << 24, close_timeout=1))
        told = {"type": "attach", "room": room, "token": seat["token"], "access": access, "lossless": True, **more}
        socket.send(json.dumps(told))
        return socket

    with contextlib.ExitStack() as sockets:
        yield attach


def frames_of(socket, count):
    """The next frames by their ids, acknowledged."""
    frames = {}
    while len(frames) < count:
        message = socket.recv(timeout=60)
        if isinstance(message, bytes):
            frame = FrameMessage.unpack(message)
            frames[frame.frame_id] = frame.picture
            socket.send(json.dumps({"type": "ack", "frame": frame.frame_id}))
    return frames


def end_of(socket):
    """Code and reason with which the server ends a connection."""
    with pytest.raises(ConnectionClosed) as told:
        while True:
            socket.recv(timeout=60)
    return told.value.rcvd.code, told.value.rcvd.reason


def test_rooms_spread_over_the_hosts_and_are_listed_together(server):
    api = server[1]
    wanted = {"world": "LWM-Duel-v0", "public": True, "clock": "manual"}  # without a clock rooms take no load
    rooms = [api.call("POST", "rooms", wanted)["room"] for _ in range(4)]

    assert sorted(map(host_of, rooms)) == [0, 0, 1, 1]
    assert {room["room"] for room in api.call("GET", "rooms")} >= set(rooms)
    assert [api.call("GET", f"rooms/{room}")["room"] for room in rooms] == rooms
    assert {world["id"] for world in api.call("GET", "worlds")} == {"LWM-Tiny-v0", "LWM-Duel-v0"}
    assert b"<html" in get(api, "/")[1]
    metrics = get(api, "/metrics")[1].decode()
    assert 'lwm_host_up{host="1"} 1.0' in metrics and metrics.count("# TYPE lwm_rooms gauge") == 1
    assert all(f'lwm_rooms{{host="{number}",state="running"}}' in metrics for number in range(2))


@pytest.mark.parametrize("number", [0, 1])
def test_two_players_of_a_room_are_on_one_host_and_see_the_same_frames(server, enter, number):
    room = room_on(server[1], number)["room"]
    left, right = enter(room, "left"), enter(room, "right")
    left.send(json.dumps({"type": "action", "seq": 1, "action": 1}))
    seen = {left: {}, right: {}}
    for _ in range(12):
        for socket, frames in seen.items():
            frames.update(frames_of(socket, 1))

    shared = seen[left].keys() & seen[right].keys()
    assert len(shared) >= 3 and all(seen[left][frame] == seen[right][frame] for frame in shared)
    assert [seat["state"] for seat in server[1].call("GET", f"rooms/{room}")["seats"]] == ["live", "live"]


def test_steps_and_snapshots_reach_the_host_of_their_room(server):
    api, actions = server[1], {"left": 1, "right": 2}
    rooms = [room_on(api, number, clock="manual", seed=7) for number in (1, 0, 1)]
    one = [api.call("POST", f"rooms/{room['room']}/step", {"actions": actions}, room["token"])["png"] for room in rooms]
    steps = [{"room": room["room"], "token": room["token"], "actions": actions} for room in rooms]
    told = api.call("POST", "step", {"steps": steps})

    assert len(set(one)) == 1  # the same seed and actions, on whichever host
    assert [result["room"] for result in told] == [room["room"] for room in rooms]
    assert len({result["png"] for result in told}) == 1 and {result["frame"] for result in told} == {told[0]["frame"]}
    first, second = rooms[:2]
    api.call("POST", f"rooms/{first['room']}/step", {"actions": actions}, first["token"])
    state = api.call("GET", f"rooms/{first['room']}/snapshot", token=first["token"])
    api.call("POST", f"rooms/{second['room']}/restore", state, second["token"])
    assert api.call("GET", f"rooms/{second['room']}/snapshot", token=second["token"]) == state
    fork = api.call("POST", f"rooms/{first['room']}/fork", token=first["token"])
    assert host_of(fork["room"]) == host_of(first["room"])


def test_a_room_streams_without_a_websocket_and_its_video_comes_through(server):
    api = server[1]
    room = room_on(api, 1)["room"]
    request = urllib.request.Request(f"{api.url}/api/rooms/{room}/stream", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=10) as stream:
        assert stream.headers["Content-Type"].startswith("multipart/x-mixed-replace")
        assert stream.readline().strip() == b"--frame"
    wait_for(lambda: api.call("GET", f"rooms/{room}")["spectators"] == 0)  # the host hears that the reader is gone


def test_what_is_refused_by_one_server_is_refused_by_the_ingress(server, enter):
    api = server[1]
    room = room_on(api, 0)
    for path, headers, status in [
        ("/api/rooms", {}, 401),
        ("/api/rooms", {"Authorization": f"Bearer {TOKEN}x"}, 401),
        ("/api/rooms", {"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}, 403),
        ("/api/rooms", {"Authorization": f"Bearer {TOKEN}", "Host": "evil.example"}, 421),
        (f"/api/rooms/{room['room']}/snapshot", {"Authorization": f"Bearer {TOKEN}"}, 403),
        ("/api/rooms/7.AAAAAAAAAAAA", {"Authorization": f"Bearer {TOKEN}"}, 404),
        ("/api/rooms/1.AAAAAAAAAAAA", {"Authorization": f"Bearer {TOKEN}"}, 404),
        ("/api/rooms/AAAAAAAAAAAA", {"Authorization": f"Bearer {TOKEN}"}, 404),
    ]:
        told, body = get(api, path, headers)
        assert told == status and json.loads(body)["detail"], path
    with pytest.raises(ServerError, match="65536"):
        api.call("POST", "rooms", {"world": "x" * 70_000})
    with pytest.raises(InvalidStatus, match="403"):
        connect(api.websocket_url, origin="http://evil.example")
    for code, told in [
        (4403, {"access": "wrong"}),
        (4403, {"token": "wrong"}),
        (4404, {"room": "7.AAAAAAAAAAAA"}),
        (4404, {"room": "1.AAAAAAAAAAAA"}),
        (4400, {"surplus": 1}),
    ]:
        assert end_of(enter(**{"room": room["room"], **told}))[0] == code, told
    socket = enter(room["room"], "left")
    frames_of(socket, 1)
    socket.send("x" * 5000)
    assert end_of(socket)[0] == 1009


def test_a_host_answers_nobody_but_the_ingress(server):
    ray.init(log_to_driver=False, ignore_reinit_error=True)
    for number in range(2):
        facts = serve.get_app_handle(f"lwm-host-{number}").facts.remote().result(timeout_s=20)
        for path in ("/readyz", "/api/rooms", "/"):
            for headers in ({}, {"Authorization": f"Bearer {TOKEN}", "X-Lwm-Ingress": "guessed"}):
                with pytest.raises(urllib.error.HTTPError, match="403"):
                    urllib.request.urlopen(urllib.request.Request(facts.url + path, headers=headers), timeout=10)
        with pytest.raises(InvalidStatus, match="403"):
            connect(f"ws{facts.url.removeprefix('http')}/ws")


def test_a_node_is_killed_its_rooms_are_told_as_lost_and_the_others_go_on(server, cluster, enter):
    api = server[1]
    rooms = [room_on(api, number)["room"] for number in range(2)]
    sockets = [enter(room, "left") for room in rooms]
    for socket in sockets:
        frames_of(socket, 2)
    (worker,) = cluster.worker_nodes
    cluster.remove_node(worker, allow_graceful=False)
    wait_for(lambda: not all(host["reached"] for host in hosts_told(api)))
    (lost,) = [number for number, host in enumerate(hosts_told(api)) if not host["reached"]]

    code, reason = end_of(sockets[lost])
    assert code == 1013 and f"host {lost} is not reached" in reason
    begin = time.monotonic()
    with pytest.raises(ServerError, match=f"host {lost} is not reached") as told:
        api.call("GET", f"rooms/{rooms[lost]}")
    assert told.value.status == 503 and time.monotonic() - begin < 5
    assert end_of(enter(rooms[lost]))[0] == 1013
    assert len(frames_of(sockets[1 - lost], 20)) == 20  # on the connection that it had
    wait_for(lambda: get(api, "/readyz")[0] == 200)
    assert {host_of(room_on(api, 1 - lost)["room"]) for _ in range(3)} == {1 - lost}
    assert f'lwm_host_up{{host="{lost}"}} 0.0' in get(api, "/metrics")[1].decode()

    cluster.add_node(num_cpus=1)
    wait_for(lambda: all(host["ready"] for host in hosts_told(api)))
    assert host_of(room_on(api, lost)["room"]) == lost
    with pytest.raises(ServerError, match="no room") as told:
        api.call("GET", f"rooms/{rooms[lost]}")
    assert told.value.status == 404
    assert frames_of(sockets[1 - lost], 2)


def test_a_stop_keeps_the_rooms_sends_everybody_away_and_ends_the_hosts(server, enter, state_dir, duel_world):
    process, api = server
    rooms = [room_on(api, number)["room"] for number in range(2)]
    sockets = [enter(room, "left") for room in rooms]
    for socket in sockets:
        frames_of(socket, 1)
    process.terminate()

    assert [end_of(socket)[0] for socket in sockets] == [1001, 1001]
    assert process.wait(60) == 0
    ray.init(log_to_driver=False, ignore_reinit_error=True)
    assert not serve.status().applications
    played = find_worlds(make_settings(worlds=(str(duel_world),)))
    for number, room in enumerate(rooms):  # what a host of that number finds when it starts again
        assert room in {kept.id for kept in room_files.read_all(state_dir / f"host-{number}", played)}

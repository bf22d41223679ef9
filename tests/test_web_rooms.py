"""Rooms over real sockets: seats, frames, time."""

import contextlib
import io
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import lwm_env

pytest.importorskip("fastapi", reason="the extra web is not installed")

from websockets.exceptions import ConnectionClosed

from lwm_env import familiar
from lwm_env.demo import make
from lwm_env.errors import InvalidInput, WrongOrder
from lwm_env.web import protocol
from lwm_env.web.client import RemoteEnv, ServerError
from lwm_env.web.protocol import FrameMessage
from lwm_env.world_model import WorldModel


def create(api, world="LWM-Tiny-v0", **more):
    """The room, its owner's token."""
    room = api.call("POST", "rooms", {"world": world, **more})
    return room["room"], room["token"]


def join(api, room, **more):
    return api.call("POST", f"rooms/{room}/seats", more)["token"]


def frames_of(socket, seconds=10.0):
    """Every frame that comes, acknowledged at once."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        message = socket.recv(timeout=max(0.1, until - time.monotonic()))
        if isinstance(message, bytes):
            frame = FrameMessage.unpack(message)
            socket.send(json.dumps({"type": "ack", "frame": frame.frame_id}))
            yield frame


def take(frames, count):
    return [frame for _, frame in zip(range(count), frames, strict=False)]


def take_without_gaps(frames, count):
    """So many frames, each the next one of the one before."""
    taken = []
    for frame in frames:
        taken = [*taken, frame] if taken and frame.frame_id == taken[-1].frame_id + 1 else [frame]
        if len(taken) == count:
            return taken
    raise AssertionError("frames were left out again and again")


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def wait_for(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)
    return found


def close_code(socket):
    with contextlib.suppress(TimeoutError):
        try:
            while True:
                socket.recv(timeout=20)
        except ConnectionClosed as closed:
            return closed.rcvd.code
    return None


def test_two_players_of_one_room_see_the_same_frames(play_server, enter):
    room, _ = create(play_server, "LWM-Duel-v0")
    sockets = [enter(room, join(play_server, room), lossless=True)[0] for _ in range(2)]

    with ThreadPoolExecutor(2) as pool:
        left, right = pool.map(lambda socket: take(frames_of(socket), 30), sockets)

    seen = {frame.frame_id: frame.picture for frame in left}
    both = [frame for frame in right if frame.frame_id in seen]
    assert [left[0].seat, right[0].seat] == [0, 1]
    assert len(both) > 10 and all(seen[frame.frame_id] == frame.picture for frame in both)


def test_the_actions_of_all_seats_reach_the_same_dream_bit_for_bit(play_server, duel_world):
    room, token = create(play_server, "LWM-Duel-v0", seed=7, clock="manual")
    env = lwm_env.parallel_env(str(duel_world))
    env.reset(seed=7)

    for actions in ({"left": 1, "right": 2}, {"left": 0, "right": 1}, {"left": 2, "right": 2}):
        told = play_server.call("POST", f"rooms/{room}/step", {"actions": actions}, token)
        observations, rewards, *_ = env.step(actions)
        assert np.array_equal(pixels(_png(play_server, room)), observations["left"])
        assert told["rewards"] == rewards


def _png(api, room):
    return api.call("GET", f"rooms/{room}/frame")


def test_a_batched_step_gives_what_single_steps_give(play_server):
    rooms = [create(play_server, seed=seed, clock="manual") for seed in (1, 2, 1)]
    steps = [{"room": room, "token": token, "actions": {"player_0": 1}} for room, token in rooms]

    first, other, same = play_server.call("POST", "step", {"steps": steps})

    assert first["png"] == same["png"] != other["png"]
    with pytest.raises(ServerError, match="twice"):
        play_server.call("POST", "step", {"steps": [steps[0], steps[0]]})


@pytest.mark.parametrize("trial", range(3))
def test_fifty_concurrent_joins_fill_two_seats_once(play_server, trial):
    room, _ = create(play_server, "LWM-Duel-v0")

    def attempt(_):
        try:
            return play_server.call("POST", f"rooms/{room}/seats", {})["player"]
        except ServerError as error:
            return error.status

    with ThreadPoolExecutor(50) as pool:
        outcomes = list(pool.map(attempt, range(50)))

    assert sorted(map(str, outcomes)) == ["409"] * 48 + ["left", "right"]


def test_a_reservation_that_nobody_takes_is_given_away(play_server):
    room, _ = create(play_server)
    join(play_server, room)
    with pytest.raises(ServerError, match="no such seat is free"):
        join(play_server, room)

    assert wait_for(lambda: _try(lambda: join(play_server, room)))


def _try(work):
    with contextlib.suppress(ServerError):
        return work()
    return None


def test_a_token_works_once_and_the_newest_socket_wins(play_server, enter):
    room, _ = create(play_server)
    token = join(play_server, room)
    first, attached = enter(room, token)

    _, again = enter(room, attached["token"])
    assert close_code(first) == protocol.REPLACED and again["seat"] == 0

    with pytest.raises(ConnectionClosed):
        enter(room, token)
    assert play_server.call("GET", f"rooms/{room}")["seats"][0]["state"] == "live"


def test_a_dropped_seat_waits_for_its_player_and_is_free_later(play_server, enter):
    room, _ = create(play_server)
    socket, attached = enter(room, join(play_server, room))
    socket.close()
    state = lambda: play_server.call("GET", f"rooms/{room}")["seats"][0]["state"]  # noqa: E731
    wait_for(lambda: state() == "dropped")

    socket, attached = enter(room, attached["token"])
    assert attached["seat"] == 0 and state() == "live"

    socket.close()
    wait_for(lambda: state() == "free")


def test_a_room_without_players_pauses_then_sleeps_and_wakes_where_it_was(play_server, enter):
    room, _ = create(play_server, seed=1)
    socket, _ = enter(room, join(play_server, room), lossless=True)
    take(frames_of(socket), 3)
    socket.close()
    state = lambda: play_server.call("GET", f"rooms/{room}")["state"]  # noqa: E731
    wait_for(lambda: state() == "paused")
    before = _png(play_server, room)
    wait_for(lambda: state() == "snapshotted")

    socket, _ = enter(room, lossless=True)  # a spectator does not make it run
    (frame,) = take(frames_of(socket), 1)

    assert np.array_equal(pixels(frame.picture), pixels(before))


def test_those_who_watch_cannot_act(play_server, enter):
    room, _ = create(play_server)
    socket, attached = enter(room)
    socket.send(json.dumps({"type": "pause", "paused": True}))

    told = (json.loads(message) for message in iter(lambda: socket.recv(timeout=5), None) if isinstance(message, str))

    assert attached["seat"] == protocol.SPECTATOR and attached["token"] is None
    assert "in a seat" in next(event["message"] for event in told if event["type"] == "error")


def test_an_action_is_acknowledged_by_the_frame_that_shows_it(play_server, enter):
    room, _ = create(play_server)
    socket, _ = enter(room, join(play_server, room))
    socket.send(json.dumps({"type": "action", "seq": 41, "action": 2}))

    assert any(frame.acked == 41 for frame in frames_of(socket))


def test_rewinding_goes_on_from_a_moment_that_was_seen(play_server, enter):
    room, _ = create(play_server, "LWM-Duel-v0", seed=2)
    socket, _ = enter(room, join(play_server, room), lossless=True)
    seen = take_without_gaps(frames_of(socket, seconds=60), 25)
    socket.send(json.dumps({"type": "pause", "paused": True}))
    wait_for(lambda: play_server.call("GET", f"rooms/{room}")["state"] == "paused")
    shown = play_server.call("GET", f"rooms/{room}")["frame"]
    socket.send(json.dumps({"type": "rewind", "frame": seen[-1].frame_id}))
    first = next(frame for frame in frames_of(socket) if frame.frame_id > shown and frame.flags & protocol.FIRST)
    socket.send(json.dumps({"type": "pause", "paused": False}))
    following = next(frames_of(socket))

    pictures = [frame.picture for frame in seen]
    assert first.picture in pictures
    place = pictures.index(first.picture)
    if place < len(pictures) - 1 and following.frame_id == first.frame_id + 1:
        assert following.picture == pictures[place + 1]


def test_a_pause_stops_the_frames_until_it_ends(play_server, enter):
    room, _ = create(play_server)
    socket, _ = enter(room, join(play_server, room))
    take(frames_of(socket), 2)
    socket.send(json.dumps({"type": "pause", "paused": True}))
    wait_for(lambda: play_server.call("GET", f"rooms/{room}")["state"] == "paused")
    time.sleep(0.5)  # the engine may have been in the middle of a step
    shown = play_server.call("GET", f"rooms/{room}")["frame"]
    time.sleep(0.3)
    assert play_server.call("GET", f"rooms/{room}")["frame"] == shown

    socket.send(json.dumps({"type": "pause", "paused": False}))
    assert any(frame.frame_id > shown for frame in frames_of(socket))


def test_a_snapshot_goes_on_in_a_local_env_and_in_a_fork(play_server, tiny_world):
    room, token = create(play_server, seed=3, clock="manual")
    play_server.call("POST", f"rooms/{room}/step", {"actions": {"player_0": 1}}, token)
    state = play_server.call("GET", f"rooms/{room}/snapshot", None, token)
    fork = play_server.call("POST", f"rooms/{room}/fork", None, token)
    env = make(str(tiny_world), "cpu")
    env.reset(seed=0)
    env.unwrapped.set_state(state)
    observation = env.step(2)[0]

    for name, owner in ((room, token), (fork["room"], fork["token"])):
        play_server.call("POST", f"rooms/{name}/step", {"actions": {"player_0": 2}}, owner)
        assert np.array_equal(pixels(_png(play_server, name)), observation)
    play_server.call("POST", f"rooms/{room}/restore", state, token)
    play_server.call("POST", f"rooms/{room}/step", {"actions": {"player_0": 2}}, token)
    assert np.array_equal(pixels(_png(play_server, room)), observation)


def test_an_altered_snapshot_is_refused_and_changes_nothing(play_server):
    room, token = create(play_server, seed=3, clock="manual")
    state, before = play_server.call("GET", f"rooms/{room}/snapshot", None, token), _png(play_server, room)

    with pytest.raises(ServerError, match="altered"):
        play_server.call("POST", f"rooms/{room}/restore", state[:-1] + bytes([state[-1] ^ 1]), token)
    assert _png(play_server, room) == before


def test_a_dropped_picture_is_the_first_frame_and_a_strange_one_is_told(play_server, tiny_world):
    room, token = create(play_server, clock="manual")
    file = io.BytesIO()
    Image.new("RGB", (300, 200), (250, 20, 30)).save(file, "PNG")

    answer = play_server.call("POST", f"rooms/{room}/prompt", file.getvalue(), token)

    picture = np.full((16, 16, 3), (250, 20, 30), np.uint8)
    assert np.array_equal(pixels(_png(play_server, room)), picture)
    assert answer["warning"] == familiar.unfamiliar(WorldModel.load(tiny_world), torch.from_numpy(picture)[None])


@pytest.mark.parametrize("format", ["gif", "mp4"])
def test_the_last_minute_becomes_a_video(play_server, format):
    room, token = create(play_server, clock="manual")
    for _ in range(4):
        play_server.call("POST", f"rooms/{room}/step?picture=false", {"actions": {"player_0": 1}}, token)

    video = play_server.call("GET", f"rooms/{room}/recording?format={format}", None, token)

    assert video[:6] == b"GIF89a" if format == "gif" else video[4:8] == b"ftyp"


def test_scripted_seats_play_by_themselves_and_cannot_be_joined(play_server):
    room, token = create(play_server, "LWM-Duel-v0", clock="manual", seats={"right": "sticky"})

    step = play_server.call("POST", f"rooms/{room}/step", {"actions": {"left": 1}}, token)

    assert set(step["rewards"]) == {"left", "right"}
    assert join(play_server, room)
    with pytest.raises(ServerError, match="no such seat is free"):
        join(play_server, room, player="right")


def test_a_free_seat_is_given_to_a_bot_and_back(play_server, enter):
    room, token = create(play_server, "LWM-Duel-v0", clock="manual")
    enter(room, join(play_server, room, player="left"))
    path = f"rooms/{room}/seats"
    with pytest.raises(ServerError, match="403"):
        play_server.call("PUT", f"{path}/right", {"played_by": "sticky"})
    with pytest.raises(ServerError, match="409"):
        play_server.call("PUT", f"{path}/left", {"played_by": "sticky"}, token)  # somebody sits there
    for player, played_by in (("right", "no such bot"), ("middle", "sticky")):
        with pytest.raises(ServerError, match="422"):
            play_server.call("PUT", f"{path}/{player}", {"played_by": played_by}, token)

    told = play_server.call("PUT", f"{path}/right", {"played_by": "sticky"}, token)
    play_server.call("POST", f"rooms/{room}/step", {"actions": {"left": 1}}, token)
    assert [seat["played_by"] for seat in told["seats"]] == ["human", "sticky"]
    with pytest.raises(ServerError, match="no such seat is free"):
        join(play_server, room, player="right")

    play_server.call("PUT", f"{path}/right", {"played_by": "human"}, token)
    assert join(play_server, room, player="right")
    assert play_server.call("GET", "worlds")[1]["bots"] == ["sticky"]


def test_a_preview_dreams_on(play_server):
    first = play_server.call("GET", "worlds/LWM-Duel-v0/preview")

    assert wait_for(lambda: play_server.call("GET", "worlds/LWM-Duel-v0/preview") != first)
    assert not any(room["clock"] == "manual" for room in play_server.call("GET", "rooms"))


def test_two_policies_play_each_other_over_the_network(play_server):
    room, _ = create(play_server, "LWM-Duel-v0")
    left, right = (RemoteEnv(play_server.url, room, lossless=True) for _ in range(2))
    with contextlib.closing(left), contextlib.closing(right):
        assert (left.possible_agents, right.possible_agents) == (["left"], ["right"])
        with pytest.raises(WrongOrder):
            left.step({"left": 1})
        observations, infos = left.reset()
        assert observations["left"].shape == (16, 16, 3) and infos["left"]["frame_id"] >= 1
        with pytest.raises(InvalidInput):
            left.step({"left": 3})
        ended = 0
        while not ended:
            _, _, terminations, truncations, infos = left.step({"left": 2})
            ended = terminations["left"] or truncations["left"]
        assert left.agents == [] and left.reset()[1]["left"]["frame_id"] > infos["left"]["frame_id"]
        right.reset(seed=5)
        assert play_server.call("GET", f"rooms/{room}")["seed"] == 5


def test_without_a_websocket_the_frames_stream_and_actions_are_posted(play_server):
    room, _ = create(play_server, "LWM-Duel-v0")
    token = join(play_server, room)
    request = urllib.request.Request(f"{play_server.url}/api/rooms/{room}/stream", headers={"X-Lwm-Token": token})
    with urllib.request.urlopen(request, timeout=30) as stream:
        renewed, jpegs = stream.headers["X-Lwm-Token"], []
        while len(jpegs) < 3:
            head = [stream.readline() for _ in range(4)]
            jpegs.append(stream.read(int(head[2].split(b":")[1])))
            stream.readline()
        play_server.call("POST", f"rooms/{room}/act", {"action": 2}, renewed)
        with pytest.raises(ServerError, match="403"):
            play_server.call("POST", f"rooms/{room}/act", {"action": 2}, token)
        assert all(pixels(jpeg).shape == (16, 16, 3) for jpeg in jpegs) and len(set(jpegs)) > 1

    wait_for(lambda: play_server.call("GET", f"rooms/{room}")["seats"][0]["state"] != "live")


def test_only_the_owner_closes_a_room(play_server, enter):
    room, token = create(play_server)
    socket, attached = enter(room, join(play_server, room))
    with pytest.raises(ServerError, match="owner"):
        play_server.call("DELETE", f"rooms/{room}", None, attached["token"])

    play_server.call("DELETE", f"rooms/{room}", None, token)

    assert close_code(socket) == protocol.NO_ROOM
    with pytest.raises(ServerError, match="no room"):
        play_server.call("GET", f"rooms/{room}")

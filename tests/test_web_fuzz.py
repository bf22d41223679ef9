"""Whatever is sent: no call of the API fails with a 5xx but a polite 503, no message stops a room, no token opens two
seats."""

import contextlib
import http.client
import json
import math
import urllib.request
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

pytest.importorskip("fastapi", reason="the extra web is not installed")

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from lwm_env.web import protocol
from lwm_env.web.lobby import Lobby
from lwm_env.web.metrics import Metrics
from lwm_env.web.protocol import FrameMessage
from lwm_env.web.rooms import Forbidden, Occupied, Room, SeatState
from lwm_env.web.settings import make_settings
from lwm_env.web.supervisor import PlayedWorld

ENDLESS = "/api/rooms/{room_id}/stream"
WORLDS = st.sampled_from(["LWM-Tiny-v0", "LWM-Duel-v0", "LWM-None-v0"])
SCALARS = st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=70)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner))
PLAYERS = st.sampled_from(["player_0", "left", "right", "nobody", ""])
ACTIONS = st.dictionaries(PLAYERS, st.integers(-1, 4) | st.lists(st.floats(-2, 2), max_size=3) | JSON, max_size=3)
PLAYED_BY = st.sampled_from(["human", "neutral", "sticky", "paddle", ""])
FIELDS = {
    "world": WORLDS, "seed": st.integers(-1, 1 << 64), "temperature": st.floats(), "public": st.booleans(),
    "clock": st.sampled_from(["manual", "realtime", "none"]), "player": PLAYERS, "actions": ACTIONS,
    "seats": st.dictionaries(PLAYERS, PLAYED_BY, max_size=3), "played_by": PLAYED_BY, "action": st.integers(-1, 4),
    "seq": st.integers(-1, 1 << 33), "more": JSON,
}  # fmt: skip
BODIES = (
    st.fixed_dictionaries({}, optional={name: values | JSON for name, values in FIELDS.items()})
    | st.fixed_dictionaries({"world": WORLDS}, optional={"clock": FIELDS["clock"], "seed": FIELDS["seed"]})
    | JSON
)


@pytest.fixture(scope="module")
def described(play_server):
    """Method, path and query names of every call that OpenAPI tells of; and a room with its owner's token."""
    with urllib.request.urlopen(f"{play_server.url}/openapi.json") as answer:
        paths = json.loads(answer.read())["paths"]
    calls = [
        (method.upper(), path, [p["name"] for p in call.get("parameters", []) if p["in"] == "query"])
        for path, methods in paths.items()
        for method, call in methods.items()
    ]
    room = play_server.call("POST", "rooms", {"world": "LWM-Duel-v0", "clock": "manual"})
    return calls, room["room"], room["token"]


def test_no_token_stands_in_an_address(described):
    calls, *_ = described
    assert len(calls) > 15
    assert not [name for _, path, names in calls for name in [path, *names] if "token" in name or "access" in name]


def send(api, method, path, body, headers):
    """Status and headers; the connection is closed without reading an endless answer."""
    connection = http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        if not path.split("?")[0].endswith("/stream"):
            answer.read()
        return answer.status, answer.headers


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_call_of_the_api_answers_whatever_it_is_sent(play_server, described, data):
    calls, room, token = described
    method, path, names = data.draw(st.sampled_from(calls))
    known = {"room_id": st.just(room) | st.text(min_size=1, max_size=20), "world_id": WORLDS, "player": PLAYERS}
    for name, values in known.items():
        path = path.replace(f"{{{name}}}", quote(data.draw(values), safe="") or "-")
    values = st.sampled_from(["gif", "true", "0", "-1", "nan", "1e309", "0.5"]) | st.text(max_size=8)
    query = "&".join(f"{name}={quote(data.draw(values))}" for name in names if data.draw(st.booleans()))
    body = data.draw(BODIES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=300) | st.none())
    headers = {"Content-Type": data.draw(st.sampled_from(["application/json", "application/octet-stream", "x"]))}
    given_token = data.draw(st.sampled_from([None, token, "guessed"]))
    if given_token is not None:
        headers["X-Lwm-Token"] = given_token
    if method == "DELETE" and given_token == token:
        return  # the room is needed
    status, answered = send(play_server, method, f"{path}?{query}", body, headers)

    assert status < 500 or (status == 503 and int(answered["Retry-After"]) > 0), (method, path, query, body)


NUMBERS = st.integers(-2, 1 << 33) | st.floats() | st.none()
MESSAGES = st.one_of(
    st.builds(lambda seq, action: {"type": "action", "seq": seq, "action": action}, NUMBERS, NUMBERS | st.just([0.5])),
    st.builds(
        lambda seq, action: {"type": "action", "seq": seq, "action": action}, st.integers(0, 9), st.integers(0, 2)
    ),
    st.builds(lambda frame: {"type": "ack", "frame": frame}, NUMBERS),
    st.builds(lambda paused: {"type": "pause", "paused": paused}, st.booleans() | NUMBERS),
    st.builds(lambda seed: {"type": "restart", "seed": seed}, NUMBERS),
    st.builds(lambda frame: {"type": "rewind", "frame": frame}, st.integers(0, 100)),
    st.builds(lambda value: {"type": "temperature", "value": value}, NUMBERS),
    st.builds(lambda token: {"type": "attach", "room": "x", "token": token}, st.none() | st.text(max_size=9)),
    JSON,
)
CODES = {1000, 1009, protocol.MALFORMED, protocol.FORBIDDEN, protocol.FLOOD}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=st.lists(MESSAGES | st.binary(max_size=20) | st.text(max_size=20), max_size=12), seated=st.booleans())
def test_whatever_a_client_says_it_is_answered_or_sent_away_and_the_room_goes_on(play_server, messages, seated):
    room = play_server.call("POST", "rooms", {"world": "LWM-Duel-v0"})
    token = play_server.call("POST", f"rooms/{room['room']}/seats", {})["token"] if seated else None
    options = {"compression": None, "close_timeout": 1}
    with (
        connect(play_server.websocket_url, **options) as socket,
        connect(play_server.websocket_url, **options) as other,
    ):
        for one, its_token in ((socket, token), (other, None)):
            one.send(json.dumps({"type": "attach", "room": room["room"], "token": its_token}))
        try:
            for message in messages:
                socket.send(message if isinstance(message, (bytes, str)) else json.dumps(message))
            socket.ping().wait(5)
        except ConnectionClosed as closed:
            assert closed.rcvd is None or closed.rcvd.code in CODES
        frames = 0
        while not frames:  # somebody who watches is sent a frame, paused or not
            frames += isinstance(other.recv(timeout=30), bytes)
    play_server.call("DELETE", f"rooms/{room['room']}", None, room["token"])
    with urllib.request.urlopen(f"{play_server.url}/readyz") as answer:
        assert answer.status == 200


def test_a_frame_of_any_numbers_comes_back():
    @settings(deadline=None)
    @given(
        st.builds(
            FrameMessage, st.integers(0, 255), st.integers(0, 65535), st.integers(0, (1 << 32) - 1),
            st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1), st.binary(max_size=99),
            st.floats(width=32), st.floats(width=32),
        )
    )  # fmt: skip
    def check(message):
        back = FrameMessage.unpack(message.pack())
        assert back[:6] == message[:6]
        assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(back[6:], message[6:], strict=True))

    check()


class Someone:
    """A connection of the tests."""

    def __init__(self):
        self.seat, self.closed = None, False

    def offer(self, frame):
        """Nothing is shown here."""

    def tell(self, event):
        """Nor told."""

    def close(self, code, reason):
        self.closed = True


class Seats(RuleBasedStateMachine):
    """People come, go, come back too late, and guess, in any order."""

    tokens = Bundle("tokens")
    world: PlayedWorld  # set by the test

    def __init__(self):
        super().__init__()
        self.lobby = Lobby({self.world.spec.id: self.world}, make_settings(), Metrics())
        self.room = Room(self.world, seed=0)
        self.now = 1e12  # far from the clock: nothing expires by itself
        self.used, self.people = set(), []

    @rule(target=tokens, player=st.sampled_from([None, "left", "right"]))
    def reserve(self, player):
        free = [seat for seat in self.room.seats if seat.state is SeatState.FREE and seat.played_by == "human"]
        wanted = [seat for seat in free if player in (None, seat.player)]
        try:
            seat, token = self.room.reserve(player, self.now + 15)
        except Occupied:
            assert not wanted
            return "nothing"
        assert seat in wanted
        return token

    @rule(target=tokens, token=tokens)
    def take(self, token):
        someone = Someone()
        states = [seat.state for seat in self.room.seats]
        try:
            seat, renewed, before = self.room.take(token, someone)
        except Forbidden:
            assert states == [seat.state for seat in self.room.seats]
            return "nothing"
        assert token not in self.used and renewed != token
        self.used.add(token)
        if before is not None:
            before.seat = None
        someone.seat = seat
        self.room.viewers.add(someone)
        self.people.append(someone)
        return renewed

    @rule(data=st.data())
    def leave(self, data):
        if self.people:
            someone = self.people.pop(data.draw(st.integers(0, len(self.people) - 1)))
            seat = someone.seat
            self.lobby.leave(self.room, someone)
            assert seat is None or seat.viewer is not someone

    @rule(seconds=st.sampled_from([1.0, 20.0, 100.0]))
    def wait(self, seconds):
        self.now += seconds
        for seat in self.room.seats:
            gone = seat.secret.hashed
            assert not (seat.state is SeatState.LIVE and seat.expire(self.now))
            if seat.expire(self.now):
                assert seat.state is SeatState.FREE and gone != seat.secret.hashed

    @rule(player=st.sampled_from(["left", "right"]), played_by=st.sampled_from(["human", "sticky", "neutral"]))
    def give(self, player, played_by):
        seat = next(seat for seat in self.room.seats if seat.player == player)
        with contextlib.suppress(Occupied):
            self.room.give(player, played_by)
            assert seat.state is SeatState.FREE and (seat.bot is not None) == (played_by == "sticky")

    @rule()
    def guess(self):
        for token in ("", "nothing", "x" * 22):
            with pytest.raises(Forbidden):
                self.room.take(token, Someone())

    @invariant()
    def nobody_sits_in_two_seats_and_no_seat_has_two(self):
        seated = [someone for someone in self.people if someone.seat is not None]
        assert len({someone.seat.index for someone in seated}) == len(seated)
        for seat in self.room.seats:
            assert (seat.state is SeatState.LIVE) == (seat.viewer is not None)
            assert seat.viewer is None or seat.viewer.seat is seat
            assert seat.state is SeatState.FREE or seat.played_by == "human"


def test_seats_are_never_doubled_whatever_happens(duel_world):
    from hypothesis.stateful import run_state_machine_as_test

    from lwm_env import worlds

    Seats.world = PlayedWorld(worlds.read_spec(duel_world), duel_world, fps=15.0)
    run_state_machine_as_test(Seats, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))

"""Parts of the server that need no server: messages of any kind, pictures of any kind, admission, rooms on disk."""

import asyncio
import contextlib
import io
import json
import logging
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel

pytest.importorskip("fastapi", reason="the extra web is not installed")

from lwm_env.errors import InvalidInput
from lwm_env.web import pictures, protocol, room_files, supervisor
from lwm_env.web.costs import BatchCosts
from lwm_env.web.hosting import Busy, Hosting, shard_of
from lwm_env.web.metrics import Metrics
from lwm_env.web.pipe import Message
from lwm_env.web.rooms import Forbidden, Occupied, Room, SeatState
from lwm_env.web.settings import make_settings
from lwm_env.web.shedding import Shedding
from lwm_env.web.supervisor import PlayedWorld, Supervisor

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "seq", "action", "frame", "x"]), inner),
)
KINDS = st.sampled_from(["attach", "action", "ack", "pause", "restart", "rewind", "temperature", "fly"])


MESSAGES = st.builds(lambda kind, more: json.dumps({"type": kind, "frame": more}), KINDS, JSON)


@settings(deadline=None)  # a busy machine
@given(st.text() | JSON.map(json.dumps) | MESSAGES)
@example("\ud800")
def test_any_text_is_a_message_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert isinstance(protocol.parse(text), BaseModel)


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["PNG", "JPEG", "WEBP"]), st.integers(0, 150))
def test_a_damaged_picture_is_refused_or_read(noise, format, place):
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (1, 2, 3)).save(file, format)
    data = file.getvalue()
    with contextlib.suppress(InvalidInput):
        assert pictures.decode_prompt(data[:place] + noise + data[place:], (16, 16)).shape == (16, 16, 3)


@pytest.fixture
def world(tiny_spec, tiny_world):
    return PlayedWorld(tiny_spec, tiny_world, fps=15.0)


def test_rooms_are_let_in_up_to_the_load_that_is_allowed(world):
    hosting = Hosting({world.spec.id: world}, make_settings(max_load=0.85), Metrics())
    (engine,) = hosting.engines
    engine.costs[world.spec.id] = BatchCosts({1: 20.0})  # 0.3 of the engine's time at 15 steps a second
    rooms = [Room(world, seed=seed) for seed in range(3)]
    for slot, room in enumerate(rooms[:2]):
        hosting.check_load(room)
        room.slot = slot
        hosting.rooms[room.id] = room

    assert hosting.load(engine) == pytest.approx(0.6)
    with pytest.raises(Busy, match="90% of the engine's"):
        hosting.check_load(rooms[2])
    rooms[0].used_at -= 10  # nobody is there any more
    hosting.check_load(rooms[2])


def test_a_batch_of_four_that_costs_as_much_as_two_rooms_lets_more_in_until_it_is_slower(world):
    hosting = Hosting({world.spec.id: world}, make_settings(max_load=0.85, threads=1), Metrics())
    (engine,) = hosting.engines
    engine.costs[world.spec.id] = BatchCosts({1: 10.0, 2: 20.0, 4: 20.0}, size=4)

    def let_in():
        hosting.rooms.clear()
        with contextlib.suppress(Busy):
            for slot in range(30):
                room = Room(world, seed=slot)
                hosting.check_load(room)
                room.slot = slot
                hosting.rooms[room.id] = room
        return len(hosting.rooms)

    assert let_in() == 8  # two batches of 20 ms in 56; one by one they would have been 5
    for _ in range(300):
        engine.costs[world.spec.id].observe(4, 40.0)  # the machine has become slower
    assert let_in() == 4
    engine.costs[world.spec.id].observe_lateness(20.0)  # steps begin late, whatever they cost
    assert let_in() == 1


def test_a_room_belongs_to_one_engine_for_ever_and_new_ones_go_where_there_is_time(world):
    assert [shard_of(room_id, 3) for room_id in ("a", "b", "c", "d")] == [1, 1, 2, 2]  # never to change
    hosting = Hosting({world.spec.id: world}, make_settings(engines=3), Metrics())
    for engine in hosting.engines:
        engine.costs[world.spec.id] = BatchCosts({1: 20.0})
        engine.ready, engine._heard_at = True, time.monotonic()
    held = []
    for number in range(6):
        room = Room(world, seed=number)
        room.id, room.slot = hosting.new_id(), number
        hosting.rooms[room.id] = room
        held.append(hosting.engines.index(hosting.engine(room)))
    assert sorted(held) == [0, 0, 1, 1, 2, 2]

    hosting.engines[1].ready = False
    assert hosting.engines[shard_of(hosting.new_id(), 3)] is not hosting.engines[1]


def test_a_seat_goes_from_free_to_live_by_its_token_alone(world):
    room = Room(world, seed=0)
    seat, token = room.reserve(None, until=5.0)
    with pytest.raises(Occupied):
        room.reserve(None, until=5.0)
    with pytest.raises(Forbidden):
        room.take("guessed", viewer=None)
    assert seat.state is SeatState.RESERVED
    with pytest.raises(Forbidden):
        room.authorise(token)  # not before it is taken

    _, renewed, _ = room.take(token, viewer=None)
    room.authorise(renewed)
    with pytest.raises(Forbidden):
        room.take(token, viewer=None)
    assert seat.state is SeatState.LIVE and not seat.expire(now=100.0)


def test_a_room_comes_back_from_disk_and_a_damaged_one_is_left_out(world, tmp_path, caplog):
    room, other = (Room(world, seed=seed, temperature=0.5, public=True) for seed in (7, 8))
    _, token = room.reserve(None, until=5.0)
    owner = room.owner.renew()
    for kept in (room, other):
        kept.snapshots.append((12, b"state"))
        room_files.write(tmp_path, kept)
    (tmp_path / f"{other.id}.json").write_text('{"format": 1}')
    assert token not in (tmp_path / f"{room.id}.json").read_text()

    with caplog.at_level(logging.WARNING):
        (found,) = room_files.read_all(tmp_path, {world.spec.id: world})

    assert (found.id, found.seed, found.temperature, found.public) == (room.id, 7, 0.5, True)
    assert found.snapshots[-1] == (0, b"state") and found.owner.fits(owner) and found.seat_of(token)
    assert other.id in caplog.text
    room_files.remove(tmp_path, room.id)
    room_files.remove(tmp_path, other.id)
    assert not list(tmp_path.iterdir())


def test_an_engine_that_is_too_busy_to_answer_but_sends_frames_is_not_replaced(world, monkeypatch):
    monkeypatch.setattr(supervisor, "HEARTBEAT_SECONDS", 0.1)

    async def watch():
        """How long the engine is kept while it sends frames and answers nothing, and how long once it is silent."""
        told = []

        async def ready():
            pass

        engine = Supervisor({world.spec.id: world}, make_settings(), told.append, ready)
        engine._started.set()
        watching = asyncio.create_task(engine._watch())
        for _ in range(40):
            engine._hear(Message({"event": "frames"}))
            await asyncio.sleep(0.025)
        kept, begin = not watching.done(), time.monotonic()
        await asyncio.wait_for(watching, 60)
        return kept, len(told), time.monotonic() - begin

    kept, told, seconds = asyncio.run(watch())
    assert kept and told == 40 and seconds > 0.2


def test_the_newest_room_waits_when_steps_have_been_late_for_long(world, monkeypatch):
    class Guest:
        seat = None

        def close(self, code, reason):
            closed.append((self, code))

    now, closed, asleep = [1000.0], [], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    hosting = Hosting({world.spec.id: world}, make_settings(shed_seconds=10.0), Metrics())
    (engine,) = hosting.engines
    engine.costs[world.spec.id] = BatchCosts({1: 1.0})
    engine.ready = True
    guests = [Guest() for _ in range(3)]
    for slot, guest in enumerate(guests):
        room = Room(world, seed=slot)
        room.slot = slot
        room.viewers.add(guest)
        hosting.rooms[room.id] = room

    def sleep(room):
        room.slot = None
        asleep.append(room.seed)

    shedding = Shedding(hosting, sleep)

    def look(seconds, late):
        for _ in range(4 * seconds):
            now[0] += 0.25
            for _ in range(10):
                engine.costs[world.spec.id].observe_lateness(late)
            shedding.look()

    look(30, late=0.2)
    assert not asleep
    look(14, late=1.0)
    assert asleep == [2] and closed == [(guests[2], protocol.TRY_AGAIN_LATER)]
    look(5, late=0.0)
    look(8, late=1.0)
    assert asleep == [2]  # it was in time again meanwhile
    look(60, late=1.0)
    assert asleep == [2, 1]  # the last one stays

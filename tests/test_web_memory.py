"""What the web process keeps, and that it keeps no more with every frame."""

import asyncio
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the extra web is not installed")

from starlette.websockets import WebSocket

from lwm_env.web import connection, pipe, supervisor
from lwm_env.web.connection import Connection
from lwm_env.web.lobby import Lobby
from lwm_env.web.metrics import Metrics
from lwm_env.web.pipe import Message
from lwm_env.web.protocol import FrameMessage
from lwm_env.web.ring import Ring
from lwm_env.web.rooms import Room, RoomState
from lwm_env.web.settings import make_settings
from lwm_env.web.slot_table import Row, SlotTable
from lwm_env.web.supervisor import PlayedWorld


@settings(deadline=None)
@given(st.integers(1, 5), st.lists(st.binary(max_size=40) | st.sampled_from(["pop", "clear"]), max_size=40))
def test_a_ring_holds_what_a_deque_of_the_same_length_holds(num_kept, orders):
    ring, expected = Ring(num_kept), deque(maxlen=num_kept)
    for number, order in enumerate(orders):
        if isinstance(order, bytes):
            ring.append((number, order))
            expected.append((number, order))
        elif order == "clear":
            ring.clear()
            expected.clear()
        elif expected:
            assert ring.pop() == expected.pop()
        assert list(ring) == list(expected) and ring[-2:] == list(expected)[-2:]


def test_a_ring_takes_little_more_than_it_holds_and_gives_it_back():
    ring, rng = Ring(50), np.random.default_rng(0)
    for number in range(1000):
        ring.append((number, bytes(int(rng.integers(1000, 3000)))))
    held = sum(len(data) for _, data in ring)

    assert held < ring.num_bytes < 1.5 * held
    ring.clear()
    assert ring.num_bytes == 0 and len(ring) == 0


def test_a_full_ring_grows_without_a_second_copy_in_the_heap():
    ring = Ring(900)
    for number in range(900):
        ring.append((number, bytes(2000)))
    before = ring.num_bytes
    tracemalloc.start()
    try:
        while ring.num_bytes == before:
            ring.append((number := number + 1, bytes(2300)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert [entry for entry, _ in ring] == list(range(number - 899, number + 1))
    assert peak < 300_000  # the entries are 1.9 MB


ROOMS_FOR_LONG = """
import sys
from pathlib import Path
import numpy as np
from lwm_env.web.rooms import Room
from lwm_env.web.slot_table import Row
from lwm_env.web.supervisor import PlayedWorld
from lwm_env.worlds import verify

world = PlayedWorld(verify(Path(sys.argv[1])).spec, Path(sys.argv[1]), 15.0)
rooms = [Room(world, seed=seed, num_snapshots=10) for seed in range(6)]
rng = np.random.default_rng(0)
coarse = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in (1, 2, 4, 8, 16) for _ in range(4)]
frames = [np.kron(frame, np.ones((64 // len(frame), 64 // len(frame), 1), np.uint8)) for frame in coarse]
for tick in range(4000):
    for room in rooms:
        room.show(Row(tick, 0, np.zeros(1), np.zeros(1), 0.0, frames[rng.integers(len(frames))]), 0)
        if tick % 15 == 0:
            room.snapshots.append((tick, bytes(127_905)))  # as long as those of the first shipped world
    if tick in (999, 3999):
        print(int(Path("/proc/self/statm").read_text().split()[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rooms_that_run_for_long_do_not_grow_the_process(tiny_world):
    # Kept in malloc's heap, the same snapshots and pictures cost 1.6 MB more at the end than after 1000 ticks.
    command = [sys.executable, "-c", ROOMS_FOR_LONG, str(tiny_world)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    before, after = map(int, told.split())

    assert (after - before) * 4096 < 500_000


def test_snapshots_wait_in_the_pipe_while_the_loop_is_busy():
    ours, theirs = multiprocessing.Pipe()
    sent, heard = [], []

    def send():
        with theirs:
            for number in range(16):
                pipe.send(theirs, Message({"number": number}, bytes(127_905)))
                sent.append(number)

    async def be_busy():
        ended = asyncio.Event()
        hear = lambda message: ended.set() if message is None else heard.append(message.facts["number"])  # noqa: E731
        threads = [
            threading.Thread(target=supervisor._read, args=(ours, asyncio.get_running_loop(), hear)),
            threading.Thread(target=send),
        ]
        for thread in threads:
            thread.start()
        time.sleep(1)  # not asyncio.sleep: nothing else happens in the loop
        before = len(sent)
        await asyncio.wait_for(ended.wait(), 30)
        for thread in threads:
            thread.join()
        return before

    assert asyncio.run(be_busy()) <= 4  # one was read, others are in the pipe
    assert heard == list(range(16))


def test_a_thousand_frames_leave_no_objects_behind(tiny_spec, tiny_world, monkeypatch):
    monkeypatch.setattr(connection, "BURST", 1e9)  # a thousand frames in a second are no flood
    world = PlayedWorld(tiny_spec, tiny_world, fps=15.0)

    async def grow(num_frames):
        """Bytes that Python holds more after so many frames to a player who acts and acknowledges them."""
        lobby = Lobby({tiny_spec.id: world}, make_settings(rewind_seconds=5.0), Metrics())
        (engine,) = lobby.hosting.engines
        engine.tables = {tiny_spec.id: SlotTable(tiny_spec, 1)}
        room = Room(world, seed=0, num_snapshots=5)
        room.slot, room.state, lobby.rooms[room.id] = 0, RoomState.RUNNING, room
        _, token = room.reserve(None, until=1e12)
        heard, shown = asyncio.Queue(), asyncio.Queue()

        async def send(message):
            if message.get("bytes"):
                shown.put_nowait(FrameMessage.unpack(message["bytes"]))

        socket = WebSocket({"type": "websocket", "headers": []}, heard.get, send)
        heard.put_nowait({"type": "websocket.connect"})
        say({"type": "attach", "room": room.id, "token": token}, heard)
        serving = asyncio.create_task(Connection(socket, lobby).serve())
        try:
            for number in range(1, 2 * num_frames + 1):
                if number == num_frames:
                    gc.collect()
                    before = tracemalloc.get_traced_memory()[0]
                row = Row(number, 0, np.full(1, number), np.zeros(1), 0.0, np.zeros((16, 16, 3), np.uint8))
                engine.tables[tiny_spec.id].write(0, row)
                facts = {
                    "event": "frames",
                    "world": tiny_spec.id,
                    "frames": [[0, room.id]],
                    "step_ms": 1.0,
                    "late": 0.0,
                }
                lobby.hosting._on_event(0, Message(facts))
                snapshot = {"event": "snapshot", "room": room.id, "frame_id": number}
                lobby.hosting._on_event(0, Message(snapshot, bytes(1000)))
                await asyncio.wait_for(shown.get(), 10)
                say({"type": "action", "seq": number + 1, "action": 1}, heard)
                say({"type": "ack", "frame": number}, heard)
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before
        finally:
            serving.cancel()
            engine.tables[tiny_spec.id].close()

    def say(message, heard):
        heard.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    tracemalloc.start()
    try:
        assert asyncio.run(grow(1000)) < 20_000
    finally:
        tracemalloc.stop()


def test_what_the_server_does_again_and_again_interns_no_text(tiny_spec, tiny_world, monkeypatch):
    # Once let go, an interned text leaves its entry in the interpreter's table. The parts of paths filled it in 500
    # seconds; the next size of the table takes 1 MiB more, and malloc keeps as much again once the old one is freed.
    world = PlayedWorld(tiny_spec, tiny_world, fps=15.0)
    lobby = Lobby({tiny_spec.id: world}, make_settings(), Metrics())
    (engine,) = lobby.hosting.engines
    engine._process = SimpleNamespace(pid=os.getpid())
    room, interned = Room(world, seed=0), []
    monkeypatch.setattr(sys, "intern", lambda text: interned.append(text) or text)

    lobby._timers.tidy(room)
    lobby._timers.count()
    lobby.hosting.machine_load(room)

    assert interned == []
    if sys.platform == "linux":
        assert engine.memory_bytes > 1_000_000

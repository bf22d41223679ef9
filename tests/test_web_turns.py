"""Whose turn it is, and what it costs, on a clock of the test."""

import gc
import multiprocessing
import os
import threading
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="the extra web is not installed")

from lwm_env.web import cores, pipe
from lwm_env.web.costs import FRAME_MS, BatchCosts, FrameCost
from lwm_env.web.pipe import Message
from lwm_env.web.slot_table import SlotTable
from lwm_env.web.turns import FORGIVEN, Turns

PERIOD = 1 / 15


def simulate(turns, step_seconds, seconds, now=0.0, lateness=None):
    """When each slot is stepped: lists of (time at which its step begins, time at which it ends)."""
    steps, until = {}, now + seconds
    while now < until:
        slots, late = turns.take(now)
        if lateness is not None:
            lateness.append(late)
        if not slots:
            now = max(turns.next_due, now + 1e-6)
            continue
        begin, now = now, now + step_seconds(len(slots))
        for slot in slots:
            steps.setdefault(slot, []).append((begin, now))
    return steps


def crowd(num_rooms, size, **options):
    turns = Turns(PERIOD, size, **options)
    for slot in range(num_rooms):
        turns.add(slot, now=0.001 * slot)
    return turns


def intervals(steps):
    return [after[0] - before[0] for before, after in pairwise(steps)]


def test_sixteen_rooms_are_two_batches_of_eight_at_an_even_pace():
    sizes = []
    steps = simulate(crowd(16, 8), lambda n: sizes.append(n) or 0.017, 4.0)

    later = {slot: [step for step in steps[slot] if step[0] > 1.0] for slot in range(16)}
    assert set(sizes[-40:]) == {8}
    for taken in later.values():
        assert intervals(taken) == pytest.approx([PERIOD] * (len(taken) - 1), abs=1e-3)


def test_an_action_waits_for_the_batch_of_its_room_alone():
    """An action that just missed its step waits for a period and the time of its batch."""

    def worst(size, seconds):
        steps = simulate(crowd(16, size), seconds, 4.0)
        return max(
            after[1] - before[0] for taken in steps.values() for before, after in pairwise(taken) if before[0] > 1.0
        )

    assert worst(16, lambda n: 0.034) == pytest.approx(PERIOD + 0.034, abs=2e-3)
    assert worst(8, lambda n: 0.017) == pytest.approx(PERIOD + 0.017, abs=2e-3)


@pytest.mark.parametrize(("num_rooms", "size", "step_seconds"), [(24, 2, 0.025), (6, 4, 0.09), (9, 4, 0.05)])
def test_with_too_much_to_do_all_slow_down_alike_and_nobody_is_far_behind(num_rooms, size, step_seconds):
    lateness, seconds = [], 12.0
    steps = simulate(crowd(num_rooms, size), lambda n: step_seconds, seconds, lateness=lateness)

    counts = [len(taken) for taken in steps.values()]
    assert max(counts) - min(counts) <= 3
    assert sum(counts) == pytest.approx(seconds / step_seconds * size, rel=0.05)  # no batch has room left
    assert max(lateness) < -(-num_rooms // size) * step_seconds + FORGIVEN * PERIOD  # a round, and what is forgiven


def test_after_a_pause_of_the_machine_nothing_is_made_up_for():
    turns = crowd(4, 8)
    simulate(turns, lambda n: 0.005, 1.0)
    steps = simulate(turns, lambda n: 0.005, 1.0, now=3.0)

    assert all(len(taken) <= 16 for taken in steps.values())


def test_rooms_of_a_gpu_are_one_batch():
    sizes = []
    simulate(crowd(5, 256, spread=False), lambda n: sizes.append(n) or 0.002, 2.0)
    assert set(sizes[1:]) == {5}  # the first one was alone for a moment


def test_who_rests_is_not_stepped_and_who_comes_back_is_within_a_period():
    turns = crowd(3, 8)
    turns.remove(1)
    turns.remove(1)
    steps = simulate(turns, lambda n: 0.001, 1.0)
    assert sorted(steps) == [0, 2] and 1 not in turns

    turns.add(1, now=1.0)
    steps = simulate(turns, lambda n: 0.001, 1.0, now=1.0)
    assert steps[1][0][0] <= 1.0 + PERIOD


def test_costs_are_read_between_what_was_measured_and_follow_what_is_seen():
    costs = BatchCosts({1: 6.0, 4: 16.0, 8: 32.0}, size=8)
    assert [costs.of(n) for n in (0, 1, 2, 4, 6, 8, 16)] == pytest.approx([0, 6, 6 + 10 / 3, 16, 24, 32, 64])
    assert costs.per_period(16) == 64.0 and costs.per_period(12) == 2 * costs.of(6) and costs.per_period(0) == 0.0

    for _ in range(400):
        costs.observe(4, 24.0)
    assert costs.of(4) == pytest.approx(24.0) and 32.0 < costs.of(8) <= 48.5  # slower for all
    for _ in range(400):
        costs.observe(3, 10.0)
    assert costs.of(3) == pytest.approx(10.0, rel=0.01)
    assert BatchCosts({}).of(4) == 0.0


def test_lateness_is_an_average_and_forgotten_when_nobody_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    costs = BatchCosts({1: 6.0})
    for _ in range(300):
        now[0] += 1 / 60
        costs.observe_lateness(0.5)
    assert 0.4 < costs.lateness < 0.5
    now[0] += 60
    assert costs.lateness < 1e-3


def test_what_a_frame_costs_is_learned_from_frames_and_from_nothing_else(monkeypatch):
    used = [0.0]
    monkeypatch.setattr("time.process_time", lambda: used[0])
    cost = FrameCost()
    used[0] = 5.0  # requests, while nobody plays
    cost.settle()
    assert cost.milliseconds == FRAME_MS

    for _ in range(200):
        for _ in range(40):
            cost.count()
        used[0] += 0.016
        cost.settle()
    assert cost.milliseconds == pytest.approx(0.4, rel=0.01)


def test_an_engine_has_a_thread_for_each_core_it_may_have(monkeypatch):
    assert cores.physical_cores() >= 1 and cores.threads_of_engine(3, 2) == 3
    for found, engines, expected in [(1, 1, 1), (2, 1, 2), (2, 2, 1), (4, 1, 3), (8, 2, 3), (2, 4, 1), (64, 1, 8)]:
        monkeypatch.setattr(cores, "physical_cores", lambda found=found: found)
        assert cores.threads_of_engine(None, engines) == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="reads what Linux tells")
def test_cores_are_counted_as_the_system_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4, 5})
    assert cores.physical_cores(tmp_path) == 6
    for number in range(6):
        folder = tmp_path / f"devices/system/cpu/cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 3},{number % 3 + 3}\n")
    assert cores.physical_cores(tmp_path) == 3
    limit = tmp_path / "fs/cgroup/cpu.max"
    limit.parent.mkdir(parents=True)
    for told, expected in [("max 100000\n", 3), ("200000 100000\n", 2), ("50000 100000\n", 1), ("", 3)]:
        limit.write_text(told)
        assert cores.physical_cores(tmp_path) == expected


def test_the_engine_steps_few_rooms_at_once_and_all_alike(tiny_spec, tiny_world):
    from lwm_env.web.engine_process import EngineProcess

    ours, theirs = multiprocessing.Pipe()
    table = SlotTable(tiny_spec, 16)
    world = {"id": tiny_spec.id, "folder": tiny_world, "num_slots": 16, "table": table.name, "fps": 50.0}
    engine = EngineProcess(theirs, [world], {"device": "cpu", "backend": "torch", "threads": 1})
    (costs,) = engine.warm_up().values()
    gc.unfreeze()
    serving = threading.Thread(target=engine.serve, daemon=True)
    serving.start()
    stepped, batches = Counter(), []
    try:
        for slot in range(6):
            where = {"world": tiny_spec.id, "slot": slot, "number": 0}
            pipe.send(ours, Message({"command": "open", "room": f"room {slot}", "frame_id": 1, "seed": 0, **where}))
            pipe.send(ours, Message({"command": "run", "running": True, **where, "number": slot}))
        while (facts := pipe.receive(ours).facts)["event"] != "answer" or facts["number"] != 5:
            assert "error" not in facts  # and the last one runs now
        while len(stepped) < 6 or min(stepped.values()) < 8:
            facts = pipe.receive(ours).facts
            assert "error" not in facts
            if facts["event"] == "frames" and facts["step_ms"]:
                assert facts["late"] >= 0
                batches.append(len(facts["frames"]))
                stepped.update(slot for slot, _ in facts["frames"])
    finally:
        pipe.send(ours, Message({"command": "exit", "number": 0}))
        serving.join(30)
        table.close()

    assert [size for size, _ in costs["measured"]] == [1, 2, 4] and costs["size"] == 4
    assert max(batches) <= 4 and max(stepped.values()) - min(stepped.values()) <= 3


def test_rooms_that_are_stepped_together_send_their_snapshots_apart(tiny_spec, tiny_world, monkeypatch):
    from lwm_env.web import engine_process

    class Sent(list):
        def send_bytes(self, data):
            self.append(data)

    now, sent, table = 100.0, Sent(), SlotTable(tiny_spec, 8)
    monkeypatch.setattr(engine_process, "time", SimpleNamespace(monotonic=lambda: now, perf_counter=lambda: now))
    world = {"id": tiny_spec.id, "folder": tiny_world, "num_slots": 8, "table": table.name, "fps": 15.0}
    options = {"device": "cpu", "backend": "torch", "threads": 2}
    engine = engine_process.EngineProcess(sent, [world], options)
    at_once, of_room = [], Counter()
    try:
        for slot in range(8):
            engine.commands["open"](b"", world=tiny_spec.id, slot=slot, room=f"room {slot}", frame_id=1, seed=0)
        for _ in range(1 + 10 * 15):
            sent.clear()
            engine.commands["step"](b"", world=tiny_spec.id, slots=list(range(8)))
            rooms = [slot for slot in range(8) if any(f'"snapshot","room":"room {slot}"'.encode() in s for s in sent)]
            at_once.append(len(rooms))
            of_room.update(rooms)
            now += PERIOD
    finally:
        table.close()

    assert at_once[0] == 8 and max(at_once[1:]) <= 2  # each has one to go back to at once
    assert set(of_room.values()) <= {10, 11, 12}

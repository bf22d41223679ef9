"""The commands around the server: window, video, load test."""

import asyncio
import io
import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra web is not installed")

from lwm_env import cli, worlds
from lwm_env.web import load_report, loadtest
from lwm_env.web.client import ServerError
from lwm_env.web.load_report import Tally
from lwm_env.web.play import _last_picture, _open_room, _worlds_here
from lwm_env.web.server import find_worlds
from lwm_env.web.settings import make_settings


def test_the_window_plays(tiny_world, monkeypatch):
    pytest.importorskip("pygame", reason="the extra play is not installed")
    from lwm_env.web.window import play_in_window

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    begin = time.monotonic()
    play_in_window(str(tiny_world), "cpu", seed=0, fps=100, num_frames=25)

    assert time.monotonic() - begin > 0.2


def test_headless_play_writes_a_video(tiny_world, tmp_path):
    out = tmp_path / "out.mp4"

    assert cli.main(["play", str(tiny_world), "--headless", str(out), "--seconds", "1"]) == 0
    assert out.read_bytes()[4:8] == b"ftyp"


def test_play_from_a_picture_opens_a_room_that_begins_there(play_server, tiny_spec, tmp_path):
    picture = np.full((16, 16, 3), (10, 200, 90), np.uint8)
    Image.fromarray(picture).save(tmp_path / "green.png")
    pages = []

    _open_room(play_server.url, "LWM-Tiny-v0", _last_picture(tmp_path / "green.png", tiny_spec), pages.append)

    url, _, room = pages[0].partition("/#room=")
    frame = Image.open(io.BytesIO(play_server.call("GET", f"rooms/{room}/frame")))
    assert url == play_server.url and np.array_equal(np.asarray(frame), picture)


def test_play_from_what_is_no_picture_is_told_before_the_server_starts(tiny_world, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")

    assert cli.main(["play", str(tiny_world), "--from", str(tmp_path / "text.png"), "--port", "0"]) == 1
    assert "text.png cannot be read" in capsys.readouterr().err


def test_play_without_a_name_offers_what_is_shipped_and_installed_but_nothing_damaged(
    tiny_world, duel_world, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("LWM_HOME", str(tmp_path))
    for world in (tiny_world, duel_world):
        shutil.copytree(world, tmp_path / "worlds" / world.name)
    weights = tmp_path / "worlds" / "duel" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")

    offered = _worlds_here()

    assert offered == (*map(str, worlds.shipped().values()), str(tmp_path / "worlds" / "tiny"))
    assert "LWM-Duel-v0 is left out" in capsys.readouterr().err
    assert list(find_worlds(make_settings(worlds=offered))) == [*worlds.shipped(), "LWM-Tiny-v0"]


def test_the_load_test_prints_its_table_and_writes_its_report(play_server, tmp_path, capsys):
    out = tmp_path / "load.json"
    args = ["--world", "LWM-Tiny-v0", "--clients", "3", "--stalled", "1", "--seconds", "4", "--churn", "--json"]
    args += ["--report", str(out)]

    assert cli.main(["loadtest", play_server.url, *args]) == 0
    report = json.loads(capsys.readouterr().out)

    assert report["clients"] == 3 and report["refused"] == 0
    assert 0 < report["rate_min"] <= report["rate_mean"] < 30
    assert 0 < report["action_to_frame_ms_p50"] <= report["action_to_frame_ms_p95"]
    assert report["stale_frames_of_a_stalled_client"] <= 3
    assert report["visits"] >= 1 and len(report["samples"]) >= 3
    assert report["web_memory_mb"][0] > 0 and report["engine_memory_mb"][1] > 0
    assert json.loads(out.read_text()) == report
    table = out.with_suffix(".md").read_text()
    assert "action to frame p50 / p95" in table and f"{report['action_to_frame_ms_p95']} ms" in table
    assert cli.main(["loadtest", play_server.url, "--report", str(tmp_path / "load.txt")]) == 1
    assert "must be a .json" in capsys.readouterr().err


def test_the_figures_of_a_load_test_are_those_of_a_hand():
    fast = Tally(arrivals=[0.0, 0.1, 0.2, 0.3], latencies=[0.05, 0.07], frame_ids=[5, 6, 7, 9])
    slow = Tally(arrivals=[0.0, 0.3], latencies=[0.09], frame_ids=[1, 2])
    stalled = Tally(arrivals=[0.0], stale=3)
    names = ("process_resident_memory_bytes", "lwm_engine_memory_bytes", "lwm_engine_restarts", "process_open_fds")
    samples = [{"seconds": 60.0 * n, **dict.fromkeys(names, (100 + n) * 2.0**20)} for n in range(9)]

    report = load_report.summarise({"id": "x", "fps": 10.0}, [stalled, fast, slow], 1, 2, 0.3, samples)

    assert (report["rate_mean"], report["rate_min"]) == (6.67, 3.33)
    assert (report["frames_left_out"], report["frames_made"]) == (1, 7)
    assert (report["action_to_frame_ms_p50"], report["interframe_ms_p50"]) == (70.0, 100.0)
    assert report["stale_frames_of_a_stalled_client"] == 3 and report["refused"] == 2
    assert report["web_memory_mib_per_hour"] == 60.0  # one MiB a minute
    assert load_report.slope_mib_per_hour(samples[:7], names[0]) is None


def test_metrics_of_several_engines_are_added_up():
    text = 'lwm_engine_memory_bytes{engine="0"} 1.5e+06\nlwm_engine_memory_bytes{engine="1"} 5e+05\nlwm_load 1.0\n'

    assert load_report.parse_metrics(text)["lwm_engine_memory_bytes"] == 2e6


def test_a_client_that_is_cut_off_is_told_as_an_error_of_the_server(play_server):
    async def attach():
        async with loadtest._attached(play_server, {"room": "nowhere", "token": None}) as socket:
            while True:
                await socket.recv()

    with pytest.raises(ServerError, match="4404"):
        asyncio.run(attach())

"""The commands around the server: window, video, load test."""

import io
import json
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra web is not installed")

from lwm_env import cli
from lwm_env.web.play import _last_picture, _open_room


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


def test_the_load_test_prints_its_table(play_server, capsys):
    args = ["--world", "LWM-Tiny-v0", "--clients", "3", "--stalled", "1", "--seconds", "2", "--json"]

    assert cli.main(["loadtest", play_server.url, *args]) == 0
    report = json.loads(capsys.readouterr().out)

    assert report["clients"] == 3 and report["refused"] == 0
    assert 0 < report["rate_min"] <= report["rate_mean"] < 30
    assert 0 < report["action_to_frame_ms_p50"] <= report["action_to_frame_ms_p95"]
    assert report["stale_frames_of_a_stalled_client"] <= 3

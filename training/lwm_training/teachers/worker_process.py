"""A teacher in a process and an environment of its own, that renders chunks of frames: the side that asks."""

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lwm_env.errors import TeacherFailed
from lwm_training.teachers.workers import wire

SECONDS_TO_LOAD, SECONDS_TO_ANSWER, SECONDS_TO_END = 1800.0, 1800.0, 10.0


@dataclass(frozen=True, kw_only=True)
class EpisodeRequest:
    """What a worker renders: from a picture, uint8 (H, W, 3), one chunk of frames for each `{"action", "speed"}`."""

    picture: np.ndarray
    actions: list[dict[str, Any]]
    frame_size: tuple[int, int]  # height, width that the frames shall have
    seed: int
    prompt: str = ""


class WorkerProcess:
    """Starts a worker script and talks to it; what the worker logs goes to our stderr."""

    def __init__(self, command: Sequence[str | Path], seconds: float = SECONDS_TO_ANSWER) -> None:
        """Start it and wait for its `hello`; TeacherFailed if there is none."""
        self.name, self._seconds = Path(command[1] if len(command) > 1 else command[0]).name, seconds
        try:
            self._process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except OSError as error:
            raise TeacherFailed(f"{command[0]} cannot be started: {error.strerror or error}. See --python.") from error
        try:
            self.hello, _ = self._receive("hello", SECONDS_TO_LOAD)
            if self.hello.get("protocol") != wire.PROTOCOL:
                raise TeacherFailed(
                    f"{self.name} speaks protocol {self.hello.get('protocol')!r}, expected {wire.PROTOCOL}."
                )
        except TeacherFailed:
            self.close()
            raise

    def episode(self, request: EpisodeRequest) -> Iterator[np.ndarray]:
        """The frames of one action after the other: uint8 (n, H, W, 3) each, n >= 1. Take all of them."""
        picture, size = np.ascontiguousarray(request.picture, np.uint8), request.frame_size
        facts = {"seed": request.seed, "prompt": request.prompt, "frame_size": list(size)}
        facts |= {"picture": list(picture.shape[:2]), "actions": request.actions}
        try:
            wire.send(self._process.stdin, "episode", picture.tobytes(), **facts)
        except wire.Broken as error:
            raise self._gone(error) from error
        for _ in request.actions:
            yield self._frames(*self._receive("frames", self._seconds), size)

    def _frames(self, facts: dict[str, Any], body: bytes, size: tuple[int, int]) -> np.ndarray:
        num = facts.get("num")
        if not isinstance(num, int) or num < 1 or facts.get("frame_size") != list(size):
            raise TeacherFailed(f"{self.name} answered {facts}, expected at least one frame of {size}.")
        if len(body) != num * size[0] * size[1] * 3:
            raise TeacherFailed(f"{self.name} sent {len(body)} bytes for {num} frames of {size}.")
        return np.frombuffer(body, np.uint8).reshape(num, *size, 3)

    def close(self) -> None:
        """End it, by force if it does not; may be called twice."""
        with contextlib.suppress(wire.Broken):
            wire.send(self._process.stdin, "close")
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _receive(self, expected: str, seconds: float) -> tuple[dict[str, Any], bytes]:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, give_up)
        timer.start()
        try:
            facts, body = wire.receive(self._process.stdout)
        except wire.Broken as error:
            if late.is_set():
                raise TeacherFailed(f"{self.name} did not answer within {seconds:g} s and was ended.") from error
            raise self._gone(error) from error
        finally:
            timer.cancel()
        if facts["type"] == "error":
            raise TeacherFailed(f"{self.name} could not do it: {facts.get('message')}")
        if facts["type"] != expected:
            raise TeacherFailed(f"{self.name} answered {facts['type']!r}, expected {expected!r}.")
        return facts, body

    def _gone(self, error: Exception) -> TeacherFailed:
        code = self._process.poll()
        return TeacherFailed(
            f"{self.name} broke off ({error}; exit code {code}). Its log above says why; run the same command again to "
            f"go on after the last whole episode."
        )

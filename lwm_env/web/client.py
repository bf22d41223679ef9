"""A seat of a room on another machine, as a PettingZoo env of one agent: a policy that plays against people."""

import contextlib
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv
from PIL import Image
from pydantic import ValidationError
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from lwm_env.errors import ConfigMismatch, InvalidInput, LwmError, WrongOrder
from lwm_env.spec import WorldSpec
from lwm_env.web.protocol import FIRST, TERMINATED, TRUNCATED, FrameMessage

MAX_MESSAGE_BYTES = 1 << 24
NOT_OF_SPEC = ("fps", "bots")  # what GET /api/worlds tells besides


class ServerError(LwmError, ConnectionError):
    """The server said no, or is not there; `status` is HTTP's, 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """The HTTP API of a server.

    Args:
        url: "http://127.0.0.1:8765".
        access_token: where the server asks for one.
        timeout: seconds.
    """

    def __init__(self, url: str, access_token: str | None = None, timeout: float = 30.0) -> None:
        self.url, self.access_token, self.timeout = url.rstrip("/"), access_token, timeout

    @property
    def websocket_url(self) -> str:
        return f"ws{self.url.removeprefix('http')}/ws"

    def call(self, method: str, path: str, body: object = None, token: str | None = None) -> Any:
        """The answer of a call, parsed when it is JSON, else bytes.

        Args:
            body: bytes, or what becomes JSON.
            token: of a room or a seat.

        Raises:
            ServerError: with the server's own words.
        """
        headers = {"X-Lwm-Token": token} if token else {}
        if self.access_token:
            headers["Authorization"] = f"Bearer {self.access_token}"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers["Content-Type"] = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        request = urllib.request.Request(f"{self.url}/api/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                content, kind = answer.read(), answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            raise ServerError(f"{self.url} answered {error.code}: {_detail(error.read())}", error.code) from error
        except OSError as error:
            raise ServerError(f"{self.url} cannot be reached: {error}. Is the server running?") from error
        return json.loads(content) if content and kind == "application/json" else content


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")


class RemoteEnv(ParallelEnv[str, np.ndarray, Any]):
    """One player's seat in a room that others share, in real time.

    The world goes on whether or not `step` is called; `step` returns the first frame that shows its action, and the
    rewards of all frames since the last one it returned. Observations are uint8 (H, W, 3). When an episode has ended,
    the server begins the next one by itself: `reset` waits for it.

    Args:
        url: of the server.
        room: its id, as the link of the page ends with.
        player: whose seat to take; None takes the first one that is free.
        access_token: where the server asks for one.
        lossless: PNG instead of JPEG.
        timeout: seconds that a frame may take.

    Raises:
        ServerError: the server cannot be reached, has no such room, or no such seat is free.
    """

    metadata: dict[str, Any] = {"name": "lwm_remote_v0", "render_modes": []}  # noqa: RUF012 (PettingZoo's own)

    def __init__(
        self,
        url: str,
        room: str,
        player: str | None = None,
        *,
        access_token: str | None = None,
        lossless: bool = False,
        timeout: float = 10.0,
    ) -> None:
        api = Api(url, access_token, timeout)
        world_id = api.call("GET", f"rooms/{room}")["world"]
        self.world_spec = _read_spec(next(world for world in api.call("GET", "worlds") if world["id"] == world_id))
        seat = api.call("POST", f"rooms/{room}/seats", {"player": player})
        self._timeout, self._seq = timeout, 0
        self._latest: FrameMessage | None = None
        self.possible_agents = [seat["player"]]
        self.agents: list[str] = []
        self.observation_spaces = {seat["player"]: self.world_spec.observation_space()}
        self.action_spaces = {seat["player"]: self.world_spec.action_space()}
        self._resources = contextlib.ExitStack()
        options = {"max_size": MAX_MESSAGE_BYTES, "compression": None, "open_timeout": timeout, "close_timeout": 1}
        self._socket: ClientConnection | None = self._resources.enter_context(connect(api.websocket_url, **options))
        attach = {"type": "attach", "room": room, "token": seat["token"], "lossless": lossless}
        self._send({**attach, "access": access_token})
        self._next_frame()

    def observation_space(self, agent: str) -> spaces.Space:
        """Of the one agent; the same object at every call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """Of the one agent; the same object at every call."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """The current frame, or the first one of the next episode when one has just ended.

        Args:
            seed: begins an episode of this seed, for everybody in the room.
        """
        frame = self._latest
        if seed is not None:
            self._send({"type": "restart", "seed": seed})
        if seed is not None or frame.flags & (TERMINATED | TRUNCATED):
            frame = self._next_frame()
            while not frame.flags & FIRST:
                frame = self._next_frame()
        self.agents = list(self.possible_agents)
        return {self.agents[0]: _decode(frame)}, {self.agents[0]: _info(frame)}

    def step(self, actions: Mapping[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """Act, and wait for the frame that shows it.

        Args:
            actions: of the one agent.

        Returns:
            observations, rewards, terminations, truncations and infos of the one agent.

        Raises:
            InvalidInput: not an action of the agent. WrongOrder: before `reset`. ServerError: the connection is lost.
        """
        if not self.agents:
            raise WrongOrder("step() came before reset(). Begin with: observations, infos = env.reset()")
        agent = self.agents[0]
        if set(actions) != {agent} or not self.action_spaces[agent].contains(actions[agent]):
            raise InvalidInput(f"actions {actions!r:.80} were given; an action of {agent} is needed, in a dict.")
        self._seq += 1
        self._send({"type": "action", "seq": self._seq, "action": np.asarray(actions[agent]).tolist()})
        frame, reward, flags = self._next_frame(), 0.0, 0
        while True:
            reward, flags = reward + frame.reward, flags | frame.flags
            if frame.acked >= self._seq or flags & (TERMINATED | TRUNCATED):
                break
            frame = self._next_frame()
        ended = {"terminated": bool(flags & TERMINATED), "truncated": bool(flags & TRUNCATED)}
        if any(ended.values()):
            self.agents = []
        outcome = ({agent: reward}, {agent: ended["terminated"]}, {agent: ended["truncated"]}, {agent: _info(frame)})
        return {agent: _decode(frame)}, *outcome

    def close(self) -> None:
        """Leave the seat; a second call does nothing."""
        self._resources.close()
        self._socket, self.agents = None, []

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._socket is None:
            raise WrongOrder("the env is closed. Make a new one.")
        try:
            self._socket.send(json.dumps(message))
        except WebSocketException as error:
            raise ServerError(f"the connection to the room is lost: {error}.") from error

    def _next_frame(self) -> FrameMessage:
        until = time.monotonic() + self._timeout
        while True:
            try:
                message = self._socket.recv(timeout=max(0.0, until - time.monotonic()))
            except (WebSocketException, TimeoutError) as error:
                raise ServerError(f"no frame came from the room in {self._timeout:g} s: {error}.") from error
            if isinstance(message, bytes):
                frame = self._latest = FrameMessage.unpack(message)
                self._send({"type": "ack", "frame": frame.frame_id})
                return frame


def _read_spec(world: dict[str, Any]) -> WorldSpec:
    try:
        return WorldSpec.model_validate({name: value for name, value in world.items() if name not in NOT_OF_SPEC})
    except ValidationError as error:
        raise ConfigMismatch(
            "the server speaks of worlds in another way. Use the same version on both sides."
        ) from error


def _decode(frame: FrameMessage) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(frame.picture), formats=("PNG", "JPEG")).convert("RGB"))


def _info(frame: FrameMessage) -> dict[str, Any]:
    return {"surprise": frame.surprise, "frame_id": frame.frame_id}

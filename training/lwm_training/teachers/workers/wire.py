"""The messages between us and a worker: a length, JSON, and raw bytes. No pickle; the standard library alone, since a
worker runs in an environment of its own, where nothing of ours is installed.

A worker says `hello` once (protocol, name, actions, licences, restricted, weights), then answers each request:

    episode {seed, prompt, frame_size: [h, w], picture: [H, W], actions: [{action, speed}, ...]} + uint8 RGB H x W x 3
            -> for each action: frames {num, frame_size: [h, w]} + uint8 RGB num x h x w x 3; num may differ
    close {} -> nothing; it ends, as it does when its input ends

or with `error {message}`, after which the rest of that episode does not come.
"""

import json
import os
import struct
import sys

PROTOCOL = 1
MAX_HEAD, MAX_BODY = 1 << 20, 1 << 31
_LENGTHS = struct.Struct("<IQ")


class Broken(Exception):
    """The other side is gone, or sent what is no message."""


def send(stream, kind, body=b"", **facts):
    """Write one message and flush; Broken if nobody reads any more."""
    head = json.dumps({"type": kind, **facts}).encode()
    try:
        stream.write(_LENGTHS.pack(len(head), len(body)) + head)
        stream.write(body)
        stream.flush()
    except (OSError, ValueError) as error:
        raise Broken(f"could not write: {error}") from error


def receive(stream):
    """The next message as (facts, body); Broken at the end of the stream."""
    head_size, body_size = _LENGTHS.unpack(_exactly(stream, _LENGTHS.size))
    if head_size > MAX_HEAD or body_size > MAX_BODY:
        raise Broken(f"a message of {head_size} + {body_size} bytes is no message")
    try:
        facts = json.loads(_exactly(stream, head_size))
    except (ValueError, RecursionError) as error:
        raise Broken(f"not JSON: {error}") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("type"), str):
        raise Broken(f"a message without a type: {facts!r:.80}")
    return facts, _exactly(stream, body_size)


def serve(hello, episode):
    """Run a worker on stdin and stdout until it is closed; whatever libraries print goes to stderr.

    Args:
        hello: facts of the first message; or a function that loads the model and returns them.
        episode: called with (facts, picture bytes); yields (num, (h, w), bytes) for each action.
    """
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    send(out, "hello", protocol=PROTOCOL, **(hello() if callable(hello) else hello))
    while True:
        try:
            facts, body = receive(sys.stdin.buffer)
            if facts["type"] == "close":
                return
            if facts["type"] == "episode":
                _answer(out, episode, facts, body)
            else:
                send(out, "error", message=f"unknown request {facts['type']!r}")
        except Broken:
            return


def scaled(torch, video, frame_size):
    """(T, 3, H, W) in [0, 1] -> (T, size, uint8 RGB bytes), by the mean over each pixel's area, with the worker's
    own `torch`."""
    small = torch.nn.functional.interpolate(video, tuple(frame_size), mode="area")
    frames = (small * 255).round().to(torch.uint8).movedim(1, -1).contiguous().cpu()
    return len(frames), tuple(frame_size), frames.numpy().tobytes()


def _answer(out, episode, facts, body):
    try:
        for num, frame_size, pixels in episode(facts, body):
            send(out, "frames", pixels, num=num, frame_size=list(frame_size))
    except Broken:
        raise
    except Exception as error:  # whatever a foreign model raises is told, and the worker lives on
        send(out, "error", message=f"{type(error).__name__}: {error}"[:2000])


def _exactly(stream, size):
    parts = []
    while size:
        part = stream.read(size)
        if not part:
            raise Broken("the stream ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

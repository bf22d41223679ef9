"""A teacher's worker as the real ones are, in the standard library alone: each action tints the picture it was given.

    python fake_worker.py FAULT MARKER

FAULT: `none`, or what happens in the chunk of action "down" until the file MARKER exists: `die`, `hang`, `raise`,
`kill` (the process that asks is killed); or `short`, too few bytes always.
"""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

WIRE = Path(__file__).parent.parent / "training" / "lwm_training" / "teachers" / "workers" / "wire.py"
loading = importlib.util.spec_from_file_location("wire", WIRE)
wire = importlib.util.module_from_spec(loading)
loading.loader.exec_module(wire)

TINTS = {"NOOP": 0, "up": 10, "down": 200}
FAULT, MARKER = (sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 2 else ("none", Path("none"))


def episode(facts, body):
    print("what a library prints must not reach the wire")
    height, width = facts["frame_size"]
    for number, action in enumerate(facts["actions"]):
        if action["action"] == "down" and FAULT != "none" and not MARKER.exists():
            MARKER.touch()
            fail()
        num = 3 if number else 2  # as where the first frame is the picture that was given
        pixel = bytes([TINTS[action["action"]], facts["seed"] % 256, body[0]])
        data = pixel * (num * height * width)
        yield num, (height, width), data[:-3] if FAULT == "short" else data


def fail():
    if FAULT == "die":
        os._exit(3)
    if FAULT == "hang":
        time.sleep(60)
    if FAULT == "raise":
        raise ValueError("out of memory, say")
    if FAULT == "kill":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)


if __name__ == "__main__":
    hello = {
        "name": "fake",
        "actions": ["up", "down"],
        "licences": {"fake": "of the tests"},
        "restricted": ["fake-licence"],
        "weights": "0" * 64,
    }
    wire.serve(hello, episode)

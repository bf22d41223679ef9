"""Every example runs, with the arguments that its first line shows."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LIBRARIES = {"ppo_recurrent": "sb3_contrib", "torchrl_env": "torchrl"}  # that an example needs beside the world's own


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs_as_it_says(path):
    library = LIBRARIES.get(path.stem)
    if library and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    command = re.search(r"python (examples/\S+\.py[^\"]*)", path.read_text().splitlines()[0])
    assert command, f"{path.name} must show its command in its first line"

    done = subprocess.run([sys.executable, *shlex.split(command[1])], capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    assert "frames/s" in done.stdout

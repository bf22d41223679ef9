"""The README says what is: its Python runs, its commands exist, and its cheap ones are run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lwm_env import cli, worlds

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]
CONSOLE = [line for language, body in BLOCKS if language == "console" for line in body.splitlines() if line.strip()]
INLINE = re.findall(r"`(lwm [a-z][^`]*)`", README)
LWM_LINES = sorted({line for line in [*CONSOLE, *INLINE] if line.startswith("lwm ")})


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_examples_run_as_they_stand(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", LWM_LINES)
def test_every_lwm_command_exists_with_its_options(line):
    command, args = cli.lwm, shlex.split(line)[1:]
    while isinstance(command, click.Group) and args:
        _, command, args = command.resolve_command(click.Context(cli.lwm), args)

    command.make_parser(click.Context(command)).parse_args(args)  # raises on an option or argument that is not there


@pytest.mark.parametrize("line", [line for line in LWM_LINES if re.match(r"lwm (envs \w|presets|doctor)", line)])
def test_cheap_commands_run(line):
    args = shlex.split(line.replace("ID", next(iter(worlds.shipped()), "ID")))[1:]

    assert cli.main(args) == 0


@pytest.mark.slow
def test_recording_as_shown_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in CONSOLE:
        if re.match("lwm (collect|data) ", line):
            assert cli.main(shlex.split(line)[1:]) == 0

    assert (tmp_path / "data" / "coinrun.png").stat().st_size > 1000


def test_the_two_commands_come_first_and_the_makefile_has_them():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert CONSOLE[:2] == ["make demo", "make test"]
    for line in CONSOLE:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, flags=re.MULTILINE)


def test_ci_runs_the_readme_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()

    assert script[-1] == "make test"


def test_links_and_the_tree_point_at_what_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    tree = next(body for language, body in BLOCKS if not language and "world_model.py" in body)
    folder, listed = ROOT, []
    for line in tree.splitlines():
        names = re.match(r"( *)((?:[\w./]+/? )*[\w./]+/?)(?:  |$)", line)
        for name in names[2].split():
            listed.append((ROOT if not names[1] else folder) / name)
        if not names[1]:
            folder = ROOT / names[2].split()[0]

    assert listed and links
    assert [str(path) for path in [*listed, *(ROOT / link for link in links)] if not path.exists()] == []


def test_every_extra_and_shipped_world_is_mentioned():
    for extra in cli.EXTRA_MODULES:
        assert f"`{extra}`" in README
    for world_id in worlds.shipped():
        assert f"`{world_id}`" in README

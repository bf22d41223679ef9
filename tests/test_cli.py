"""The `lwm` command: light, typed errors, exit codes, results on stdout."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lwm_env import cli, doctor, worlds


def lwm(*args: str, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-m", "lwm_env.cli", *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_help_names_every_command_and_imports_no_heavy_library():
    code = "import sys; from lwm_env.cli import main; main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert all(f"  {name} " in done.stdout for name in ("demo", "doctor", "envs", "presets"))
    for heavy in ("'torch'", "'h5py'", "'envpool'", "'moviepy'", "'matplotlib'", "'tensorboard'", "'pydantic'"):
        assert heavy not in done.stderr


@pytest.mark.parametrize("name", cli.lwm.list_commands(None))
def test_every_command_has_a_help_page(name):
    assert lwm(name, "--help").stdout.startswith("Usage: lwm")


@pytest.mark.parametrize("name", cli.MOUNTS)
def test_every_mounted_command_exists_and_is_called_what_the_table_says(name):
    command = cli.lwm.get_command(None, name)

    assert command is not None and command.name == name


def test_version_names_torch():
    assert lwm("--version").stdout.startswith("lwm-env 0")
    assert "torch 2." in lwm("--version").stdout


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["trian"], "Did you mean 'train'"),
        (["fly"], "Commands: "),
        (["envs", "show"], "Missing argument"),
        (["demo", "--seconds", "-1"], "--seconds"),
        (["demo", "--unknown"], "--unknown"),
    ],
)
def test_wrong_usage_ends_with_2(args, told):
    done = lwm(*args, code=2)

    assert told in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["envs", "show", "LWM-Nothing-v0"], "No world 'LWM-Nothing-v0'"),
        (["demo", "--world", "no/such/folder"], "No world"),
        (["demo", "--out", "demo.txt"], "Rename it"),
        (["demo", "--out", "no/such/folder/demo.mp4"], "does not exist"),
    ],
)
def test_an_error_ends_with_1_and_one_line(args, told):
    done = lwm(*args, code=1)

    assert done.stderr.startswith("error: ") and told in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(("module", "extra"), [("moviepy", "video"), ("h5py", "train"), ("envpool", "data")])
def test_a_missing_extra_is_named_with_the_command(module, extra):
    told = cli._extra_of(ModuleNotFoundError(f"No module named '{module}.x'", name=f"{module}.x"))

    assert f'pip install "lwm-env[{extra}]"' in str(told) and module in str(told)


def test_a_missing_module_of_no_extra_stays_a_bug():
    assert cli._extra_of(ModuleNotFoundError("No module named 'lwm_env.x'", name="lwm_env.x")) is None


def test_a_command_tells_which_extra_it_lacks(tmp_path):
    (tmp_path / "moviepy").mkdir()
    (tmp_path / "moviepy" / "__init__.py").write_text("raise ModuleNotFoundError('none', name='moviepy')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import sys; from lwm_env.cli import main; sys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)

    assert done.returncode == 1
    assert done.stderr.startswith("error: moviepy is not installed") and 'pip install "lwm-env[video]"' in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process on Windows")
def test_ctrl_c_ends_with_130(tiny_world, tmp_path):
    code = (  # a shell that runs the tests in the background leaves SIGINT ignored for its children
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); print('up', flush=True);"
        " from lwm_env.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    args = ["demo", "--world", str(tiny_world), "--seconds", "3600", "--out", str(tmp_path / "demo.mp4")]
    process = subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    try:
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 130, told
    assert told.decode().rstrip().endswith("interrupted")
    assert not list(tmp_path.iterdir())


def test_envs_list_gives_every_shipped_world():
    listed = json.loads(lwm("envs", "list", "--json").stdout)

    assert set(listed) == set(worlds.shipped())
    assert all(world_id in lwm("envs", "list").stdout for world_id in listed)


def test_envs_show_prints_spaces_keys_and_provenance(tiny_world):
    page = lwm("envs", "show", str(tiny_world)).stdout

    for told in ("LWM-Tiny-v0", "Discrete(3)", "1  LEFT", "keys a", "(16, 16, 3)", "CartPole-v1", "random weights"):
        assert told in page
    assert json.loads(lwm("envs", "show", str(tiny_world), "--json").stdout)["format"] == 1


def test_presets_count_the_parameters_of_each_part():
    rows = json.loads(lwm("presets", "--json").stdout)

    assert list(rows) == ["pico", "nano", "small", "base", "large"]
    assert all(row["parameters"] == sum(row["parts"].values()) > 1e5 for row in rows.values())
    assert all(row["weight_bytes"] == 4 * row["parameters"] for row in rows.values())


def test_the_roofline_of_a_preset_is_its_work_or_its_weights_whatever_takes_longer():
    from lwm_env.card import preset_lines, preset_rows

    rows = preset_rows()
    nano = rows["nano"]

    compute, memory = 82_600e9 / nano["flops_per_frame"], 1008e9 / nano["weight_bytes"]
    assert nano["at_most_frames_per_second"]["RTX 4090"] == round(min(compute, memory), 1)
    lines = preset_lines({"nano": nano})
    assert "1.99 M parameters" in lines[0] and "GFLOP a frame" in lines[1]


def test_the_work_of_a_preset_is_counted_without_memory_as_it_is_on_a_device(tiny_config, tiny_spec):
    import torch

    from lwm_env.card import work_of_a_frame
    from lwm_env.world_model import WorldModel

    with torch.device("meta"):
        meta = WorldModel(tiny_config, tiny_spec)

    assert work_of_a_frame(meta) == work_of_a_frame(WorldModel(tiny_config, tiny_spec).eval())


def test_doctor_tells_versions_extras_and_worlds():
    report = json.loads(lwm("doctor", "--json").stdout)

    assert report["versions"]["torch"].startswith("2.")
    assert report["extras"]["video"] == "installed"
    assert all(text.endswith("whole") for text in report["worlds"].values())


def test_doctor_finds_a_damaged_world(tiny_world, tmp_path):
    for file in tiny_world.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert doctor._world(tmp_path).startswith("LWM-Tiny-v0")
    (tmp_path / "model.safetensors").write_bytes(b"short")

    assert doctor._world(tmp_path).startswith("damaged: ")


def test_demo_writes_a_video_and_tells_the_measured_rate(tiny_world, tmp_path):
    out = tmp_path / "demo.mp4"
    done = lwm("demo", "--world", str(tiny_world), "--seconds", "3", "--out", str(out), "--json")
    figures = json.loads(done.stdout)

    assert figures["num_frames"] == 45 and figures["num_episodes"] >= 3  # of 20 steps at most
    assert figures["frames_per_second"] > 0
    assert _num_frames(out) == 45
    assert [path.name for path in tmp_path.iterdir()] == ["demo.mp4"]


def _num_frames(video: Path) -> int:
    from moviepy import VideoFileClip

    with VideoFileClip(str(video)) as clip:
        assert tuple(clip.size) == (512, 512)
        return sum(1 for _ in clip.iter_frames())

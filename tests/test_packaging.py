"""The package: what importing costs, what a wheel holds, what depends on what."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import gymnasium as gym
import pytest
from packaging.requirements import Requirement

import lwm_env
from lwm_env import worlds
from lwm_env.cli import EXTRA_MODULES

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PACKAGES = {"lwm_env": ROOT / "lwm_env", "lwm_training": ROOT / "training", "lwm_agents": ROOT / "agents"}
# Teachers' workers run in environments of their own, with what the teacher brings.
SOURCES = [path for folder in PACKAGES.values() for path in folder.rglob("*.py") if path.parent.name != "workers"]

# Distributions whose import name is another one.
IMPORT_NAMES = {
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pygame-ce": "pygame",
    "pyqt5-qt5": "PyQt5",
    "python-multipart": "python_multipart",
    "stable-baselines3": "stable_baselines3",
    "sb3-contrib": "sb3_contrib",
    "prometheus-client": "prometheus_client",
}


def names(requirements: list[str]) -> set[str]:
    return {Requirement(text).name.lower().replace("_", "-") for text in requirements}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_is_light():
    loaded = python("import sys, lwm_env; print(*sys.modules)").split()

    assert not {"torch", "pydantic", "click", "h5py", "PIL", "matplotlib"} & set(loaded)


def test_importing_costs_little_more_than_gymnasium():
    code = """
import time
import gymnasium
begin = time.process_time()
import lwm_env
print(time.process_time() - begin)
"""
    assert min(float(python(code)) for _ in range(3)) < 0.1


@pytest.mark.parametrize("world_id", worlds.shipped())
def test_every_shipped_world_is_registered_as_env_and_vector_env(world_id):
    spec = gym.spec(world_id)

    assert (spec.entry_point, spec.vector_entry_point) == (
        "lwm_env.envs.env:LwmEnv",
        "lwm_env.envs.vector_env:LwmVectorEnv",
    )
    assert spec.max_episode_steps == worlds.read_spec(worlds.find(world_id)).max_episode_steps
    assert worlds.find(spec.kwargs["world"]) == worlds.find(world_id)


@pytest.mark.parametrize("world_id", worlds.shipped())
def test_a_world_is_made_without_importing_the_package_first(world_id):
    code = f"import gymnasium; print(gymnasium.make('lwm_env:{world_id}').spec.id)"

    assert python(code).strip() == world_id


def test_a_damaged_world_does_not_stop_the_import(tmp_path):
    (tmp_path / "lwm_env" / "worlds" / "broken").mkdir(parents=True)
    (tmp_path / "lwm_env" / "worlds" / "broken" / "world.json").write_text("{}")
    for name in ("__init__.py", "home.py"):
        (tmp_path / "lwm_env" / name).write_bytes((ROOT / "lwm_env" / name).read_bytes())
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import lwm_env; print(lwm_env.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert str(tmp_path) in done.stdout and "lwm doctor" in done.stderr


def test_layers_are_kept():
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_plain_install_brings_no_extra_and_the_extras_are_those_promised():
    promised = {"agents", "train", "data", "atari", "video", "onnx", "gpu", "web", "play", "hub", "ray", "all", "dev"}

    assert set(EXTRAS) == promised
    assert names(PROJECT["dependencies"]) == {
        "torch", "gymnasium", "pettingzoo", "numpy", "safetensors", "click", "tqdm", "pydantic", "pillow",
    }  # fmt: skip


def test_the_gpu_runtime_of_onnx_never_meets_the_other():
    everything = Requirement(EXTRAS["all"][0])

    assert "onnxruntime" not in names(EXTRAS["gpu"]) and "onnxruntime-gpu" not in names(EXTRAS["onnx"])
    assert everything.name == "lwm-env" and everything.extras == set(EXTRAS) - {"all", "gpu", "dev"}


@pytest.mark.parametrize("extra", EXTRA_MODULES)
def test_the_table_of_extras_agrees_with_the_project_file(extra):
    modules = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names(EXTRAS[extra])}

    assert set(EXTRA_MODULES[extra]) <= modules
    assert modules - set(EXTRA_MODULES[extra]) <= {"PyQt5", "cv2", "python_multipart"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def test_every_imported_library_is_declared():
    requirements = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    declared = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names(requirements)}

    imported = set().union(*map(imports_of, SOURCES)) - set(sys.stdlib_module_names) - set(PACKAGES)

    assert imported <= declared


def test_the_product_neither_unpickles_nor_evaluates():
    for path in (ROOT / "lwm_env").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & imports_of(path), path
        assert not re.search(r"torch\.load\(|allow_pickle=True|(?<![\w.])(eval|exec)\(", text), path


def test_nested_folders_do_not_become_import_names():
    assert not any((ROOT / folder / "__init__.py").exists() for folder in ("agents", "training", "tests", "examples"))


@pytest.mark.slow
def test_the_wheel_holds_the_worlds_and_the_three_packages(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("lwm_env-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())

    for package in PACKAGES:
        assert f"{package}/__init__.py" in held
    for folder in worlds.shipped_folders():
        for name in ("world.json", *worlds.read_manifest(folder).files):
            assert f"lwm_env/worlds/{folder.name}/{name}" in held
    assert not [name for name in held if name.startswith(("tests/", "agents/", "training/")) or "__pycache__" in name]
    assert wheel.stat().st_size < 19e6  # five worlds of 0.7 to 5 MB


def test_the_version_is_one_number_everywhere():
    assert re.fullmatch(r"\d+\.\d+\.\d+", lwm_env.__version__)
    assert "version" in PROJECT["dynamic"]

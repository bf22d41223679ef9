"""`lwm doctor`: what is installed, what it finds, and whether the shipped worlds are whole."""

import importlib.metadata
import importlib.util
import json
import platform
import sys
from pathlib import Path
from typing import Any

import click

import lwm_env
from lwm_env import worlds
from lwm_env.cli import EXTRA_MODULES
from lwm_env.errors import LwmError

PACKAGES = ("torch", "gymnasium", "pettingzoo", "numpy", "safetensors", "pydantic", "pillow", "click")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Show versions, devices, extras and shipped worlds; exit with 1 when a shipped world is damaged."""
    report = examine()
    click.echo(json.dumps(report) if as_json else _as_text(report))
    if any(text.startswith("damaged") for text in report["worlds"].values()):
        ctx.exit(1)


def examine() -> dict[str, Any]:
    """Everything the doctor tells, as plain JSON values."""
    return {
        "lwm-env": lwm_env.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "versions": {package: _version(package) for package in PACKAGES},
        "device": _device(),
        "extras": {extra: _extra(modules) for extra, modules in EXTRA_MODULES.items()},
        "envpool": _envpool(),
        "worlds": {folder.name: _world(folder) for folder in worlds.shipped_folders()},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    import torch

    threads = f"{torch.get_num_threads()} CPU threads"
    if not torch.cuda.is_available():
        return f"cpu ({threads})"
    properties = torch.cuda.get_device_properties(0)
    return f"cuda ({properties.name}, {properties.total_memory / 2**30:.0f} GiB; {threads})"


def _extra(modules: tuple[str, ...]) -> str:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"missing {', '.join(missing)}" if missing else "installed"


def _envpool() -> str:
    """Whether the real games of EnvPool can be expected to start; importing it would take seconds."""
    if importlib.util.find_spec("envpool") is None:
        return 'not installed: pip install "lwm-env[data]"'
    version = _version("envpool")
    if not sys.platform.startswith("linux"):
        return version
    return f"{version}, {_qt()}"


def _qt() -> str:
    from ctypes.util import find_library

    package = importlib.util.find_spec("PyQt5")
    for place in package.submodule_search_locations or [] if package else []:
        if any(Path(place, "Qt5", "lib").glob("libQt5Gui.so*")):
            return "Qt 5 from the package PyQt5-Qt5"
    if find_library("Qt5Gui"):
        return "Qt 5 of the system"
    return 'no Qt 5, which Procgen needs: pip install "lwm-env[data]"'


def _world(folder: Path) -> str:
    try:
        manifest = worlds.verify(folder)
    except LwmError as error:
        return f"damaged: {error}"
    return f"{manifest.spec.id}, {sum(record.size for record in manifest.files.values()) / 1e6:.1f} MB, whole"


def _as_text(report: dict[str, Any]) -> str:
    lines = []
    for name, value in report.items():
        if isinstance(value, dict):
            lines.append(f"{name}:")
            lines += [f"  {key:12} {text}" for key, text in value.items()] or ["  none"]
        else:
            lines.append(f"{name + ':':14} {value}")
    return "\n".join(lines)

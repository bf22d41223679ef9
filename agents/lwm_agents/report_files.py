"""What the reports of `lwm agent` share: how they were made, their files, their place on a page."""

import importlib.metadata
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from lwm_agents.agent import choose_device
from lwm_agents.dream_to_real import TransferRun
from lwm_agents.imagination import chances
from lwm_env import __version__
from lwm_env.errors import InvalidInput, StorageError
from lwm_env.machine import load_average, name_of
from lwm_env.worlds.storage import replace_file

PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Report(Strict):
    """How a report was made."""

    format: int
    world: str
    weights: str  # sha256 of the weight file
    chances: dict[str, float]  # what decides a dream beside them
    real: str  # what made the real game
    config: dict[str, Any]  # see TransferConfig
    settings: dict[str, Any]  # of PPO, where they are not those of `make_ppo`
    machine: str
    load_average: float | None  # when the report was written
    versions: dict[str, str]  # of what decides the figures

    def to_json(self) -> str:
        """Strict JSON, without NaN."""
        return json.dumps(self.model_dump(mode="json"), allow_nan=False) + "\n"

    def tell_dream(self) -> str:
        """Weights and what else decides a dream, in words."""
        settings = ", ".join(
            "ends drawn" if name == "draw_ends" else f"{name.replace('_', ' ')} {value:g}"
            for name, value in self.chances.items()
        )
        return f"weights `{self.weights[:12]}` at {settings}"


def made_by(run: TransferRun) -> dict[str, Any]:
    """The fields of `Report` but its format."""
    return {
        "world": run.spec.id,
        "weights": run.weights,
        "chances": chances(run.spec),
        "real": run.real,
        "config": asdict(run.config),
        "settings": run.ppo,
        "machine": name_of(torch.device(choose_device(run.device))),
        "load_average": load_average(),
        "versions": {"lwm-env": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
    }


def write_files(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Write a report's files; what is None is left out.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            if data is not None:
                replace_file(folder / name, data)
    except OSError as error:
        raise StorageError(f"The report in {folder} could not be written: {error.strerror or error}.") from error


def insert_table(path: Path, mark: str, world: str, table: str) -> None:
    """Put a table between the marks `<!-- MARK WORLD -->` and `<!-- /MARK -->` of a Markdown file.

    Raises:
        InvalidInput: the file has no such marks. StorageError: it cannot be read or written.
    """
    begin, end = f"<!-- {mark} {world} -->\n", f"<!-- /{mark} -->"
    between = re.compile(f"({re.escape(begin)}).*?({end})", re.DOTALL)
    try:
        text = path.read_text(encoding="utf-8")
        if not between.search(text):
            raise InvalidInput(f"{path} has no lines {begin.strip()} and {end} to write between. Add them.")
        replace_file(path, between.sub(lambda match: match[1] + table + match[2], text).encode())
    except OSError as error:
        raise StorageError(f"{path} could not be changed: {error.strerror or error}.") from error


def new_canvas(size: tuple[float, float]) -> Any | None:
    """A figure of so many inches; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=size, layout="constrained")


def as_png(canvas: Any) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()

"""Teachers by name: `clips:FOLDER`, `gamecraft:CHECKOUT`, `matrix-game-2:CHECKOUT`, `worker:SCRIPT`, `world:ID`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lwm_env.errors import ConfigMismatch, InvalidInput
from lwm_env.spec import WorldSpec
from lwm_training.teachers import Teacher
from lwm_training.teachers.chunk_teacher import ChunkPlan, ChunkTeacher
from lwm_training.teachers.clips_folder import ClipsFolder
from lwm_training.teachers.licences import GAMECRAFT, Licence, check_accepted, terms
from lwm_training.teachers.worker_process import WorkerProcess

WORKERS = Path(__file__).parent / "workers"


@dataclass(frozen=True)
class Checkout:
    """A large model that is driven in its own environment."""

    script: str
    licences: dict[str, str]
    gate: Licence | None = None


CHECKOUTS = {
    "gamecraft": Checkout("gamecraft.py", {"gamecraft": GAMECRAFT.title}, GAMECRAFT),
    "matrix-game-2": Checkout("matrix_game_2.py", {"matrix-game-2": "MIT"}),
}
KINDS = ("clips", *CHECKOUTS, "worker", "world")


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How teachers are asked for; what a kind does not need is not looked at."""

    starts: Path | None = None  # pictures that chunked teachers begin from
    chunks: int = 4
    seed: int = 0
    prompt: str = ""
    speed: float = 0.2
    policy: str = "sticky"  # of a world
    python: Path = field(default_factory=lambda: Path(sys.executable))  # of the worker's environment
    licences: dict[str, str] = field(default_factory=dict)  # of a folder of clips
    accepted: tuple[str, ...] = ()


def renders(name: str) -> bool:
    """Whether that teacher is known by the clips that it renders, rather than a world's folder or id."""
    return name.partition(":")[0] in KINDS and ":" in name


def open_teacher(name: str, spec: WorldSpec, rendering: Rendering, show: Callable[[str], object]) -> Teacher:
    """A teacher that renders clips for a world.

    Args:
        show: called with the terms of a licence before anything else happens.

    Raises:
        ConfigMismatch: its licence was not accepted, or its actions are not the world's.
        TeacherFailed: its process did not start.
    """
    kind, _, place = name.partition(":")
    if kind not in KINDS or not place:
        raise InvalidInput(f"No teacher {name!r:.100}. Expected one of {', '.join(f'{kind}:...' for kind in KINDS)}.")
    if kind == "clips":
        return ClipsFolder(Path(place), spec, rendering.licences)
    if kind == "world":
        from lwm_training.teachers.world_teacher import WorldTeacher

        return WorldTeacher(place, spec, rendering.policy, rendering.seed)
    if kind == "worker":
        return _chunk_teacher([rendering.python, place], spec, rendering, {"kind": kind})
    checkout = CHECKOUTS[kind]
    facts = {"kind": kind, "name": kind, "licences": checkout.licences}
    if checkout.gate is not None:
        show(terms(checkout.gate))
        check_accepted(checkout.gate, rendering.accepted)
        facts["restricted"] = [checkout.gate.name] if checkout.gate.restricted else []
    return _chunk_teacher([rendering.python, WORKERS / checkout.script, place], spec, rendering, facts)


def _chunk_teacher(command: list[Path | str], spec: WorldSpec, rendering: Rendering, facts: dict) -> ChunkTeacher:
    if rendering.starts is None:
        raise ConfigMismatch("This teacher begins from pictures. Name a folder of them with --starts.")
    plan = ChunkPlan(
        starts=rendering.starts,
        chunks=rendering.chunks,
        seed=rendering.seed,
        prompt=rendering.prompt,
        speed=rendering.speed,
    )
    worker = WorkerProcess(command)
    try:
        return ChunkTeacher(worker, spec, plan, facts)
    except BaseException:
        worker.close()
        raise

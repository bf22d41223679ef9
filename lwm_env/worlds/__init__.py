"""World folders: finding, reading, verifying and writing them. Every folder here that has a world.json is shipped;
those in the user's own folder (`lwm_env.home`) are installed.

A world folder holds `world.json` (the manifest) and the files it names; other files (a model card, a report) may lie
beside them. Everything is checked before it is used, and nothing in it is ever executed.
"""

import contextlib
import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, StorageError, UnknownWorld
from lwm_env.home import worlds_home
from lwm_env.spec import WorldSpec
from lwm_env.worlds.storage import previous_folder, replace_folder
from lwm_env.worlds.tensors import read_tensors

__all__ = [
    "FileRecord",
    "Manifest",
    "find",
    "installed",
    "read_manifest",
    "read_spec",
    "read_tensors",
    "restrictions",
    "shipped",
    "shipped_folders",
    "verify",
    "write_world",
]

MANIFEST = "world.json"
FORMAT = 1
MAX_MANIFEST_BYTES = 1 << 20
FIRST = "platformer"


class FileRecord(BaseModel):
    """What a file must be, byte for byte."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(BaseModel):
    """The content of world.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    spec: WorldSpec
    model: dict[str, Any]  # the model's configuration; its own class checks it
    provenance: dict[str, Any]  # data, licences, commit, training
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _names_stay_in_the_folder(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name) or name == MANIFEST:
                raise ValueError(f"{name!r:.60} is not a plain file name")
        return files


def shipped() -> dict[str, Path]:
    """The folders of the worlds in this installation, by id; a damaged one is left out (`lwm doctor` names it), and so
    is one that learned from something whose licence is restricted."""
    return _by_id(shipped_folders())


def installed() -> dict[str, Path]:
    """The folders of the worlds that this user installed (`lwm new` does), by id; a damaged one is left out."""
    home = worlds_home()
    return _by_id(sorted(path.parent for path in home.glob(f"*/{MANIFEST}"))) if home else {}


def _by_id(folders: Iterable[Path]) -> dict[str, Path]:
    worlds = {}
    for folder in folders:
        with contextlib.suppress(CorruptFile, ConfigMismatch, StorageError):
            manifest = read_manifest(folder)
            if not restrictions(manifest.provenance):
                worlds[manifest.spec.id] = folder
    return worlds


def restrictions(provenance: Mapping[str, Any]) -> list[str]:
    """The licences that a world learned under and that keep it from being a default: from being shipped, registered, or
    found by its id. Such a world opens by the path of its folder."""
    named = provenance.get("restricted") or []
    return [str(name) for name in named] if isinstance(named, list) else [str(named)]


def shipped_folders() -> list[Path]:
    """Every folder here that has a world.json, damaged or not, by name; the first is played where none is named."""
    folders = [path.parent for path in Path(__file__).parent.glob(f"*/{MANIFEST}")]
    return sorted(folders, key=lambda folder: (folder.name != FIRST, folder.name))


def find(world: str | Path) -> Path:
    """The folder of a world, named by its id (`LWM-Platformer-v0`), its shipped folder (`platformer`) or a path.

    A shipped world goes before an installed one.

    Raises:
        UnknownWorld: nothing of that name; the message names the nearest ones.
        InvalidInput: not a name at all.
    """
    if not isinstance(world, str | Path):
        raise InvalidInput(f"A world is named by its id or the path of its folder, got {type(world).__name__}.")
    text = str(world)
    worlds = {**installed(), **shipped()}
    slugs = {folder.name: folder for folder in shipped_folders() if not _is_restricted(folder)}
    if text in worlds or text in slugs:
        return worlds.get(text) or slugs[text]
    with contextlib.suppress(OSError, ValueError):  # too long a name, a null byte: no path, so an unknown world
        if _has_manifest(Path(text)):
            return Path(text)
    names = {name.lower(): name for name in (*worlds, *slugs)}
    nearest = [names[near] for near in difflib.get_close_matches(text.lower(), names, n=3, cutoff=0.5)]
    hint = f"Did you mean {' or '.join(nearest)}?" if nearest else f"Known worlds: {', '.join(worlds) or 'none'}."
    raise UnknownWorld(
        f"No world {text!r:.100}: it is neither shipped nor installed nor a folder with a {MANIFEST}. {hint}"
    )


def _is_restricted(folder: Path) -> bool:
    try:
        return bool(restrictions(read_manifest(folder).provenance))
    except (CorruptFile, ConfigMismatch, StorageError):
        return False


def read_manifest(path: str | os.PathLike) -> Manifest:
    """The checked content of a world folder's world.json.

    Raises:
        UnknownWorld: the folder has none.
        CorruptFile: it is not JSON or lacks what a manifest must have.
        ConfigMismatch: it was written in another format than this version reads.
        StorageError: the system would not let us read it.
    """
    file = _settled(Path(path)) / MANIFEST
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnknownWorld(f"{path} has no {MANIFEST}, so it is no world. Name a shipped one or a folder.") from error
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror or error}.") from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise CorruptFile(f"{file} is larger than {MAX_MANIFEST_BYTES} bytes, which no manifest is. Restore it.")
    try:
        return Manifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise _manifest_error(file, error) from error


def _manifest_error(file: Path, error: ValidationError) -> CorruptFile | ConfigMismatch:
    problems = error.errors(include_url=False, include_context=False)
    for problem in problems:
        if problem["loc"] == ("format",) and isinstance(problem.get("input"), int):
            return ConfigMismatch(
                f"{file} is of format {problem['input']!r:.20}, this version of lwm-env reads format {FORMAT}."
                " Upgrade with: pip install --upgrade lwm-env"
            )
    told = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'file'}: {p['msg']}"[:150] for p in problems[:3])
    return CorruptFile(f"{file} is not a valid manifest ({told}). Restore it from where the world came from.")


def read_spec(path: str | os.PathLike) -> WorldSpec:
    """The record of the world in a folder; raises like `read_manifest`."""
    return read_manifest(path).spec


def verify(path: str | os.PathLike) -> Manifest:
    """Check the size and sha256 of every file that the manifest names; to be called before any of them is parsed.

    Raises:
        CorruptFile: a file is missing, truncated or altered. And what `read_manifest` raises.
    """
    manifest = read_manifest(path)
    folder = _settled(Path(path))
    for name, record in manifest.files.items():
        _verify_file(folder / name, record)
    return manifest


def _verify_file(file: Path, record: FileRecord) -> None:
    advice = "Restore it from where the world came from, or reinstall lwm-env."
    try:
        if not file.is_file():
            raise CorruptFile(f"{file} is missing, {MANIFEST} names it. {advice}")
        size = file.stat().st_size
        if size != record.size:
            raise CorruptFile(f"{file} has {size} bytes, {MANIFEST} says {record.size}. {advice}")
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror or error}.") from error
    if sha256 != record.sha256:
        raise CorruptFile(f"{file} has the sha256 {sha256[:12]}..., {MANIFEST} says {record.sha256[:12]}.... {advice}")


def write_world(
    path: str | os.PathLike,
    *,
    spec: WorldSpec,
    model: Mapping[str, Any],
    provenance: Mapping[str, Any],
    files: Mapping[str, bytes],
) -> Manifest:
    """Write a world folder in one move: a kill or a full disk leaves the folder that was there before.

    Files that lie in an existing folder without being part of the world (README.md, a report) are kept.

    Raises:
        InvalidInput: the parts make no valid manifest, or `path` is a folder of something else.
        ConfigMismatch: a world that must not be a default would be one there.
        StorageError: the disk is full, read-only or forbidden; what was there is intact.
    """
    target = Path(path).resolve()
    records = {
        name: FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for name, data in files.items()
    }
    try:
        parts = {"spec": spec, "model": dict(model), "provenance": dict(provenance), "files": records}
        manifest = Manifest(format=FORMAT, **parts)
        text = manifest.model_dump_json(indent=2) + "\n"
        Manifest.model_validate_json(text, strict=True)  # what is written must be readable
    except ValueError as error:
        raise InvalidInput(f"These parts make no valid {MANIFEST}: {error}"[:500]) from error
    if restrictions(provenance) and target.parent == Path(__file__).parent.resolve():
        told = ", ".join(restrictions(provenance))
        raise ConfigMismatch(
            f"This world learned under {told}, so it must not be shipped in {target.parent}. Save it in another folder."
        )
    if target.exists() and not _has_manifest(target) and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInput(f"{target} exists and is not a world. Name another folder, or empty it.")
    try:
        own = {MANIFEST, *files, *_listed_files(target)}
        replace_folder(target, {**files, MANIFEST: text.encode()}, dropped=own)
    except OSError as error:
        raise StorageError(
            f"{target} could not be written: {error.strerror or error}. What was there before is intact."
            " Make room or name another folder."
        ) from error
    return manifest


def _listed_files(folder: Path) -> set[str]:
    try:
        return set(read_manifest(folder).files)
    except (CorruptFile, ConfigMismatch, UnknownWorld):
        return set()


def _has_manifest(path: Path) -> bool:
    return (_settled(path) / MANIFEST).is_file()


def _settled(path: Path) -> Path:
    """The folder itself, or what it was if a writer was killed between its two renames."""
    return path if path.exists() or not previous_folder(path).exists() else previous_folder(path)

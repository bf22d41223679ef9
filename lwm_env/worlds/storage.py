"""Replaces a file or a folder as a whole: a kill, a full disk or a power cut leaves the old one or the new one."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path


def previous_folder(target: Path) -> Path:
    """Where the old folder waits between the two renames; it is the valid one while `target` does not exist."""
    return target.with_name(f".{target.name}.previous")


def replace_file(path: Path, data: bytes, mark: str = "new") -> None:
    """Put `data` at `path`: when this returns it survives a power cut, and until then the old content is there.

    Writers at the same time need `mark`s of their own: a killed one leaves a file `.NAME.MARK`.

    Raises:
        OSError: as the system said it; what was there is intact.
    """
    temporary = path.with_name(f".{path.name}.{mark}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    if os.name != "nt":  # Windows cannot sync folders
        _sync(folder)


def replace_folder(target: Path, files: Mapping[str, bytes], dropped: Collection[str]) -> None:
    """Make `target` hold `files`, and what it held before under other names than `dropped`.

    Folders cannot be exchanged in one step everywhere, so the old one is moved aside first; readers know where.
    One writer at a time.

    Raises:
        OSError: as the system said it; `target` is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target if target.exists() or not previous_folder(target).exists() else previous_folder(target)
    new = target.with_name(f".{target.name}.new-{secrets.token_hex(4)}")
    try:
        new.mkdir()
        if old.exists():
            _copy_others(old, new, dropped)
        for name, data in files.items():
            (new / name).write_bytes(data)
        _sync_tree(new)
        _swap(new, target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _remove_leftovers(target)


def _copy_others(old: Path, new: Path, dropped: Collection[str]) -> None:
    for entry in old.iterdir():
        if entry.name in dropped:
            continue
        if entry.is_dir():
            shutil.copytree(entry, new / entry.name)
        else:
            shutil.copy2(entry, new / entry.name)


def _swap(new: Path, target: Path) -> None:
    previous = previous_folder(target)
    if target.exists():
        if previous.exists():
            shutil.rmtree(previous)
        target.rename(previous)
    try:
        new.rename(target)
    except OSError:
        if previous.exists() and not target.exists():
            previous.rename(target)
        raise
    sync_folder(target.parent)


def _sync_tree(folder: Path) -> None:
    if os.name == "nt":  # Windows can sync neither folders nor files opened for reading
        return
    for path in sorted(folder.rglob("*"), reverse=True):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """What an earlier writer left when it was killed; failing to remove it harms nobody."""
    shutil.rmtree(previous_folder(target), ignore_errors=True)
    for entry in target.parent.iterdir():
        if entry.name.startswith(f".{target.name}.new-"):
            shutil.rmtree(entry, ignore_errors=True)

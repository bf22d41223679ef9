"""Copies a world to where its id finds it: `lwm play LWM-MyGame-v0`, and `gym.make` in the next process."""

import re
from pathlib import Path

from lwm_env import worlds
from lwm_env.errors import InvalidInput, StorageError
from lwm_env.home import worlds_home
from lwm_env.worlds.storage import replace_folder

REPORT = "report.json"
_ID = re.compile(r"LWM-[A-Za-z0-9][A-Za-z0-9_]*-v\d+")


def check_id(world_id: str) -> None:
    """InvalidInput unless a world of one's own may have this id."""
    if not _ID.fullmatch(world_id):
        raise InvalidInput(f"{world_id!r:.80} is no id of a world; one is LWM-Name-v0, Name of letters and digits.")
    if world_id in worlds.shipped():
        raise InvalidInput(f"{world_id} is a world that lwm-env ships. Give yours another name.")


def install_world(folder: Path) -> Path:
    """Install a world by its id; one of the same id that was there is replaced in one move.

    Returns:
        The folder in `worlds_home()`. It holds the files of the manifest and the report's figures.

    Raises:
        InvalidInput: an id that a shipped world has, or that is none.
        StorageError: the disk is full or read-only, or there is no home folder; what was installed before is intact.
        UnknownWorld, CorruptFile, ConfigMismatch: the folder is no whole world.
    """
    manifest = worlds.verify(folder)
    check_id(manifest.spec.id)
    home = worlds_home()
    if home is None:
        raise StorageError("There is no home folder to install worlds in. Set LWM_HOME to a folder.")
    target = home / manifest.spec.id.removeprefix("LWM-").lower()
    try:
        names = [worlds.MANIFEST, *manifest.files]
        files = {name: (folder / name).read_bytes() for name in names}
        if (folder / REPORT).is_file():
            files[REPORT] = (folder / REPORT).read_bytes()
        replace_folder(target, files, dropped=[entry.name for entry in target.iterdir()] if target.is_dir() else [])
    except OSError as error:
        raise StorageError(
            f"{target} could not be written: {error.strerror or error}. What was installed before is intact. "
            f"Make room, or set LWM_HOME to another folder."
        ) from error
    return target

"""dataset.json: what a data set holds and which sealed files make it up. Replaced as a whole, every byte checked."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lwm_env.errors import ConfigMismatch, CorruptFile, StorageError
from lwm_env.worlds.storage import replace_file
from lwm_training.episode import Layout

NAME = "dataset.json"
_FORMAT = 1


@dataclass(frozen=True)
class ShardRecord:
    """What a sealed file must be, byte for byte."""

    file: str
    sha256: str
    size: int
    episodes: int
    frames: int  # steps, that is frames that follow an action


@dataclass(frozen=True)
class Manifest:
    """The content of dataset.json."""

    layout: Layout
    facts: dict[str, Any]  # of the source
    shards: tuple[ShardRecord, ...] = ()
    sessions: tuple[dict[str, Any], ...] = field(default_factory=tuple)  # who played, one entry per run of the recorder

    def with_shard(self, record: ShardRecord) -> "Manifest":
        return replace(self, shards=(*self.shards, record))

    def with_session(self, session: dict[str, Any]) -> "Manifest":
        return replace(self, sessions=(*self.sessions, session))

    def write(self, folder: Path) -> None:
        """Replace dataset.json in a folder; raises OSError."""
        replace_file(folder / NAME, self._to_bytes())

    def _to_bytes(self) -> bytes:
        content = {
            "format": _FORMAT,
            "layout": self.layout.to_json(),
            "facts": self.facts,
            "shards": [vars(shard) for shard in self.shards],
            "sessions": list(self.sessions),
        }
        content["sha256"] = hashlib.sha256(_canonical(content)).hexdigest()
        return _canonical(content)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data set.

    Raises:
        ConfigMismatch: there is none, or one of another format.
        CorruptFile: it is not what was written.
        StorageError: the system would not let us read it.
    """
    path = folder / NAME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigMismatch(f"{folder} is no data set: it has no {NAME}. Record one with `lwm collect`.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from error
    damaged = CorruptFile(f"{path} is damaged: it is not what was written. Restore it from a copy.")
    try:
        content = json.loads(data)
        claimed = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise damaged from error
    if claimed != hashlib.sha256(_canonical(content)).hexdigest() or _canonical({**content, "sha256": claimed}) != data:
        raise damaged
    if content["format"] != _FORMAT:
        raise ConfigMismatch(f"{path} is of format {content['format']}; this version of lwm-env reads {_FORMAT}.")
    shards = tuple(ShardRecord(**shard) for shard in content["shards"])
    return Manifest(Layout.from_json(content["layout"]), content["facts"], shards, tuple(content["sessions"]))


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"

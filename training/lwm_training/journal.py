"""Finished episodes that are not sealed yet: appended one by one, read back after a kill."""

import os
import struct
import time
from pathlib import Path

from lwm_env.errors import CorruptFile
from lwm_training.episode import Episode, Layout, read_record

NAME = "journal.bin"
_HEAD = struct.Struct("<8sQ8s")  # magic, how many shards were sealed when it was begun, that number inverted
_MAGIC = b"LWMjrnl1"
_SYNC_SECONDS = 1.0  # a power cut costs at most what was played in this time; a kill of the process costs nothing


class Journal:
    """Appends records. Each is one write, so that a kill cuts off at most the last."""

    def __init__(self, folder: Path, num_shards: int) -> None:
        """Begin an empty journal after that many sealed shards; raises OSError."""
        self._file = (folder / NAME).open("wb", buffering=0)
        self.begin(num_shards)

    def begin(self, num_shards: int) -> None:
        """Empty it: what it held is sealed now."""
        self._file.truncate(0)
        self._file.seek(0)
        self._file.write(_head(num_shards))
        os.fsync(self._file.fileno())
        self._end, self._synced = _HEAD.size, time.monotonic()

    def append(self, episode: Episode) -> None:
        """Raises OSError, and then holds what it held before."""
        record = memoryview(episode.to_bytes())
        try:
            written = 0
            while written < len(record):  # a disk that is nearly full takes a part
                written += self._file.write(record[written:])
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError:
            self._file.truncate(self._end)
            self._file.seek(self._end)
            raise
        self._end += len(record)

    def close(self) -> None:
        self._file.close()


def read_journal(folder: Path, layout: Layout, num_shards: int) -> list[Episode]:
    """The whole episodes in the journal of a folder that `num_shards` sealed files do not hold; a cut tail is dropped.

    Raises:
        CorruptFile: a record is there but is not what was written.
    """
    try:
        data = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return []
    if len(data) < _HEAD.size:
        if _head(num_shards).startswith(data):
            return []
        raise CorruptFile(f"{folder / NAME} is damaged: its head is not what was written.")
    if num_shards and data[: _HEAD.size] == _head(num_shards - 1):
        return []  # killed after its episodes were sealed and before it was emptied
    if data[: _HEAD.size] != _head(num_shards):
        raise CorruptFile(f"{folder / NAME} is damaged, or belongs to another data set.")
    episodes, offset = [], _HEAD.size
    while True:
        try:
            found = read_record(data, offset, layout)
        except CorruptFile as error:
            raise CorruptFile(f"{folder / NAME}: {error}") from error
        if found is None:
            return episodes
        episode, offset = found
        episodes.append(episode)


def _head(num_shards: int) -> bytes:
    number = struct.pack("<Q", num_shards)
    return _HEAD.pack(_MAGIC, num_shards, bytes(255 - byte for byte in number))

"""Appends episodes to a data set on disk (episodes.py says what lies there)."""

import logging
from pathlib import Path
from typing import Any

from lwm_env.errors import ConfigMismatch, StorageError
from lwm_env.worlds.storage import replace_file, sync_folder
from lwm_training import journal, manifest
from lwm_training.disk import WriterLock, storage_errors
from lwm_training.episode import Episode, Layout
from lwm_training.manifest import Manifest, ShardRecord, read_manifest
from lwm_training.shards import encode_shard, import_h5py, sha256_of

SHARD_BYTES = 32 << 20  # of compressed frames
SHARD_FRAMES = 65_536
_LOG = logging.getLogger(__name__)


class EpisodeWriter:
    """Appends episodes to a data set, new or old. An episode is safe against a kill once `append` has returned."""

    def __init__(self, folder: Path | str, layout: Layout, facts: dict[str, Any]) -> None:
        """Open a folder for writing, made if absent; what a killed writer left is recovered.

        Raises:
            ConfigMismatch: it holds a data set of another source or layout, or other files.
            CorruptFile: what is there is damaged; `lwm data verify` says more.
            StorageError: another process writes to it, or the disk is full or read-only.
        """
        import_h5py()
        self.folder = Path(folder)
        with storage_errors(f"Opening {self.folder} for writing"):
            (self.folder / "shards").mkdir(parents=True, exist_ok=True)
            self._lock = WriterLock(self.folder / "writer.lock")
        try:
            with storage_errors(f"Opening {self.folder} for writing"):
                self._manifest = _matching(self.folder, layout, facts)
                self._pending = journal.read_journal(self.folder, layout, len(self._manifest.shards))
                if self._pending:
                    _LOG.info("recovered %d episodes that were not sealed in %s", len(self._pending), self.folder)
                    self._seal()
                self._journal = journal.Journal(self.folder, len(self._manifest.shards))
        except BaseException:
            self._lock.release()
            raise

    @property
    def frames(self) -> int:
        """Steps in the data set, with those not sealed yet."""
        return sum(shard.frames for shard in self._manifest.shards) + sum(map(len, self._pending))

    @property
    def episodes(self) -> int:
        """Episodes in the data set, with those not sealed yet."""
        return sum(shard.episodes for shard in self._manifest.shards) + len(self._pending)

    @property
    def num_sessions(self) -> int:
        return len(self._manifest.sessions)

    def begin_session(self, session: dict[str, Any]) -> None:
        """Note who plays from now on; plain JSON."""
        with storage_errors(f"Writing {self.folder / manifest.NAME}"):
            self._manifest = self._manifest.with_session(session)
            self._manifest.write(self.folder)

    def append(self, episode: Episode) -> None:
        """Commit one episode; raises StorageError, and the data set is as it was."""
        with storage_errors(f"Recording to {self.folder}"):
            self._journal.append(episode)
            self._pending.append(episode)
            size = sum(pending.size for pending in self._pending)
            if size >= SHARD_BYTES or sum(map(len, self._pending)) >= SHARD_FRAMES:
                self._seal()
                self._journal.begin(len(self._manifest.shards))

    def close(self) -> None:
        """Seal what is left and give the lock back; raises StorageError, and then the journal still holds it."""
        try:
            with storage_errors(f"Closing {self.folder}"):
                if self._pending:
                    self._seal()
                self._journal.close()
                (self.folder / journal.NAME).unlink(missing_ok=True)
                sync_folder(self.folder)
        finally:
            self._journal.close()
            self._lock.release()

    def __enter__(self) -> "EpisodeWriter":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, StorageError):  # closing would fail as well, and hide it
            self._journal.close()
            self._lock.release()
        else:
            self.close()

    def _seal(self) -> None:
        """Move what is pending into a file of its own; the journal is emptied by the caller, last."""
        name = f"shards/{len(self._manifest.shards):06d}.h5"
        data = encode_shard(self._pending, self._manifest.layout)
        replace_file(self.folder / name, data)
        frames = sum(map(len, self._pending))
        record = ShardRecord(name, sha256_of(data), len(data), len(self._pending), frames)
        sealed = self._manifest.with_shard(record)
        sealed.write(self.folder)
        self._manifest, self._pending = sealed, []


def _matching(folder: Path, layout: Layout, facts: dict[str, Any]) -> Manifest:
    """The manifest in a folder, or a new one; refuses to mix sources."""
    if not (folder / manifest.NAME).exists():
        expected = ("shards", "writer.lock", f".{manifest.NAME}.new")  # what a writer killed here leaves
        others = sorted(path.name for path in folder.iterdir() if path.name not in expected)
        if others or any((folder / "shards").glob("*.h5")):
            told = ", ".join(others[:3]) or "shards"
            raise ConfigMismatch(f"{folder} holds other files ({told}) and no data set; choose another folder.")
        fresh = Manifest(layout, facts)
        fresh.write(folder)
        return fresh
    found = read_manifest(folder)
    differing = sorted(key for key in {*found.facts, *facts} - {"library"} if found.facts.get(key) != facts.get(key))
    if differing:
        told = "; ".join(f"{key} is {found.facts.get(key)!r} there, {facts.get(key)!r} here" for key in differing)
        raise ConfigMismatch(f"{folder} was recorded from another source: {told}. Choose another folder.")
    if found.layout != layout:
        raise ConfigMismatch(f"{folder} holds {found.layout}, not {layout}. Choose another folder.")
    return found

"""What the system says about a disk as our own error, and a lock that a dead process does not hold."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lwm_env.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turns what the system says about a disk into a StorageError."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{what} failed: {error.strerror or error}. What was saved before is intact; make room or choose another "
            "folder, then run the same command again."
        ) from error


class WriterLock:
    """One writer per folder. The system frees the lock of a process that dies, so a stale one never stays."""

    def __init__(self, path: Path) -> None:
        """Raises StorageError, naming the process, while another one holds it."""
        self._file = path.open("a+b")
        try:
            _lock(self._file.fileno())
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read(20).decode(errors="replace").strip() or "unknown"
            self._file.close()
            raise StorageError(
                f"{path.parent} is being written by another process (pid {holder}). Wait until it is done, or choose "
                "another folder."
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()

    def release(self) -> None:
        """Give the lock back; the empty file stays, since removing it would race with the next writer."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # past the pid, which others must be able to read
    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

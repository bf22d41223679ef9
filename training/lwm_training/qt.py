"""Qt 5 for EnvPool's Procgen: its Linux wheels link against libraries that they do not bring."""

import ctypes
import importlib.util
import sys
from pathlib import Path

# In this order: each needs the ones before it.
_LIBRARIES = ("libicudata", "libicuuc", "libicui18n", "libQt5Core", "libQt5Gui")


def load_qt() -> bool:
    """Load the Qt of the PyQt5-Qt5 wheel, if there is one; returns whether it did.

    Must run before EnvPool is imported for the first time: EnvPool remembers that Qt was missing. Where the wheel is
    absent or does not load, the system's own Qt is left to be found.
    """
    if not sys.platform.startswith("linux"):
        return False
    found = importlib.util.find_spec("PyQt5")
    if found is None or not found.submodule_search_locations:
        return False
    folder = Path(next(iter(found.submodule_search_locations))) / "Qt5" / "lib"
    try:
        for name in _LIBRARIES:
            ctypes.CDLL(str(next(folder.glob(f"{name}.so.*"))), mode=ctypes.RTLD_GLOBAL)
    except (OSError, StopIteration):
        return False
    return True

"""Where the worlds of this user are kept. Imported with the package, so it stays light."""

import os
from pathlib import Path


def worlds_home() -> Path | None:
    """The folder of installed worlds, `$LWM_HOME/worlds` or `~/.lwm/worlds`; None for a user without a home."""
    if named := os.environ.get("LWM_HOME"):
        return Path(named).absolute() / "worlds"
    try:
        return Path.home() / ".lwm" / "worlds"
    except RuntimeError:
        return None

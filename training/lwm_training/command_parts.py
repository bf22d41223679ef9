"""What several commands share: facts as lines of text, and the world that an argument names."""

import json
from pathlib import Path
from typing import Any


def spec_of(source: str) -> Any:
    """The spec of a world or a recipe; None for the name of a game."""
    if source.endswith(".toml"):
        from lwm_training.recipe import load_recipe

        return load_recipe(source).world
    from lwm_env import worlds

    if source.startswith("LWM-") or source in worlds.shipped() or (Path(source) / worlds.MANIFEST).is_file():
        return worlds.read_spec(worlds.find(source))
    return None


def lines(facts: dict[str, Any]) -> str:
    """A line for each, `key: value`."""
    return "\n".join(f"{key}: {json.dumps(v) if isinstance(v, dict | list) else v}" for key, v in facts.items())

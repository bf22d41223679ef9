"""Where weights come from, for world.json: data, teacher, base, and the licences that all of them hand on."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from lwm_training.recipe import Data, Recipe


def provenance(
    recipe: Recipe,
    stages: Sequence[Mapping[str, Any]],
    started_from: Mapping[str, Any] | None,
    teacher: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The provenance of a world.

    Args:
        stages: name, steps and seconds of each.
        started_from: the base whose weights the run began with; None if it began anew.
        teacher: who was distilled; None for nobody.

    Returns:
        JSON. Under `licences` those of the recipe, of the recordings, of the teacher and of the base, and under
        `restricted` the licences of any of them that keep a world from becoming a default.
    """
    data = recorded_facts(recipe.data)
    origins = {"data": data or {}, "teacher": teacher or {}, "base": started_from or {}}
    return {
        "source": recipe.world.real.source,
        "licences": joined_licences(recipe.licences, {name: facts.get("licences") for name, facts in origins.items()}),
        "restricted": joined_restrictions(facts.get("restricted") for facts in origins.values()),
        "data": data,
        "recipe": json.loads(recipe.to_json()),
        "recipe_sha256": recipe.hash,
        "stages": list(stages),
        "torch": torch.__version__,
        "teacher": None if teacher is None else dict(teacher),
        "started_from": None if started_from is None else dict(started_from),
    }


def recorded_facts(data: Data) -> dict[str, Any] | None:
    """What dataset.json says of the recordings that a recipe learns from; None for a stream."""
    if data.kind == "stream":
        return None
    from lwm_training.episodes import EpisodeStore

    with EpisodeStore(str(data.path)) as store:
        return {**store.facts, "episodes": len(store), "frames": store.frames}


def joined_licences(own: Mapping[str, str], others: Mapping[str, Mapping[str, str] | None]) -> dict[str, str]:
    """One's own licences, and those of others that it is made from; where the same key says something else there, it is
    kept with its owner's name: `weights (teacher)`."""
    joined = dict(own)
    for owner, licences in others.items():
        for key, licence in (licences or {}).items():
            if joined.setdefault(key, licence) != licence:
                joined[f"{key} ({owner})"] = licence
    return joined


def joined_restrictions(found: Iterable[Sequence[str] | None]) -> list[str]:
    """All of them, each once."""
    return sorted({name for names in found for name in names or ()})

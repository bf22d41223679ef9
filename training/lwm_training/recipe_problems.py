"""What pydantic says of a recipe that does not fit, in words that name the place in the file."""

import difflib
import json
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def problems(error: ValidationError, document: dict[str, Any], root: type[BaseModel]) -> list[str]:
    """One line for each field of a document of the model `root` that does not fit; a field that may be of several kinds
    is named once."""
    lines: dict[str, str] = {}
    for entry in error.errors(include_url=False):
        place = _place(entry["loc"], document, keep_last=entry["type"] == "missing")
        if entry["type"] == "missing":
            lines[place] = f"{place} is missing"
        elif entry["type"] == "extra_forbidden":
            lines[place] = f"{place} is no key of a recipe. {_suggestion(entry['loc'], root)}"
        elif place in lines:
            lines[place] += f" or {_expected(entry)}"
        else:
            lines[place] = f"{place}: got {shown(entry['input'])}, expected {_expected(entry)}"
    return list(lines.values())


def _place(loc: tuple[str | int, ...], document: Any, keep_last: bool) -> str:
    """`train.stages[0].name`; what pydantic adds for the members of a union is not in the file and is left out."""
    place, node = "", document
    for item in loc:
        if isinstance(item, int):
            place += f"[{item}]"
            node = node[item] if isinstance(node, list) and item < len(node) else None
        elif isinstance(node, dict) and item in node:
            place += f".{item}"
            node = node[item]
    if keep_last and isinstance(loc[-1], str):
        place += f".{loc[-1]}"
    return place.lstrip(".")


def _expected(entry: Any) -> str:
    if entry["type"].startswith("union_tag"):
        return "a key kind of 'discrete' or 'continuous'"
    message = (
        entry["msg"].removeprefix("Value error, ").removeprefix("Input should be ").replace("an object", "a table")
    )
    return message[0].lower() + message[1:]


def _suggestion(loc: tuple[str | int, ...], root: type[BaseModel]) -> str:
    known = _known(loc[:-1], root)
    near = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known)}."


def _known(loc: tuple[str | int, ...], root: type[BaseModel]) -> list[str]:
    """The keys that the table at `loc` may have."""
    models = [root]
    for item in (item for item in loc if isinstance(item, str)):
        inner = [model.model_fields[item].annotation for model in models if item in model.model_fields]
        if inner:
            models = [found for annotation in inner for found in _models_in(annotation)]
        else:  # pydantic's tag of a union's member
            models = [model for model in models if model.model_fields["kind"].default == item]
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if get_args(annotation):
        return [found for inner in get_args(annotation) for found in _models_in(inner)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def shown(value: Any) -> str:
    """As JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."

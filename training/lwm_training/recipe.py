"""A recipe: the TOML file from which `lwm train` makes a world. Every key is checked before anything starts."""

import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from lwm_env.errors import ConfigMismatch
from lwm_env.spec import WorldSpec
from lwm_training.recipe_problems import problems, shown

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Text = Annotated[str, StringConstraints(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(_Strict):
    """`[model]`: a size from `lwm presets`, and numbers of it to change, such as `motion.dim = 48`."""

    preset: Literal["pico", "nano", "small", "base", "large"] = "nano"
    overrides: dict[str, int | float] = Field(default_factory=dict)  # dotted name -> number


class Data(_Strict):
    """`[data]`: real play, streamed from the game while training or read from what `lwm collect` stored."""

    kind: Literal["stream", "store"] = "stream"
    path: Text | None = None  # of the store, relative to the working directory
    num_envs: Positive = 64
    policy: Text = "sticky"
    prompt_policy: Text | None = None  # who plays what the prompt bank is chosen from, if not `policy`
    shard_steps: Positive = 256  # steps that every env plays for one shard
    shard_lasts: Positive = 200  # steps of training that draw their clips from one shard
    event_share: Annotated[float, Field(ge=0, le=1)] = 0.0  # of a stream's clips, drawn where a reward or an end is

    @model_validator(mode="after")
    def _path_of_a_store(self) -> "Data":
        if self.kind == "store" and self.path is None:
            raise ValueError('a path with kind = "store": the file that `lwm collect` wrote')
        if self.kind == "stream" and self.path is not None:
            raise ValueError('no path with kind = "stream", which reads none; or kind = "store"')
        if self.kind == "store" and self.prompt_policy is not None:
            raise ValueError('no prompt_policy with kind = "store", whose play is given; or kind = "stream"')
        return self


class Stage(_Strict):
    """`[[train.stages]]`: one phase of training, as long as `steps` or as `minutes` say."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$")]
    trains: Literal["tokenizer", "camera", "movers", "flow", "ahead", "events", "dynamics", "joint"]
    steps: Positive | None = None
    minutes: PositiveFloat | None = None  # of wall-clock time: such a run cannot be repeated bit for bit
    learning_rate: PositiveFloat
    batch_size: Positive | None = None  # clips in a step, if not `train.batch_size`
    event_share: Annotated[float, Field(ge=0, le=1)] | None = None  # of a stream, if not `data.event_share`
    shard_lasts: Positive | None = None  # likewise
    warmup: Annotated[int, Field(ge=0)] = 0  # steps over which the learning rate rises from 0
    decay: bool = True  # whether it falls in the second half
    unroll: Positive = 1  # steps predicted from the model's own output
    context: Positive = 6  # at most so many real frames before them
    dreamed: bool = False  # the camera is shown its own dream instead of the real world
    loss: dict[str, float] = Field(default_factory=dict)  # weight of each term; the trainer knows the names

    @model_validator(mode="after")
    def _one_length(self) -> "Stage":
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("either steps or minutes, not both")
        return self

    def data(self, given: Data) -> Data:
        """The recipe's data as this stage wants them."""
        own = {"event_share": self.event_share, "shard_lasts": self.shard_lasts}
        return given.model_copy(update={name: value for name, value in own.items() if value is not None})


class Train(_Strict):
    """`[train]`. In the file `steps` or `minutes` here stand for the same in every stage, as a trial run wants."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    batch_size: Positive
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    checkpoint_minutes: PositiveFloat = 5.0
    log_every: Positive = 50  # steps
    start: Text | None = None  # a world, by id or folder, whose weights a new run begins with
    only: tuple[str, ...] = ()  # names of the stages to run; empty: all
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of the mean of the weights (EMA) that is saved; 0: none
    recompute: bool = False  # blocks in the backward pass (gradient checkpointing): less memory, more time

    @model_validator(mode="after")
    def _distinct_names(self) -> "Train":
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"another name for each stage, got {', '.join(names)}")
        if set(self.only) - set(names):
            raise ValueError(f"only names of stages ({', '.join(names)}) in train.only, got {', '.join(self.only)}")
        return self

    @property
    def chosen(self) -> tuple[Stage, ...]:
        """The stages that are run."""
        return tuple(stage for stage in self.stages if not self.only or stage.name in self.only)


class Distill(_Strict):
    """`[distill]`: a larger world teaches this one, beside the real play; its terms in `loss` begin with `teacher_`."""

    teacher: Text  # a world, by id or folder
    take: tuple[Literal["tokenizer", "camera"], ...] = ()  # what a new run begins with the teacher's weights of


class Recipe(_Strict):
    """All that decides how a world is made. Frozen; its hash goes into the provenance of the weights."""

    world: WorldSpec
    licences: dict[str, str] = Field(default_factory=dict)  # of what the world is learned from; kept in world.json
    model: Model = Field(default_factory=Model)
    data: Data = Field(default_factory=Data)
    distill: Distill | None = None
    train: Train

    def to_json(self) -> str:
        """Canonical JSON, defaults and overrides included: the same recipe gives the same text on every machine."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def hash(self) -> str:
        """sha256 of `to_json()`, 64 hex digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a TOML file in UTF-8.
        overrides: `table.key=value` with a TOML value or a bare word, applied in order: `train.batch_size=8`,
            `train.steps=10` (every stage), `train.stages.0.unroll=4` or the stage's name in place of the number.
            `steps` replaces `minutes` and the reverse.

    Raises:
        ConfigMismatch: no such file, not TOML, or fields that are unknown, missing or not what is expected; all of
            them are named at once, each with what came and what was expected.
    """
    return check_document(read_document(Path(path)), str(path), overrides)


def read_document(path: Path) -> dict[str, Any]:
    """What the TOML of a recipe parses to, unchecked; ConfigMismatch if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.toml")])
        hint = f" Did you mean {path.with_name(near[0])}?" if near else ""
        raise ConfigMismatch(f"The recipe {path} cannot be read: {error.strerror}.{hint}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigMismatch(f"The recipe {path} is not valid TOML: {error}") from error


def check_document(document: dict[str, Any], where: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a document (what TOML parses to; it is changed) and overrides make; raises as `load_recipe`."""
    where = f"{where} with {' '.join(overrides)}" if overrides else where
    for override in overrides:
        _apply(document, override)
    _expand(document)
    found = list(_not_json(document, ""))
    if not found:
        try:  # as JSON: lists may become tuples and integers floats, and nothing else is converted
            return Recipe.model_validate_json(json.dumps(document), strict=True)
        except ValidationError as error:
            found = problems(error, document, Recipe)
    raise ConfigMismatch(f"The recipe {where} does not fit:\n" + "\n".join(f"  {problem}" for problem in found))


def _apply(document: dict[str, Any], override: str) -> None:
    """Set one `table.key=value` in the document, making tables that are absent."""
    place, equals, text = override.partition("=")
    keys = re.sub(r"\[(\d+)\]", r".\1", place.strip()).split(".")
    if not equals or not all(keys):
        raise ConfigMismatch(f"The override {override!r} is not of the form table.key=value, as in train.batch_size=8")
    node: Any = document
    for key in keys[:-1]:
        node = _element(node, key, override) if isinstance(node, list) else node.setdefault(key, {})
        if not isinstance(node, dict | list):
            raise ConfigMismatch(f"The override {override!r} takes {key} for a table, but it is {shown(node)}")
    if isinstance(node, list):
        raise ConfigMismatch(f"The override {override!r} sets one element; give the whole list: {keys[-2]}=[1, 2]")
    node[keys[-1]] = _value(text)
    if keys[0] == "train" and keys[-1] in ("steps", "minutes"):
        node.pop("minutes" if keys[-1] == "steps" else "steps", None)


def _element(tables: list[Any], key: str, override: str) -> Any:
    """The table of that number or of that name."""
    names = [str(table.get("name")) if isinstance(table, dict) else "" for table in tables]
    if key.isdecimal() and int(key) < len(tables):
        return tables[int(key)]
    if key in names:
        return tables[names.index(key)]
    raise ConfigMismatch(f"The override {override!r} names {key!r}; expected 0 to {len(tables) - 1} or one of {names}")


def _value(text: str) -> Any:
    """A TOML value; what is none is a bare word, so that a shell needs no second pair of quotes."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except ValueError:
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text.strip()


def _expand(document: dict[str, Any]) -> None:
    """Write out the two short forms: `train.steps` for every stage, and `motion.dim` as a nested table."""
    train, model = document.get("train"), document.get("model")
    stages = train.get("stages") if isinstance(train, dict) else None
    if isinstance(stages, list):
        length = {key: train.pop(key) for key in ("steps", "minutes") if key in train}
        for stage in stages if length else ():
            if isinstance(stage, dict):
                stage.pop("steps", None)
                stage.pop("minutes", None)
                stage.update(length)
    if isinstance(model, dict) and isinstance(model.get("overrides"), dict):
        model["overrides"] = dict(_flat(model["overrides"], ""))


def _flat(table: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _not_json(node: Any, place: str) -> Iterator[str]:
    """TOML has dates, times, nan and inf, which no field takes."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _not_json(value, f"{place}.{key}" if place else key)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _not_json(value, f"{place}[{index}]")
    elif isinstance(node, float) and not math.isfinite(node):
        yield f"{place}: got {node}, expected a finite number"
    elif not isinstance(node, str | int | float | bool):
        yield f"{place}: got {node}, expected text or a number, not a date or time"

"""The evaluation report: figures with intervals, as a strict JSON record and as a table."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lwm_training.evaluate import Measured, horizons_until
from lwm_training.event_metrics import THRESHOLDS, Counts, Happenings, count_ends, count_rewards
from lwm_training.metrics import colour_distance, psnr
from lwm_training.tally import Tally, interval, resampling

FORMAT = 1
PACKAGES = ("lwm-env", "torch", "numpy", "envpool", "gymnasium", "pettingzoo")

# Rows of the table in order: name, what it is, unit, decimals.
ROWS: tuple[tuple[str, str, str, int], ...] = (
    ("psnr", "PSNR of the dream", "dB", 2),
    ("psnr_copy", "PSNR of copying the last context frame", "dB", 2),
    ("psnr_codec", "PSNR of the real frame through the tokenizer", "dB", 2),
    ("psnr_over_copy", "PSNR of the dream over copying", "dB", 2),
    ("psnr_seen", "PSNR on pixels that the context has shown", "dB", 2),
    ("seen_share", "share of such pixels", "", 2),
    ("camera", "distance of the dreamed camera from the real one", "px", 2),
    ("on_course", "share of cameras less than a pixel off", "", 2),
    ("ssim", "SSIM of the dream", "", 3),
    ("ssim_copy", "SSIM of copying", "", 3),
    ("ssim_codec", "SSIM of the tokenizer", "", 3),
    ("sharpness", "Laplacian energy, dream over real", "", 2),
    ("sharpness_codec", "Laplacian energy, tokenizer over real", "", 2),
    ("colour_distance", "share of pixels of another colour (512 bins)", "", 3),
    ("control", "PSNR lost with random actions", "dB", 2),
    ("surprise", "mean entropy of a token", "nats", 3),
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Strict):
    """A value and its 95 % bootstrap interval over clips; null where there is none, or where frames are identical and
    their PSNR is infinite."""

    value: float | None
    low: float | None = None
    high: float | None = None


class EventFigures(_Strict):
    """Events found within the tolerance, false and missed ones, and what follows from them."""

    precision: Figure
    recall: Figure
    f1: Figure
    false_per_1000_frames: Figure
    found: int
    false: int
    missed: int


class Protocol(_Strict):
    """What decides the figures."""

    source: str  # of the real clips: the game, or the folder of a data set
    split: str | None  # whose levels; null where the data set does not tell
    policy: str | None  # null for a data set
    seed: int
    num_clips: int
    context: int  # real frames given
    horizon: int  # steps dreamed
    temperature: float
    termination_threshold: float


class Report(_Strict):
    """What `lwm evaluate` found. Horizons are keys as texts, since JSON has no others."""

    format: int = Field(default=FORMAT, ge=FORMAT, le=FORMAT)
    world: str
    weights: str  # sha256 of the weight file
    protocol: Protocol
    running_clips: dict[str, int]  # horizon -> clips whose episode still runs; figures up to 60 are of those alone
    rows: dict[str, dict[str, Figure]]  # see ROWS
    rewards: EventFigures
    terminations: EventFigures
    curves: dict[str, list[float | None]]  # per step from 1, for the plots
    threshold_f1: list[float | None]  # termination F1 at thresholds 0.01 to 0.99, on these clips: not to choose by
    versions: dict[str, str]
    device: str
    seconds: dict[str, float]

    def to_json(self) -> str:
        """Strict JSON, without NaN."""
        return json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """Python and the packages that the figures may depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def build(measured: Measured, protocol: Protocol, identity: Mapping[str, str], seconds: Mapping[str, float]) -> Report:
    """Pool what was measured.

    Args:
        identity: world, weights and device.
        seconds: how long each part took.
    """
    weights = resampling(len(measured.happenings.valid), protocol.seed)
    horizons, truth = horizons_until(protocol.horizon), measured.happenings.valid.shape[1]
    valid = measured.happenings.valid
    ends, rewards = _events(measured.happenings, protocol.termination_threshold)
    curve = [count_ends(measured.happenings, threshold).scores()[2] for threshold in THRESHOLDS]
    return Report(
        **identity,
        protocol=protocol,
        running_clips={str(step): int(valid[:, min(step, truth) - 1].sum()) for step in horizons if step <= truth},
        rows=_rows(measured, horizons, weights),
        rewards=_event_figures(rewards, weights),
        terminations=_event_figures(ends, weights),
        curves={name: _numbers(values) for name, values in _curves(measured.tallies).items()},
        threshold_f1=_numbers(curve),
        versions=versions(),
        seconds={name: round(value, 1) for name, value in seconds.items()},
    )


def _events(happenings: Happenings, threshold: float) -> tuple[Counts, Counts]:
    values, counts = np.unique(happenings.real_rewards[happenings.valid], return_counts=True)
    neutral = 0.0 if 0 in values or not len(values) else float(values[counts.argmax()])
    return count_ends(happenings, threshold), count_rewards(happenings, threshold, neutral)


def _rows(measured: Measured, horizons: Sequence[int], weights: np.ndarray) -> dict[str, dict[str, Figure]]:
    tallies = measured.tallies
    rows = {
        name: _figures(tally.at([step for step in horizons if step in tally.steps]), weights, decibel)
        for name, tally, decibel in (
            ("psnr", tallies["dream"], True),
            ("psnr_copy", tallies["copy"], True),
            ("psnr_codec", tallies["codec"], True),
            ("psnr_seen", tallies["seen"], True),
            ("seen_share", tallies["seen_share"], False),
            ("camera", tallies["camera"].at(tallies["codec"].steps), False),
            ("on_course", tallies["on_course"].at(tallies["codec"].steps), False),
            ("ssim", tallies["dream_ssim"], False),
            ("ssim_copy", tallies["copy_ssim"], False),
            ("ssim_codec", tallies["codec_ssim"], False),
            ("sharpness", tallies["sharpness"], False),
            ("sharpness_codec", tallies["codec_sharpness"], False),
            ("surprise", tallies["surprise"], False),
        )
    }
    rows["psnr_over_copy"] = _difference(tallies["dream"].at(tallies["codec"].steps), tallies["copy"], weights)
    rows["control"] = _difference(tallies["dream"].at(tallies["control"].steps), tallies["control"], weights)
    rows["colour_distance"] = {
        str(step): Figure(value=_number(colour_distance(dreamed.sum(0), measured.real_colours[step].sum(0))))
        for step, dreamed in measured.dreamed_colours.items()
    }
    return {name: rows[name] for name, *_ in ROWS}


def _figures(tally: Tally, weights: np.ndarray, decibel: bool) -> dict[str, Figure]:
    values = interval(lambda w: psnr(tally.ratio(w)) if decibel else tally.ratio(w), weights)
    return _by_step(tally.steps, values)


def _difference(ours: Tally, other: Tally, weights: np.ndarray) -> dict[str, Figure]:
    """PSNR of ours over the other's, clips drawn together."""
    other = other.at(ours.steps)
    with np.errstate(invalid="ignore"):
        values = interval(lambda w: psnr(ours.ratio(w)) - psnr(other.ratio(w)), weights)
    return _by_step(ours.steps, values)


def _by_step(steps: Sequence[int], values: np.ndarray) -> dict[str, Figure]:
    return {str(step): _figure(row) for step, row in zip(steps, values, strict=True)}


def _event_figures(counts: Counts, weights: np.ndarray) -> EventFigures:
    figures = [_figure(row) for row in interval(counts.scores, weights)]
    names = ("precision", "recall", "f1", "false_per_1000_frames")
    totals = {name: int(getattr(counts, name).sum()) for name in ("found", "false", "missed")}
    return EventFigures(**dict(zip(names, figures, strict=True)), **totals)


def _curves(tallies: Mapping[str, Tally]) -> dict[str, np.ndarray]:
    """Per-step lines: PSNR of dream, copying and seen pixels, sharpness, surprise."""
    steps = tallies["dream"].steps
    lines = {f"psnr_{name}": psnr(tallies[name].ratio()) for name in ("dream", "copy", "seen")}
    return lines | {name: tallies[name].at(steps).ratio() for name in ("sharpness", "surprise")}


def _figure(row: np.ndarray) -> Figure:
    value, low, high = (_number(x) for x in row)
    return Figure(value=value, low=low, high=high)


def _number(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _numbers(values: Sequence[float] | np.ndarray) -> list[float | None]:
    return [_number(value) for value in values]


def as_table(report: Report) -> str:
    """The figures as text: a row each, a column for each horizon, the half-width of the interval beside the value."""
    horizons = list(report.rows["sharpness"])
    head = ["after steps", *horizons]
    lines = [head, ["clips still running", *(str(report.running_clips.get(step, "-")) for step in horizons)]]
    for name, _, unit, decimals in ROWS:
        cells = [_cell(report.rows[name].get(step), decimals) for step in horizons]
        lines.append([f"{name} [{unit}]" if unit else name, *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, "", *(_event_line(name, getattr(report, name)) for name in ("rewards", "terminations"))])


def _cell(figure: Figure | None, decimals: int) -> str:
    if figure is None or figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.{decimals}f}"
    return f"{figure.value:.{decimals}f} ±{(figure.high - figure.low) / 2:.{decimals}f}"


def _event_line(name: str, events: EventFigures) -> str:
    scores = ", ".join(
        f"{label} {_cell(figure, 2)}"
        for label, figure in (("F1", events.f1), ("precision", events.precision), ("recall", events.recall))
    )
    return (
        f"{name}: {scores} ({events.found} found, {events.false} false, {events.missed} missed);"
        f" {_cell(events.false_per_1000_frames, 2)} false per 1,000 frames"
    )

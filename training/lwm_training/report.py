"""The evaluation report: figures with intervals, as a strict JSON record and as a table."""

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass

from lwm_training.evaluate import Measured, horizons_until
from lwm_training.event_metrics import THRESHOLDS, count_ends
from lwm_training.report_record import ROWS, Distance, EventFigures, Figure, MemoryFigures, Protocol, Report
from lwm_training.report_rows import (
    curves_of,
    distances_of,
    event_figures,
    events_of,
    memory_of,
    numbers,
    outcome_rows,
    rows_of,
)
from lwm_training.tally import Tally, resampling

PACKAGES = ("lwm-env", "torch", "numpy", "envpool", "gymnasium", "pettingzoo")


def versions() -> dict[str, str]:
    """Python and the packages that the figures may depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class More:
    """What a full evaluation has besides: fewer clips dreamed for longer, walks there and back, and what is missing."""

    long: Measured | None = None
    walks: Mapping[str, Tally] | None = None
    notes: tuple[str, ...] = ()


def build(
    measured: Measured,
    protocol: Protocol,
    identity: Mapping[str, str],
    seconds: Mapping[str, float],
    more: More | None = None,
) -> Report:
    """Pool what was measured.

    Args:
        identity: world, weights and device.
        seconds: how long each part took.
    """
    more = more or More()
    weights = resampling(len(measured.happenings.valid), protocol.seed)
    horizons, truth = horizons_until(protocol.horizon), measured.happenings.valid.shape[1]
    valid = measured.happenings.valid
    running = {str(step): int(valid[:, min(step, truth) - 1].sum()) for step in horizons if step <= truth}
    rows, distances = rows_of(measured, horizons, weights), distances_of(measured, protocol.seed)
    rows |= outcome_rows(measured.happenings, protocol.termination_threshold, horizons, weights)
    running |= _running_far(measured)
    if more.long:
        for name, figures in _long_rows(more.long, protocol).items():
            rows.setdefault(name, {}).update(figures)
        for name, figures in distances_of(more.long, protocol.seed).items():
            both = figures | distances.get(name, {})  # of 16 frames those of all clips, if there are enough
            distances[name] = dict(sorted(both.items(), key=lambda item: int(item[0])))
        far = _running_far(more.long)
        running |= {step: count for step, count in far.items() if int(step) > protocol.horizon}
    ends, rewards = events_of(measured.happenings, protocol.termination_threshold)
    curve = [count_ends(measured.happenings, threshold).scores()[2] for threshold in THRESHOLDS]
    return Report(
        **identity,
        protocol=protocol,
        running_clips=running,
        rows=rows,
        rewards=event_figures(rewards, weights),
        terminations=event_figures(ends, weights),
        distances=distances,
        memory=memory_of(more.walks, protocol.seed) if more.walks else {},
        notes=more.notes,
        curves={name: numbers(values) for name, values in curves_of(measured.tallies).items()},
        threshold_f1=numbers(curve),
        versions=versions(),
        seconds={name: round(value, 1) for name, value in seconds.items()},
    )


def _long_rows(long: Measured, protocol: Protocol) -> dict[str, dict[str, Figure]]:
    """Figures at horizons beyond those of all clips."""
    last = max(long.dreamed_colours)
    rows = rows_of(long, horizons_until(last), resampling(len(long.happenings.valid), protocol.seed))
    return {
        name: {step: figure for step, figure in figures.items() if int(step) > protocol.horizon}
        for name, figures in rows.items()
    }


def _running_far(measured: Measured) -> dict[str, int]:
    tally = measured.tallies.get("dream_far")
    return {} if tally is None else dict(zip(map(str, tally.steps), (tally.counts > 0).sum(0).tolist(), strict=True))


def as_table(report: Report) -> str:
    """The figures as text: a row each, a column for each horizon, the half-width of the interval beside the value."""
    horizons = list(report.rows["sharpness"])
    head = ["after steps", *horizons]
    lines = [head, ["clips still running", *(str(report.running_clips.get(step, "-")) for step in horizons)]]
    for name, _, unit, decimals in ROWS:
        if name not in report.rows:
            continue
        cells = [_cell(report.rows[name].get(step), decimals) for step in horizons]
        lines.append([f"{name} [{unit}]" if unit else name, *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    events = [_event_line(name, getattr(report, name)) for name in ("rewards", "terminations")]
    distances = [_distance_line(name, figures) for name, figures in report.distances.items()]
    return "\n".join([*table, "", *events, *distances, *(_memory_line(*walk) for walk in report.memory.items())])


def _distance_line(name: str, figures: Mapping[str, Distance]) -> str:
    parts = []
    for frames, distance in figures.items():
        times = "" if distance.over_floor is None else f", {distance.over_floor:.2f} times it"
        found = f"{distance.dreamed:.3f} (real halves {distance.floor:.3f}{times}; {distance.num_clips} clips)"
        parts.append(f"{frames} frames {found}")
    return f"{name}: {', '.join(parts)}"


def _memory_line(length: str, walk: MemoryFigures) -> str:
    return (
        f"memory: {length} steps right and back: {walk.returned} of {walk.walks} real cameras returned,"
        f" from {_cell(walk.gone, 1)} px away;"
        f" PSNR {_cell(walk.psnr, 2)} dB (start against return in the real game {_cell(walk.psnr_real, 2)});"
        f" {_cell(walk.place, 2)} px off; same place {_cell(walk.same, 2)}"
    )


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

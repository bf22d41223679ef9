"""Figures with intervals out of what was measured."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lwm_training.distribution import against_floor, frechet, kernel_distance
from lwm_training.evaluate import Measured
from lwm_training.event_metrics import Counts, Happenings, count_ends, count_rewards, outcomes
from lwm_training.metrics import colour_distance, psnr
from lwm_training.readings import WINDOW
from lwm_training.report_record import ROWS, Distance, EventFigures, Figure, MemoryFigures
from lwm_training.tally import Tally, interval, resampling


def rows_of(measured: Measured, horizons: Sequence[int], weights: np.ndarray) -> dict[str, dict[str, Figure]]:
    """Figures by row and horizon, those rows that were measured."""
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
    if "age" in tallies:
        rows["age"] = _figures(tallies["age"], weights, False)
    if "dream_far" in tallies:
        far = {"psnr": tallies["dream_far"], "psnr_copy": tallies["copy_far"]}
        for name, tally in far.items():
            rows[name] |= _figures(tally, weights, True)
        rows["psnr_over_copy"] |= _difference(far["psnr"], far["psnr_copy"], weights)
    if "idm" in tallies:
        rows["idm"], rows["idm_real"] = (_figures(tallies[name], weights, False) for name in ("idm", "idm_real"))
        rows["idm_over_real"] = _quotient(tallies["idm"], tallies["idm_real"], weights)
    return {name: rows[name] for name, *_ in ROWS if name in rows}


def _figures(tally: Tally, weights: np.ndarray, decibel: bool) -> dict[str, Figure]:
    values = interval(lambda w: psnr(tally.ratio(w)) if decibel else tally.ratio(w), weights)
    return _by_step(tally.steps, values)


def _difference(ours: Tally, other: Tally, weights: np.ndarray) -> dict[str, Figure]:
    """PSNR of ours over the other's, clips drawn together."""
    other = other.at(ours.steps)
    with np.errstate(invalid="ignore"):
        values = interval(lambda w: psnr(ours.ratio(w)) - psnr(other.ratio(w)), weights)
    return _by_step(ours.steps, values)


def _quotient(ours: Tally, other: Tally, weights: np.ndarray) -> dict[str, Figure]:
    """Our figure over the other's, clips drawn together."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values = interval(lambda w: ours.ratio(w) / other.ratio(w), weights)
    return _by_step(ours.steps, values)


def _by_step(steps: Sequence[int], values: np.ndarray) -> dict[str, Figure]:
    return {str(step): _figure(row) for step, row in zip(steps, values, strict=True)}


def curves_of(tallies: Mapping[str, Tally]) -> dict[str, np.ndarray]:
    """Per-step lines: PSNR of dream, copying and seen pixels, sharpness, surprise."""
    steps = tallies["dream"].steps
    lines = {f"psnr_{name}": psnr(tallies[name].ratio()) for name in ("dream", "copy", "seen")}
    return lines | {name: tallies[name].at(steps).ratio() for name in ("sharpness", "surprise")}


def events_of(happenings: Happenings, threshold: float) -> tuple[Counts, Counts]:
    """Ends and rewards that were found, false and missed; the reward nearest to 0 is none."""
    return count_ends(happenings, threshold), count_rewards(happenings, threshold, _neutral(happenings))


def outcome_rows(
    happenings: Happenings, threshold: float, horizons: Sequence[int], weights: np.ndarray
) -> dict[str, dict[str, Figure]]:
    """Shares of the clips of which something has come by then, see `outcomes`; without ends where there are none."""
    steps = tuple(range(1, happenings.valid.shape[1] + 1))
    known = [step for step in horizons if step <= len(steps)]
    came = outcomes(happenings, threshold, _neutral(happenings))
    ends = came["ended"].any() or came["ended_real"].any()
    return {
        name: _figures(Tally(steps, values, np.ones_like(values)).at(known), weights, False)
        for name, values in came.items()
        if ends or not name.startswith("ended")
    }


def _neutral(happenings: Happenings) -> float:
    return float(min(np.unique(happenings.real_rewards[happenings.valid]), key=abs, default=0.0))


def event_figures(counts: Counts, weights: np.ndarray) -> EventFigures:
    """Scores of events with their intervals."""
    figures = [_figure(row) for row in interval(counts.scores, weights)]
    names = ("precision", "recall", "f1", "false_per_1000_frames")
    totals = {name: int(getattr(counts, name).sum()) for name in ("found", "false", "missed")}
    return EventFigures(**dict(zip(names, figures, strict=True)), **totals)


def distances_of(measured: Measured, seed: int) -> dict[str, dict[str, Distance]]:
    """Of everything that clips were described by; see `Report.distances`."""
    found: dict[str, dict[str, Distance]] = {}
    for name, sides in measured.descriptors.items():
        kind, _, frames = name.partition("_")
        kinds = {"fvd_i3d": frechet} if kind == "i3d" else {"fd_idm": frechet, "kd_idm": kernel_distance}
        for row, distance in kinds.items():
            result = against_floor(*sides, distance, seed)
            if result is not None:
                over = result.dreamed / result.floor if distance is frechet and result.floor > 0 else None
                figures = {"dreamed": result.dreamed, "floor": result.floor, "over_floor": over}
                rounded = {key: value if value is None else round(value, 4) for key, value in figures.items()}
                found.setdefault(row, {})[frames or str(WINDOW)] = Distance(**rounded, num_clips=result.num_clips)
    return found


def memory_of(tallies: Mapping[str, Tally], seed: int) -> dict[str, MemoryFigures]:
    """Of walks there and back, by the steps to the right."""
    weights = resampling(len(tallies["returned"].totals), seed)
    rows = {
        "psnr": _figures(tallies["dream"], weights, True),
        "psnr_real": _figures(tallies["real"], weights, True),
        "gone": _figures(tallies["gone"], weights, False),
        "place": _figures(tallies["place"], weights, False),
        "same": _figures(tallies["same"], weights, False),
    }
    walks, returned = tallies["returned"].counts.sum(0), tallies["returned"].totals.sum(0)
    return {
        str(step): MemoryFigures(
            walks=int(walks[column]),
            returned=int(returned[column]),
            **{name: row[str(step)] for name, row in rows.items()},
        )
        for column, step in enumerate(tallies["returned"].steps)
    }


def _figure(row: np.ndarray) -> Figure:
    value, low, high = (_number(x) for x in row)
    return Figure(value=value, low=low, high=high)


def _number(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def numbers(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Rounded for JSON; null where not finite."""
    return [_number(value) for value in values]

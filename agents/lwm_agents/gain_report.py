"""What a dream saves in frames of the real game, as a strict JSON record, a table and a plot."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lwm_agents.gain import ALONE, Curve, Gain, GainRun, gains, stack
from lwm_agents.report_files import Report, Strict, as_png, made_by, new_canvas, write_files
from lwm_agents.transfer import Figure, mean_return

FORMAT = 1
RECORD, TABLE, PLOT = "gain.json", "gain.md", "gain.png"
LABELS = {ALONE: "the real game alone", "dream": "the dream, then the real game"}
LABELS["renewed"] = "a renewed dream, then the real game"


class Line(Strict):
    """A kind of policy; means over seeds and episodes."""

    frames: list[int]  # of the real game
    returns: list[Figure]  # after so many


class Saved(Strict):
    """See `lwm_agents.gain.Gain`."""

    frames: int
    alone: float | None
    times: float | None
    low: float | None
    high: float | None


class GainReport(Report):
    """What `lwm agent gain` found, of a world before it was renewed. Intervals are of a bootstrap over seeds and
    episodes."""

    format: int = FORMAT
    refresh: dict[str, Any] | None  # see RefreshConfig
    lines: dict[str, Line]  # by kind of policy
    gains: dict[str, list[Saved]]  # of each kind but the real game alone, after each number of frames
    curves: list[dict[str, Any]]  # see Curve: every episode


def build(made: GainRun, curves: Sequence[Curve]) -> GainReport:
    """Pool what the curves show."""
    stacked = {kind: stack(curves, kind) for kind in made.kinds}
    refresh = None if made.refresh is None else {**asdict(made.refresh), "recipe": made.refresh.recipe.name}
    return GainReport(
        **made_by(made.run),
        refresh=refresh,
        lines={
            kind: Line(
                frames=[int(count) for count in frames],
                returns=[mean_return(returns[:, i]) for i in range(len(frames))],
            )
            for kind, (frames, returns) in stacked.items()
        },
        gains={kind: [_saved(gain) for gain in found] for kind, found in gains(stacked).items()},
        curves=[asdict(curve) for curve in curves],
    )


def _saved(gain: Gain) -> Saved:
    return Saved(**asdict(gain), times=gain.times)


def as_row(curve: Curve) -> dict[str, Any]:
    """One policy in a few numbers: its mean return by how many frames of the real game it had seen."""
    returns = {
        count: round(float(np.mean(each.returns)), 4) for count, each in zip(curve.frames, curve.played, strict=True)
    }
    return {"seed": curve.seed, "policy": curve.kind, "returns": returns}


def as_table(report: GainReport) -> str:
    """Markdown."""
    alone = dict(zip(report.lines[ALONE].frames, report.lines[ALONE].returns, strict=True))
    heads, cells = [LABELS[ALONE]], {count: [_told(alone.get(count))] for count in _counts(report)}
    for kind, found in report.gains.items():
        heads += [LABELS[kind], "for which the real game alone takes"]
        told = dict(zip(report.lines[kind].frames, zip(report.lines[kind].returns, found, strict=True), strict=True))
        most = max(alone)
        for count, row in cells.items():
            row += [_told(told[count][0]), _needed(told[count][1], most)] if count in told else ["", ""]
    lines = [f"| frames of the real game | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    lines += [f"| {count:,} | {' | '.join(row)} |" for count, row in cells.items()]
    config = report.config
    told = (
        f"{report.world}, {report.tell_dream()}; seeds: {config['num_seeds']}, steps in the dream: "
        f"{config['training']['num_steps']:,}, returns in {config['num_episodes']} episodes of the real game on levels "
        f"of the split {config['split']!r}; policies see {config['training']['sees']}; in brackets 95 % of a bootstrap "
        f"over seeds and episodes. {report.machine}."
    )
    return "\n".join([*lines, "", told, ""])


def _counts(report: GainReport) -> list[int]:
    return sorted({count for line in report.lines.values() for count in line.frames})


def _told(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"


def _needed(saved: Saved, most: int) -> str:
    """Frames, rounded to thousands, and how many times as many that are."""
    alone, low, high = (
        f"over {most:,}" if count is None else f"{round(count, -3):,.0f}"
        for count in (saved.alone, saved.low, saved.high)
    )
    times = "" if saved.times is None else f", {saved.times:.1f} times as many"
    return f"{alone} ({low} to {high}){times}"


def write(folder: Path, report: GainReport) -> None:
    """Write `gain.json`, `gain.md` and, where matplotlib is installed, `gain.png`. Raises StorageError."""
    write_files(folder, {RECORD: report.to_json().encode(), TABLE: as_table(report).encode(), PLOT: plot(report)})


def plot(report: GainReport) -> bytes | None:
    """A PNG: returns by frames of the real game, with their intervals; None without matplotlib."""
    canvas = new_canvas((6, 4))
    if canvas is None:
        return None
    axes = canvas.subplots()
    for x, (kind, line) in enumerate(report.lines.items()):
        low, high = ([getattr(figure, end) for figure in line.returns] for end in ("low", "high"))
        axes.plot(line.frames, [figure.value for figure in line.returns], "o-", color=f"C{x}", label=LABELS[kind])
        axes.fill_between(line.frames, low, high, color=f"C{x}", alpha=0.2, linewidth=0)
    axes.set(xlabel="frames of the real game", ylabel="return of an episode", title=report.world)
    axes.legend(fontsize="small")
    return as_png(canvas)

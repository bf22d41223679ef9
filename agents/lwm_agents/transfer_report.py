"""The dream-to-real report as a strict JSON record, a table and a plot. Shapes: S seeds, E episodes."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lwm_agents.dream_to_real import KINDS, TransferRun, Trial
from lwm_agents.report_files import Report, Strict, as_png, made_by, new_canvas, write_files
from lwm_agents.transfer import Figure, dream_minus_real, dream_over_real, mean_return, transfer_ratio

FORMAT = 1
RECORD, TABLE, PLOT = "report.json", "report.md", "report.png"
LABELS = {"random": "random actions", "real": "PPO, real game", "dream": "PPO, dream"}


class Training(Strict):
    """What a training cost; means over the seeds."""

    num_timesteps: int  # of each policy
    seconds: float  # wall time, policy updates included
    steps_per_second: float


class TransferReport(Report):
    """What `lwm agent report` found. Intervals are of a bootstrap over seeds and episodes."""

    format: int = FORMAT
    return_real: dict[str, Figure]  # in the real game, by kind of policy
    return_dream: Figure  # in the dream, of the policies that learned there
    transfer_ratio: Figure
    dream_over_real: Figure  # of the return of the policies that learned in the dream
    dream_minus_real: Figure
    training: dict[str, Training]  # "real" and "dream"
    trials: list[dict[str, Any]]  # see Trial: every episode


def build(run: TransferRun, trials: Sequence[Trial]) -> TransferReport:
    """Pool what the trials reached."""
    real = {kind: returns_of(trials, kind, "real") for kind in KINDS}
    dreamed = returns_of(trials, "dream", "dream")
    return TransferReport(
        **made_by(run),
        return_real={kind: mean_return(returns) for kind, returns in real.items()},
        return_dream=mean_return(dreamed),
        transfer_ratio=transfer_ratio(**real),
        dream_over_real=dream_over_real(dreamed, real["dream"]),
        dream_minus_real=dream_minus_real(dreamed, real["dream"]),
        training={kind: _cost([trial for trial in trials if trial.kind == kind]) for kind in ("real", "dream")},
        trials=[asdict(trial) for trial in trials],
    )


def as_row(trial: Trial) -> dict[str, Any]:
    """One policy in a few numbers: its mean return and how many episodes, by place."""
    row = {
        "seed": trial.seed,
        "policy": trial.kind,
        "steps": trial.num_timesteps,
        "seconds": round(trial.train_seconds),
    }
    return row | {place: round(float(np.mean(played.returns)), 4) for place, played in trial.played.items()}


def returns_of(trials: Sequence[Trial], kind: str, place: str) -> np.ndarray:
    """Returns (S, E) of the policies of a kind in a place."""
    return np.array([trial.played[place].returns for trial in trials if trial.kind == kind])


def _cost(trials: Sequence[Trial]) -> Training:
    steps, seconds = trials[0].num_timesteps, float(np.mean([trial.train_seconds for trial in trials]))
    return Training(num_timesteps=steps, seconds=seconds, steps_per_second=steps / seconds)


def as_table(report: TransferReport) -> str:
    """Markdown."""
    lines = [
        "| policy | return in the real game | steps | return in the dream | steps | training | env-steps/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        cost = report.training.get(kind)
        played = [_told(report.return_real[kind]), _steps(report, kind, "real")]
        played += [_told(report.return_dream), _steps(report, kind, "dream")] if kind == "dream" else ["", ""]
        paid = [f"{cost.seconds:,.0f} s", f"{cost.steps_per_second:,.0f}"] if cost else ["", ""]
        lines.append(f"| {' | '.join([LABELS[kind], *played, *paid])} |")
    steps, config = report.training["dream"].num_timesteps, report.config
    dreams = config["num_dream_episodes"] or config["num_episodes"]
    how = "the likeliest actions" if config["deterministic"] else "actions drawn as in training"
    told = (
        "",
        f"Transfer ratio {_told(report.transfer_ratio)}. Policies that learned in the dream: their return there over "
        f"that in the real game {_told(report.dream_over_real)}, the difference {_told(report.dream_minus_real)}.",
        "",
        f"{report.world}, {report.tell_dream()}; seeds: {config['num_seeds']}, "
        f"steps of each: {steps:,}, episodes: {config['num_episodes']} ({dreams} in the dream), on levels of the split "
        f"{config['split']!r}, "
        f"{how}, policies see {config['training']['sees']}; in brackets 95 % of a bootstrap over seeds and episodes. "
        f"{report.machine}.",
        "",
    )
    return "\n".join([*lines, *told])


def _steps(report: TransferReport, kind: str, place: str) -> str:
    """The mean length of an episode."""
    played = [trial["played"][place]["lengths"] for trial in report.trials if trial["kind"] == kind]
    return f"{np.mean(played):,.0f}"


def _told(figure: Figure) -> str:
    if figure.value is None:
        return "undefined (its denominator is not positive)"
    if figure.low is None:
        return f"{figure.value:.2f} (no interval)"
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"


def write_report(folder: Path, report: TransferReport) -> None:
    """Write `report.json`, `report.md` and, where matplotlib is installed, `report.png`. Raises StorageError."""
    write_files(folder, {RECORD: report.to_json().encode(), TABLE: as_table(report).encode(), PLOT: plot(report)})


def plot(report: TransferReport) -> bytes | None:
    """A PNG: returns with their intervals, a dot for each seed, and what training cost; None without matplotlib."""
    canvas = new_canvas((9, 4))
    if canvas is None:
        return None
    left, right = canvas.subplots(1, 2, width_ratios=[2, 1])
    rows = [(LABELS[kind], kind, "real", report.return_real[kind]) for kind in KINDS]
    rows.append(("PPO, dream,\nin the dream", "dream", "dream", report.return_dream))
    for x, (_, kind, place, figure) in enumerate(rows):
        colour = f"C{x}"
        left.bar(x, figure.value, 0.6, color=colour, alpha=0.5)
        left.vlines(x, figure.low, figure.high, color=colour)
        played = [trial["played"][place]["returns"] for trial in report.trials if trial["kind"] == kind]
        left.plot(np.full(len(played), x + 0.1), np.mean(played, 1), "o", markersize=4, color=colour)
    left.set_xticks(range(len(rows)), [label for label, *_ in rows])
    left.set(ylabel="return of an episode", title=f"Transfer ratio {_told(report.transfer_ratio)}")
    names = list(report.training)
    right.bar(names, [report.training[name].seconds / 60 for name in names], 0.6, color=["C1", "C2"], alpha=0.5)
    right.set(ylabel="minutes of training", title=f"{report.training['dream'].num_timesteps:,} steps each")
    canvas.suptitle(f"{report.world}, weights {report.weights[:12]}", fontsize="small")
    return as_png(canvas)

"""A student against its teacher, and against the same student without one: ratios out of the reports of `lwm evaluate`.

A report here is the JSON of one: what a later version adds to it is used where it is there, and named where it is not.
"""

import contextlib
import functools
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from lwm_env.errors import ConfigMismatch, CorruptFile

Report = Mapping[str, Any]
LONGEST = 60  # steps up to which there is ground truth
AFTER = "15"  # steps, of the figure that a distillation is judged by
SAME = ("source", "split", "policy", "seed", "num_clips", "context", "horizon")  # what two reports must share
Agents = Mapping[str, Mapping[str, Any]]  # reports of `lwm agent report`, by the weights of their worlds


def compare(
    student: Report, teacher: Report, control: Report | None = None, agents: Agents | None = None
) -> dict[str, Any]:
    """Ratios student over teacher, 1 being as good as the teacher, and their geometric mean.

    `psnr_gain`: mean PSNR over copying the last frame, over the horizons up to 60 that both have. `reward_f1` and
    `termination_f1`. `idm`: true actions read from the dream. `fd_idm`: a distance, so teacher over student.
    `agent_return`: what policies that learned in the dream earn in the real game, less what random actions do.

    Returns:
        JSON: `ratios` (null: undefined, since a figure is not above 0), `geometric_mean` (null if a ratio is),
        `missing` (what the reports do not have), and with a control `control` (the same of it) and
        `psnr_15_over_control`, in dB.

    Raises:
        ConfigMismatch: the reports are not of the same clips, or those of agents of none of these worlds or of policies
            that did not learn alike.
    """
    agents = agents or {}
    _check_agents(agents, [student, teacher, *([] if control is None else [control])])
    others = {"teacher": teacher} | ({} if control is None else {"control": control})
    for name, other in others.items():
        _check_same_clips(student, other, name)
    result: dict[str, Any] = {
        **_ratios(student, teacher, agents),
        "student": _who(student),
        "teacher": _who(teacher),
    }
    if control is not None:
        ours, theirs = (report["rows"]["psnr"].get(AFTER, {}).get("value") for report in (student, control))
        result["control"] = {**_ratios(control, teacher, agents), "control": _who(control)}
        result["psnr_15_over_control"] = None if None in (ours, theirs) else round(ours - theirs, 4)
    return result


def _who(report: Report) -> dict[str, str]:
    return {"world": report["world"], "weights": report["weights"]}


def _check_same_clips(student: Report, other: Report, name: str) -> None:
    ours, theirs = student["protocol"], other["protocol"]
    differing = [key for key in SAME if ours.get(key) != theirs.get(key)]
    if differing:
        told = "; ".join(f"{key} is {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in differing)
        raise ConfigMismatch(
            f"The report of the {name} is of other clips: {told}. Evaluate both with the same options."
        )


def _check_agents(agents: Agents, reports: Sequence[Report]) -> None:
    strange = set(agents) - {report["weights"] for report in reports}
    if strange:
        raise ConfigMismatch(
            f"--agents names a report of the weights {strange.pop()[:12]}, which none of the worlds has "
            f"({', '.join(report['weights'][:12] for report in reports)}). Make one with: lwm agent report WORLD"
        )
    ways = [{name: found[name] for name in ("real", "config", "settings")} for found in agents.values()]
    if any(way != ways[0] for way in ways):
        raise ConfigMismatch("the reports of --agents are of policies that learned, or were measured, in other ways.")


def _learned(report: Report, agents: Agents) -> float | None:
    """What policies that learned in this world earn in the real game over random actions."""
    found = agents.get(report["weights"])
    return found and found["return_real"]["dream"]["value"] - found["return_real"]["random"]["value"]


def _ratios(student: Report, teacher: Report, agents: Agents) -> dict[str, Any]:
    pairs = {
        "psnr_gain": (_mean_row(student, teacher, "psnr_over_copy"), _mean_row(teacher, student, "psnr_over_copy")),
        "reward_f1": tuple(report["rewards"]["f1"]["value"] for report in (student, teacher)),
        "termination_f1": tuple(report["terminations"]["f1"]["value"] for report in (student, teacher)),
        "idm": (_mean_row(student, teacher, "idm"), _mean_row(teacher, student, "idm")),
        "fd_idm": (_mean_distance(teacher, student), _mean_distance(student, teacher)),  # less is better
        "agent_return": (_learned(student, agents), _learned(teacher, agents)),
    }
    if student["protocol"].get("idm") != teacher["protocol"].get("idm"):  # read by different nets
        pairs |= {"idm": (None, None), "fd_idm": (None, None)}
    missing = [name for name, pair in pairs.items() if None in pair]
    ratios = {name: _ratio(*pair) for name, pair in pairs.items() if name not in missing}
    return {"ratios": ratios, "geometric_mean": geometric_mean(list(ratios.values())), "missing": missing}


def _ratio(ours: float, theirs: float) -> float | None:
    return round(ours / theirs, 4) if ours > 0 and theirs > 0 else None


def geometric_mean(ratios: list[float | None]) -> float | None:
    """None if there is no ratio, or one that is undefined: left out, it would flatter the rest."""
    if not ratios or None in ratios:
        return None
    return round(math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios)), 4)


def _mean_row(report: Report, other: Report, row: str) -> float | None:
    """The mean of a row over the horizons that both reports have."""
    ours, theirs = (_values(found["rows"].get(row, {}), "value") for found in (report, other))
    common = [step for step in ours if step in theirs and int(step) <= LONGEST]
    return sum(ours[step] for step in common) / len(common) if common else None


def _mean_distance(report: Report, other: Report) -> float | None:
    ours, theirs = (_values(found.get("distances", {}).get("fd_idm", {}), "dreamed") for found in (report, other))
    common = [frames for frames in ours if frames in theirs]
    return sum(ours[frames] for frames in common) / len(common) if common else None


def _values(figures: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, float]:
    return {step: figure[key] for step, figure in figures.items() if figure.get(key) is not None}


def as_text(result: Mapping[str, Any]) -> str:
    """The ratios as a table."""
    rows = [("student over teacher", result)] + (
        [("control over teacher", result["control"])] if "control" in result else []
    )
    lines = []
    for title, found in rows:
        ratios = {**found["ratios"], "geometric mean": found["geometric_mean"]}
        cells = [f"{name} {'undefined' if ratio is None else f'{ratio:.2f}'}" for name, ratio in ratios.items()]
        lines.append(f"{title}: {', '.join(cells)}")
        if found["missing"]:
            lines.append(f"  not in the reports: {', '.join(found['missing'])}")
    if result.get("parameters"):
        student, teacher = (result["parameters"][who] for who in ("student", "teacher"))
        lines.append(f"compression: {teacher / student:.1f} times ({teacher / 1e6:.2f} M to {student / 1e6:.2f} M)")
    if result.get("psnr_15_over_control") is not None:
        lines.append(f"PSNR after 15 steps over the control: {result['psnr_15_over_control']:+.2f} dB")
    return "\n".join(lines)


def with_teacher(evaluate: Callable[..., None]) -> Callable[..., None]:
    """Adds `--teacher`, `--control` and `--agents` to `lwm evaluate`: all worlds are measured on the same clips.

    The others' reports go to the folders `teacher` and `control` of the output, the comparison to `teacher.json` there.
    """

    @click.option("--teacher", help="A world to compare with: ratios of WORLD over it, on the same clips.")
    @click.option(
        "--control", "control_world", help="With --teacher: WORLD trained without it (lwm distill --control)."
    )
    @click.option(
        "--agents",
        "agent_reports",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        multiple=True,
        help="With --teacher: report.json of `lwm agent report` of these worlds, for the ratio of what agents earn.",
    )
    @functools.wraps(evaluate)
    def run(
        world: str, teacher: str | None, control_world: str | None, agent_reports: tuple[Path, ...], **options: Any
    ) -> None:
        if teacher is None:
            if control_world is not None or agent_reports:
                raise click.UsageError("--control and --agents go with --teacher.")
            evaluate(world=world, **options)
            return
        if options["calibrate"]:
            raise click.UsageError("--calibrate measures one world; leave out --teacher.")
        named = {"student": world, "teacher": teacher} | ({"control": control_world} if control_world else {})
        result = _measure_all(evaluate, named, options, _read_agents(agent_reports))
        click.echo(json.dumps(result, allow_nan=False) if options["as_json"] else as_text(result))

    return run


def _read_agents(paths: Sequence[Path]) -> dict[str, Report]:
    """Reports by the weights of their worlds."""
    found = {}
    for path in paths:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            kinds = report["return_real"]
            if not all(isinstance(kinds[kind]["value"], float) for kind in ("random", "dream")):
                raise ValueError("returns are no numbers")
            found[report["weights"]] = {name: report[name] for name in ("real", "config", "settings", "return_real")}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CorruptFile(f"{path} is no report of agents ({error!r}). Make one with: lwm agent report") from error
    return found


def _measure_all(
    evaluate: Callable[..., None], named: dict[str, str], options: dict[str, Any], agents: Agents
) -> dict[str, Any]:
    from lwm_env import worlds
    from lwm_env.worlds.storage import replace_file
    from lwm_training.disk import storage_errors

    found = {who: worlds.find(name) for who, name in named.items()}  # all are there before the first is measured
    out, reports = options.pop("out") or found["student"], {}
    if "idm" in options and options["idm"] is None:
        options["idm"] = _one_net([found["teacher"], *found.values()])
    for who, folder in found.items():
        place = out if who == "student" else out / who
        with contextlib.redirect_stdout(io.StringIO()) as told:
            evaluate(world=str(folder), out=place, **options)
        click.echo(f"{who}: {named[who]}\n{told.getvalue()}", err=True)
        reports[who] = json.loads((place / "report.json").read_text(encoding="utf-8"))
    result = compare(reports["student"], reports["teacher"], reports.get("control"), agents)
    result["parameters"] = {who: _parameters(folder) for who, folder in found.items()}
    with storage_errors(f"Writing {out / 'teacher.json'}"):
        replace_file(out / "teacher.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return result


def _one_net(folders: list[Path]) -> Path | None:
    """The first inverse-dynamics net that lies in a world's folder; all are asked by the same, or they cannot be
    compared."""
    from lwm_training.inverse_dynamics import FILE

    return next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)


def _parameters(folder: Path) -> int:
    from lwm_env.world_model import WorldModel

    return sum(parameter.numel() for parameter in WorldModel.load(folder).parameters())

"""Writes the report: `report.json`, and beside it a folder `report` with a page, plots, stills and clips."""

import html
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from lwm_env.errors import StorageError
from lwm_env.worlds.storage import replace_folder
from lwm_training.evaluate import TRUTH, Showcase
from lwm_training.event_metrics import TOLERANCE
from lwm_training.report import ROWS, EventFigures, Figure, Report
from lwm_training.report_pictures import clip_gifs, plots, strip_png

RECORD, FOLDER, PAGE = "report.json", "report", "index.html"
_OURS = ("*.gif", "*.png", "*.mp4", PAGE)  # what an earlier report may have left

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .7rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr:nth-child(even) { background: #f4f4f4 }
small { color: #777; white-space: nowrap } code { font-size: 90%; overflow-wrap: anywhere }
img.pixels { image-rendering: pixelated; margin: .3rem } img.plot, video { max-width: 100% }
"""

_NOTES = (
    "Each clip starts at a random place of a real episode. The model sees the context, then only the true actions;"
    f" for the first {TRUTH} steps it dreams on without being reset, past an end of its own too.",
    f"Figures up to {TRUTH} steps, and every PSNR, are over the clips whose real episode still runs. Later sharpness"
    " and colours are compared with all real frames of the clips; a dream that has ended begins again at its context.",
    "PSNR is of the squared error pooled over clips. ± is half of a 95 % bootstrap interval over clips.",
    "Pixels that the context has shown: the camera of the real frames is followed, and a pixel counts when a frame of"
    " the context covered its place. The rest has to be invented.",
    "Random actions are uniform and new at every step.",
    "Actions are read by a small net that was trained on real play of the training levels, from two frames before and"
    " two after; pooled over the steps since the horizon before. Some cannot be told from any frames, so the real"
    " game's own figure is the ceiling.",
    "fd_idm is the Fréchet distance of that net's features, averaged over 16 frames: of the first 16 frames, or of all"
    " of 450. Half of the dreams stand against the real clips of the other half, and beside that half of the real"
    " clips against the other: as many clips, nothing in common. kd_idm is the unbiased polynomial-kernel distance of"
    " the same; between halves of real play it is about 0.",
    "Memory: the player stands still for the context, walks right and back left. Only walks count whose real camera"
    " left by an eighth of the view and came back to less than a pixel; the dream plays the same actions.",
    f"An event is found when it is dreamed within {TOLERANCE} steps of the real one. A dreamed world ends at its first"
    " end; what it would give after that does not count.",
)


def check_output(out: Path) -> None:
    """Find out before the work whether a report can be written to a folder, which is made if it is absent.

    Raises:
        StorageError: it cannot.
    """
    probe = out / f".{RECORD}.{secrets.token_hex(4)}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageError(
            f"No report can be written to {out}: {error.strerror or error}. Name another folder with --out."
        ) from error


def write_report(out: Path, report: Report, showcase: Showcase, fps: int, films: Sequence[bytes] = ()) -> Path:
    """Write `out/report/` and then `out/report.json`; each replaces the former one as a whole. Returns the page.

    Args:
        films: long clips as MP4.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    gifs = clip_gifs(showcase, fps)
    files = {f"clip-{index}.gif": gif for index, gif in enumerate(gifs)}
    files |= {f"minute-{index}.mp4": film for index, film in enumerate(films)}
    files |= {"strip.png": strip_png(showcase), **plots(report)}
    files[PAGE] = page(report, len(gifs), showcase.real.shape[2:4], len(films)).encode()
    folder, record = out / FOLDER, out / RECORD
    partial = out / f".{RECORD}.{secrets.token_hex(4)}"
    try:
        old = {path.name for pattern in _OURS for path in folder.glob(pattern)}
        replace_folder(folder, files, dropped={*old, *files})
        partial.write_text(report.to_json(), encoding="utf-8")
        os.replace(partial, record)
    except OSError as error:
        raise StorageError(f"The report in {out} could not be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return folder / PAGE


def page(report: Report, num_gifs: int, frame_size: tuple[int, int], num_films: int = 0) -> str:
    """The page as HTML; it shows `clip-0.gif`, `minute-0.mp4` and so on, `strip.png` and the plots of its folder."""
    height = max(192, min(frame_size[0], 256))
    clips = "".join(f'<img class="pixels" src="clip-{i}.gif" height="{height}" alt="clip">' for i in range(num_gifs))
    names = ("psnr.png", "drift.png", "events.png", *(("obedience.png",) if "idm" in report.rows else ()))
    images = "".join(f'<img class="plot" src="{name}" alt="plot">' for name in names)
    told = f"Real above dreamed: the last context frame, then after {_still_steps(report)} steps."
    title = f"{html.escape(report.world)}: dreamed against real"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{_STYLE}</style></head><body>
<h1>{title}</h1>
<p>Weights <code>{html.escape(report.weights)}</code>. The figures are also in <a href="../{RECORD}">{RECORD}</a>.</p>
<h2>Clips</h2><p>Real left, dreamed right, the same actions; the first clips of the evaluation, not chosen.</p>
{clips}
{_minutes(num_films)}<h2>Stills</h2><p>{told}</p>
<img class="pixels" src="strip.png" width="100%" alt="stills">
<h2>Figures</h2>
{_table(report)}
{_event_table(report)}
{_distance_table(report)}{_memory_table(report)}{"".join(f"<p>{html.escape(note)}</p>" for note in report.notes)}
{images}
<h2>How it was measured</h2>
<ul>{"".join(f"<li>{note}</li>" for note in _NOTES)}</ul>
{_protocol(report)}
</body></html>
"""


def _minutes(num_films: int) -> str:
    if not num_films:
        return ""
    films = "".join(
        f'<video src="minute-{i}.mp4" controls loop muted preload="none"></video>' for i in range(num_films)
    )
    told = "The first long dreams. Neither side stops at an end: the real one goes on with its next episode."
    return f"<h2>A minute</h2><p>{told}</p>\n{films}\n"


def _still_steps(report: Report) -> str:
    return ", ".join(step for step in report.rows["psnr"] if int(step) <= TRUTH)


def _table(report: Report) -> str:
    horizons = list(report.rows["sharpness"])
    head = "".join(f"<th>{step}</th>" for step in horizons)
    running = "".join(f"<td>{report.running_clips.get(step, '-')}</td>" for step in horizons)
    lines = [f"<tr><th>after steps</th>{head}</tr><tr><td>clips still running</td>{running}</tr>"]
    for name, meaning, unit, decimals in ROWS:
        if name not in report.rows:
            continue
        cells = "".join(f"<td>{_cell(report.rows[name].get(step), decimals)}</td>" for step in horizons)
        lines.append(f"<tr><td>{meaning}{f', {unit}' if unit else ''}</td>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _event_table(report: Report) -> str:
    lines = ["<tr><th></th><th>F1</th><th>precision</th><th>recall</th><th>false per 1,000 frames</th>"]
    lines.append("<th>found</th><th>false</th><th>missed</th></tr>")
    for name in ("rewards", "terminations"):
        events: EventFigures = getattr(report, name)
        figures = (events.f1, events.precision, events.recall, events.false_per_1000_frames)
        cells = [*(_cell(figure, 2) for figure in figures), events.found, events.false, events.missed]
        lines.append(f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _distance_table(report: Report) -> str:
    if not report.distances:
        return ""
    lines = ["<tr><th>distance</th><th>frames</th><th>dream from real</th><th>real from real</th><th>ratio</th></tr>"]
    for name, figures in report.distances.items():
        for frames, distance in figures.items():
            over = "-" if distance.over_floor is None else f"{distance.over_floor:.2f}"
            cells = (frames, f"{distance.dreamed:.3f}", f"{distance.floor:.3f}", over)
            lines.append(f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _memory_table(report: Report) -> str:
    if not report.memory:
        return ""
    lines = ["<tr><th>steps right, and back</th><th>real cameras back</th><th>from, px</th>"]
    lines.append("<th>PSNR, dB</th><th>PSNR of real start and return, dB</th><th>off, px</th><th>same place</th></tr>")
    for length, walk in report.memory.items():
        figures = (walk.gone, walk.psnr, walk.psnr_real, walk.place, walk.same)
        cells = [f"{walk.returned} of {walk.walks}", *(_cell(figure, 2) for figure in figures)]
        lines.append(f"<tr><td>{length}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _cell(figure: Figure | None, decimals: int) -> str:
    if figure is None or figure.value is None:
        return "-"
    value = f"{figure.value:.{decimals}f}"
    if figure.low is None or figure.high is None:
        return value
    return f"{value} <small>±{(figure.high - figure.low) / 2:.{decimals}f}</small>"


def _protocol(report: Report) -> str:
    facts = {
        **report.protocol.model_dump(),
        **report.versions,
        "device": report.device,
        **{f"seconds, {name}": value for name, value in report.seconds.items()},
    }
    lines = (f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    return f"<table>{''.join(lines)}</table>"

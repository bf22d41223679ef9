"""Pictures of an evaluation: real against dreamed clips as GIFs, a strip of stills, and plots. All as bytes.

Shapes: B clips, S steps.
"""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lwm_env.errors import missing_extra
from lwm_training.evaluate import HORIZONS, Showcase
from lwm_training.event_metrics import THRESHOLDS
from lwm_training.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLIP_BYTES = 600_000  # of all GIFs together
STRIP_CLIPS = 3
SIDE = 128  # larger frames are shrunk to about this
GAP, COLOURS = 2, 128


def clip_gifs(showcase: Showcase, fps: int) -> list[bytes]:
    """One GIF for each clip, real left and dreamed right, as many as `CLIP_BYTES` hold, at least one. When the real
    episode is over, its side fades to grey."""
    gifs: list[bytes] = []
    for real, dreamed, valid in zip(showcase.real, showcase.dreamed, showcase.valid, strict=True):
        last = int(valid.sum())  # frame of the real episode
        real = np.concatenate([real[: last + 1], np.repeat(real[last : last + 1] // 3 + 128, len(real) - 1 - last, 0)])
        gap = np.full((*real.shape[:2], GAP, 3), 255, np.uint8)
        gif = _gif([_shrunk(frame) for frame in np.concatenate([real, gap, dreamed], 2)], fps)
        if gifs and sum(map(len, gifs)) + len(gif) > CLIP_BYTES:
            break
        gifs.append(gif)
    return gifs


def _shrunk(frame: np.ndarray) -> Image.Image:
    image, factor = Image.fromarray(frame), max(1, frame.shape[0] // SIDE)
    return image.reduce(factor) if factor > 1 else image


def _gif(frames: Sequence[Image.Image], fps: int) -> bytes:
    """All frames with one palette and without dithering, which keeps them small and still where nothing moves."""
    width, height = frames[0].size
    column = Image.new("RGB", (width, height * len(frames)))
    for index, frame in enumerate(frames):
        column.paste(frame, (0, index * height))
    column = column.quantize(COLOURS, dither=Image.Dither.NONE)
    first, *rest = [column.crop((0, i * height, width, (i + 1) * height)) for i in range(len(frames))]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=10 * round(100 / fps), loop=0)
    return buffer.getvalue()


def strip_png(showcase: Showcase) -> bytes:
    """Stills at the horizons (and of the last context frame), the real row above the dreamed one; frames after the
    real episode's end are white."""
    length = showcase.valid.shape[1]
    steps = [0, *(step for step in HORIZONS if step <= length)]
    running = np.concatenate([np.ones((len(showcase.valid), 1), bool), showcase.valid], 1)
    order = np.argsort(-showcase.valid.sum(1), kind="stable")[:STRIP_CLIPS]  # those that run longest
    rows = []
    for clip in sorted(order):
        shown = running[clip, steps, None, None, None]
        for frames in (np.where(shown, showcase.real[clip, steps], 255), showcase.dreamed[clip, steps]):
            padded = np.pad(frames, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
            rows.append(np.concatenate(list(padded.astype(np.uint8)), 1))
    image, buffer = Image.fromarray(np.concatenate(rows)), io.BytesIO()
    factor = max(1, showcase.real.shape[2] // SIDE)
    (image.reduce(factor) if factor > 1 else image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def check_matplotlib() -> None:
    """Raises MissingExtra when the plots could not be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_extra("matplotlib", "train") from error


def plots(report: Report) -> dict[str, bytes]:
    """PNG files by name."""
    draws = {"psnr.png": _draw_psnr, "drift.png": _draw_drift, "events.png": _draw_events}
    if "idm" in report.rows:
        draws["obedience.png"] = _draw_obedience
    return {name: _plot(report, draw) for name, draw in draws.items()}


def _plot(report: Report, draw: Callable[["Axes", Report], None]) -> bytes:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    draw(axes, report)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _line(axes: "Axes", values: Sequence[float | None], label: str, **style) -> None:
    numbers = np.array(values, float)
    axes.plot(np.arange(1, len(numbers) + 1), numbers, label=label, **style)


def _draw_psnr(axes: "Axes", report: Report) -> None:
    _line(axes, report.curves["psnr_dream"], "dream", color="C0")
    _line(axes, report.curves["psnr_seen"], "dream, pixels shown by the context", color="C0", linestyle=":")
    _line(axes, report.curves["psnr_copy"], "last context frame copied", color="C7")
    for row, colour, label in (("psnr_codec", "C2", "tokenizer alone"), ("psnr", "C0", None)):
        known = {int(step): figure for step, figure in report.rows[row].items() if figure.value is not None}
        values = np.array([[figure.value, figure.low, figure.high] for figure in known.values()], float).reshape(-1, 3)
        spread = np.nan_to_num(np.abs(values[:, 1:] - values[:, :1])).T
        axes.errorbar(list(known), values[:, 0], spread, fmt="o", markersize=3, color=colour, label=label, capsize=2)
        if max(known, default=0) > len(report.curves["psnr_dream"]):
            axes.set_xscale("log")
    axes.set(xlabel="steps after the context", ylabel="pooled PSNR, dB")


def _draw_drift(axes: "Axes", report: Report) -> None:
    figures = report.rows["sharpness"]
    steps = [int(step) for step, figure in figures.items() if figure.value is not None]
    axes.plot(steps, [figures[str(step)].value for step in steps], "o", markersize=3, color="C0")
    _line(axes, report.curves["sharpness"], "Laplacian energy, dream over real", color="C0")
    distances = {int(step): figure.value for step, figure in report.rows["colour_distance"].items()}
    axes.plot(list(distances), np.array(list(distances.values()), float), "s-", color="C1", label="colour distance")
    if max(distances) > len(report.curves["sharpness"]):
        axes.set_xscale("log")
    axes.axhline(1, color="C7", linewidth=0.8)
    axes.set(xlabel="steps after the context", ylim=(0, None))


def _draw_events(axes: "Axes", report: Report) -> None:
    drawn = report.protocol.draw_ends and report.protocol.temperature > 0
    label = "termination F1 of these clips" + (", whose ends are drawn" if drawn else "")
    axes.plot(THRESHOLDS, np.array(report.threshold_f1, float), label=label, color="C3")
    if not drawn:
        axes.axvline(report.protocol.termination_threshold, color="C7", linestyle="--", label="the world's threshold")
    axes.set(xlabel="termination threshold", ylim=(0, 1))


def _draw_obedience(axes: "Axes", report: Report) -> None:
    for row, label, colour in (("idm", "read from the dream", "C0"), ("idm_real", "read from real frames", "C2")):
        known = {int(step): figure.value for step, figure in report.rows[row].items() if figure.value is not None}
        axes.plot(list(known), list(known.values()), "o-", markersize=3, color=colour, label=label)
    axes.set(xlabel="steps after the context", ylabel="true actions", ylim=(0, 1), xscale="log")

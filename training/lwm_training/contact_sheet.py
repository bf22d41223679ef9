"""A picture of a data set: one row per episode, frames from its first to its last, what was earned and how it ended."""

import numpy as np
from PIL import Image, ImageDraw

from lwm_env.errors import InvalidInput
from lwm_training.episodes import EpisodeStore

_TEXT_HEIGHT = 14  # pixels
_LEAST_WIDTH = 96  # of a frame on the sheet
_GAP = 3  # between frames


def contact_sheet(store: EpisodeStore, rows: int = 8, columns: int = 10, seed: int = 0) -> Image.Image:
    """Random episodes of a data set, each at `columns` evenly spaced steps; under a frame stands its step.

    Raises:
        InvalidInput: no episodes, or a number below 1.
    """
    if min(rows, columns) < 1 or not len(store):
        raise InvalidInput(f"{store.folder} has {len(store)} episodes; rows and columns must be at least 1.")
    count = min(rows, len(store))
    episodes = np.sort(np.random.default_rng(seed).choice(len(store), count, replace=False))
    height, width = store.layout.frame_size
    scale = -(-_LEAST_WIDTH // width)
    height, width = height * scale, width * scale
    row_height = height + 2 * _TEXT_HEIGHT
    sheet = Image.new("RGB", (columns * (width + _GAP), count * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, episode in enumerate(episodes.tolist()):
        top = row * row_height
        draw.text((2, top + 1), _title(store, episode), fill="black")
        for column, step in enumerate(np.linspace(0, store.lengths[episode], columns).round().astype(int).tolist()):
            frame = store.frames_of(episode, step, step + 1)[0]
            picture = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
            left = column * (width + _GAP)
            sheet.paste(picture, (left, top + _TEXT_HEIGHT))
            draw.text((left + 2, top + _TEXT_HEIGHT + height), _caption(store, episode, step), fill="black")
    return sheet


def _title(store: EpisodeStore, episode: int) -> str:
    steps = store.steps(episode)
    end = "terminated" if steps["terminations"][-1] else "truncated" if store.complete[episode] else "recording stopped"
    earned = ", ".join(f"{total:g}" for total in steps["rewards"].sum(0))
    return f"episode {episode}  seed {store.seeds[episode]}  {store.lengths[episode]} steps  return {earned}  {end}"


def _caption(store: EpisodeStore, episode: int, step: int) -> str:
    if step == 0:
        return "start"
    action = store.steps(episode)["actions"][step - 1]
    told = " ".join(f"{value:.2f}" if action.dtype.kind == "f" else str(value) for value in action.ravel()[:4])
    return f"{step}: {told}"

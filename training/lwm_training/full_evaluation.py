"""The long rows of `lwm evaluate --full`: a minute of dreaming, walks there and back, and the films."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from tqdm import tqdm

from lwm_env.world_model import WorldModel
from lwm_training.evaluate import CONTROL, Measured, Tools, horizons_until, measure
from lwm_training.held_out import NUM_ENVS, HeldOut, Wanted, play_clips
from lwm_training.memory_walk import LENGTHS, can_walk, walk
from lwm_training.readings import Reader
from lwm_training.report_films import RealFilm, can_film, films
from lwm_training.rollout import Sampling
from lwm_training.sources import open_spec_source
from lwm_training.tally import Tally

LONG_SEEDS = 1_000_000  # added to the seed: the long clips are others than the short ones
FILMED = 2  # clips of which a film is kept


@dataclass(frozen=True)
class Full:
    """What was measured besides, films as MP4, and what could not be measured."""

    long: Measured
    walks: dict[str, Tally] | None
    films: tuple[bytes, ...]
    notes: tuple[str, ...]


def play(model: WorldModel, split: str, wanted: Wanted, tools: Tools) -> tuple[HeldOut, np.ndarray]:
    """Clips whose real frames are read as they are played, also those beyond the truth; and those of the first clips,
    uint8 (filmed, T, H, W, 3)."""
    wanted = replace(wanted, far=tuple(step for step in horizons_until(wanted.horizon) if step > wanted.truth))
    film = RealFilm(tools.filmed, wanted.context, wanted.horizon, model.spec.frame_size)
    watches = [film.show]
    reader = None
    if tools.net and wanted.far:
        reader = Reader(tools.net, wanted.num_clips, wanted.context, wanted.horizon)
        watches.append(reader.show)
    with tqdm(total=wanted.num_clips, desc="playing", unit="clip", disable=None) as bar:
        held_out = play_clips(model.spec, split, wanted, bar.update, watches if wanted.far or tools.filmed else ())
    return replace(held_out, reading=reader and reader.reading), film.frames


def measure_full(model: WorldModel, split: str, wanted: Wanted, sampling: Sampling, tools: Tools) -> Full:
    """Play and dream the long clips of `wanted`, and walk.

    Raises:
        UnknownWorld, MissingExtra, ConfigMismatch, InvalidInput: see `play_clips`.
    """
    notes = []
    if not can_film():
        notes.append('No film of a minute: moviepy is not installed (pip install "lwm-env[video]").')
    tools = Tools(tools.net, None, min(FILMED, wanted.num_clips) if can_film() else 0)
    wanted = replace(wanted, seed=wanted.seed + LONG_SEEDS)
    held_out, real = play(model, split, wanted, tools)
    num_frames = wanted.num_clips * (wanted.horizon + min(CONTROL, wanted.truth))
    with tqdm(total=num_frames, desc="dreaming long", unit="frame", disable=None) as bar:
        long = measure(model, held_out, replace(sampling, seed=wanted.seed), bar.update, tools)
    walks = None
    if can_walk(model.spec):
        open_source = partial(_open, model, split, min(NUM_ENVS, wanted.num_clips))
        with tqdm(total=len(LENGTHS), desc="walking", disable=None) as bar:
            walks = walk(model, open_source, sampling, wanted.context, bar.update)
    else:
        notes.append("No walks there and back: the world has not one player with actions LEFT and RIGHT.")
    shown = [] if long.film is None else films(real, long.film, model.spec.render_fps)
    return Full(long, walks, tuple(shown), tuple(notes))


def _open(model: WorldModel, split: str, num_envs: int, seed: int):
    return open_spec_source(model.spec, num_envs, seed, split)

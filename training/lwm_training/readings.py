"""What the inverse-dynamics net reads from clips, frame by frame, so that no clip need be held in memory.

A reading belongs to the last of its four frames. It names the action that led into the frame before.

Shapes: B clips, R of them at a time, T steps after the context, P players, A action numbers, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from lwm_training.held_out import HeldOut
from lwm_training.inverse_dynamics import FEATURES, FRAMES, InverseDynamics
from lwm_training.tally import Tally

WINDOW = 16  # frames that a descriptor is of
LONG_WINDOW = 450  # steps over which the distribution of long dreams is taken


@dataclass(frozen=True)
class Reading:
    """named: float32 (B, T, P) or (B, T, P, A), actions; features: float32 (B, T, D). NaN where the four frames were
    not there, or not of one episode."""

    named: np.ndarray
    features: np.ndarray

    def __getitem__(self, rows: slice) -> "Reading":
        return Reading(self.named[rows], self.features[rows])


class Reader:
    """Reads B clips as their frames come in, each in order, clips in any order."""

    def __init__(self, net: InverseDynamics, num_clips: int, context: int, horizon: int) -> None:
        """`context` frames come first; the last `horizon` ones are read, at the end of their windows."""
        spec = net.spec
        action = (len(spec.players),) if net.discrete else (len(spec.players), spec.actions.dim)
        self._net, self._context = net, context
        self._recent = torch.zeros(num_clips, FRAMES, *spec.frame_size, 3, dtype=torch.uint8)
        self._together = np.zeros(num_clips, int)  # how many of the recent frames are of one episode
        self._named = np.full((num_clips, horizon, *action), np.nan, np.float32)
        self._features = np.full((num_clips, horizon, FEATURES), np.nan, np.float32)

    def show(self, clips: np.ndarray, indices: np.ndarray, frames: np.ndarray, crossed: np.ndarray) -> None:
        """The next frame of R clips.

        Args:
            clips: int (R,).
            indices: int (R,), the frame's place in its clip; 0 begins the clip (again).
            frames: uint8 (R, H, W, 3).
            crossed: bool (R,), whether an episode ended before this frame.
        """
        rows = torch.from_numpy(clips)
        latest = torch.from_numpy(frames)[:, None]
        self._recent[rows] = torch.cat([self._recent[rows, 1:], latest], 1)
        self._together[clips] = np.where(crossed | (indices == 0), 1, self._together[clips] + 1)
        steps = indices - self._context + 1
        ready = (self._together[clips] >= FRAMES) & (steps >= 2)  # the action into step 1 is seen after step 2
        if ready.any():
            clips, steps = clips[ready], steps[ready]
            named, features = self._net.read(self._recent[torch.from_numpy(clips)])
            self._named[clips, steps - 1], self._features[clips, steps - 1] = named.numpy(), features.numpy()

    def show_all(self, index: int, frames: np.ndarray, crossed: np.ndarray | None = None) -> None:
        """The next frame of all clips, in the same episode unless `crossed`, bool (B,)."""
        count = len(frames)
        crossed = np.zeros(count, bool) if crossed is None else crossed
        self.show(np.arange(count), np.full(count, index), frames, crossed)

    @property
    def reading(self) -> Reading:
        return Reading(self._named, self._features)


def open_reader(net: InverseDynamics, held_out: HeldOut) -> Reader:
    """A reader that has seen the end of the context, as a dream begins with it."""
    reader = Reader(net, len(held_out), held_out.context, held_out.horizon)
    for index in range(max(0, held_out.context + 1 - FRAMES), held_out.context):
        reader.show_all(index, held_out.clips.observations[:, index])
    return reader


def read_real(net: InverseDynamics, held_out: HeldOut) -> Reading:
    """The real frames of clips as far as they are kept; nothing is read after an episode's end."""
    reader = Reader(net, len(held_out), held_out.context, held_out.horizon)
    clips, observations = np.arange(len(held_out)), held_out.clips.observations
    for index in range(max(0, held_out.context + 1 - FRAMES), observations.shape[1]):
        before = held_out.clips.valid[:, index - 1] if index else np.ones(len(held_out), bool)
        reader.show(clips, np.full(len(clips), index), observations[:, index], ~before)
    return reader.reading


def spread(held_out: HeldOut) -> np.ndarray | None:
    """Variance of every action number over the clips (P, A), by which R2 is measured; None for discrete actions."""
    if held_out.actions.dtype.kind == "i":
        return None
    return held_out.actions.reshape(-1, *held_out.actions.shape[2:]).var(0).clip(min=1e-6)


def obedience(
    dreamed: Reading, real: Reading, held_out: HeldOut, horizons: Sequence[int], variances: np.ndarray | None
) -> dict[str, Tally]:
    """How well the true actions are read from dreams (idm) and from real frames (idm_real), pooled over the steps after
    the horizon before. A clip counts while its real episode runs, and without truth always.

    Args:
        variances: see `spread`.
    """
    marks = {"idm": _marks(dreamed, held_out, variances), "idm_real": _marks(real, held_out, variances)}
    running = np.ones((len(held_out), held_out.horizon), bool)
    running[:, : held_out.truth] = held_out.valid
    spans = [(before, step) for before, step in pairwise((0, *horizons)) if step > 1]
    tallies = {}
    for name, mark in marks.items():
        counted = ~np.isnan(mark) & running
        sums = [np.where(counted, mark, 0), counted.astype(float)]
        columns = [np.stack([each[:, before:step].sum(1) for before, step in spans], 1) for each in sums]
        tallies[name] = Tally(tuple(step for _, step in spans), *columns)
    return tallies if spans else {}


def _marks(reading: Reading, held_out: HeldOut, variances: np.ndarray | None) -> np.ndarray:
    """float (B, T): the share of players whose action was named, or 1 - error / variance, averaged; NaN if unread."""
    first = held_out.context - 1
    true = held_out.actions[:, first:].astype(np.float32)
    true = np.concatenate([true[:, :1], true[:, :-1]], 1)  # of the step before the last frame's
    if variances is None:
        marks = np.where(np.isnan(reading.named), np.nan, reading.named == true)
    else:
        marks = 1 - np.square(reading.named - true) / variances
    return marks.reshape(*marks.shape[:2], -1).mean(2)


def descriptors(reading: Reading, num_frames: int) -> np.ndarray:
    """Mean features of every 16 of the first frames: float32 (B, num_frames // 16, D), NaN where one is missing."""
    inside = np.arange(num_frames // WINDOW * WINDOW).reshape(-1, WINDOW)[:, FRAMES - 1 :]
    return reading.features[:, inside].mean(2)


def describe(dreamed: Reading, real: Reading, held_out: HeldOut) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Descriptors of the first 16 dreamed frames and of those of 450, as far as they reach; of the first ones only
    where the real episode still runs."""
    found = {}
    for length in (WINDOW, LONG_WINDOW):
        if held_out.horizon >= length:
            sides = [descriptors(reading, length) for reading in (dreamed, real)]
            if length <= held_out.truth:
                sides = [np.where(held_out.valid[:, length - 1, None, None], side, np.nan) for side in sides]
            found[f"idm_{length}"] = tuple(sides)
    return found

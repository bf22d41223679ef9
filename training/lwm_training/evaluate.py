"""A world against the real game: open-loop dreams of held-out clips, measured at horizons.

Shapes: B clips, S steps with ground truth, T steps dreamed, P players.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lwm_env.registration import sight
from lwm_env.spec import ContinuousActions
from lwm_env.tokenizer import to_pixels
from lwm_training import metrics, tally
from lwm_training.clips import nearest_rewards
from lwm_training.event_metrics import Happenings, best_threshold
from lwm_training.held_out import HeldOut, Progress
from lwm_training.inverse_dynamics import InverseDynamics
from lwm_training.readings import WINDOW, describe, obedience, open_reader, read_real, spread
from lwm_training.rollout import Dream, Dreamer, Sampling, reconstruct, roll
from lwm_training.scroll import seen_pixels
from lwm_training.tally import Sums, Tally

HORIZONS = (1, 4, 8, 15, 30, 60, 300, 900)
TRUTH = 60  # steps with ground truth; further ones are measured without
CONTROL = 15  # steps dreamed with random actions
CHUNK = 32  # clips dreamed together
SHOWN = 6  # clips kept for pictures


@dataclass(frozen=True)
class Tools:
    """What may be measured besides: with an inverse-dynamics net; with other features of clips, uint8 (B, 16, H, W, 3)
    -> (B, D); and of how many clips every dreamed frame is kept."""

    net: InverseDynamics | None = None
    features: Callable[[Tensor], np.ndarray] | None = None
    filmed: int = 0


@dataclass(frozen=True)
class Showcase:
    """The first clips, for pictures: real and dreamed uint8 (B, 1 + S, H, W, 3) from the last context frame on, and
    valid bool (B, S)."""

    real: np.ndarray
    dreamed: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Measured:
    """Everything that figures are made of.

    tallies: by name, see `_compare`, `_measure_control` and `obedience`; colours: dreamed and real counts, each
    {horizon: float64 (B, 512)}; descriptors: by name, of dreamed and of real clips, each (B, K, D); film: uint8
    (filmed, T, H, W, 3), dreamed.
    """

    tallies: dict[str, Tally]
    dreamed_colours: dict[int, np.ndarray]
    real_colours: dict[int, np.ndarray]
    happenings: Happenings
    showcase: Showcase
    descriptors: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    film: np.ndarray | None = None


def horizons_until(horizon: int) -> tuple[int, ...]:
    """The standard horizons up to and with the one asked for."""
    return (*(step for step in HORIZONS if step < horizon), horizon)


def measure(
    model: Dreamer, held_out: HeldOut, sampling: Sampling, progress: Progress, tools: Tools | None = None
) -> Measured:
    """Dream all clips with their true actions, a part of the steps again with random ones, and compare.

    Args:
        held_out: clips that the model was not trained on.
        progress: called with the number of frames dreamed.
        tools: what is measured besides.
    """
    parts, first, tools, variances = [], sampling.first_clip, tools or Tools(), spread(held_out)
    for chunk in held_out.chunks(CHUNK):
        chosen = Sampling(sampling.temperature, sampling.seed, first)
        parts.append(_measure_chunk(model, chunk, chosen, progress, tools, variances))
        first += len(chunk)
        tools = Tools(tools.net, tools.features)  # only the first clips are filmed
    return Measured(
        tallies={name: tally.join([part.tallies[name] for part in parts]) for name in parts[0].tallies},
        dreamed_colours=_join_colours([part.dreamed_colours for part in parts]),
        real_colours=_join_colours([part.real_colours for part in parts]),
        happenings=_join_happenings([part.happenings for part in parts]),
        showcase=parts[0].showcase,
        descriptors={
            name: tuple(np.concatenate([part.descriptors[name][side] for part in parts]) for side in (0, 1))
            for name in parts[0].descriptors
        },
        film=parts[0].film,
    )


def calibrate_threshold(
    model: Dreamer, held_out: HeldOut, sampling: Sampling, progress: Progress
) -> tuple[float, float]:
    """The termination threshold with the highest F1 on these clips, and that F1 (NaN if nothing ended).

    Take other clips than those of the report: chosen on the same ones it flatters the world.
    """
    parts, first = [], sampling.first_clip
    for chunk in held_out.chunks(CHUNK):
        chosen = Sampling(sampling.temperature, sampling.seed, first)
        dream = roll(model, *_inputs(chunk, chunk.truth), (), chosen, progress)
        parts.append(_happenings(dream, chunk, model.spec.reward_values))
        first += len(chunk)
    return best_threshold(_join_happenings(parts))


def _inputs(chunk: HeldOut, num_steps: int) -> tuple[Tensor, Tensor]:
    frames = torch.from_numpy(chunk.clips.observations[:, : chunk.context])
    return frames, torch.from_numpy(chunk.actions[:, : chunk.context - 1 + num_steps])


def _measure_chunk(
    model: Dreamer,
    chunk: HeldOut,
    sampling: Sampling,
    progress: Progress,
    tools: Tools,
    variances: np.ndarray | None,
) -> Measured:
    horizons = horizons_until(chunk.horizon)
    kept = {*range(1, chunk.truth + 1), *horizons}
    reader, film = tools.net and open_reader(tools.net, chunk), []

    def watch(step: int, frames: Tensor, again: Tensor) -> None:
        if reader:
            reader.show_all(chunk.context - 1 + step, frames.numpy(), again.numpy())
        if tools.filmed:
            film.append(frames[: tools.filmed].numpy())

    dream = roll(model, *_inputs(chunk, chunk.horizon), kept, sampling, progress, watch, lasts=chunk.truth)
    tallies = _compare(model, chunk, dream)
    tallies["control"] = _measure_control(model, chunk, sampling, progress)
    described = {}
    if reader:
        real_reading = chunk.reading or read_real(tools.net, chunk)
        tallies |= obedience(reader.reading, real_reading, chunk, horizons, variances)
        described = describe(reader.reading, real_reading, chunk)
    if tools.features and chunk.truth >= WINDOW:
        described["i3d"] = _featured(tools.features, chunk, dream)
    real = chunk.clips.observations[:SHOWN, chunk.context - 1 :]
    shown = [torch.from_numpy(real[:, 0]), *(dream.frames[step][:SHOWN] for step in range(1, chunk.truth + 1))]
    return Measured(
        tallies=tallies,
        **_colours(chunk, dream, horizons),
        happenings=_happenings(dream, chunk, model.spec.reward_values),
        showcase=Showcase(real, torch.stack(shown, 1).numpy(), chunk.valid[:SHOWN]),
        descriptors=described,
        film=np.stack(film, 1) if film else None,
    )


def _featured(features: Callable[[Tensor], np.ndarray], chunk: HeldOut, dream: Dream) -> tuple[np.ndarray, np.ndarray]:
    """Other features of the first 16 frames, (B, 1, D); NaN where the real episode is over before."""
    dreamed = torch.stack([dream.frames[step] for step in range(1, WINDOW + 1)], 1)
    real = torch.from_numpy(chunk.clips.observations[:, chunk.context : chunk.context + WINDOW])
    runs = chunk.valid[:, WINDOW - 1, None]
    ours, theirs = (np.where(runs, features(clips), np.nan)[:, None] for clips in (dreamed, real))
    return ours, theirs


def _compare(model: Dreamer, chunk: HeldOut, dream: Dream) -> dict[str, Tally]:
    """Dream and baselines against the truth: squared errors of all steps (dream, copy, seen, codec), SSIM at the
    horizons (dream_ssim, ...), sharpness with that of the real frames as the count, surprise, and how far the camera is
    off where the real one is known (camera), with how many are less than a pixel off (on_course). Beyond the truth
    squared errors (dream_far, copy_far) where real frames were kept."""
    real = torch.from_numpy(chunk.clips.observations[:, chunk.context :])
    valid = torch.from_numpy(chunk.valid)
    copy = torch.from_numpy(chunk.clips.observations[:, chunk.context - 1])
    seen = seen_pixels(torch.from_numpy(chunk.clips.observations), chunk.context).mask[:, chunk.context :]
    sums = Sums(valid)
    astray, known = _astray(model, dream, torch.from_numpy(chunk.clips.observations[:, chunk.context - 1 :]))
    steps = range(1, chunk.truth + 1)
    energies = torch.stack([metrics.sharpness(real[:, step - 1]) for step in steps], 1)
    for step in steps:
        true, drawn = real[:, step - 1], dream.frames[step]
        sums.add("dream", step, *metrics.squared_error(drawn, true))
        sums.add("copy", step, *metrics.squared_error(copy, true))
        sums.add("seen", step, *metrics.squared_error(drawn, true, seen[:, step - 1]))
        sums.add("seen_share", step, seen[:, step - 1].double().mean((1, 2)), torch.ones(len(true)))
        sums.add("sharpness", step, metrics.sharpness(drawn), energies[:, step - 1])
        sums.add("surprise", step, dream.surprise[:, step - 1], torch.ones(len(true)))
        off, counts = astray[:, step - 1], known[:, step - 1].double()
        sums.add("camera", step, off * counts, counts)
        sums.add("on_course", step, (off < 1) * counts, counts)
        if step in HORIZONS or step == chunk.truth:
            codec = reconstruct(model, true)
            sums.add("codec", step, *metrics.squared_error(codec, true))
            sums.add("codec_sharpness", step, metrics.sharpness(codec), energies[:, step - 1])
            for name, frames in (("dream", drawn), ("copy", copy), ("codec", codec)):
                sums.add(f"{name}_ssim", step, metrics.ssim(frames, true), torch.ones(len(true)))
    typical = (energies * valid).sum(1) / valid.sum(1).clamp(min=1)
    for step in sorted(step for step in dream.frames if step > chunk.truth):  # no truth: against the clip's real frames
        sums.add("sharpness", step, metrics.sharpness(dream.frames[step]), typical)
        sums.add("surprise", step, dream.surprise[:, step - 1], torch.ones(len(real)))
        sums.add("age", step, dream.age[:, step - 1], torch.ones(len(real)))
    return sums.tallies() | _compare_far(chunk, dream, copy)


def _compare_far(chunk: HeldOut, dream: Dream, copy: Tensor) -> dict[str, Tally]:
    if chunk.far is None:
        return {}
    sums = Sums(torch.from_numpy(chunk.far.valid), chunk.far.steps)
    for column, step in enumerate(chunk.far.steps):
        true = torch.from_numpy(chunk.far.frames[:, column])
        sums.add("dream_far", step, *metrics.squared_error(dream.frames[step], true))
        sums.add("copy_far", step, *metrics.squared_error(copy, true))
    return sums.tallies()


def _astray(model: Dreamer, dream: Dream, real: Tensor) -> tuple[Tensor, Tensor]:
    """How many pixels the dream's camera is off the real one, as registration of the real frames uint8
    (B, 1 + S, H, W, 3) finds it, in the direction where it is more: (B, S); and whether all were sure so far."""
    lattice, doubt = getattr(model, "lattice", None), None
    motions, sure = [], []
    for pair in pairwise(to_pixels(real).unbind(1)):
        seen = sight(*pair) if lattice is None else lattice.sight(*pair)
        motion = seen.motion.round()
        if lattice is not None:
            near = None if lattice.edges else motion
            phase, doubt = lattice.settle(doubt, near, seen)
            motion = lattice.motion(phase, near, seen)
        motions.append(motion)
        sure.append(seen.sure)
    places, known = torch.stack(motions, 1).cumsum(1), torch.stack(sure, 1).cumprod(1)
    off = (dream.places[:, : places.shape[1]] - places).abs().amax(2)
    return off.nan_to_num(), known * ~off.isnan()


def _measure_control(model: Dreamer, chunk: HeldOut, sampling: Sampling, progress: Progress) -> Tally:
    """Squared errors of dreams with random actions, uniform and new at every step."""
    length = min(CONTROL, chunk.truth)
    frames, actions = _inputs(chunk, length)
    steps = horizons_until(length)
    spec = model.spec.actions
    rng = np.random.default_rng([sampling.seed, sampling.first_clip])
    played = actions[:, chunk.context - 1 :]
    if isinstance(spec, ContinuousActions):
        drawn = torch.from_numpy(rng.uniform(spec.low, spec.high, played.shape).astype(np.float32))
    else:
        drawn = torch.from_numpy(rng.integers(spec.dim, size=played.shape))
    actions = torch.cat([actions[:, : chunk.context - 1], drawn], 1)
    dream = roll(model, frames, actions, steps, sampling, progress)
    sums = Sums(torch.from_numpy(chunk.valid))
    for step in steps:
        true = torch.from_numpy(chunk.clips.observations[:, chunk.context - 1 + step])
        sums.add("control", step, *metrics.squared_error(dream.frames[step], true))
    return sums.tallies()["control"]


def _colours(chunk: HeldOut, dream: Dream, horizons: Sequence[int]) -> dict[str, dict[int, np.ndarray]]:
    """Colour counts of dreamed and of real frames at the horizons; beyond the truth, of all real frames of the clip."""
    real = torch.from_numpy(chunk.clips.observations[:, chunk.context :])
    valid = chunk.valid[:, :, None].astype(np.float64)
    every = np.stack([metrics.colour_counts(real[:, step]) for step in range(chunk.truth)], 1) * valid
    dreamed, reference = {}, {}
    for step in horizons:
        with_truth = step <= chunk.truth
        dreamed[step] = metrics.colour_counts(dream.frames[step]) * (valid[:, step - 1] if with_truth else 1.0)
        reference[step] = every[:, step - 1] if with_truth else every.sum(1)
    return {"dreamed_colours": dreamed, "real_colours": reference}


def _join_colours(parts: Sequence[dict[int, np.ndarray]]) -> dict[int, np.ndarray]:
    return {step: np.concatenate([part[step] for part in parts]) for step in parts[0]}


def _happenings(dream: Dream, chunk: HeldOut, values: Sequence[float]) -> Happenings:
    after = slice(chunk.context - 1, None)
    return Happenings(
        end_probs=dream.end_probs[:, : chunk.truth].numpy(),
        rewards=dream.rewards[:, : chunk.truth].numpy(),
        real_rewards=nearest_rewards(chunk.clips.rewards[:, after], values),
        real_ends=chunk.clips.terminations[:, after],
        valid=chunk.valid,
    )


def _join_happenings(parts: Sequence[Happenings]) -> Happenings:
    return Happenings(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})

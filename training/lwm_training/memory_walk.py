"""Is the same place there again? The player walks to the right and back, in the real game and in the dream.

Only walks count whose real camera left and came back, as registration sees it. The dream plays the same actions. It is
compared with the real frame at that moment, and registered against the real frame it began with.

Shapes: B walks, C context frames, T steps of the walk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lwm_env.registration import sight
from lwm_env.spec import DiscreteActions, WorldSpec
from lwm_env.tokenizer import to_pixels
from lwm_training import metrics
from lwm_training.held_out import NUM_ENVS, SEED_OFFSET, parse_player
from lwm_training.rollout import Dreamer, Sampling, roll
from lwm_training.source import Source
from lwm_training.tally import Tally

LENGTHS = (8, 16, 30)  # steps to the right
WARM_UP = 40  # steps of play before, so that walks begin at other places than episodes
EXTRA = 8  # more steps back than there were forth, since a player may start slowly or be held up
AWAY = 1 / 8  # of the frame's width that the camera must have gone
BACK = 1.0  # pixels from where it was


@dataclass(frozen=True)
class Walks:
    """What was played of one length: actions (B, C - 1 + T, 1), frames uint8 (B, C + T, H, W, 3) of which the first C
    are the context, and unbroken bool (B,), whether the episode went on all the time."""

    actions: np.ndarray
    frames: np.ndarray
    unbroken: np.ndarray
    context: int


def can_walk(spec: WorldSpec) -> bool:
    """Whether one player can go left and right by name."""
    named = isinstance(spec.actions, DiscreteActions) and {"LEFT", "RIGHT"} <= set(spec.actions.meanings)
    return named and len(spec.players) == 1


def play_walks(source: Source, spec: WorldSpec, length: int, context: int, seed: int) -> Walks:
    """Every copy of the game plays a while, stands still for the context, walks right and then left."""
    meanings = spec.actions.meanings
    plan = [0] * (context - 1) + [meanings.index("RIGHT")] * length + [meanings.index("LEFT")] * (length + EXTRA)
    policy = parse_player(source, spec, "sticky", seed)
    frames, over = source.reset(), np.zeros(source.num_envs, bool)
    restarted = ~over
    for _ in range(WARM_UP):
        step = source.step(policy.act(frames, restarted))
        frames, restarted, over = step.observations, over, step.terminations | step.truncations
    played, unbroken = [frames], ~over
    for action in plan:
        step = source.step(np.full((source.num_envs, 1), action))
        played.append(step.observations)
        unbroken &= ~(step.terminations | step.truncations)
    actions = np.tile(np.array(plan)[None, :, None], (source.num_envs, 1, 1))
    return Walks(actions, np.stack(played, 1), unbroken, context)


def came_back(walks: Walks, length: int) -> tuple[np.ndarray, np.ndarray]:
    """int (B,): the step, counted from the context's end, at which the real camera is back; 0 where it never is. And
    how many pixels away it was when the player turned (B,)."""
    pixels = to_pixels(torch.from_numpy(walks.frames[:, walks.context - 1 :]))
    moves = [sight(*pair) for pair in pairwise(pixels[:, : length + 1].unbind(1))]
    gone = torch.stack([move.motion.round() for move in moves], 1).sum(1).abs().amax(1)
    away = (gone >= AWAY * pixels.shape[-1]) & torch.stack([move.sure for move in moves], 1).all(1)
    distances = torch.stack([_distance(pixels[:, 0], after) for after in pixels[:, length + 1 :].unbind(1)], 1)
    best = distances.amin(1)
    steps = length + 1 + distances.argmin(1)
    good = away & (best < BACK) & torch.from_numpy(walks.unbroken)
    return torch.where(good, steps, 0).numpy(), gone.numpy()


def _distance(before: Tensor, after: Tensor) -> Tensor:
    """How many pixels a picture is off another one (B,); infinite where registration is not sure."""
    motion, sure, _ = sight(before, after)
    return torch.where(sure, motion.abs().amax(1), torch.inf)


def walk(
    model: Dreamer,
    open_source: Callable[[int], Source],
    sampling: Sampling,
    context: int,
    progress: Callable[[int], object],
    lengths: Sequence[int] = LENGTHS,
) -> dict[str, Tally]:
    """Walk there and back in both worlds.

    Args:
        model: of a world that `can_walk`.
        open_source: opens copies of its real game from a seed.
        progress: called with 1 after every length.

    Returns:
        Tallies over all walks, with the lengths as steps: the dream's squared error (dream) and that of the real frame
        at the start (real), both against the real frame at the return; how many pixels the dream is off the start where
        registration is sure (place); dreams less than a pixel off (same); walks whose real camera returned
        (returned), and how many pixels it had gone (gone).
    """
    sums: dict[str, list[np.ndarray]] = {}
    for index, length in enumerate(lengths):
        source = open_source(SEED_OFFSET + (sampling.seed * len(lengths) + index) * NUM_ENVS)
        try:
            walks = play_walks(source, model.spec, length, context, sampling.seed)
        finally:
            source.close()
        returns, gone = came_back(walks, length)
        judged = _judge(model, walks, returns, sampling)
        judged["gone"] = np.stack([np.where(returns > 0, gone, 0), returns > 0]).astype(float)
        for name, pair in judged.items():
            sums.setdefault(name, []).append(pair)
        progress(1)
    return {name: Tally(tuple(lengths), *np.stack(pairs, 2)) for name, pairs in sums.items()}


def _judge(model: Dreamer, walks: Walks, returns: np.ndarray, sampling: Sampling) -> dict[str, np.ndarray]:
    """Totals and counts (2, B) of one length."""
    rows, steps = np.flatnonzero(returns), returns[returns > 0]
    sums = {name: np.zeros((2, len(returns))) for name in ("dream", "real", "place", "same", "returned")}
    sums["returned"] = np.stack([returns > 0, np.ones(len(returns))]).astype(float)
    if not len(rows):
        return sums
    frames = torch.from_numpy(walks.frames[rows])
    context, actions = frames[:, : walks.context], torch.from_numpy(walks.actions[rows])
    dream = roll(model, context, actions, set(steps.tolist()), sampling, lambda _: None)
    dreamed = torch.stack([dream.frames[step][row] for row, step in enumerate(steps.tolist())])
    start = context[:, -1]
    real = frames[torch.arange(len(rows)), walks.context - 1 + torch.from_numpy(steps)]
    distance = _distance(to_pixels(start), to_pixels(dreamed))
    sure = distance.isfinite().double()
    ones = torch.ones(len(rows))
    for name, totals, counts in (
        ("dream", *metrics.squared_error(dreamed, real)),
        ("real", *metrics.squared_error(start, real)),
        ("place", distance.nan_to_num(posinf=0.0), sure),
        ("same", (distance < BACK).double(), ones),
    ):
        sums[name][:, rows] = torch.stack([totals.double(), counts.double()]).numpy()
    return sums

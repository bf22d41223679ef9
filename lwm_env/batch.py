"""What both kinds of batch share: what a world must offer, what a step gives, and which rows of it count.

Shapes: R rows of a batch, P players.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lwm_env.noise import gumbel, uniform
from lwm_env.spec import WorldSpec

State = dict[str, Tensor]

_ENDS = 0x6A09E667F3BCC908  # makes of an episode's key the one that its ends are drawn by


class World(Protocol):
    """What the engine asks of a model: `lwm_env.world_model.WorldModel`, or anything with the same functions.

    `start` and `step` are functions of their arguments alone; a step returns new tensors, of the shapes it was given.
    Models that are no `torch.nn.Module` set `thread_safe = True` when two threads may call `step` at once, and
    `together` to a number of rows that they compute as fast as they can, with the bytes that each row has alone.
    """

    spec: WorldSpec
    prompts: Any
    weights_hash: str
    noise_dim: int
    reward_values: Tensor  # on the device that everything is computed on

    def start(self, frames: Tensor, actions: Tensor) -> State: ...
    def step(self, state: State, action: Tensor, noise: Tensor | None, temperature: float) -> tuple[State, Any]: ...


class Transition(NamedTuple):
    """What a step gave, in tensors that are never written again. Slots that stood still have zeros and their old frame.

    `terminated`: the end probability reached the world's threshold, or an end was drawn. `failed`: the model's numbers
    were not finite; the slot kept its last good state and frame.
    """

    frames: Tensor  # uint8 (N, H, W, 3)
    rewards: Tensor  # float32 (N, P)
    terminated: Tensor  # bool (N,)
    failed: Tensor  # bool (N,)
    end_prob: Tensor  # float32 (N,)
    surprise: Tensor  # float32 (N,), nats


class Batch(Protocol):
    """The worlds of N slots and how they are computed. `frames` and `step` give tensors that stay as they are."""

    @property
    def frames(self) -> Tensor: ...
    def step(self, actions: Tensor, active: np.ndarray, temperature: float) -> Transition: ...
    def occupy(self, worlds: dict[int, tuple[State, Tensor]]) -> None: ...  # slot -> state (one row), frame (H, W, 3)
    def set_clocks(self, keys: np.ndarray, steps: np.ndarray) -> None: ...  # what the sampling noise follows
    def read(self, slot: int) -> tuple[State, Tensor]: ...  # the inverse of `occupy`
    def layout(self) -> State: ...  # names, dtypes and shapes of a row; {} before the first reset


def select(mask: Tensor, new: Tensor, old: Tensor, out: Tensor | None = None) -> Tensor:
    """Rows of `new` where the mask (R,) holds, else of `old`; `out` may be `old` itself."""
    return torch.where(mask.view(-1, *[1] * (new.ndim - 1)), new, old, **({} if out is None else {"out": out}))


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """bool (R,): whether all floating numbers of a row are finite."""
    rows = [tensor.reshape(len(tensor), -1).float() for tensor in tensors if tensor.is_floating_point()]
    return torch.cat(rows, 1).isfinite().all(1)


def compute(
    world: World, state: State, inputs: tuple[Tensor, Tensor, Tensor], temperature: float
) -> tuple[State, Any, Tensor, Tensor]:
    """The model's next state and output, which rows end, and which are finite: bool (R,).

    Args:
        inputs: actions, episode keys and steps of the rows.
    """
    actions, keys, steps = inputs
    noise = gumbel(keys, steps, world.noise_dim) if temperature > 0 else None
    new, out = world.step(state, actions, noise, temperature)
    finite = all_finite([*new.values(), out.reward_probs, out.reward, out.terminated_prob, out.surprise])
    return new, out, ends(world.spec, out.terminated_prob, (keys, steps), temperature), finite


def ends(spec: WorldSpec, end_prob: Tensor, clocks: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """Whether episodes with these end probabilities (R,) end, bool (R,); `clocks` are their keys and steps."""
    if not spec.draws_ends(temperature):
        return end_prob >= spec.termination_threshold
    keys, steps = clocks
    return end_prob > uniform(keys ^ _ENDS, steps, 1)[:, 0]


def masked_numbers(out: Any, ended: Tensor, wanted: Tensor, finite: Tensor) -> tuple[Tensor, ...]:
    """The fields of a `Transition` behind its frames, zero in rows that were not wanted or are not finite."""
    good = wanted & finite
    numbers = (out.reward, out.terminated_prob, out.surprise)
    reward, end_prob, surprise = (select(good, x, torch.zeros_like(x)) for x in numbers)
    return reward, good & ended, wanted & ~finite, end_prob, surprise

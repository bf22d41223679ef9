"""Checks of everything a user hands to an env, before anything changes. Each error says what came and what to do.

Shapes: N envs (no such dimension for a single env), T frames, A action numbers.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.errors import InvalidInput
from lwm_env.scripts import Seats
from lwm_env.spec import DiscreteActions, WorldSpec


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises InvalidInput unless `value` is one of the choices."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), [c for c in choices if isinstance(c, str)], n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Use one of {', '.join(map(repr, choices))}."
        raise InvalidInput(f"{name}={value!r:.60} was given. {hint}")


def check_temperature(value: object) -> float | None:
    """None, or a finite number >= 0."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise InvalidInput(
            f"temperature={value!r:.60} was given; it is a finite number >= 0 (0 takes the likeliest tokens, 1 samples "
            f"as the model believes). Leave it out for the world's own."
        )
    return float(value)


def check_count(name: str, value: object) -> int:
    """An integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InvalidInput(f"{name}={value!r:.60} was given; it is an integer of at least 1.")
    return int(value)


def check_limit(name: str, limit: object, spec: WorldSpec) -> int | None:
    """Steps until an episode is truncated: the world's own for None, no limit (None) for -1."""
    if limit is None:
        return spec.max_episode_steps
    return None if limit == -1 else check_count(name, limit)


def check_seed(seed: object) -> int | None:
    """None, or an integer >= 0."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidInput(f"seed={seed!r:.60} was given; a seed is an integer >= 0, or None.")
    return int(seed)


def check_seeds(seed: object, num_envs: int) -> list[int | None]:
    """One seed per env: from None, from one integer s (env i gets s + i), or from a list of N."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, list | tuple | np.ndarray):
        if len(seed) != num_envs:
            raise InvalidInput(f"seed has {len(seed)} entries for {num_envs} envs. Give one for each, or one integer.")
        return [check_seed(entry) for entry in seed]
    first = check_seed(seed)
    return [first + i for i in range(num_envs)]


def check_options(options: object) -> Mapping[str, Any]:
    """The options of a reset; {} for None. Keys that are not ours are left to wrappers."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise InvalidInput(
            f"options of type {type(options).__name__} were given; they are a dict such as "
            f'{{"frames": frames, "actions": actions}}.'
        )
    return options


def check_mask(mask: object, num_envs: int) -> np.ndarray:
    """`options["reset_mask"]`, a bool array (N,) with at least one True, as a copy."""
    array = _to_array(mask)
    if array.dtype != np.bool_ or array.shape != (num_envs,) or not array.any():
        raise InvalidInput(
            f'options["reset_mask"] of dtype {array.dtype} and shape {array.shape} was given; it is a bool array of '
            f"shape ({num_envs},) with at least one True."
        )
    return array.copy()


def check_actions(actions: object, spec: WorldSpec, lead: tuple[int, ...], name: str = "action") -> Tensor:
    """Actions of one player as int64 `lead` or float32 `(*lead, A)`.

    Args:
        actions: numbers, an array or a tensor of that shape; integers in range or finite numbers within the bounds.
        lead: () for a single env, (N,) for N envs, (T - 1,) for a prompt.
        name: what to call them in an error.
    """
    array = _to_array(actions)
    discrete = isinstance(spec.actions, DiscreteActions)
    shape = lead if discrete else (*lead, spec.actions.dim)
    if discrete:
        expected = f"integers from 0 to {spec.actions.dim - 1}"
    else:
        expected = f"finite numbers from {list(spec.actions.low)} to {list(spec.actions.high)}"
    if array.dtype.kind not in ("iu" if discrete else "iuf") or array.shape != shape:
        raise InvalidInput(
            f"{name} of dtype {array.dtype} and shape {array.shape} was given; {spec.id} takes {expected} "
            f"in shape {shape}."
        )
    low, high = (0, spec.actions.dim - 1) if discrete else (np.float32(spec.actions.low), np.float32(spec.actions.high))
    converted = array if discrete else array.astype(np.float32)
    wrong = ~((converted >= low) & (converted <= high))  # NaN is neither
    if wrong.any():
        raise InvalidInput(f"{name} {array[wrong].flat[0]!r} was given; {spec.id} takes {expected}.")
    return torch.from_numpy(converted.astype(np.int64 if discrete else np.float32))


def check_prompts(
    options: Mapping[str, Any], spec: WorldSpec, num_envs: int | None, seats: Seats | None = None
) -> tuple[Tensor, Tensor] | None:
    """Frames and actions to start from, if the options have any, in the world's frame size.

    Args:
        options: with "frames", uint8 ([N,] T, h, w, 3), T >= 1, and "actions" ([N,] T - 1[, P][, A]), which may be left
            out when T is 1.
        num_envs: N, or None for a single env.
        seats: who plays beside the first player, whose actions alone are given; None: the actions have a dimension of
            P players.

    Returns:
        frames uint8 (N, T, H, W, 3) and actions (N, T - 1, P[, A]); N is 1 for a single env.
    """
    given, actions = options.get("frames"), options.get("actions")
    if given is None:
        if actions is not None:
            raise InvalidInput('options["actions"] came without options["frames"]. Give both, or neither.')
        return None
    frames = _to_array(given)
    lead = () if num_envs is None else (num_envs,)
    letters = "(T, H, W, 3)" if num_envs is None else f"({num_envs}, T, H, W, 3)"
    if (
        frames.dtype != np.uint8
        or frames.ndim != len(lead) + 4
        or frames.shape[: len(lead)] != lead
        or frames.shape[-1] != 3
        or 0 in frames.shape
    ):
        raise InvalidInput(
            f'options["frames"] of dtype {frames.dtype} and shape {frames.shape} was given; it is uint8 {letters} '
            f"with at least one frame. Add an axis to a single picture: frames[None]."
        )
    length, joint = frames.shape[len(lead)], seats is None
    actions = () if actions is None else actions
    if length == 1 and _to_array(actions).size == 0:  # nothing has no shape or dtype to speak of
        actions = _no_actions(spec, (*lead, 0, len(spec.players)) if joint else (*lead, 0))
    steps = (*lead, length - 1, len(spec.players)) if joint else (*lead, length - 1)
    checked = check_actions(actions, spec, steps, f'options["actions"] for {length} frames')
    if num_envs is None:
        frames, checked = frames[None], checked[None]
    pictures = _resize(torch.from_numpy(frames.copy()), spec.frame_size)
    if seats is not None:
        joint_actions = seats.join(checked.flatten(0, 1), lambda: pictures[:, :-1].flatten(0, 1))
        checked = joint_actions.unflatten(0, checked.shape[:2])
    return pictures, checked


def _no_actions(spec: WorldSpec, lead: tuple[int, ...]) -> Tensor:
    if isinstance(spec.actions, DiscreteActions):
        return torch.zeros(lead, dtype=torch.int64)
    return torch.zeros(*lead, spec.actions.dim)


def _resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, T, h, w, 3) -> (N, T, *size, 3), smoothed when it shrinks; one picture at a time, so N changes no bit."""
    if tuple(frames.shape[2:4]) == tuple(size):
        return frames
    pictures = frames.flatten(0, 1).movedim(-1, 1).float().split(1)
    resized = torch.cat([F.interpolate(x, size=size, mode="bilinear", antialias=True) for x in pictures])
    whole = resized.round().clamp(0, 255).to(torch.uint8)
    return whole.movedim(1, -1).unflatten(0, tuple(frames.shape[:2])).contiguous()


def _to_array(value: object) -> np.ndarray:
    """The value as an array; of dtype object, which no check lets pass, when it cannot be one."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError, RuntimeError):
        return np.empty((), object)

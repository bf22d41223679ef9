"""Open-loop dreams of many clips at once: real frames as context, then actions only.

Shapes: B clips, C context frames, T steps, P players, A action numbers.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lwm_env.batch import ends, select
from lwm_env.noise import episode_key, gumbel
from lwm_env.spec import WorldSpec
from lwm_training.held_out import Progress


class Dreamer(Protocol):
    """What is needed of a world model."""

    spec: WorldSpec
    tokenizer: Any  # encode, quantize, decode
    reward_values: Tensor  # lies on the model's device
    noise_dim: int

    def start(self, frames: Tensor, actions: Tensor) -> dict[str, Tensor]: ...

    def step(self, state: dict[str, Tensor], action: Tensor, noise: Tensor | None, temperature: float) -> tuple: ...


@dataclass(frozen=True)
class Dream:
    """On the CPU: frames {step from 1: uint8 (B, H, W, 3)}, places (B, T, 2), where the camera has gone since the last
    real frame, in pixels of its content's motion, NaN if the model has none; rewards (B, T, P); end_probs (B, T), where
    ends are drawn 1 for each that was and 0 elsewhere; surprise and age (B, T), the steps since the dream began, or
    began again."""

    frames: dict[int, Tensor]
    places: Tensor
    rewards: Tensor
    end_probs: Tensor
    surprise: Tensor
    age: Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Clip i of a rollout gets the numbers of episode `first_clip` + i."""

    temperature: float = 0.0
    seed: int = 0
    first_clip: int = 0


@torch.inference_mode()
def roll(
    model: Dreamer,
    frames: Tensor,
    actions: Tensor,
    kept: Collection[int],
    sampling: Sampling,
    progress: Progress,
    watch: Callable[[int, Tensor, Tensor], object] | None = None,
    lasts: int | None = None,
) -> Dream:
    """Dream on from real frames.

    Args:
        frames: uint8 (B, C, H, W, 3), the context.
        actions: (B, C - 1 + T, P) or (B, C - 1 + T, P, A); the first C - 1 led through the context.
        kept: the steps, from 1, whose frames are returned.
        progress: called with B after every step.
        watch: called with every step, its frames, uint8 (B, H, W, 3) on the CPU, also those that are not kept, and
            which of them are the first ones of a dream that began again, bool (B,).
        lasts: so many steps a dream goes on even past its own end; from then on it begins again where it has ended, at
            the context, as an env does. None: always.
    """
    device, context = model.reward_values.device, frames.shape[1]
    frames, actions = frames.to(device), actions.to(device)
    state = begun = model.start(frames, actions[:, : context - 1])
    over = torch.zeros(len(frames), dtype=torch.bool, device=device)
    age = torch.zeros(len(frames), device=device)
    numbers = range(sampling.first_clip, sampling.first_clip + len(frames))
    keys = torch.tensor([episode_key(sampling.seed, number) for number in numbers], device=device)
    still = hasattr(model, "config") and not model.config.camera.max_motion
    unknown = torch.full((len(frames), 2), torch.nan, device=device)
    place = unknown if still else state.get("offset", unknown)
    if getattr(model, "lattice", None) is not None:
        place = torch.zeros_like(place)  # an offset is a phase then
    pictures, outputs = {}, []
    for step, action in enumerate(actions[:, context - 1 :].unbind(1)):
        again = over & (lasts is not None and step >= lasts)
        if again.any():
            state = {name: select(again, begun[name], value) for name, value in state.items()}
        age = torch.where(again, 0, age) + 1
        clocks = keys, torch.full_like(keys, step)
        noise = gumbel(*clocks, model.noise_dim) if sampling.temperature > 0 else None
        state, out = model.step(state, action, noise, sampling.temperature)
        ended = ends(model.spec, out.terminated_prob, clocks, sampling.temperature)
        over = (over & ~again) | ended
        frame = out.frame.cpu() if watch or step + 1 in kept else None
        if watch:
            watch(step + 1, frame, again.cpu())
        if step + 1 in kept:
            pictures[step + 1] = frame
        place = place + state["motion"][:, :2] if "motion" in state else place
        end_prob = ended if model.spec.draws_ends(sampling.temperature) else out.terminated_prob
        outputs.append((place, out.reward, end_prob, out.surprise, age))
        progress(len(frames))
    return Dream(pictures, *(torch.stack(column, 1).float().cpu() for column in zip(*outputs, strict=True)))


@torch.inference_mode()
def reconstruct(model: Dreamer, frames: Tensor) -> Tensor:
    """Frames (B, H, W, 3) through the tokens and back, without anything else to look at."""
    from lwm_env.tokenizer import to_frames, to_pixels

    pixels = to_pixels(frames.to(model.reward_values.device))
    tokenizer = model.tokenizer
    return to_frames(tokenizer.decode(tokenizer.quantize(tokenizer.encode(pixels)))).cpu()

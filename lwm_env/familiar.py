"""How well a world knows a picture: what its tokenizer makes of it, against what it makes of the world's own prompts.

A tokenizer that learned one game draws that game's pictures well and any other badly, so the peak signal-to-noise ratio
of a picture to its reconstruction, in decibels, tells them apart. A world is said not to know a picture that comes out
worse by `MARGIN` than the worst of its prompts. Nothing is sampled and nothing of an env changes.
"""

import warnings
import weakref

import torch
from torch import Tensor

from lwm_env.errors import UnfamiliarPrompt
from lwm_env.tokenizer import to_frames, to_pixels
from lwm_env.world_model import WorldModel

MARGIN = 3.0  # dB

_least: "weakref.WeakKeyDictionary[WorldModel, float]" = weakref.WeakKeyDictionary()


@torch.inference_mode()
def reconstruction_psnr(model: WorldModel, frames: Tensor) -> Tensor:
    """How well the tokenizer draws frames, uint8 (B, H, W, 3): float64 (B,) in dB."""
    tokenizer = model.tokenizer
    errors = []
    for part in frames.to(tokenizer.levels.device).split(16):
        latent = tokenizer.levels[tokenizer.indices(tokenizer.encode(to_pixels(part)))]
        drawn = to_frames(tokenizer.decode(latent))
        errors.append((drawn.double() - part.double()).square().mean((1, 2, 3)))
    return 10 * torch.log10(255**2 / torch.cat(errors).clamp(min=1e-2)).cpu()


def least_psnr(model: object) -> float | None:
    """What a picture must have for `model` to know it; None for a world without prompts, which knows none.

    Found once for each model, from the first and the last frame of every prompt.
    """
    core = _core(model)
    if core is None or core.prompts is None or not len(core.prompts.frames):
        return None
    if core not in _least:
        frames = core.prompts.frames
        _least[core] = float(reconstruction_psnr(core, torch.cat([frames[:, 0], frames[:, -1]])).min()) - MARGIN
    return _least[core]


def _core(model: object) -> WorldModel | None:
    """The torch model itself, or the one behind another runtime's."""
    core = getattr(model, "model", model)
    return core if isinstance(core, WorldModel) else None


def unfamiliar(model: object, frames: Tensor) -> str | None:
    """What to tell about frames, uint8 (B, H, W, 3), of which the world does not know one; None if it knows all."""
    core, least = _core(model), least_psnr(model)
    if core is None or least is None:
        return None
    worst = float(reconstruction_psnr(core, frames).min())
    if worst >= least:
        return None
    return (
        f"{core.spec.id} was not trained on pictures like this one: it redraws it at {worst:.1f} dB, and the worst of "
        f"its own at {least + MARGIN:.1f} dB. What it dreams from here need not make sense. Start from a picture of "
        f"{core.spec.real.source}, or train a world on such pictures (lwm new)."
    )


def warn_if_unfamiliar(model: object, prompts: tuple[Tensor, Tensor] | None, stacklevel: int) -> None:
    """`UnfamiliarPrompt` as a Python warning, if the last frames of the prompts (N, T, H, W, 3) are not known."""
    told = None if prompts is None else unfamiliar(model, prompts[0][:, -1])
    if told:
        warnings.warn(told, UnfamiliarPrompt, stacklevel=stacklevel + 1)

"""How wrong a picture is, and where that matters most.

Shapes: B pictures of H x W pixels, in [-1, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.tokenizer import Tokenizer

CHANGED = 0.1  # difference of a colour, of 2 at most, from which on a pixel has changed
ELSEWHERE = 1.0  # sum over the colours of a difference, of 6 at most, from which on a thing is elsewhere
PLAIN = 0.3  # less is no thing but texture; without it everything is dotted, which has something of all nearby
STRAYS = 2  # pixels that a small thing may be from where it should be
SURE = 0.1  # squared error of a source, over the colours, by which another explains a pixel e times as well
UNEXPLAINED = 1e-3  # likelihood of a pixel that no source explains
END = 1.5  # before the tanh; from there on a latent is drawn back
FEW = 0.002  # of the pixels: fewer changed ones are weighted as if they were so many


def changes(before: Tensor, after: Tensor) -> Tensor:
    """Where two pictures (B, 3, H, W) differ, and one pixel around: 1 or 0, (B, 1, H, W)."""
    mask = ((before - after).abs().amax(1, keepdim=True) > CHANGED).to(before.dtype)
    return F.max_pool2d(mask, 3, stride=1, padding=1)


def missing(here: Tensor, there: Tensor, reach: int) -> Tensor:
    """How far each colour of a picture is from all that another shows within `reach` pixels: (B, 3, H, W)."""
    both = torch.cat([there, -there], 1)
    for kernel, padding in (((1, 2 * reach + 1), (0, reach)), ((2 * reach + 1, 1), (reach, 0))):  # half the time of one
        both = F.max_pool2d(both, kernel, stride=1, padding=padding)
    highest, lowest = both.chunk(2, 1)
    return F.relu(here - highest) + F.relu(-lowest - here)


def elsewhere(drawn: Tensor, real: Tensor) -> Tensor:
    """Whether the real picture (B, 3, H, W) shows something of which the drawn one has nothing within a pixel: (B,).
    What is drawn too much does not count."""
    return missing(real, drawn, 1).sum(1).amax((1, 2)) > ELSEWHERE


def lost_error(drawn: Tensor, real: Tensor, seen: Tensor) -> Tensor:
    """How much either of two pictures (B, 3, H, W) shows of which the other has nothing within `STRAYS` pixels, beyond
    a colour's difference of `PLAIN`, where it was `seen` (B, 1, H, W) before: (B,).

    Of a small thing whose place is uncertain, absolute errors are least where nothing is drawn; here where it is drawn
    anywhere near.
    """
    apart = [F.relu(missing(*pair, STRAYS) - PLAIN) for pair in ((real, drawn), (drawn, real))]
    return (sum(apart) * seen).mean((1, 2, 3))


def emphasis(mask: Tensor, share: float) -> Tensor:
    """Weights of mean 1 for a mask (B, 1, H, W) of which `share` lies where it is 1; 1 where nothing or all is."""
    part = mask.mean((2, 3), keepdim=True)
    weights = 1 - share + share * mask / part.clamp(min=FEW)
    return weights / weights.mean((2, 3), keepdim=True).clamp(min=FEW)


def picture_error(
    predicted: Tensor, target: Tensor, edges: float, weights: Tensor | None = None, squared: float = 0.0
) -> Tensor:
    """Mean absolute error per picture, with that of horizontal and vertical differences: (B,). `weights` (B, 1, H, W)
    of the pixels; so many times the squared error is added."""
    error = predicted - target
    parts = [error, error.diff(dim=-2), error.diff(dim=-1)]
    if squared:
        parts = [part.abs() + squared * part.square() for part in parts]
    if weights is not None:
        parts = [
            part * weight for part, weight in zip(parts, (weights, weights[..., 1:, :], weights[..., 1:]), strict=True)
        ]
    whole, across, along = (part.abs().mean((1, 2, 3)) for part in parts)
    return whole + edges * (across + along) / 2


def choice_error(masks: Tensor, sources: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """How unlikely the target (B, 3, H, W) is if each pixel shows one of S sources (B, S, 3, H, W), chosen with the
    shares of masks (B, S, H, W); with `weights` (B, 1, H, W) of the pixels: (B,). Teaches the masks alone.

    In a mixed picture a source learns by how much of it is there, so one that is faint where it is needed learns
    nothing; here by how well it explains the pixel.
    """
    explained = (-(sources.detach() - target[:, None]).square().sum(2) / SURE).exp()
    unlikely = -((masks * explained).sum(1) + UNEXPLAINED).log()
    return (unlikely if weights is None else unlikely * weights[:, 0]).mean((1, 2))


def codec_error(
    tokenizer: Tokenizer, pixels: Tensor, others: Tensor, edges: float, changed: float = 0.0, squared: float = 0.0
) -> Tensor:
    """Reconstruction error of pictures (B, 3, H, W) through the tokens alone: (B,). `others` are pictures a step away,
    from which they differ where it matters most."""
    drawn = tokenizer.decode(tokenizer.quantize(tokenizer.encode(pixels)))
    emphasised = emphasis(changes(pixels, others), changed) if changed else None
    return picture_error(drawn, pixels, edges, emphasised, squared)


def end_error(tokenizer: Tokenizer, pixels: Tensor) -> Tensor:
    """How far the latents of pictures (B, 3, H, W) are beyond `END`, squared: (B,)."""
    return F.relu(tokenizer.encoder(pixels).abs() - END).square().mean((1, 2, 3))

"""What a dreamed frame is compared by: squared error, structure, sharpness, colours.

Shapes: B frames of H x W pixels, uint8 (B, H, W, 3) as environments give them.
"""

import math

import numpy as np
import torch
from torch import Tensor

from lwm_env.errors import InvalidInput

WINDOW, SIGMA = 11, 1.5  # of SSIM, pixels
COLOUR_BITS = 3  # a channel: 512 colours


def psnr(mean_squared_error: np.ndarray | float) -> np.ndarray:
    """Peak signal-to-noise ratio in decibels of a mean squared error of uint8 values; `inf` for 0, NaN for NaN.

    Pool the error over frames first: the mean of PSNRs is inflated by frames in which nothing moves.
    """
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / np.asarray(mean_squared_error, np.float64))


def squared_error(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Summed squared error of every frame, and the number of values summed: two float64 (B,).

    Args:
        predicted, target: uint8 (B, H, W, 3).
        mask: bool (B, H, W), which pixels count; all of them by default.

    Raises:
        InvalidInput: frames of different shapes, or not uint8.
    """
    _check(predicted, target)
    error = (predicted.int() - target.int()).square().sum(-1).double()
    mask = torch.ones_like(error) if mask is None else mask.double()
    return (error * mask).sum((1, 2)), 3 * mask.sum((1, 2))


def ssim(predicted: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of every frame, float64 (B,): 1 for equal frames, about 0 for unrelated ones.

    Gaussian window of 11 pixels and sigma 1.5, K1 0.01, K2 0.03, per colour channel, averaged over the places where
    the whole window fits.

    Raises:
        InvalidInput: frames of different shapes, not uint8, or smaller than the window.

    Source: Wang, Bovik, Sheikh and Simoncelli, 2004, doi:10.1109/TIP.2003.819861.
    """
    _check(predicted, target)
    if min(predicted.shape[1:3]) < WINDOW:
        raise InvalidInput(f"SSIM needs frames of at least {WINDOW} pixels a side, got {tuple(predicted.shape[1:3])}.")
    x, y = (frames.movedim(-1, 1).double() for frames in (predicted, target))
    mean_x, mean_y = _blur(x), _blur(y)
    variances = (_blur(x * x) - mean_x**2) + (_blur(y * y) - mean_y**2)
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * structure).mean((1, 2, 3))


def _blur(x: Tensor) -> Tensor:
    """Gaussian means of (B, 3, H, W) where the window fits, by a small matrix for each direction."""
    return _windows(x.shape[-2]).to(x) @ x @ _windows(x.shape[-1]).to(x).T


def _windows(size: int) -> Tensor:
    """Weights of every place of the window along a line, (size - WINDOW + 1, size)."""
    middles = torch.arange(WINDOW // 2, size - WINDOW // 2)[:, None]
    distances = (torch.arange(size)[None] - middles).double()
    weights = torch.exp(-distances.square() / (2 * SIGMA**2)) * (distances.abs() <= WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)


def sharpness(frames: Tensor) -> Tensor:
    """Laplacian energy, float64 (B,): the mean squared difference of a grey pixel from its four neighbours, times 16.

    It falls when edges blur; compare it with that of real frames, not across games.
    """
    grey = frames.double().mean(-1)
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * inner).square().mean((1, 2))


def colour_counts(frames: Tensor) -> np.ndarray:
    """How many pixels of every frame have each of 512 colours (8 levels a channel): float64 (B, 512)."""
    levels = (frames >> (8 - COLOUR_BITS)).long()
    colours = (levels[..., 0] << 2 * COLOUR_BITS) | (levels[..., 1] << COLOUR_BITS) | levels[..., 2]
    num_colours = 1 << 3 * COLOUR_BITS
    rows = torch.arange(len(frames), device=frames.device)[:, None, None] * num_colours
    counts = torch.bincount((rows + colours).flatten(), minlength=len(frames) * num_colours)
    return counts.view(len(frames), num_colours).double().cpu().numpy()


def colour_distance(counts: np.ndarray, reference: np.ndarray) -> float:
    """Share of pixels that would have to change colour to make one histogram (512,) the other: 0 to 1.

    NaN when either is empty.
    """
    if not counts.sum() or not reference.sum():
        return math.nan
    return float(np.abs(counts / counts.sum() - reference / reference.sum()).sum() / 2)


def _check(predicted: Tensor, target: Tensor) -> None:
    for name, frames in (("predicted", predicted), ("target", target)):
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise InvalidInput(
                f"{name} must be uint8 frames (B, H, W, 3), got {str(frames.dtype)[6:]} {tuple(frames.shape)}."
            )
    if predicted.shape != target.shape:
        raise InvalidInput(f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)} differ in shape.")

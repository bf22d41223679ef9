"""Frames to tokens and back: a convolutional FSQ autoencoder whose decoder may look at a reference picture.

Shapes: B frames of H x W pixels, h x w cells, D latent dimensions a cell, L levels a dimension.
Pixels are floats in [-1, 1]. A token is one of L levels in each of D dimensions, so a cell has D * log2(L) bits.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.layers import Pointwise, conv_stack, hard_gate


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Shape of the tokenizer, saved inside every world."""

    patch: int = 4  # pixels along the side of a cell
    latent_dim: int = 4
    levels: int = 8
    encoder_dim: int = 48
    encoder_blocks: int = 2
    decoder_dim: int = 64
    decoder_blocks: int = 2
    fine_dim: int = 32  # channels of the last stage, at half the pixel resolution
    exact_copies: int = 0  # 1: a pixel is copied from the reference or drawn, never mixed

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (name != "exact_copies"):
                raise ValueError(f"TokenizerConfig.{name} must be at least 1, got {value}")
        if self.patch % 2:
            raise ValueError(f"TokenizerConfig.patch must be even, got {self.patch}")


class Tokenizer(nn.Module):
    """Finite scalar quantisation (Mentzer et al., 2023, arXiv:2309.15505) on a grid of cells."""

    levels: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        pixels = 3 * config.patch**2
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(config.patch),
            nn.Conv2d(pixels, config.encoder_dim, 3, padding=1),
            conv_stack(config.encoder_dim, config.encoder_blocks),
            Pointwise(config.encoder_dim, config.latent_dim),
        )
        # The decoder sees the latent, the reference picture, and a plane that says whether there is one.
        self.stem = nn.Conv2d(config.latent_dim + pixels + 1, config.decoder_dim, 3, padding=1)
        self.body = conv_stack(config.decoder_dim, config.decoder_blocks)
        self.widen = Pointwise(config.decoder_dim, config.fine_dim * (config.patch // 2) ** 2)
        self.draw = nn.Conv2d(config.fine_dim, 4 * 4, 3, padding=1)  # 2x2 pixels of 3 colours and a gate
        self.register_buffer("levels", torch.linspace(-1, 1, config.levels), persistent=False)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> continuous latent (B, D, h, w) in (-1, 1)."""
        return torch.tanh(self.encoder(pixels))

    def indices(self, latent: Tensor) -> Tensor:
        """Nearest level of every dimension: (B, D, h, w) int64."""
        return ((latent + 1) * ((self.config.levels - 1) / 2)).round().long().clamp(0, self.config.levels - 1)

    def quantize(self, latent: Tensor) -> Tensor:
        """The nearest level's value, gradients passing straight through."""
        return latent + (self.levels[self.indices(latent)] - latent).detach()

    def decode(self, latent: Tensor, reference: Tensor | None = None) -> Tensor:
        """Quantised latent (B, D, h, w), and a picture (B, 3, H, W) that it may copy from -> pixels (B, 3, H, W)."""
        patch = self.config.patch
        batch, _, height, width = latent.shape
        given = reference is not None
        if reference is None:
            reference = latent.new_zeros(batch, 3, height * patch, width * patch)
        seen, plane = self.stem.weight.split([self.stem.in_channels - 1, 1], 1)
        h = F.conv2d(torch.cat([latent, F.pixel_unshuffle(reference, patch)], 1), seen, self.stem.bias, padding=1)
        if given:  # the same for all, so that it is added rather than computed
            h = h + F.conv2d(latent.new_ones(1, 1, height, width), plane, padding=1)
        h = self.body(h)
        fine = F.silu(F.pixel_shuffle(self.widen(h), patch // 2))
        drawn, gate = F.pixel_shuffle(self.draw(fine), 2).split([3, 1], dim=1)
        keep = hard_gate(gate) * float(given)
        if self.config.exact_copies:  # gradients pass straight through
            keep = keep + ((keep > 0.5).to(keep.dtype) - keep).detach()
        return drawn + keep * (reference - drawn)


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) -> float (..., 3, H, W) in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_frames(pixels: Tensor) -> Tensor:
    """float (..., 3, H, W) in [-1, 1] -> uint8 (..., H, W, 3)."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1).contiguous()

"""Building blocks of every network here. Shapes: B worlds, C channels, H x W cells."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LANES = 16  # a sine that is computed for so many numbers at once has the same bytes however many rows there are


def sine_and_cosine(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Of angles (..., N), in whole lanes for each row, whose bytes are then those of the row alone."""
    count = angles.shape[-1]
    padded = F.pad(angles, (0, -count % LANES))
    return padded.sin()[..., :count], padded.cos()[..., :count]


def hard_gate(logits: Tensor) -> Tensor:
    """A sigmoid that reaches 0 and 1, so that what is copied again and again stays what it was."""
    return (1.04 * torch.sigmoid(logits) - 0.02).clamp(0, 1)


class LayerNorm2d(nn.Module):
    """Layer norm over each cell's channels; in channels-last memory the permutations cost nothing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.gain.shape, self.gain, self.bias).permute(0, 3, 1, 2)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as a matrix product; torch's own takes a slow path for small batches on one CPU thread. In an
    exported graph it stays a convolution, which spares ONNX Runtime two transpositions."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return super().forward(x)
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """Residual 3x3 and 1x1 convolutions; a dense 3x3 trains as fast on a CPU as a depthwise 5x5 of a fifth the work."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.mix = nn.Conv2d(dim, dim, 3, padding=1)
        self.out = Pointwise(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        """`film`: (B, 2C) scale and shift of the normalised input, from the action."""
        h = self.norm(x)
        if film is not None:
            scale, shift = film[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return x + self.out(F.silu(self.mix(h)))


class SpatialAttention(nn.Module):
    """Every cell attends to every cell of its frame; used by the presets whose grids are wide."""

    def __init__(self, dim: int, head_dim: int = 64) -> None:
        super().__init__()
        self.heads = max(1, dim // head_dim)
        self.norm = LayerNorm2d(dim)
        self.qkv = Pointwise(dim, 3 * dim, bias=False)
        self.out = Pointwise(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, dim // self.heads, height * width)
        query, key, value = qkv.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(-1, -2).reshape(batch, dim, height, width))


def conv_stack(dim: int, depth: int) -> nn.Sequential:
    """`depth` residual blocks one after the other."""
    return nn.Sequential(*[ConvBlock(dim) for _ in range(depth)])

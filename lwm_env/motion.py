"""The last frames and the action to the moved picture: games scroll, so move pixels before drawing any.

An hourglass reads the last K frames, estimates the motion of the camera, and composes by masks: the canvas moved by it
(the last frame, and what was seen beyond its edges), the last frame where it was, and new pixels. Games round every
sprite's place to whole pixels for itself, so the canvas is offered at the four whole motions around the estimated one.

Shapes: B worlds, K context frames, H x W pixels, h x w cells, C channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.layers import ConvBlock, Pointwise, SpatialAttention, hard_gate
from lwm_env.memory import Views

FAINT = 0.02  # masks below this share are none


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Shape of the motion model."""

    context_frames: int = 4
    dim: int = 64
    bottleneck_dim: int = 160
    bottleneck_blocks: int = 3
    attention_blocks: int = 0  # spatial attention between the bottleneck's convolutions
    max_motion: float = 12.0  # pixels a step
    carry_dim: int = 32  # numbers kept from step to step: speeds, fractions of a pixel
    refine_blocks: int = 2  # between the views of the canvas and the masks

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (0 if name == "attention_blocks" else 1):
                raise ValueError(f"MotionConfig.{name} must be positive, got {value}")


class Motion(nn.Module):
    """Proposes the next picture by moving the last one."""

    def __init__(self, config: MotionConfig, patch: int, frame_size: tuple[int, int], action_dim: int) -> None:
        super().__init__()
        self.config, self.patch, self.frame_size = config, patch, frame_size
        pixels, dim, wide = 3 * patch**2, config.dim, config.bottleneck_dim
        self.num_older = config.context_frames - 2
        self.recent = nn.Conv2d(2 * pixels, dim, 3, padding=1)
        self.older = Pointwise(4 * pixels * self.num_older, wide) if self.num_older > 0 else None
        self.down = Pointwise(4 * dim, wide)
        self.condition = nn.Sequential(nn.Linear(action_dim + 2 + config.carry_dim, wide), nn.SiLU())
        self.fraction = nn.Linear(4, wide, bias=False)
        self.films = nn.ModuleList([nn.Linear(wide, 2 * wide) for _ in range(config.bottleneck_blocks)])
        self.blocks = nn.ModuleList([ConvBlock(wide) for _ in range(config.bottleneck_blocks)])
        self.attention = nn.ModuleList([SpatialAttention(wide) for _ in range(config.attention_blocks)])
        cells = (frame_size[0] // patch // 2) * (frame_size[1] // patch // 2)
        self.gather = Pointwise(wide, 24)
        self.motions = nn.Sequential(nn.Linear(24 * cells + wide, 128), nn.SiLU(), nn.Linear(128, 2 + config.carry_dim))
        self.up = Pointwise(wide, 4 * dim)
        self.merge = Pointwise(2 * dim + pixels + patch**2, dim)
        self.phase = nn.Sequential(nn.Linear(action_dim + 4 + config.carry_dim, wide), nn.SiLU())
        self.tints = nn.ModuleList([nn.Linear(wide, 2 * dim) for _ in range(config.refine_blocks)])
        self.refine = nn.ModuleList([ConvBlock(dim) for _ in range(config.refine_blocks)])
        self.layers = Pointwise(dim, (4 + 2 + 3) * patch**2)
        self.write = Pointwise(2 * dim, patch**2)
        self.rounding = nn.Parameter(torch.tensor(4.0))  # how much a whole motion's distance from the estimate counts
        nn.init.zeros_(self.fraction.weight)
        for linear in [*self.films, *self.tints, self.motions[-1], self.layers, self.write]:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.constant_(self.write.bias, 3.0)
        nn.init.constant_(self.layers.bias[4 * patch**2 : 6 * patch**2], -2.0)  # the canvas first

    @property
    def composing(self) -> list[nn.Module]:
        """The layers that do not take part in the estimate of the motion."""
        return [self.up, self.merge, self.phase, self.tints, self.refine, self.layers, self.write]

    def estimate(
        self, frames: Tensor, action: Tensor, motion: Tensor, offset: Tensor, carry: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (B, K, 3, H, W), embedded action (B, A), the motion before and its correction (B, 2 + 2), the fraction
        of a pixel left over (B, 2), and what was carried (B, carry_dim) -> features (B, 2C, h, w), motion (B, 2) in
        pixels, and what to carry on."""
        recent = self.recent(F.pixel_unshuffle(frames[:, -2:].flatten(1, 2), self.patch))
        x = self.down(F.pixel_unshuffle(F.silu(recent), 2))
        if self.older is not None:
            x = x + self.older(F.pixel_unshuffle(frames[:, : self.num_older].flatten(1, 2), 2 * self.patch))
        enter, activate = self.condition
        before, correction = motion.chunk(2, dim=1)
        condition = activate(
            enter(torch.cat([action, before / 4, carry], 1)) + self.fraction(torch.cat([offset, correction], 1))
        )
        for index, (block, film) in enumerate(zip(self.blocks, self.films, strict=True)):
            x = block(x, film(condition))
            if index < len(self.attention):
                x = self.attention[index](x)
        summary = torch.cat([self.gather(x).flatten(1), condition], 1)
        limit = self.config.max_motion
        motion, carry = self.motions(summary).split([2, self.config.carry_dim], dim=1)
        features = torch.cat([recent, F.pixel_shuffle(self.up(x), 2)], 1)
        return features, limit * torch.tanh(motion * (4 / limit)), torch.tanh(carry)

    def lasting(self, features: Tensor) -> Tensor:
        """How much of each pixel of the last picture belongs on the canvas, (B, 1, H, W): players do not."""
        return hard_gate(F.pixel_shuffle(self.write(features), self.patch))

    def compose(
        self, features: Tensor, last: Tensor, views: Views, action: Tensor, motion: Tensor, carry: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features, the last picture (B, 3, H, W), the canvas after the motion (B, 2), the embedded action and the new
        carry -> the moved picture (B, 3, H, W) and refined features (B, C, h, w)."""
        seen = [F.pixel_unshuffle(views.colours[:, 0], self.patch), F.pixel_unshuffle(views.known[:, 0], self.patch)]
        features = self.merge(torch.cat([features, *seen], 1))
        phase = self.phase(torch.cat([action, motion / 4, views.offset, carry], 1))
        for block, tint in zip(self.refine, self.tints, strict=True):
            features = block(features, tint(phase))
        layers = F.pixel_shuffle(self.layers(F.silu(features)), self.patch)
        masks, drawn = layers.split([6, 3], dim=1)
        nearness = -F.softplus(self.rounding) * views.distance[:, :, None, None]
        moved = masks[:, :4] + nearness + views.known[:, :, 0].clamp(min=1e-3).log()
        masks = F.relu(torch.cat([moved, masks[:, 4:]], 1).softmax(1) - FAINT)  # what is copied is copied exactly
        masks = masks / masks.sum(1, keepdim=True)
        sources = torch.cat([views.colours, torch.stack([last, torch.tanh(drawn)], 1)], 1)
        return (masks[:, :, None] * sources).sum(1), features

"""Tokens of the next frame predicted around the moved picture; then reward and end, seen in the drawn next state.

Shapes: B worlds, P players, h x w cells, D latent dimensions, L levels, R reward values.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.layers import Pointwise, conv_stack


@dataclass(frozen=True, kw_only=True)
class DynamicsConfig:
    """Shape of the token predictor and of the event heads."""

    dim: int = 64
    blocks: int = 2
    event_dim: int = 96

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"DynamicsConfig.{name} must be at least 1, got {value}")


class Dynamics(nn.Module):
    """logits = network - beta * (latent of the moved picture - level)^2, one categorical per latent dimension."""

    def __init__(self, config: DynamicsConfig, levels: Tensor, latent_dim: int, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.latent_dim, self.num_levels = latent_dim, len(levels)
        self.register_buffer("levels", levels.clone(), persistent=False)
        self.enter = Pointwise(feature_dim + latent_dim, config.dim)
        self.body = conv_stack(config.dim, config.blocks)
        self.head = Pointwise(config.dim, latent_dim * self.num_levels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # softplus(beta) starts near 12, and near 12 is where measurements end up
        self.beta = nn.Parameter(torch.full((latent_dim, 1, 1, 1), 12.0))

    def forward(self, features: Tensor, moved_latent: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) and latent (B, D, h, w) -> token logits (B, D, L, h, w), hidden (B, C', h, w)."""
        hidden = self.body(self.enter(torch.cat([features, moved_latent], 1)))
        network = self.head(F.silu(hidden)).unflatten(1, (self.latent_dim, self.num_levels))
        distance = (moved_latent[:, :, None] - self.levels[:, None, None]).square()
        return network - F.softplus(self.beta) * distance, hidden


class EventHead(nn.Module):
    """Reward and end of the episode, from the hidden state and the tokens that were drawn."""

    def __init__(
        self, config: DynamicsConfig, latent_dim: int, cells: tuple[int, int], num_players: int, num_rewards: int
    ) -> None:
        super().__init__()
        self.num_players, self.num_rewards = num_players, num_rewards
        self.enter = nn.Conv2d(config.dim + 2 * latent_dim, 48, 3, padding=1)
        self.shrink = Pointwise(4 * 48, 32)
        flat = 32 * (cells[0] // 2) * (cells[1] // 2)
        self.out = nn.Sequential(
            nn.Linear(flat, config.event_dim), nn.SiLU(), nn.Linear(config.event_dim, num_players * num_rewards + 1)
        )

    def forward(
        self, hidden: Tensor, moved_latent: Tensor, drawn_latent: Tensor, told: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-> reward logits (B, P, R) and end logit (B,), with those added that were `told` before, (B, P R + 1) or
        (B, 0)."""
        x = F.silu(self.enter(torch.cat([hidden, moved_latent, drawn_latent], 1)))
        logits = self.out(F.silu(self.shrink(F.pixel_unshuffle(x, 2))).flatten(1))
        if told.shape[1]:
            logits = logits + told
        return logits[:, :-1].unflatten(1, (self.num_players, self.num_rewards)), logits[:, -1]


def mean_entropy(logits: Tensor) -> Tensor:
    """Of the categoricals along dimension 2 of (B, D, L, h, w), in nats: (B,).

    A third of the time of a log_softmax there. One dimension is summed by hand: ONNX Runtime adds up a whole tensor in
    another order than the rows of one, and a row's bytes must not depend on the number of rows.
    """
    below = logits - logits.amax(2, keepdim=True)
    weights = below.exp()
    total = weights.sum(2)
    entropy = (total.log() - (weights * below).sum(2) / total).mean((2, 3))
    return sum(entropy.unbind(1)) / entropy.shape[1]

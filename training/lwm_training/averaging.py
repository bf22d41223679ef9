"""A slow mean of the weights while they are trained, and activations that are computed twice instead of kept."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lwm_env.layers import ConvBlock, SpatialAttention


class Averaged:
    """Exponential mean of a model's weights; a world may be saved with it instead of the last weights.

    The decay rises with the number of updates, (1 + n) / (10 + n) at most `decay`, so that the first weights are soon
    forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one optimiser step."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in model.state_dict().items():
            self.weights[name].lerp_(tensor, share)

    def load(self, weights: dict[str, Tensor], updates: int) -> None:
        """Go on from a checkpoint."""
        self.updates = updates
        for name, tensor in weights.items():
            self.weights[name].copy_(tensor)


def recompute_blocks(model: nn.Module) -> None:
    """Gradient checkpointing: every residual and attention block keeps its input alone and is computed again in the
    backward pass. Memory for time; the gradients are the same."""
    for block in model.modules():
        if isinstance(block, ConvBlock | SpatialAttention):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

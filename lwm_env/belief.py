"""What is known of B worlds between and within steps, and what a step gives.

Shapes: B worlds, K context frames, P players, D latent dimensions, L levels, h x w cells.
"""

from typing import NamedTuple

from torch import Tensor

from lwm_env.motion import Reading

State = dict[str, Tensor]  # what users keep


class Belief(NamedTuple):
    """Frames (B, K, 3, H, W) in [-1, 1], the canvas as it was before the last frame and its fractional offset, or the
    phase of its lattice (B, 2), the last motion as estimated and how what was seen corrected it (B, 2 + 2), and what
    the camera and the motion model keep from step to step (B, carry_dim) and (B, kept_dim)."""

    frames: Tensor
    canvas: Tensor
    offset: Tensor
    motion: Tensor
    carry: Tensor
    memory: Tensor
    doubt: Tensor | None = None  # of a lattice's phases after real frames, see `Lattice.settle`


class Anticipation(NamedTuple):
    """Where the camera goes next."""

    reading: Reading
    estimate: Tensor  # (B, 2) motion of the camera in pixels, as the network thinks; (B, motion_dim) of a flow
    motion: Tensor  # (B, 2 + 2) the same, and how what was seen corrected it
    travel: Tensor  # (B, 2) the motion with its correction, without gradients
    carry: Tensor  # (B, carry_dim)
    before: Tensor  # the canvas with the last picture painted on it
    canvas: Tensor  # the same moved, and the fraction of a pixel left over
    offset: Tensor


class Proposal(NamedTuple):
    """The next state before it is drawn."""

    estimate: Tensor  # as in `Anticipation`
    motion: Tensor
    canvas: Tensor
    offset: Tensor
    carry: Tensor  # (B, carry_dim)
    memory: Tensor  # (B, kept_dim)
    moved: Tensor  # (B, 3, H, W)
    moved_latent: Tensor  # (B, D, h, w)
    logits: Tensor  # (B, D, L, h, w)
    hidden: Tensor  # (B, C, h, w)
    masks: Tensor  # as in `Composition`
    sources: Tensor
    empty: Tensor  # as in `Reading`
    told: Tensor


class Output(NamedTuple):
    """What one step gives: frame uint8 (B, H, W, 3), reward (B, P), reward_probs (B, P, R), the probability that the
    episode ends with this frame (B,), and surprise (B,): the mean entropy of a token, in nats."""

    frame: Tensor
    reward: Tensor
    reward_probs: Tensor
    terminated_prob: Tensor
    surprise: Tensor

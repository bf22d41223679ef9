"""How a step moves a canvas: as a whole, by whole pixels. Where each tile is drawn at pixels of its own, see `Lattice`.

Shapes: B worlds, pictures (B, 3, H, W) in [-1, 1]; motions and offsets (B, 2) in pixels, down and right.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lwm_env.belief import Anticipation
from lwm_env.memory import Canvas, Views
from lwm_env.registration import Sighting, sight


class Scroll(NamedTuple):
    """What a step does to a canvas."""

    travel: Tensor  # (B, 2) the motion with its correction, without gradients
    fraction: Tensor  # (B, 2) the next offset as networks see it, without gradients
    towards: Tensor  # (B, 2) the whole pixels of what goes furthest
    down: Tensor  # by which rows move, (B, 1) or (B, H + 2 margin)
    right: Tensor  # and columns


class WholePixels:
    """The fraction of a pixel that is left over is the `offset`, in [-0.5, 0.5], and carried on to the next step."""

    def __init__(self, still: bool) -> None:
        self.still = still  # whether the camera never moves

    def correct(self, offset: Tensor, estimate: Tensor, sighting: Sighting | None) -> tuple[Tensor, Tensor, Tensor]:
        """See `WorldModel.correct`: of a sighting the whole motion is taken, of the estimate what it leaves open."""
        total = offset + estimate
        whole = total.detach().round()
        if sighting is None:
            return whole, torch.cat([estimate, torch.zeros_like(estimate)], 1), total - whole
        whole = torch.where(sighting.sure[:, None], sighting.motion.round(), whole)
        left = (total - whole).clamp(-0.5, 0.5)
        return whole, torch.cat([estimate, (whole + left - total).detach()], 1), left

    def scroll(self, before: Tensor, pixels: Tensor, after: Tensor) -> Scroll:
        """How a canvas goes by whole pixels (B, 2) from one offset to another."""
        travel = (pixels + after - before).detach()
        return Scroll(travel, after.detach(), pixels, pixels[:, :1], pixels[:, 1:])

    def views(self, canvas: Canvas, next_: Anticipation, sides: Tensor | None) -> Views:
        """What the moved canvas shows."""
        return canvas.views(next_.canvas, next_.offset)

    def sight(self, before: Tensor, after: Tensor) -> Sighting:
        """How the camera went between two real pictures."""
        if self.still:
            return Sighting(before.new_zeros(len(before), 2), torch.ones_like(before[:, 0, 0, 0], dtype=torch.bool))
        return sight(before, after)

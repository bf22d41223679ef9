"""What comes into view from above, where the view turns: rows above the picture, drawn before they are reached.

As `lwm_env.ahead`, but the edge is the upper one, and the rows are laid on the map (`lwm_env.ground`) that pictures
are read from. They are longer than the view is wide, so that what a turn brings into it from the sides was drawn too,
and what lies around is seen by what draws them.

Shapes: B worlds, pictures of H x W pixels, S rows above them, from E pixels to the left to E to the right; R rows of
the picture that are looked at.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.ahead import Ahead, AheadConfig
from lwm_env.memory import paint

NEAREST = 8  # rows above the edge: more are drawn when some of them are unseen
ENOUGH = 0.8  # share of them


class Above(Ahead):
    """Draws rows above the view. Crops lie on their side: their right end is what is farthest above."""

    def __init__(self, config: AheadConfig, patch: int, frame_size: tuple[int, int], margin: int) -> None:
        super().__init__(config, patch, (frame_size[1] + 2 * config.beside, frame_size[0]), margin)

    def crop(self, around: Tensor, last: Tensor) -> Tensor:
        """What lies around the upper edge of the view (B, 4, S + R, W + 2 E), with the last picture (B, 3, H, W) where
        that is: (B, 4, W + 2 E, R + S)."""
        config, view = self.config, last[:, :, : self.config.reach]
        view = F.pad(view, (config.beside, config.beside, config.width, 0))
        seen = F.pad(torch.ones_like(last[:, :1, : config.reach]), (config.beside, config.beside, config.width, 0))
        return aside(torch.where(seen > 0, torch.cat([view, seen], 1), around))

    def forward(self, around: Tensor, last: Tensor, noise: Tensor | None = None, temperature: float = 0.0) -> Tensor:
        """Of what lies around the upper edge, as for `crop`, the rows above it (B, 4, S, W + 2 E), drawn on where too
        little of them was seen; the noise and its temperature as in `choose`."""
        crop, edge = self.crop(around, last), torch.zeros_like(around[:, 0, 0, 0], dtype=torch.bool)
        features = self.look(crop, edge)
        strip = self.draw(features, self.choose(features, noise, temperature)).clamp(-1, 1)
        above = around[:, :, : self.config.width]
        known = above[:, 3:]
        wanted = known[:, 0, -NEAREST:].mean((1, 2)) < ENOUGH
        return paint(above, upright(strip), (1 - known) * wanted[:, None, None, None])


def aside(rows: Tensor) -> Tensor:
    """(B, C, h, w) laid on its side, (B, C, w, h), so that its upper end is at the right."""
    return rows.flip(2).transpose(2, 3)


def upright(strip: Tensor) -> Tensor:
    """The inverse of `aside`."""
    return strip.transpose(2, 3).flip(2)

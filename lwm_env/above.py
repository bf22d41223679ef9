"""What comes into view from above, where the view turns: rows above the picture, drawn before they are reached.

As `lwm_env.ahead`, but the edge is the upper one, and the rows turn and shift with the picture until they are in it.
They are kept above the view on the canvas, which stands still in such worlds.

Shapes: B worlds, pictures of H x W pixels, S rows above them.
"""

import torch
from torch import Tensor

from lwm_env.ahead import Ahead, AheadConfig
from lwm_env.memory import paint, to_bytes, to_numbers

NEAREST = 8  # rows above the edge: more are drawn when some of them are unseen
ENOUGH = 0.8  # share of them


class Above(Ahead):
    """Draws rows above the view. Crops lie on their side: their right end is what is farthest above."""

    def __init__(self, config: AheadConfig, patch: int, frame_size: tuple[int, int], margin: int) -> None:
        super().__init__(config, patch, (frame_size[1], frame_size[0]), margin)

    def lying(self, canvas: Tensor) -> Tensor:
        """What a canvas has above the view: (B, 4, S, W), colours and whether they were seen."""
        return torch.cat(to_numbers(canvas[self._place]), 1)

    def lay(self, canvas: Tensor, above: Tensor) -> Tensor:
        """The canvas with that above the view."""
        laid = canvas.clone()
        laid[self._place] = to_bytes(above) if canvas.dtype == torch.uint8 else above
        return laid

    @property
    def _place(self) -> tuple[slice, ...]:
        across = slice(self.margin, self.margin + self.frame_size[0])
        return slice(None), slice(None), slice(self.margin - self.config.width, self.margin), across

    def crop(self, above: Tensor, last: Tensor) -> Tensor:
        """The upper rows of the last picture (B, 3, H, W), and what lies above it: (B, 4, W, R + S)."""
        view = last[:, :, : self.config.reach]
        upright = torch.cat([above, torch.cat([view, torch.ones_like(view[:, :1])], 1)], 2)
        return aside(upright)

    def forward(self, above: Tensor, last: Tensor, noise: Tensor | None = None, temperature: float = 0.0) -> Tensor:
        """What lies above (B, 4, S, W), drawn on where too little of it was seen; the noise and its temperature as in
        `choose`."""
        crop, edge = self.crop(above, last), torch.zeros_like(above[:, 0, 0, 0], dtype=torch.bool)
        features = self.look(crop, edge)
        strip = self.draw(features, self.choose(features, noise, temperature)).clamp(-1, 1)
        known = above[:, 3:]
        wanted = known[:, 0, -NEAREST:].mean((1, 2)) < ENOUGH
        return paint(above, upright(strip), (1 - known) * wanted[:, None, None, None])


def aside(rows: Tensor) -> Tensor:
    """(B, C, h, w) laid on its side, (B, C, w, h), so that its upper end is at the right."""
    return rows.flip(2).transpose(2, 3)


def upright(strip: Tensor) -> Tensor:
    """The inverse of `aside`."""
    return strip.transpose(2, 3).flip(2)

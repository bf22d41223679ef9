"""What comes into view: the canvas beyond the edge that the camera goes to, drawn before it is reached.

A network that draws the likeliest picture never draws what is rare, such as the coin at the end of a level, and a step
uncovers two or three columns, too few to tell what they belong to. So a strip is drawn at once, and one of K codes says
what it shows: in training it is read from the real strip (the posterior), in a dream drawn from what the picture makes
likely (the prior). A code is finite scalar quantisation of a few numbers, as tokens are; a discrete latent as
DreamerV2's (Hafner et al., 2021, arXiv:2010.02193), which tells only what was not seen. The strip then counts as seen:
what moves the picture copies it.

Shapes: B worlds, pictures of H x W pixels, a strip of H x S, a crop of H x (R + S), the strip at its right end.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.layers import ConvBlock, Pointwise, conv_stack
from lwm_env.memory import paint, to_numbers

TOLD = 8  # channels in which a code tells something of each cell of the strip
NEAREST = 2  # columns at the edge: the strip is drawn when most of them are unseen
PLANES = 6  # of a crop: colours, whether they were seen, which edge it is, the row


@dataclass(frozen=True, kw_only=True)
class AheadConfig:
    """Shape of what draws ahead."""

    width: int = 0  # pixels of a strip, S; 0: nothing is drawn ahead, and tokens are sampled instead
    reach: int = 16  # pixels of the view beside it that are looked at, R
    dim: int = 48
    blocks: int = 1
    glance_dim: int = 32  # of what reads or chooses a code
    code_dim: int = 5
    levels: int = 4  # of each number of a code, so there are levels ** code_dim codes

    def __post_init__(self) -> None:
        if min(self.reach, self.dim, self.blocks, self.glance_dim, self.code_dim) < 1 or self.width < 0:
            raise ValueError(f"AheadConfig's width must be at least 0 and all else at least 1, got {self}")
        if self.levels < 2 or self.levels**self.code_dim > 4096:
            raise ValueError(f"AheadConfig allows 2 to 4096 codes, got {self.levels} ** {self.code_dim}")


class Ahead(nn.Module):
    """Draws strips. `crop` and `paste` know where they lie on a canvas, see `lwm_env.memory`."""

    codes: Tensor  # (K, code_dim) in [-1, 1]

    def __init__(self, config: AheadConfig, patch: int, frame_size: tuple[int, int], margin: int) -> None:
        super().__init__()
        height = frame_size[0]
        self.config, self.patch, self.frame_size, self.margin = config, patch, frame_size, margin
        self.cells = (height // patch, config.width // patch)
        grid = (self.cells[0], (config.reach + config.width) // patch)
        levels = torch.linspace(-1, 1, config.levels)
        codes = torch.cartesian_prod(*[levels] * config.code_dim).view(-1, config.code_dim)
        rows = torch.linspace(-1, 1, height)[None, None, :, None].repeat(1, 1, 1, grid[1] * patch)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("rows", rows, persistent=False)
        self.enter = nn.Conv2d(PLANES * patch**2, config.dim, 3, padding=1)
        self.body = conv_stack(config.dim, config.blocks)
        hidden = config.glance_dim
        self.prior = _glance((config.dim, hidden, len(self.codes)), grid)
        self.posterior = _glance((config.dim + 3 * patch**2, hidden, config.code_dim), grid)
        self.tell = nn.Sequential(nn.Linear(config.code_dim, 4 * hidden), nn.SiLU())
        self.place = nn.Linear(4 * hidden, TOLD * self.cells[0] * self.cells[1])
        self.films = nn.ModuleList([nn.Linear(4 * hidden, 2 * config.dim) for _ in range(config.blocks)])
        self.blocks = nn.ModuleList([ConvBlock(config.dim) for _ in range(config.blocks)])
        self.join = Pointwise(config.dim + TOLD, config.dim)
        self.out = Pointwise(config.dim, 3 * patch**2)

    # -- where strips lie --------------------------------------------------------------------------------------------

    def crop(self, canvas: Tensor, left: Tensor) -> Tensor:
        """The view at the right edge and the strip beyond it, or at the `left` one (B,), mirrored: colours and whether
        they were seen, (B, 4, H, R + S)."""
        (height, width), margin, config = self.frame_size, self.margin, self.config
        rows = canvas[:, :, margin : margin + height]
        right = rows[..., margin + width - config.reach : margin + width + config.width]
        mirrored = rows[..., margin - config.width : margin + config.reach].flip(3)
        return torch.cat(to_numbers(torch.where(left[:, None, None, None], mirrored, right)), 1)

    def paste(self, canvas: Tensor, strip: Tensor, left: Tensor, wanted: Tensor) -> Tensor:
        """The canvas with a strip (B, 3, H, S) where nothing was seen, in the worlds where it is `wanted` (B,)."""
        (height, width), margin, size = self.frame_size, self.margin, self.config.width
        above, rows, below = canvas.split([margin, height, canvas.shape[2] - margin - height], 2)

        def filled(start: int, edge: Tensor, picture: Tensor) -> Tensor:
            part = rows[..., start : start + size]
            _, known = to_numbers(part)
            return paint(part, picture, (1 - known) * (edge & wanted)[:, None, None, None])

        parts = [
            rows[..., : margin - size],
            filled(margin - size, left, strip.flip(3)),
            rows[..., margin : margin + width],
            filled(margin + width, ~left, strip),
            rows[..., margin + width + size :],
        ]
        return torch.cat([above, torch.cat(parts, 3), below], 2)

    # -- what they show ----------------------------------------------------------------------------------------------

    def look(self, crop: Tensor, left: Tensor) -> Tensor:
        """Features (B, C, h, w) of a crop (B, 4, H, R + S)."""
        planes = torch.cat([crop[:, :3] * crop[:, 3:], crop[:, 3:]], 1)
        edge = left[:, None, None, None].to(crop.dtype).expand_as(crop[:, :1])
        planes = torch.cat([planes, edge, self.rows.expand(len(crop), -1, -1, -1)], 1)
        return self.body(self.enter(F.pixel_unshuffle(planes, self.patch)))

    def recognise(self, features: Tensor, strip: Tensor) -> tuple[Tensor, Tensor]:
        """The code of a real strip (B, 3, H, S): its numbers (B, code_dim), with gradients, and its index (B,)."""
        cells = F.pixel_unshuffle(strip, self.patch)
        cells = F.pad(cells, (features.shape[3] - cells.shape[3], 0))
        value = torch.tanh(self.posterior(torch.cat([features, cells], 1)))
        last = self.config.levels - 1
        steps = ((value.detach() + 1) * (last / 2)).round()
        places = (last + 1) ** torch.arange(self.config.code_dim - 1, -1, -1, device=steps.device)
        return value + (steps * (2 / last) - 1 - value.detach()), (steps.long() * places).sum(1)

    def choose(self, features: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
        """The likeliest code, or one drawn by Gumbel noise (B, K) at a temperature: (B, code_dim)."""
        logits = self.prior(features)
        if noise is not None and temperature > 0:
            logits = logits + temperature * noise
        return self.codes[logits.argmax(1)]

    def draw(self, features: Tensor, code: Tensor) -> Tensor:
        """The strip (B, 3, H, S) of a code."""
        told = self.tell(code)
        placed = self.place(told).unflatten(1, (TOLD, *self.cells))
        x = self.join(torch.cat([features, F.pad(placed, (features.shape[3] - self.cells[1], 0))], 1))
        for block, film in zip(self.blocks, self.films, strict=True):
            x = block(x, film(told))
        return F.pixel_shuffle(self.out(F.silu(x[..., -self.cells[1] :])), self.patch)

    def forward(self, canvas: Tensor, whole: Tensor, noise: Tensor | None = None, temperature: float = 0.0) -> Tensor:
        """The canvas before it moves by whole pixels (B, 2), with a strip where the camera goes and nothing was seen
        yet; the noise and its temperature as in `choose`."""
        left = whole[:, 1] > 0
        crop = self.crop(canvas, left)
        size = self.config.width
        seen = crop[:, 3, :, -size : NEAREST - size].mean((1, 2))
        features = self.look(crop, left)
        strip = self.draw(features, self.choose(features, noise, temperature)).clamp(-1, 1)
        return self.paste(canvas, strip, left, (seen < 0.5) & (whole[:, 1] != 0))


def _glance(dims: tuple[int, int, int], cells: tuple[int, int]) -> nn.Sequential:
    """(B, C, h, w) -> (B, outputs); `dims` are C, the channels between, and the outputs."""
    inputs, hidden, outputs = dims
    flat = hidden * -(-cells[0] // 4) * -(-cells[1] // 4)
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(hidden, hidden, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(flat, outputs),
    )

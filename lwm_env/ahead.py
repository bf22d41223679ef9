"""What comes into view: the canvas beyond the edge that the camera goes to, drawn before it is reached.

A network that draws the likeliest picture never draws what is rare, such as the coin at the end of a level, and a step
uncovers two or three columns, too few to tell what they belong to. So a strip is drawn at once, and one of K codes says
what it shows: in training it is read from the real strip (the posterior), in a dream drawn from what the picture makes
likely (the prior). A code is finite scalar quantisation of a few numbers, as tokens are; a discrete latent as
DreamerV2's (Hafner et al., 2021, arXiv:2010.02193), which tells only what was not seen. The strip then counts as seen:
what moves the picture copies it.

Shapes: B worlds, pictures of H x W pixels, a strip of H x S, a crop of H x (R + S), the strip at its right end.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.layers import ConvBlock, Pointwise, conv_stack
from lwm_env.memory import paint, to_numbers

TOLD = 8  # channels in which a code tells something of each cell of the strip
NEAREST = 2  # columns at the edge: the strip is drawn when most of them are unseen
NEVER = -1e4  # logit of a code that is not drawn
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
    words: int = 1  # codes that tell a strip, one after the other
    least: float = 0.0  # codes less likely than this times the likeliest are never drawn; what they show is often amiss
    tiles: int = 0  # 1: strips of whole tiles of the camera's lattice, see `lwm_env.ahead_tiles`
    palette: int = 0  # with tiles, how many are known by heart
    rows: int = 0  # with tiles, pixels of a strip above or below the view; 0: nothing is drawn ahead there
    beside: int = 0  # of a view that turns, pixels by which strips above it are longer at either end

    def __post_init__(self) -> None:
        if self.tiles not in (0, 1):
            raise ValueError(f"AheadConfig.tiles must be 0 or 1, got {self.tiles}")
        least = min(self.reach, self.dim, self.blocks, self.glance_dim, self.code_dim, self.words)
        if least < 1 or min(self.width, self.rows, self.beside, self.palette) < 0:
            raise ValueError(
                f"AheadConfig's width, rows, beside and palette must be at least 0 and all else at least 1, got {self}"
            )
        if not 0 <= self.least < 1:
            raise ValueError(f"AheadConfig.least must be at least 0 and below 1, got {self.least}")
        if self.levels < 2 or self.levels**self.code_dim > 4096:
            raise ValueError(f"AheadConfig allows 2 to 4096 codes, got {self.levels} ** {self.code_dim}")


class Ahead(nn.Module):
    """Draws strips. `crop` and `paste` know where they lie on a canvas, see `lwm_env.memory`."""

    codes: Tensor  # (K, code_dim) in [-1, 1]

    def __init__(self, config: AheadConfig, patch: int, frame_size: tuple[int, int], margin: int) -> None:
        super().__init__()
        height = frame_size[0]
        self.config, self.patch, self.frame_size, self.margin = config, patch, frame_size, margin
        self.view_size = frame_size
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
        numbers = config.words * config.code_dim
        self.prior = _glance((config.dim, hidden, len(self.codes)), grid)
        self.later = nn.ModuleList(
            [
                _Word((config.dim, hidden, len(self.codes)), grid, word * config.code_dim)
                for word in range(1, config.words)
            ]
        )
        self.posterior = _glance((config.dim + 3 * patch**2, hidden, numbers), grid)
        self.tell = nn.Sequential(nn.Linear(numbers, 4 * hidden), nn.SiLU())
        self.place = nn.Linear(4 * hidden, TOLD * self.cells[0] * self.cells[1])
        self.films = nn.ModuleList([nn.Linear(4 * hidden, 2 * config.dim) for _ in range(config.blocks)])
        self.blocks = nn.ModuleList([ConvBlock(config.dim) for _ in range(config.blocks)])
        self.join = Pointwise(config.dim + TOLD, config.dim)
        self.out = Pointwise(config.dim, 3 * patch**2)

    @property
    def noise_dim(self) -> int:
        """How many Gumbel numbers a strip is drawn with."""
        return self.config.words * len(self.codes)

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
        """The canvas with a strip (B, 3, H, S) where nothing was seen, in the worlds, or columns, where it is `wanted`,
        (B,) or (B, S)."""
        (height, width), margin, size = self.view_size, self.margin, self.config.width
        above, rows, below = canvas.split([margin, height, canvas.shape[2] - margin - height], 2)
        wanted = wanted.view(len(wanted), 1, 1, -1)

        def filled(start: int, edge: Tensor, picture: Tensor, wanted: Tensor) -> Tensor:
            part = rows[..., start : start + size]
            _, known = to_numbers(part)
            return paint(part, picture, (1 - known) * (edge[:, None, None, None] & wanted))

        parts = [
            rows[..., : margin - size],
            filled(margin - size, left, strip.flip(3), wanted.flip(3)),
            rows[..., margin : margin + width],
            filled(margin + width, ~left, strip, wanted),
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
        """The words of a real strip (B, 3, H, S): their numbers (B, words code_dim), with gradients, and the indices of
        their codes (B, words)."""
        return self.quantize(self.read(features, strip))

    def read(self, features: Tensor, strip: Tensor) -> Tensor:
        """What the words of a real strip are rounded from, before tanh: (B, words code_dim)."""
        cells = F.pixel_unshuffle(strip, self.patch)
        cells = F.pad(cells, (features.shape[3] - cells.shape[3], 0))
        return self.posterior(torch.cat([features, cells], 1))

    def quantize(self, reading: Tensor) -> tuple[Tensor, Tensor]:
        """See `recognise`."""
        value = torch.tanh(reading)
        last = self.config.levels - 1
        steps = ((value.detach() + 1) * (last / 2)).round()
        places = (last + 1) ** torch.arange(self.config.code_dim - 1, -1, -1, device=steps.device)
        indices = (steps.long().unflatten(1, (self.config.words, -1)) * places).sum(2)
        return value + (steps * (2 / last) - 1 - value.detach()), indices

    def logits(self, features: Tensor, told: Tensor) -> Tensor:
        """How likely each code is as the next word (B, K) after those that were told (B, words so far * code_dim)."""
        word = told.shape[1] // self.config.code_dim
        return self.later[word - 1](features, told) if word else self.prior(features)

    def unlikely(self, features: Tensor, numbers: Tensor, indices: Tensor) -> Tensor:
        """How unlikely the words of strips are, as `recognise` gives them, each after those before: nats."""
        told = numbers.detach().split(self.config.code_dim, 1)
        before = [torch.cat((numbers[:, :0], *told[:word]), 1) for word in range(len(told))]
        return sum(F.cross_entropy(self.logits(features, x), y) for x, y in zip(before, indices.unbind(1), strict=True))

    def choose(self, features: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
        """The likeliest words, or those drawn by Gumbel noise (B, noise_dim) at a temperature: their numbers
        (B, words code_dim)."""
        numbers = features.new_zeros(len(features), 0)
        for word in range(self.config.words):
            logits = self.logits(features, numbers)
            if noise is not None and temperature > 0:
                if self.config.least:
                    below = logits < logits.amax(1, keepdim=True) + math.log(self.config.least)
                    logits = logits.masked_fill(below, NEVER)
                logits = logits + temperature * noise[:, word * len(self.codes) :][:, : len(self.codes)]
            numbers = torch.cat([numbers, self.codes[logits.argmax(1)]], 1)
        return numbers

    def draw(self, features: Tensor, numbers: Tensor) -> Tensor:
        """The strip (B, 3, H, S) of the numbers of its words (B, words code_dim)."""
        return F.pixel_shuffle(self.out(self.imagine(features, numbers)), self.patch)

    def imagine(self, features: Tensor, numbers: Tensor) -> Tensor:
        """Features of the strip's cells (B, dim, h, s)."""
        told = self.tell(numbers)
        placed = self.place(told).unflatten(1, (TOLD, *self.cells))
        x = self.join(torch.cat([features, F.pad(placed, (features.shape[3] - self.cells[1], 0))], 1))
        for block, film in zip(self.blocks, self.films, strict=True):
            x = block(x, film(told))
        return F.silu(x[..., -self.cells[1] :])

    def forward(
        self, canvas: Tensor, whole: Tensor, offset: Tensor, noise: Tensor | None = None, temperature: float = 0.0
    ) -> Tensor:
        """The canvas before it moves by whole pixels (B, 2) from an offset (B, 2), with a strip where the camera goes
        and nothing was seen yet; the noise and its temperature as in `choose`."""
        left = whole[:, 1] > 0
        crop = self.crop(canvas, left)
        size = self.config.width
        seen = crop[:, 3, :, -size : NEAREST - size].mean((1, 2))
        features = self.look(crop, left)
        strip = self.draw(features, self.choose(features, noise, temperature)).clamp(-1, 1)
        return self.paste(canvas, strip, left, (seen < 0.5) & (whole[:, 1] != 0))


class _Word(nn.Module):
    """Logits of a word after others, `dims` as for `_glance`."""

    def __init__(self, dims: tuple[int, int, int], cells: tuple[int, int], told: int) -> None:
        super().__init__()
        inputs, hidden, outputs = dims
        self.look = _glance((inputs, hidden, 4 * hidden), cells)
        self.hear = nn.Linear(told, 4 * hidden)
        self.out = nn.Linear(4 * hidden, outputs)

    def forward(self, features: Tensor, told: Tensor) -> Tensor:
        return self.out(F.silu(self.look(features) + self.hear(told)))


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

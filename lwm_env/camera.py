"""Where the camera goes: from the last frame, the action, and what is remembered of the motion so far.

It is small and reads one frame, so that training shows it millions: falling, landing and running into walls are learned
from many falls. It looks at the middle half of the frame, where a followed player is, and at the whole at half the
resolution; where tiles are drawn at whole pixels, it is told where in its tile each pixel of the middle lies, and sees
the tiles nearby cut out (`Nearby`).

Shapes: B worlds, frames (B, 3, H, W) in [-1, 1], motions (B, 2) in pixels, down and right, of the picture's content.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.layers import sine_and_cosine
from lwm_env.nearby import Nearby

GLANCE = 32  # pixels on a side, of which two are looked at; larger frames are averaged to about that


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """Shape of the camera's network."""

    middle_dim: int = 48
    whole_dim: int = 16
    hidden_dim: int = 192
    carry_dim: int = 128  # numbers kept from step to step: speeds, fractions of a pixel
    max_motion: float = 12.0  # pixels a step; 0: a camera that stands still, which needs no network
    lattice: float = 0.0  # pixels from tile to tile where tiles are drawn at whole pixels each, see `Lattice`; 0: none
    edges: float = 0.0  # how much it counts that tiles' edges lie on the lattice's lines, see `Lattice`
    tile_dim: int = 0  # features of each tile that is cut out where there is a lattice; 0: none is

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name not in ("max_motion", "lattice", "edges", "tile_dim")):
                raise ValueError(f"CameraConfig.{name} must be positive, got {value}")
        if self.tile_dim and not self.lattice:
            raise ValueError(f"CameraConfig.tile_dim is {self.tile_dim}, but there are no tiles: lattice is 0")


class Camera(nn.Module):
    """Estimates the motion of the next step."""

    def __init__(self, config: CameraConfig, frame_size: tuple[int, int], action_dim: int) -> None:
        super().__init__()
        self.config, self.frame_size = config, frame_size
        if not config.max_motion:
            return
        self.pool = tuple(max(1, side // 2 // GLANCE) for side in frame_size)
        cells = [side // 2 // pool // 4 for side, pool in zip(frame_size, self.pool, strict=True)]
        hidden, carry = config.hidden_dim, config.carry_dim
        self.middle, self.whole = _glance(config.middle_dim), _glance(config.whole_dim)
        if config.lattice:
            self.tiles = nn.Conv2d(4, config.middle_dim, 4, stride=2, padding=1, bias=False)
            nn.init.zeros_(self.tiles.weight)
            for name, side, pool in zip(("rows", "columns"), frame_size, self.pool, strict=True):
                places = torch.arange(side // 2 // pool) * pool + pool / 2 + side // 4
                angles = places * (2 * math.pi / config.lattice)
                self.register_buffer(name, torch.stack([angles.sin(), angles.cos()]), persistent=False)
        self.nearby = None
        if config.tile_dim:
            self.nearby = Nearby(config.tile_dim, config.lattice, frame_size, hidden)
        self.look = nn.Linear((config.middle_dim + config.whole_dim) * cells[0] * cells[1], hidden)
        self.condition = nn.Linear(action_dim + 6, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.think = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.remember = nn.GRUCell(hidden + action_dim + 6, carry)
        self.decide = nn.Sequential(nn.Linear(hidden + carry, hidden), nn.SiLU(), nn.Linear(hidden, 4))
        nn.init.zeros_(self.decide[-1].weight)
        nn.init.zeros_(self.decide[-1].bias)

    def forward(
        self, picture: Tensor, action: Tensor, motion: Tensor, offset: Tensor, carry: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The last picture (B, 3, H, W), embedded action (B, A), the motion before and its correction (B, 2 + 2), the
        fraction of a pixel left over or the lattice's phase (B, 2), and what was carried (B, carry_dim) -> motion
        (B, 2), what to carry on."""
        if not self.config.max_motion:
            return torch.zeros_like(offset), carry
        top, left = (side // 4 for side in self.frame_size)
        middle = picture[:, :, top : top + 2 * top, left : left + 2 * left]
        whole = F.avg_pool2d(picture, tuple(2 * pool for pool in self.pool))
        if self.pool != (1, 1):
            middle = F.avg_pool2d(middle, self.pool)
        before, correction = motion.chunk(2, dim=1)
        place, looks = [correction, offset], self.middle[0](middle)
        if self.config.lattice:
            before = before + correction
            sine, cosine = sine_and_cosine(offset * (2 * math.pi / self.config.lattice))
            place = [cosine, sine]
            looks = looks + self.tiles(self.in_tiles(sine, cosine))
        seen = torch.cat([self.middle[1:](looks).flatten(1), self.whole(whole).flatten(1)], 1)
        known = torch.cat([action, before / 4, *place], 1)
        looked = self.look(seen) + self.condition(known)
        if self.nearby is not None:
            looked = looked + self.nearby(picture, offset)
        hidden = self.think(self.norm(looked))
        carry = self.remember(torch.cat([hidden, known], 1), carry)
        change, keep = self.decide(torch.cat([hidden, carry], 1)).chunk(2, 1)
        limit = self.config.max_motion
        return (torch.sigmoid(keep) * before + 4 * change).clamp(-limit, limit), carry

    def in_tiles(self, sine: Tensor, cosine: Tensor) -> Tensor:
        """Where in its tile each pixel of the middle lies when lines have a phase (B, 2) of these: sine and cosine of
        row and column, (B, 4, h, w)."""
        planes = []
        for axis, places in enumerate((self.rows, self.columns)):
            sines, cosines = places
            behind, ahead = sine[:, axis, None], cosine[:, axis, None]
            planes.append(torch.stack([sines * ahead - cosines * behind, cosines * ahead + sines * behind], 1))
        rows, columns = planes
        height, width = rows.shape[2], columns.shape[2]
        rows, columns = rows[..., None].expand(-1, -1, -1, width), columns[:, :, None].expand(-1, -1, height, -1)
        return torch.cat([rows, columns], 1)


def _glance(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, dim, 4, stride=2, padding=1), nn.SiLU(), nn.Conv2d(dim, dim, 4, stride=2, padding=1), nn.SiLU()
    )

"""The last frames and the action to the moved picture: games scroll, so move pixels before drawing any.

An hourglass reads the last K frames and composes by masks: the canvas moved by the camera's motion (the last frame, and
what was seen beyond its edges), the last frame where it was, new pixels, and what moves by itself. Games round every
sprite's place to whole pixels for itself, so the canvas is offered at the four whole motions around the estimated one.

Shapes: B worlds, K context frames, H x W pixels, h x w cells, C channels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.eyes import NOTHING, Places
from lwm_env.flow import FREE, RIGID, Flow, Turn
from lwm_env.ground import POSE
from lwm_env.layers import ConvBlock, Pointwise, SpatialAttention, hard_gate
from lwm_env.memory import Views
from lwm_env.movers import GOES, Foresight, Going, Movers
from lwm_env.registration import Sighting

FAINT = 0.02  # masks below this share are none
PRESENT = 6.0  # at first a pixel that shows most of a mover is chosen e to the power of this times as readily
FLOW = 6  # the flow's copy among the sources, if there is one
NEAR, FAR = 3.0, 12.0  # at first a mover's copy is chosen within half its reach, where this is less than NEAR / FAR


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Shape of the motion model."""

    context_frames: int = 4
    dim: int = 64
    bottleneck_dim: int = 160
    bottleneck_blocks: int = 3
    attention_blocks: int = 0  # spatial attention between the bottleneck's convolutions
    refine_blocks: int = 2  # between the views of the canvas and the masks
    lines: int = 0  # planes of where in its tile each pixel lies, see `Lattice.lines`; 0: it is not told
    memory_dim: int = 0  # numbers kept from step to step: what no picture shows, such as whose serve it is
    decision: float = 1.0  # how many times surer of its source a pixel is than the masks say; mixed copies blur
    flow: int = 0  # for views that turn: 1 in depth, 2 from above, see `Flow`
    movers: int = 0  # things that move by themselves, see `Movers`
    reach: int = 8  # pixels a step that they move by at most

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (0 if name in ("attention_blocks", "lines", "memory_dim", "flow", "movers") else 1):
                raise ValueError(f"MotionConfig.{name} must be positive, got {value}")
        if self.flow not in (0, FREE, RIGID):
            raise ValueError(f"MotionConfig.flow is {FREE} in depth, {RIGID} from above, or 0, got {self.flow}")


class Reading(NamedTuple):
    """What the last frames and the action tell."""

    features: Tensor  # (B, 2C, h, w)
    copies: Tensor  # (B, F + M, 3, H, W), the last picture as the flow and each mover have it
    inside: Tensor  # (B, F, H, W), which pixels of the flow's copy were in sight before
    ground: Tensor  # the map of a view that turns, as it then lies, or (B, 3, 0, W)
    turn: Tensor  # (B, motion_dim) how the flow goes, as the network thinks, or (B, 0)
    shown: Tensor  # (B, 3 M, H, W), how much a pixel shows of each mover, 1 at most, will show, and where it comes
    distance: Tensor  # (B, M, H, W), how far a pixel is from each mover
    empty: Tensor  # bool (B, 1, H, W), where nothing but the movers' background can be, or (B, 0, H, W)
    told: Tensor  # (B, E), logits of events that the movers tell, or (B, 0)
    memory: Tensor  # (B, kept_dim), from now on


class Hints(NamedTuple):
    """What is known of a step beside the past: what was seen of it, what lies beyond the picture, and chance."""

    movers: Going | None = None  # what really becomes of them
    led: Tensor | None = None  # (B,), whether what is seen of the movers is taken; None: everywhere
    turned: Sighting | None = None  # how a view that turns really went
    ground: Tensor | None = None  # of such a view the map, see `Ground`
    sides: Tensor | None = None  # (B, 4, H, W), the next picture, and where its new columns are taken from it
    chance: Tensor | None = None  # (B, 3M), to be added to the logits of the movers' fates


class Composition(NamedTuple):
    """A picture made of sources by masks."""

    picture: Tensor  # (B, 3, H, W)
    features: Tensor  # (B, C, h, w)
    masks: Tensor  # (B, S, H, W), how much of each source was wanted, before faint shares are left out
    sources: Tensor  # (B, S, 3, H, W)


class Motion(nn.Module):
    """Proposes the next picture by moving the last one."""

    def __init__(
        self, config: MotionConfig, patch: int, cells: tuple[int, int], action_dim: int, num_events: int
    ) -> None:
        super().__init__()
        self.config, self.patch = config, patch
        pixels, dim, wide = 3 * patch**2, config.dim, config.bottleneck_dim
        self.num_older = config.context_frames - 2
        self.recent = nn.Conv2d(2 * pixels, dim, 3, padding=1)
        self.older = Pointwise(4 * pixels * self.num_older, wide) if self.num_older > 0 else None
        self.down = Pointwise(4 * dim, wide)
        self.condition = nn.Sequential(nn.Linear(action_dim + 4 + config.memory_dim, wide), nn.SiLU())
        frame_size = (cells[0] * patch, cells[1] * patch)
        grid = (cells[0] // 2, cells[1] // 2)
        self.flow: Flow | Turn | None = None
        if config.flow == FREE:
            self.flow = Flow(wide, grid, frame_size)
        elif config.flow == RIGID:
            self.flow = Turn(frame_size, action_dim)
        self.movers = None
        if config.movers:
            sizes = config.context_frames, frame_size, action_dim + 4, num_events
            self.movers = Movers(config.movers, config.reach, *sizes)
            self.locality = nn.Parameter(torch.tensor(FAR))  # how much the distance from a mover counts
            self.presence = nn.Parameter(torch.tensor(PRESENT))  # and that a pixel will show it
        if config.memory_dim:
            told_dim = self.movers.carry_dim if self.movers else 0
            self.notice = Pointwise(wide, 2 * config.memory_dim)
            self.remember = nn.GRUCell(2 * config.memory_dim + action_dim + told_dim, config.memory_dim)
        self.films = nn.ModuleList([nn.Linear(wide, 2 * wide) for _ in range(config.bottleneck_blocks)])
        self.blocks = nn.ModuleList([ConvBlock(wide) for _ in range(config.bottleneck_blocks)])
        self.attention = nn.ModuleList([SpatialAttention(wide) for _ in range(config.attention_blocks)])
        self.up = Pointwise(wide, 4 * dim)
        seen = (1 + self.num_copies) * pixels + (1 + self.num_flows + 3 * config.movers) * patch**2
        self.merge = Pointwise(2 * dim + seen, dim)
        self.lines = None
        if config.lines:
            self.lines = Pointwise(config.lines * patch**2, dim, bias=False)
            nn.init.zeros_(self.lines.weight)
        self.position = None  # of each cell; with movers a place in the picture means something
        if config.movers:
            self.position = nn.Parameter(torch.zeros(dim, *cells))
        self.phase = nn.Sequential(nn.Linear(action_dim + 4, wide), nn.SiLU())
        self.tints = nn.ModuleList([nn.Linear(wide, 2 * dim) for _ in range(config.refine_blocks)])
        self.refine = nn.ModuleList([ConvBlock(dim) for _ in range(config.refine_blocks)])
        self.layers = Pointwise(dim, (4 + 2 + self.num_copies + 3) * patch**2)
        self.write = Pointwise(2 * dim, patch**2)
        self.rounding = nn.Parameter(torch.tensor(4.0))  # how much a whole motion's distance from the estimate counts
        for linear in [*self.films, *self.tints, self.layers, self.write]:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.constant_(self.write.bias, 3.0)
        nn.init.constant_(self.layers.bias[4 * patch**2 : 6 * patch**2], -2.0)  # the canvas first
        nn.init.constant_(self.layers.bias[6 * patch**2 : (6 + self.num_copies) * patch**2], NEAR)

    @property
    def num_flows(self) -> int:
        """1 if the view turns, else 0."""
        return int(self.flow is not None)

    @property
    def num_copies(self) -> int:
        """How many copies of the last picture the masks choose among."""
        return self.num_flows + self.config.movers

    @property
    def kept_dim(self) -> int:
        """How many numbers are kept from step to step: the memory, and what the flow and the movers carry."""
        return sum(self._kept)

    @property
    def _kept(self) -> list[int]:
        flow = 0 if self.flow is None else self.flow.kept_dim
        movers = (0, 0) if self.movers is None else (self.movers.carry_dim, self.movers.places_dim)
        return [self.config.memory_dim, flow, *movers]

    def last_turn(self, memory: Tensor) -> Tensor:
        """The motion (B, 3) with which a view that turns came to be, of what is kept (B, kept_dim)."""
        return memory[:, self.config.memory_dim : self.config.memory_dim + 3]

    def pose(self, memory: Tensor) -> Tensor:
        """Where such a view lies on its map, of what is kept: (B, 3), see `Ground`."""
        return memory.split(self._kept, 1)[1][:, -POSE:]

    def landed(self, memory: Tensor) -> Tensor:
        """What is kept (B, kept_dim) once the next picture is a real one: its pixels are where they belong, and movers
        are where they are seen."""
        memory, flow_kept, carry, places = memory.split(self._kept, 1)
        if isinstance(self.flow, Flow):
            flow_kept = torch.zeros_like(flow_kept)
        if self.movers is not None:
            places = self.movers.landed(places)
        return torch.cat([memory, flow_kept, carry, places], 1)

    def sight_movers(self, last: Tensor, memory: Tensor, picture: Tensor) -> Going:
        """What became of the movers from the last picture, with what is kept (B, kept_dim), to the real next one, both
        (B, 3, H, W)."""
        looks = self.movers.look(last[:, None])[:, 0]
        return self.movers.sight(self.movers.recall(looks, memory.split(self._kept, 1)[3])[0], picture)

    def read(
        self, frames: Tensor, action: Tensor, motion: Tensor, offset: Tensor, memory: Tensor, hints: Hints
    ) -> Reading:
        """Frames (B, K, 3, H, W), embedded action (B, A), the camera's next motion (B, 2), the fraction of a pixel
        left over by it (B, 2) and the memory (B, kept_dim); what the `hints` say overrules what is estimated."""
        known = torch.cat([action, motion / 4, offset], 1)
        memory, flow_kept, carry, places = memory.split(self._kept, 1)
        recent, x = self.look(frames, known, memory)
        last = frames[:, -1]
        copies, inside = last[:, None][:, :0], last[:, :0]
        shown, distance, told = last[:, :0], last[:, :0], action[:, :0]
        empty = distance > 0
        turn, ground = action[:, :0], last[:, :, :0]
        if isinstance(self.flow, Turn):
            moved, inside, ground, turn, flow_kept = self.flow(last, hints.ground, action, flow_kept, hints.turned)
            copies = moved[:, None]
        elif self.flow is not None:
            moved, inside, turn, flow_kept = self.flow(x, last, flow_kept, hints.turned)
            copies = moved[:, None]
        if self.movers is not None:
            looks = self.movers.look(last[:, None])[:, 0]
            found, missing = self.movers.recall(looks, places)
            foresight, carry = self.movers(found, known, carry)
            going, told = self.foretold(foresight, found.places[:, -1], hints), foresight.events
            moved, shown, distance = self.carried(last, looks, found, missing, going)
            empty = self.movers.appearance.empty(*self.movers.arrive(found.places[:, -1], going))
            places = self.movers.keep(found, going)
            copies = torch.cat([copies, moved], 1)
        if self.config.memory_dim:
            noticed = F.silu(self.notice(x)).mean((2, 3))
            memory = self.remember(torch.cat([noticed, action, carry], 1), memory)
        features = torch.cat([recent, F.pixel_shuffle(self.up(x), 2)], 1)
        kept = torch.cat([memory, flow_kept, carry, places], 1)
        return Reading(features, copies, inside, ground, turn, shown, distance, empty, told, kept)

    def foretold(self, foresight: Foresight, places: Tensor, hints: Hints) -> Going:
        """What becomes of the movers at places (B, M, 2): what was seen of it, if anything, else what is likeliest."""
        going, seen = self.movers.likeliest(foresight, places, hints.chance), hints.movers
        if seen is None or hints.led is None:
            return seen or going
        return Going(*(
            torch.where(hints.led.view(-1, *[1] * (own.ndim - 1)), real, own)
            for real, own in zip(seen, going, strict=True)
        ))  # fmt: skip

    def carried(
        self, last: Tensor, looks: Tensor, found: Places, missing: Tensor, going: Going
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The last picture (B, 3, H, W) as each mover goes, (B, M, 3, H, W), `shown` and `distance` of the `Reading`;
        of how its pixels look (B, M, H, W). Movers that are `missing` (B, M) are drawn first."""
        there = found.there[:, -1]
        last, covers = self.movers.appearance.restore(last, found.places[:, -1], missing)
        here = looks / looks.amax((2, 3), keepdim=True).clamp(min=NOTHING) * there[..., None, None]
        here = torch.maximum(here * (1 - missing.to(here.dtype))[..., None, None], covers)
        pictures = torch.cat([last[:, None].expand(-1, self.config.movers, -1, -1, -1), here[:, :, None]], 2)
        moved, then = self.movers.move(pictures, going.shifts).split([3, 1], 2)
        then = then[:, :, 0] * (going.fates == GOES)[..., None, None]
        shown = torch.cat([here, then, self.movers.coming(going)], 1)
        return moved, shown, self.movers.distance(found.places[:, -1], there, going)

    def look(self, frames: Tensor, known: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Features of frames (B, K, 3, H, W), (B, C, h, w), and deeper ones, (B, C', h / 2, w / 2), which know the
        action, the camera's motion and offset (B, A + 4), and the memory (B, memory_dim)."""
        recent = self.recent(F.pixel_unshuffle(frames[:, -2:].flatten(1, 2), self.patch))
        x = self.down(F.pixel_unshuffle(F.silu(recent), 2))
        if self.older is not None:
            x = x + self.older(F.pixel_unshuffle(frames[:, : self.num_older].flatten(1, 2), 2 * self.patch))
        condition = self.condition(torch.cat([known, memory], 1))
        for index, (block, film) in enumerate(zip(self.blocks, self.films, strict=True)):
            x = block(x, film(condition))
            if index < len(self.attention):
                x = self.attention[index](x)
        return recent, x

    def lasting(self, features: Tensor) -> Tensor:
        """How much of each pixel of the last picture belongs on the canvas, (B, 1, H, W): players do not."""
        return hard_gate(F.pixel_shuffle(self.write(features), self.patch))

    def compose(self, reading: Reading, last: Tensor, views: Views, action: Tensor, motion: Tensor) -> Composition:
        """Of what was read, the last picture (B, 3, H, W), and the canvas after the motion (B, 2); with the embedded
        action."""
        told = [views.colours[0], views.known[:, :1], reading.copies.flatten(1, 2), reading.inside, reading.shown]
        seen = torch.cat(told, 1)
        features = self.merge(torch.cat([reading.features, F.pixel_unshuffle(seen, self.patch)], 1))
        if self.lines is not None:
            features = features + self.lines(F.pixel_unshuffle(views.lines, self.patch))
        if self.position is not None:
            features = features + self.position
        phase = self.phase(torch.cat([action, motion / 4, views.offset], 1))
        for block, tint in zip(self.refine, self.tints, strict=True):
            features = block(features, tint(phase))
        layers = F.pixel_shuffle(self.layers(F.silu(features)), self.patch)
        masks, drawn = layers.split([6 + self.num_copies, 3], dim=1)
        nearness = -F.softplus(self.rounding) * views.distance[:, :, None, None]
        canvas, copied, new, flow, movers = masks.split([4, 1, 1, self.num_flows, self.config.movers], 1)
        if self.movers is not None:
            _, shows, comes = reading.shown.chunk(3, 1)
            movers = movers - F.softplus(self.locality) * reading.distance + self.presence * shows
            new = new + self.presence * comes.sum(1, keepdim=True)
        masks = torch.cat([canvas + nearness, copied, new, flow, movers], 1)
        masks = (self.config.decision * (masks - masks.amax(1, keepdim=True))).exp()
        masks = torch.cat([masks[:, :4] * views.known.clamp(min=1e-3), masks[:, 4:]], 1)
        if self.flow is not None:
            inside = reading.inside.clamp(min=1e-3)
            masks = torch.cat([masks[:, :FLOW], masks[:, FLOW : FLOW + 1] * inside, masks[:, FLOW + 1 :]], 1)
        total = masks.sum(1, keepdim=True)
        wanted, masks = masks / total, F.relu(masks - FAINT * total)  # what is copied is copied exactly
        masks = masks / masks.sum(1, keepdim=True)
        sources = [*views.colours, last, torch.tanh(drawn), *reading.copies.unbind(1)]
        picture = sum(share * source for share, source in zip(masks.split(1, 1), sources, strict=True))
        return Composition(picture, features, wanted, torch.stack(sources, 1))

"""The lattice of tiles that a game draws, each tile at the whole pixel nearest to where it belongs, for itself.

When the camera goes by 2.4 pixels, some tiles go by two and the others by three: by which is told by the fraction of a
pixel at which the lattice lies, its phase. So lines of the canvas move each by the pixels of its tile. Real frames tell
phase and motion together: those at which the tiles of one, so moved, are most like the next, and hard edges lie on
lines; two frames leave much open, more of them little (a path of least cost, as Viterbi's, 1967).

Shapes: B worlds, pictures (B, 3, H, W) in [-1, 1]; motions and phases (B, 2) in pixels, down and right; a phase is
where a line of the lattice lies below or right of the picture's edge, from 0 to the pitch.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from lwm_env.belief import Anticipation
from lwm_env.layers import sine_and_cosine
from lwm_env.memory import Canvas, Views, fill, take_lines, to_numbers
from lwm_env.registration import FOLLOWED, Sighting, sight
from lwm_env.whole_pixels import Scroll

WHOLE = 0.02  # pixels beyond a whole motion that count as none
BINS = 64  # phases that are told apart
NEAR = 0.7  # pixels from the motion found by registration that are searched
NEXT = (-1, 0, 1)  # pixels that a tile may go further than the picture as a whole
STAY = 30.0, 0.3  # what a motion costs that is not the estimated one, in squared differences of colours, and from how
# many pixels beside it on all of that is due
STAY_ANYWHERE = 8.0, 1.0  # likewise where edges do not count, for worlds that learned so
BYTES = 127.5  # steps of a byte in a colour of 1
OVER = 0.016  # of a tile, by which one that covers others is drawn beyond its lines
LINES = 16  # planes that tell where in its tile each pixel lies
EDGE = 5  # pixels at the picture's edges that are not compared
HARD = 0.3  # difference of neighbouring pixels, in a colour of -1 to 1: below it is texture, above a tile's edge


class Lattice:
    """Lines `pitch` pixels apart, in views of H x W pixels in the middle of a canvas; holds sizes only."""

    def __init__(self, pitch: float, frame_size: tuple[int, int], margin: int, edges: float = 0.0) -> None:
        """`edges`: what the squared difference of a hard edge costs where there is no line, in squared differences of
        tiles that have moved."""
        self.pitch, self.frame_size, self.margin, self.edges = pitch, frame_size, margin, edges
        self.stay, self.alike = STAY if edges else STAY_ANYWHERE
        self.over = OVER * pitch if edges else 0.0  # by how many pixels a tile that covers others is larger
        self.bin = pitch / BINS
        self.reach = math.ceil(NEAR / self.bin)  # motions searched to either side, in bins
        self._choices: dict[tuple[float, int], Tensor] = {}

    def wrap(self, phase: Tensor) -> Tensor:
        """Phases in [0, pitch), with gradients."""
        return phase - self.pitch * (phase.detach() / self.pitch).floor()

    def scaled(self, phase: Tensor) -> Tensor:
        """Phases as numbers in [-1, 1)."""
        return phase * (2 / self.pitch) - 1

    def correct(self, phase: Tensor, estimate: Tensor, sighting: Sighting | None) -> tuple[Tensor, Tensor, Tensor]:
        """See `WorldModel.correct`: all of a sighting is taken, the pixels need not be whole, and the offset is the
        phase."""
        motion = estimate
        if sighting is not None:
            motion = torch.where(sighting.sure[:, None], self.motion(phase, estimate, sighting), estimate)
        corrected = torch.cat([estimate, (motion - estimate).detach()], 1)
        return motion.detach(), corrected, self.wrap(phase + motion)

    def scroll(self, before: Tensor, pixels: Tensor, after: Tensor) -> Scroll:
        """How a canvas goes by a motion (B, 2), which need not be whole, from one phase to another."""
        towards = pixels.sign() * (pixels.abs() - WHOLE).ceil()
        return Scroll(pixels, self.scaled(after.detach()), towards, *self.shifts(before, pixels))

    def views(self, canvas: Canvas, next_: Anticipation, sides: Tensor | None) -> Views:
        """What a canvas shows after a step: every tile is where it belongs. Of four views one is right wherever a wall
        ends, as each has other edges that are drawn beyond their lines; `sides` as for `Canvas.fill_sides`."""
        still, offset = torch.zeros_like(next_.offset), self.scaled(next_.offset)
        if not self.over:
            return canvas.views(next_.canvas, still)._replace(offset=offset)
        width, margin, both = self.frame_size[1], self.margin, (-self.over, self.over)
        rows, columns = (
            [self._sources(next_.offset[:, axis] + over, next_.travel[:, axis], size) for over in both]
            for axis, size in enumerate(self.frame_size)
        )
        seen = [take_lines(next_.before, down + margin, right + margin) for down in rows for right in columns]
        if sides is not None:
            nominal = self._sources(next_.offset[:, 1], next_.travel[:, 1], width)
            seen = [fill(view, sides, (nominal < 0) | (nominal >= width)) for view in seen]
        colours, known = zip(*(to_numbers(view) for view in seen), strict=True)
        lines = self.lines(next_.offset, next_.travel)
        return Views(colours, torch.cat(known, 1), still.repeat(1, 2), offset, lines)

    def lines(self, phase: Tensor, motion: Tensor) -> Tensor:
        """Where in its tile each pixel of a view lies after a motion (B, 2) to a phase (B, 2), and where it lay in the
        picture that it came from, (B, LINES, H, W). Games shrink a tile's picture by taking a point of it for each
        pixel, so what a tile shows, down to whether a wall has a pixel more than its tile, is told by these."""
        planes = []
        for axis, size in enumerate(self.frame_size):
            at = torch.arange(size, device=phase.device) + 0.5 - phase[:, axis, None]
            further = motion[:, axis, None] - self._shifts(phase[:, axis], motion[:, axis], size)
            before = at + further
            near, near_before = (x - (x / self.pitch).round() * self.pitch for x in (at, before))
            angles = torch.cat([at * (2 * math.pi / self.pitch), at * (4 * math.pi / self.pitch)], 1)
            told = [wave for waves in sine_and_cosine(angles) for wave in waves.chunk(2, 1)]
            told += [2 * further, (2 * near).clamp(-1, 1), (8 * near).clamp(-1, 1), (8 * near_before).clamp(-1, 1)]
            planes.append(torch.stack(told, 1).unsqueeze(3 - axis))
        return torch.cat([plane.expand(-1, -1, *self.frame_size) for plane in planes], 1)

    def shifts(self, phase: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """By how many whole pixels each row and column of a canvas moves, (B, h) and (B, w), when a lattice at a phase
        moves."""
        after = self.wrap(phase + motion)
        sizes = (side + 2 * self.margin for side in self.frame_size)
        rows, columns = (
            self._shifts(after[:, axis], motion[:, axis], size, self.margin) for axis, size in enumerate(sizes)
        )
        return rows, columns

    def _shifts(self, phase: Tensor, motion: Tensor, size: int, margin: int = 0) -> Tensor:
        """Of `size` lines, the picture's first one after `margin` others, after a motion (...) to a phase (...)."""
        return torch.arange(size, device=phase.device) - self._sources(phase, motion, size, margin)

    def _sources(self, phase: Tensor, motion: Tensor, size: int, margin: int = 0) -> Tensor:
        """Where they come from: (..., size). A tile that gets a pixel longer repeats its last one."""
        place = torch.arange(size, device=phase.device, dtype=phase.dtype)
        at = place + (0.5 - margin)
        line = ((at - phase[..., None]) / self.pitch).floor() * self.pitch + phase[..., None]
        came = (line - motion[..., None] + 0.5).floor()
        source = place - (line + 0.5).floor() + came
        if not self.over:
            return source
        last = (line - motion[..., None] + self.pitch + 0.5).floor() - 1
        return torch.minimum(source, last + margin)

    # -- real frames -------------------------------------------------------------------------------------------------

    def sight(self, before: Tensor, after: Tensor) -> Sighting:
        """How the camera went between two real pictures, with the cost (B, 2 BINS M) of every phase after and motion
        nearby, M of them, along both axes."""
        seen, shifts, costs = sight(before, after), [None, None], [None, None]
        whole, off_line = seen.motion.round(), [self.off_line(after, axis)[..., None] for axis in (0, 1)]
        for axis in (0, 1, 0, 1):
            cost = costs[axis] = self.costs(before, after, whole, axis, shifts[1 - axis]) + off_line[axis]
            phase, step = (cost.amin(dim).argmin(1) for dim in (2, 1))
            motion = (self._first(whole)[:, axis] + step) * self.bin
            shifts[axis] = self._shifts(phase * self.bin, motion, self.frame_size[axis])
        return Sighting(seen.motion, seen.sure, torch.stack(costs, 1).flatten(1))

    def motion(self, phase: Tensor, estimate: Tensor | None, seen: Sighting) -> Tensor:
        """The motion (B, 2) from a phase (B, 2) that fits best what was seen, of those that fit about as well the one
        nearest to an estimate (B, 2), if there is one; where costs are unknown, the one seen."""
        if seen.cost is None:
            return seen.motion
        bins = (phase.detach() / self.bin).round().long()
        costs, steps = self._costs(seen, estimate)
        after = (bins[..., None] + steps) % BINS
        best = costs.gather(2, after[:, :, None])[:, :, 0].argmin(2, keepdim=True)
        return steps.gather(2, best)[..., 0] * self.bin

    def settle(self, doubt: Tensor | None, estimate: Tensor | None, seen: Sighting) -> tuple[Tensor, Tensor]:
        """The likeliest phase (B, 2) before what was seen, and the doubt (B, 2, BINS) of each phase after it: how badly
        it fits all that was seen, as `doubt` tells of the phases before, and motions near the estimates (B, 2), if
        there are any."""
        doubts, ways = self._follow(doubt, estimate, seen)
        likeliest = doubts.argmin(2, keepdim=True)
        phase = self.wrap((likeliest - ways.gather(2, likeliest))[..., 0] * self.bin)
        return phase, self._doubt(doubts, seen.sure)

    def path(self, seen: Sighting) -> tuple[Tensor, Tensor]:
        """The phases (B, T + 1, 2) and motions (B, T, 2) that fit best all that was seen in T steps, whose phases lead
        to one another; where a step cannot be believed, a new path begins."""
        doubts, ways, doubt = [], [], seen.motion.new_zeros(len(seen.motion), 2, BINS)
        for motion, sure, cost in zip(*(part.unbind(1) for part in seen), strict=True):
            doubts.append(doubt)
            doubt, way = self._follow(doubt, None, Sighting(motion, sure, cost))
            doubt = self._doubt(doubt, sure)
            ways.append(way)
        phases, motions = [doubt.argmin(2)], []
        for sure, doubt, way in zip(reversed(seen.sure.unbind(1)), reversed(doubts), reversed(ways), strict=True):
            motions.append(way.gather(2, phases[-1][..., None])[..., 0])
            phases.append(torch.where(sure[:, None], (phases[-1] - motions[-1]) % BINS, doubt.argmin(2)))
        return tuple(torch.stack(path[::-1], 1) * self.bin for path in (phases, motions))

    def _follow(self, doubt: Tensor | None, estimate: Tensor | None, seen: Sighting) -> tuple[Tensor, Tensor]:
        """What the best way to each phase after a step costs (B, 2, BINS), from the doubt of those before, and its
        motion, in bins."""
        costs, steps = self._costs(seen, estimate)
        if doubt is None:
            doubt = torch.zeros_like(costs[..., 0])
        after = torch.arange(BINS, device=costs.device)
        before = (after[:, None] - steps[:, :, None]) % BINS  # (B, 2, BINS, M)
        trace = doubt[:, :, None].expand(-1, -1, BINS, -1).gather(3, before) + costs
        doubts, best = trace.min(3)
        return doubts, steps.gather(2, best)

    @staticmethod
    def _doubt(costs: Tensor, sure: Tensor) -> Tensor:
        """What ways cost (B, 2, BINS) beyond the best, or nothing where a step cannot be believed (B,)."""
        return (costs - costs.amin(2, keepdim=True)) * sure[:, None, None]

    def _costs(self, seen: Sighting, estimate: Tensor | None) -> tuple[Tensor, Tensor]:
        """What was seen against every phase after and motion (B, 2, BINS, M), and how far the motion is from an
        estimate (B, 2), if there is one; and these motions, in bins (B, 2, M)."""
        costs = seen.cost.unflatten(1, (2, BINS, -1))
        steps = self._first(seen.motion.round())[..., None] + torch.arange(costs.shape[3], device=costs.device)
        if estimate is None:
            return costs, steps
        far = (steps * self.bin - estimate.detach()[..., None]).square() / self.alike**2
        return costs + self.stay * far.clamp(max=1)[:, :, None], steps

    def _first(self, whole: Tensor) -> Tensor:
        """The first of the motions near a whole one (B, 2) that are searched, in bins."""
        return (whole / self.bin).round().long() - self.reach

    @torch.no_grad()
    def costs(self, before: Tensor, after: Tensor, whole: Tensor, axis: int, others: Tensor | None = None) -> Tensor:
        """Squared differences (B, BINS, M) of `after` and `before`, its tiles moved along an axis as every phase after
        and every motion near the whole one (B, 2) has it. Along the other axis lines move by `others` (B, H or W)."""
        if others is None:
            others = whole[:, 1 - axis, None].expand(-1, self.frame_size[1 - axis])
        along, across = 2 + axis, 3 - axis
        size, whole = self.frame_size[axis], whole[:, axis]
        lines = torch.arange(-1, size + 1, device=whole.device) - whole[:, None]  # one more on each side
        moved = _taken(
            _taken(before, torch.arange(others.shape[1], device=whole.device) - others, across), lines, along
        )
        counted = self._counted(before.device)
        apart = []
        for step in NEXT:
            near = moved.narrow(along, 1 - step, size)
            differences = ((near - after) * BYTES).round()  # whole numbers, whose sums are the same in any order
            apart.append((differences.square().sum(1) * counted).sum(across - 1))
        apart += [torch.minimum(*pair) for pair in pairwise(apart)]
        apart = torch.cat(apart, 1).double()  # (B, 5 lines)
        cost = apart.new_empty(len(apart), BINS, 2 * self.reach + 1)
        for pixels in whole.unique().tolist():
            same = whole == pixels
            cost[same] = (apart[same] @ self._choice(pixels, axis).to(apart).T).unflatten(1, cost.shape[1:])
        return (cost / BYTES**2).to(before.dtype)

    @torch.no_grad()
    def off_line(self, picture: Tensor, axis: int) -> Tensor:
        """What the hard edges of a picture cost that do not lie on lines across an axis, at every phase: (B, BINS). An
        edge belongs to its brighter side, which is taken for what covers the other and so goes beyond its line.

        Without it a phase was told by which tiles move further than others alone, and where few have an edge by the
        texture of walls, which is drawn anew at every phase: that is, not at all."""
        counted = self._counted(picture.device)
        if axis == 1:
            picture, counted = picture.transpose(2, 3), counted.T
        steps = ((picture[:, :, 1:] - picture[:, :, :-1]) * BYTES).round()
        hard = (steps.abs() - round(HARD * BYTES)).clamp(min=0).square().sum(1)  # whole numbers, see `costs`
        hard = hard * (counted[1:] * counted[:-1])
        brighter = steps.sum(1) > 0
        phases = torch.arange(BINS, device=picture.device, dtype=torch.float64)[:, None] * self.bin
        between = torch.arange(1, self.frame_size[axis], device=picture.device, dtype=torch.float64)
        nearest = ((between - phases) / self.pitch).round() * self.pitch + phases
        cost = 0.0
        for begins, over in ((brighter, -self.over), (~brighter, self.over)):
            edges = (hard * begins).sum(2).double()  # (B, size - 1): between a line and the next
            on_line = ((nearest + over + 0.5).floor() == between).double()
            cost = cost + edges.sum(1, keepdim=True) - edges @ on_line.T
        return (self.edges / BYTES**2 * cost).to(picture.dtype)

    def _choice(self, whole: float, axis: int) -> Tensor:
        """Which of its three motions, one pixel less than a `whole` one, that, and one more, each line takes at every
        phase after a step and motion near the whole one; or whether it takes the first or the second of them, or the
        second or the third, as a tile is in front that ends or one that begins: 0 or 1, (BINS M, 5 lines)."""
        if (whole, axis) not in self._choices:
            size = self.frame_size[axis]
            first = round(whole / self.bin) - self.reach
            motions = (first + torch.arange(2 * self.reach + 1)) * self.bin
            phases, motions = torch.broadcast_tensors(torch.arange(BINS)[:, None] * self.bin, motions)
            ends, begins = (
                (self._shifts(phases + over, motions, size) - whole).clamp(-1, 1) for over in (-self.over, self.over)
            )
            lower, alike = torch.minimum(ends, begins), ends == begins
            chosen = [alike & (lower == step) for step in NEXT] + [~alike & (lower == step) for step in NEXT[:-1]]
            self._choices[whole, axis] = torch.stack(chosen, 2).float().flatten(0, 1).flatten(1)
        return self._choices[whole, axis]

    def _counted(self, device: torch.device) -> Tensor:
        """1 where a pixel is compared: not at the edges nor in the square where a followed player stays."""
        height, width = self.frame_size
        counted = torch.zeros(height, width, device=device)
        counted[EDGE : height - EDGE, EDGE : width - EDGE] = 1
        half = round(FOLLOWED * min(height, width) / 2)
        counted[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = 0
        return counted


def _taken(picture: Tensor, lines: Tensor, dim: int) -> Tensor:
    """Lines (B, n) of a picture (B, C, H, W), or the nearest ones, as its dimension `dim`."""
    index = lines.clamp(0, picture.shape[dim] - 1).long()
    shape = [*picture.shape]
    shape[dim] = lines.shape[1]
    index = index[:, None, :, None] if dim == 2 else index[:, None, None, :]
    return picture.gather(dim, index.expand(shape))

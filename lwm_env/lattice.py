"""The lattice of tiles that a game draws, each tile at the whole pixel nearest to where it belongs, for itself.

When the camera goes by 2.4 pixels, some tiles go by two and the others by three: by which is told by the fraction of a
pixel at which the lattice lies, its phase. So lines of the canvas move each by the pixels of its tile. Real frames tell
phase and motion together: those at which the tiles of one, so moved, are most like the next; two frames leave much
open, more of them little (a path of least cost, as Viterbi's, 1967).

Shapes: B worlds, pictures (B, 3, H, W) in [-1, 1]; motions and phases (B, 2) in pixels, down and right; a phase is
where a line of the lattice lies below or right of the picture's edge, from 0 to the pitch.
"""

import math

import torch
from torch import Tensor

from lwm_env.memory import Canvas, Views
from lwm_env.registration import FOLLOWED, Sighting, sight
from lwm_env.whole_pixels import Scroll

WHOLE = 0.02  # pixels beyond a whole motion that count as none
BINS = 64  # phases that are told apart
NEAR = 0.7  # pixels from the motion found by registration that are searched
NEXT = (-1, 0, 1)  # pixels that a tile may go further than the picture as a whole
SMOOTH = 8.0  # what a motion costs that is a pixel from the estimate, in squared differences of colours
BYTES = 127.5  # steps of a byte in a colour of 1
EDGE = 5  # pixels at the picture's edges that are not compared


class Lattice:
    """Lines `pitch` pixels apart, in views of H x W pixels in the middle of a canvas; holds sizes only."""

    def __init__(self, pitch: float, frame_size: tuple[int, int], margin: int) -> None:
        self.pitch, self.frame_size, self.margin = pitch, frame_size, margin
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

    def views(self, canvas: Canvas, content: Tensor, phase: Tensor) -> Views:
        """What the moved content of a canvas shows: every tile is where it belongs."""
        return canvas.views(content, torch.zeros_like(phase))._replace(offset=self.scaled(phase))

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
        at = torch.arange(size, device=phase.device) + (0.5 - margin)
        line = ((at - phase[..., None]) / self.pitch).floor() * self.pitch + phase[..., None]
        return (line + 0.5).floor() - (line - motion[..., None] + 0.5).floor()

    # -- real frames -------------------------------------------------------------------------------------------------

    def sight(self, before: Tensor, after: Tensor) -> Sighting:
        """How the camera went between two real pictures, with the cost (B, 2 BINS M) of every phase after and motion
        nearby, M of them, along both axes."""
        seen, shifts, costs = sight(before, after), [None, None], [None, None]
        whole = seen.motion.round()
        for axis in (0, 1, 0, 1):
            cost = costs[axis] = self.costs(before, after, whole, axis, shifts[1 - axis])
            phase, step = (cost.amin(dim).argmin(1) for dim in (2, 1))
            motion = (self._first(whole)[:, axis] + step) * self.bin
            shifts[axis] = self._shifts(phase * self.bin, motion, self.frame_size[axis])
        return Sighting(seen.motion, seen.sure, torch.stack(costs, 1).flatten(1))

    def motion(self, phase: Tensor, estimate: Tensor, seen: Sighting) -> Tensor:
        """The motion (B, 2) from a phase (B, 2) that fits best what was seen, of those that fit about as well the one
        nearest to an estimate (B, 2); where costs are unknown, the one seen."""
        if seen.cost is None:
            return seen.motion
        bins = (phase.detach() / self.bin).round().long()
        costs, steps = self._costs(seen, estimate)
        after = (bins[..., None] + steps) % BINS
        best = costs.gather(2, after[:, :, None])[:, :, 0].argmin(2, keepdim=True)
        return steps.gather(2, best)[..., 0] * self.bin

    def settle(self, doubt: Tensor | None, estimate: Tensor, seen: Sighting) -> tuple[Tensor, Tensor]:
        """The likeliest phase (B, 2) before what was seen, and the doubt (B, 2, BINS) of each phase after it: how badly
        it fits all that was seen, as `doubt` tells of the phases before, and motions near the estimates (B, 2)."""
        costs, steps = self._costs(seen, estimate)
        if doubt is None:
            doubt = torch.zeros_like(costs[..., 0])
        after = torch.arange(BINS, device=costs.device)
        before = (after[:, None] - steps[:, :, None]) % BINS  # (B, 2, BINS, M)
        trace = doubt[:, :, None].expand(-1, -1, BINS, -1).gather(3, before) + costs
        doubts, best = trace.min(3)
        likeliest = doubts.argmin(2, keepdim=True)
        step = steps.gather(2, best.gather(2, likeliest))
        phase = self.wrap((likeliest - step)[..., 0] * self.bin)
        return phase, (doubts - doubts.amin(2, keepdim=True)) * seen.sure[:, None, None]

    def _costs(self, seen: Sighting, estimate: Tensor) -> tuple[Tensor, Tensor]:
        """What was seen against every phase after and motion (B, 2, BINS, M), and how far the motion is from an
        estimate (B, 2); and these motions, in bins (B, 2, M)."""
        costs = seen.cost.unflatten(1, (2, BINS, -1))
        steps = self._first(seen.motion.round())[..., None] + torch.arange(costs.shape[3], device=costs.device)
        far = (steps * self.bin - estimate.detach()[..., None]).square()
        return costs + SMOOTH * far.clamp(max=1)[:, :, None], steps

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
        apart = torch.cat(apart, 1).double()  # (B, 3 lines)
        cost = apart.new_empty(len(apart), BINS, 2 * self.reach + 1)
        for pixels in whole.unique().tolist():
            same = whole == pixels
            cost[same] = (apart[same] @ self._choice(pixels, axis).to(apart).T).unflatten(1, cost.shape[1:])
        return (cost / BYTES**2).to(before.dtype)

    def _choice(self, whole: float, axis: int) -> Tensor:
        """Which of its three motions, one pixel less than a `whole` one, that, and one more, each line takes at every
        phase after a step and motion near the whole one: 0 or 1, (BINS M, 3 lines)."""
        if (whole, axis) not in self._choices:
            size = self.frame_size[axis]
            first = round(whole / self.bin) - self.reach
            motions = (first + torch.arange(2 * self.reach + 1)) * self.bin
            phases = torch.arange(BINS)[:, None] * self.bin
            shifts = self._shifts(*torch.broadcast_tensors(phases, motions), size) - whole
            chosen = torch.stack([shifts.clamp(-1, 1) == step for step in NEXT], 2).float()
            self._choices[whole, axis] = chosen.flatten(0, 1).flatten(1)
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

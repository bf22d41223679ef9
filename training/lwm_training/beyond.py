"""What lies beyond the view in real clips, as later frames show it: dreams that learn to draw are shown it where
`AheadTiles` or `Above` draw in those that are stepped, before the view moves, so that new ground is met as it is there.

Shapes: B clips of T steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lwm_env.above import Above
from lwm_env.ahead_tiles import AheadTiles
from lwm_env.belief import Belief
from lwm_env.memory import move_lines, paint
from lwm_env.registration import Sighting
from lwm_env.world_model import WorldModel
from lwm_training.batch import Batch, context_belief, sightings
from lwm_training.strips import survey


class Beyond:
    """Canvases of what the real frames after each of the steps from the `first` on show, where tiles lie then.

    `phases` (B, T + 1, 2) and `seen`, whose motions lead from one to the next, are of the lattice, see `Lattice.path`.
    """

    def __init__(self, model: WorldModel, batch: Batch, seen: Sighting, phases: Tensor, first: int) -> None:
        self.canvases: dict[int, Tensor] = {}
        followed = seen.sure & (batch.valid > 0)
        canvas = model.canvas.blank(len(phases), phases.device)
        for t in reversed(range(first, seen.motion.shape[1])):
            whole = torch.ones_like(batch.pixels[:, t + 1, :1])
            canvas = model.canvas.write(canvas, batch.pixels[:, t + 1], whole)
            canvas = move_lines(canvas, *model.lattice.shifts(phases[:, t + 1], -seen.motion[:, t]))
            canvas = self.canvases[t] = canvas * followed[:, t, None, None, None]
        self.followed = followed[:, first:].cumprod(1).bool()
        self.first = first

    def at(self, t: int, shown: Tensor) -> Callable[..., Tensor]:
        """What draws `ahead` in step t, see `WorldModel.anticipate`: what comes into view then and later where nothing
        was seen, in clips that are `shown` (B,) it and whose camera was followed until then."""
        later, known = self.canvases[t].split([3, 1], 1)
        known = known * (shown & self.followed[:, t - self.first])[:, None, None, None]
        return lambda canvas, *_: paint(canvas, later, known * (1 - canvas[:, 3:]))


class BeyondAbove:
    """Of a view that turns, rows above it after each of the steps from the `first` on, as other real frames show
    them."""

    def __init__(self, model: WorldModel, batch: Batch, seen: Sighting, first: int) -> None:
        sizes, clips = model.config.ahead, torch.arange(len(batch.pixels), device=batch.pixels.device)
        where, self.rows = model.motion.flow.ground.around(sizes.width, 0, sizes.beside), {}
        for t in range(first, seen.motion.shape[1]):
            self.rows[t] = survey(model, batch, seen, clips, torch.full_like(clips, t), where)
        self.followed = (seen.sure & (batch.valid > 0))[:, first:].cumprod(1).bool()
        self.first = first

    def at(self, t: int, shown: Tensor) -> Callable[..., Tensor]:
        """As `Beyond.at`, of what lies around the upper edge, see `Above`."""
        later, known = self.rows[t].split([3, 1], 1)
        known = known * (shown & self.followed[:, t - self.first])[:, None, None, None]

        def rows(around: Tensor, *_: object) -> Tensor:
            above = around[:, :, : later.shape[2]]
            return paint(above, later, known * (1 - above[:, 3:]))

        return rows


@torch.no_grad()
def begin(
    model: WorldModel, batch: Batch, context: int, shows: bool
) -> tuple[Sighting, Belief, Beyond | BeyondAbove | None]:
    """What was seen of the real camera, the belief after `context` frames, and what lies beyond the view, if clips are
    to be shown it and the world draws it ahead in tiles or on a map."""
    seen = sightings(model, batch)
    if not shows or not isinstance(model.ahead, AheadTiles | Above):
        return seen, context_belief(model, batch, seen, context), None
    if isinstance(model.ahead, Above):
        return seen, context_belief(model, batch, seen, context), BeyondAbove(model, batch, seen, context - 1)
    phases, motions = model.lattice.path(seen)
    seen = Sighting(motions, seen.sure)
    belief = context_belief(model, batch, seen, context, phases[:, 0])
    return seen, belief, Beyond(model, batch, seen, phases, context - 1)

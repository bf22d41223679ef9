"""The ground that a view from above drives over: a map, which turns with no view, of what was seen and what was drawn.

A picture sampled from a picture sampled from a picture loses its edges within seconds, and what has left it is gone.
So the canvas is a map here: each picture is laid on it where the view was, once, and the next is read from it where the
view will be. It moves by whole cells, so that the view's middle stays near its own. What is mounted on the view, such
as the car, is not of the ground: it is where pictures stay as they were while all else goes.

A cell counts as seen in full, or by half if it was only drawn ahead: then what the view makes of it replaces it. Real
pictures replace all.

Shapes: B worlds, pictures of H x W pixels, S rows above them that are E pixels longer at either end, maps (B, 4, h, w)
as `lwm_env.memory` has canvases; a pose (B, 3) is where the view's middle lies on the map, down and right from its
middle in cells, and its heading in radians. Cells are as tall and as wide as pixels, of which `aspect` rows take the
length of a column.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.memory import move_whole, to_bytes, to_numbers
from lwm_env.turning import affine, places, sample, sources

POSE = 3
AHEAD = 0.5  # how much a cell counts as seen that was drawn ahead
KNOWN = 0.75  # share of a cell or pixel that must be there
MOVED = 1.0  # pixels that a view must go in a step to tell what is mounted on it
RATE = 0.02  # of the running means that tell it
LOST = 0.24  # mean difference of a colour, of 2 at most, from how it looks, from which on what is mounted has been lost


class Ground(nn.Module):
    """Reads and writes maps; knows what is mounted on the view."""

    def __init__(self, frame_size: tuple[int, int]) -> None:
        super().__init__()
        self.middle = tuple((side - 1) / 2 for side in frame_size)
        self.register_buffer("errors", torch.zeros(2, *frame_size))  # of pictures as they were, and as the ground goes
        self.register_buffer("lies", torch.ones(frame_size))  # 1 where the ground is seen
        self.register_buffer("mounted", torch.zeros(frame_size))  # 1 where something is mounted on the view
        self.register_buffer("looks", torch.zeros(3, *frame_size))  # mean of real pictures
        self.register_buffer("noticed", torch.zeros(()))  # how often they told
        for name, side in zip(("rows", "columns"), frame_size, strict=True):
            self.register_buffer(f"{name}_at", torch.arange(float(side)) - (side - 1) / 2, persistent=False)

    # -- where the view is -------------------------------------------------------------------------------------------

    def go(self, pose: Tensor, motion: Tensor, aspect: Tensor) -> Tensor:
        """The pose after the content of the view has moved (B, 3), see `lwm_env.turning`."""
        heading = pose[:, 2:] + motion[:, 2:]
        turned = _turned(heading, aspect)
        return torch.cat([pose[:, :2] - (turned * motion[:, None, :2]).sum(2), heading], 1)

    def centre(self, map_: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """The map moved by whole cells so that the view's middle is near its own, and the pose then."""
        whole = pose[:, :2].round()
        return move_whole(map_, -whole), pose - F.pad(whole, (0, 1))

    def around(self, above: int, below: int = 0, beside: int = 0) -> Tensor:
        """Places of rows from so many `above` the view's upper edge to so many `below` it, from so many pixels `beside`
        the view to as many on the other side: (rows, columns, 2)."""
        rows, columns = (torch.arange(float(count), device=self.rows_at.device) for count in (above + below, beside))
        columns = torch.cat([columns - beside + self.columns_at[0], self.columns_at, columns + 1 + self.columns_at[-1]])
        return places(rows - above + self.rows_at[0], columns)

    # -- what lies on a map ------------------------------------------------------------------------------------------

    def read(self, map_: Tensor, pose: Tensor, aspect: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What a map shows in the view, or at places (h, w, 2) counted from its middle: colours (B, 3, h, w), and
        whether they are known, (B, 1, h, w)."""
        where = places(self.rows_at, self.columns_at) if where is None else where
        source = sources(torch.cat([_turned(pose[:, 2:], aspect), pose[:, :2, None]], 2), where)
        colours, known = to_numbers(map_)
        middle = tuple((side - 1) / 2 for side in map_.shape[-2:])
        there = 1 - F.max_pool2d(1 - (known > 0).to(colours.dtype), 3, stride=1, padding=1)  # whose neighbours are too
        shown = sample(colours, source, middle, "bicubic").clamp(-1, 1)
        return shown, (sample(there, source, middle) > KNOWN).to(colours.dtype)

    def write(
        self,
        map_: Tensor,
        picture: Tensor,
        pose: Tensor,
        aspect: Tensor,
        above: Tensor | None = None,
        replace: bool = False,
    ) -> Tensor:
        """The map with a picture (B, 3, H, W) that is seen from a pose, and what was drawn `above` it,
        (B, 4, S, W + 2 E), where nothing was seen yet; or all the same, with `replace`. Bytes if it was bytes."""
        laid, rows, beside = torch.cat([picture, self.lies.expand_as(picture[:, :1])], 1), 0, 0
        if above is not None:
            rows, beside = above.shape[2], (above.shape[3] - picture.shape[3]) // 2
            laid = torch.cat([above, F.pad(laid, (beside, beside))], 2)
        part = map_[:, :, 1:-1, 1:-1]  # what is outermost was never seen and stays so, see `move_lines`
        cells = (torch.arange(side, device=map_.device) - (side - 1) / 2 for side in part.shape[2:])
        source = sources(affine(torch.cat([pose[:, :2], -pose[:, 2:]], 1), aspect), places(*cells))
        (down, right), (top, side) = source.unbind(3), self.middle
        level = ((down.abs() <= top) & (right.abs() <= side)).to(laid.dtype)
        if above is not None:
            level = level + AHEAD * ((down < -top) & (down >= -top - rows) & (right.abs() <= side + beside))
        seen, share = sample(laid, source, (top + rows, side + beside)).split([3, 1], 1)
        new = torch.cat([seen, level[:, None] * (share > KNOWN)], 1)
        new = to_bytes(new) if map_.dtype == torch.uint8 else new
        written = map_.clone()
        written[:, :, 1:-1, 1:-1] = torch.where(new[:, 3:] > (0 if replace else part[:, 3:]), new, part)
        return written

    # -- what is mounted on the view ---------------------------------------------------------------------------------

    @torch.no_grad()
    def notice(self, last: Tensor, copy: Tensor, inside: Tensor, after: Tensor, motion: Tensor) -> None:
        """Learn where pictures (B, 3, H, W) stay as they were, by how wrong the last one is beside its `copy`, moved by
        a motion (B, 3) as far as it was in sight, `inside` (B, 1, H, W)."""
        told = inside * (motion[:, :2].norm(dim=1) > MOVED)[:, None, None, None]
        wrong = torch.cat([(picture - after).abs().mean(1, keepdim=True) for picture in (last, copy)], 1)
        self.noticed += told.any()
        rate = RATE + (1 - RATE) * (self.noticed == 1)
        for known, new in ((self.errors, wrong), (self.looks, after)):
            mean = (new * told).sum(0) / told.sum(0).clamp(min=1)
            known += rate * told.amax(0) * (mean - known)
        self.mounted.copy_(self.errors[0] < self.errors[1])
        self.lies.copy_(1 - F.max_pool2d(self.mounted[None, None], 3, stride=1, padding=1)[0, 0])

    def restore(self, picture: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) with what is mounted on the view as it usually looks, where a dream has lost it."""
        apart = (picture - self.looks).abs().mean(1, keepdim=True) * self.mounted
        lost = apart.sum((2, 3), keepdim=True) > LOST * self.mounted.sum()
        return torch.where(lost & (self.mounted > 0), self.looks, picture)


def _turned(heading: Tensor, aspect: Tensor) -> Tensor:
    """The part (B, 2, 2) of a map of places that a heading (B, 1) makes."""
    return affine(F.pad(heading, (2, 0)), aspect)[..., :2]

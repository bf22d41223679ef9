"""A flat world seen from above by a view that turns and shifts: three numbers tell where every pixel comes from, and
two real pictures tell these numbers.

Shapes: B views of H x W pixels; a motion (B, 3) is how far the content goes, down and right in pixels, and how far it
turns about the middle of the view, in radians. Pixels need not be square: `aspect` rows take the length of a column.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.layers import sine_and_cosine
from lwm_env.registration import Sighting

HALF, WHOLE = (5, 5, 5, 3, 3, 3), (3, 1, 1)  # pixels averaged along a side in each round, at half and at full size
OUTLIER = 0.1  # of a colour's range of 2: what differs by more counts little, such as the car
SETTLED = 0.3  # pixels that the last round may still move what is believed


def affine(motion: Tensor, aspect: Tensor) -> Tensor:
    """Motions (..., 3) -> (..., 2, 3): a place (down, right, 1) from the middle of the view to where it was before."""
    shift, (sine, cosine) = motion[..., :2], (x[..., 0] for x in sine_and_cosine(motion[..., 2:]))
    rows = [torch.stack([cosine, sine * aspect], -1), torch.stack([-sine / aspect, cosine], -1)]
    matrix = torch.stack(rows, -2)
    return torch.cat([matrix, -_times(matrix, shift)[..., None]], -1)


def then(first: Tensor, second: Tensor) -> Tensor:
    """The map of two motions one after the other, from maps (..., 2, 3): where a place was before both."""
    columns = [_times(first[..., :2], column) for column in second.unbind(-1)]
    return torch.stack([*columns[:2], columns[2] + first[..., 2]], -1)


def inverse(map_: Tensor) -> Tensor:
    """Where a place (down, right, 1) goes: (..., 2, 3)."""
    matrix = torch.linalg.inv(map_[..., :2])
    return torch.cat([matrix, -_times(matrix, map_[..., 2])[..., None]], -1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrices (..., 2, 2) times vectors (..., 2); not as a product of matrices, which bfloat16 would round."""
    return (matrix * vector[..., None, :]).sum(-1)


def places(rows: Tensor, columns: Tensor) -> Tensor:
    """Of h rows and w columns, numbered from the middle of the view, all places: (h, w, 2)."""
    return torch.stack(torch.broadcast_tensors(rows[:, None], columns), -1)


def sources(map_: Tensor, where: Tensor) -> Tensor:
    """Where places (h, w, 2) were before, (B, h, w, 2), by maps (B, 2, 3)."""
    down, right = where.unbind(-1)
    rows = (row[:, None, None] for row in map_.unbind(1))  # sums by hand: torch is slow at those of two numbers
    return torch.stack([row[..., 0] * down + row[..., 1] * right + row[..., 2] for row in rows], -1)


def sample(picture: Tensor, source: Tensor, middle: tuple[float, float], mode: str = "bilinear") -> Tensor:
    """Pictures (B, C, H, W) at places (B, h, w, 2) counted from the row and column `middle`; beyond the edge, the
    edge: (B, C, h, w). `mode` is how they are interpolated."""
    height, width = picture.shape[-2:]
    down, right = source.unbind(-1)
    grid = [(right + middle[1]) * (2 / (width - 1)) - 1, (down + middle[0]) * (2 / (height - 1)) - 1]
    return F.grid_sample(picture, torch.stack(grid, -1), mode, padding_mode="border", align_corners=True)


@torch.no_grad()
def sight_turn(before: Tensor, after: Tensor, aspect: Tensor) -> Sighting:
    """How the view went between two pictures (B, 3, H, W), motion (B, 3), and whether that can be believed: least
    squares by Gauss and Newton on grey pictures, blurred ones first, in which outliers count little (the
    Cauchy weight; Odobez and Bouthemy, 1995). In float32 also where the model computes in bfloat16."""
    with torch.autocast(before.device.type, enabled=False):
        before, after, aspect = (x.detach().float() for x in (before, after, aspect))
        whole = [picture.mean(1, keepdim=True) for picture in (before, after)]
        half = [F.avg_pool2d(picture, 2) for picture in whole]
        motion = step = before.new_zeros(len(before), 3)
        smaller = before.new_tensor([0.5, 0.5, 1])
        for blur in HALF:
            motion = _improved(motion * smaller, *(_blurred(x, blur) for x in half), aspect)[0] / smaller
        for blur in WHOLE:
            motion, step = _improved(motion, *(_blurred(x, blur) for x in whole), aspect)
    return Sighting(motion, step < SETTLED)


def _improved(motion: Tensor, before: Tensor, after: Tensor, aspect: Tensor) -> tuple[Tensor, Tensor]:
    """One round of least squares on grey pictures (B, 1, H, W): the motion, and by how many pixels it changed (B,)."""
    height, width = before.shape[-2:]
    rows, columns = (torch.arange(side, device=before.device) - (side - 1) / 2 for side in (height, width))
    middle, where = ((height - 1) / 2, (width - 1) / 2), places(rows, columns)
    map_ = affine(motion, aspect)
    source = sources(map_, where)
    tall, wide = F.pad(before, (0, 0, 1, 1), mode="replicate"), F.pad(before, (1, 1, 0, 0), mode="replicate")
    slopes = [(tall[:, :, 2:] - tall[:, :, :-2]) / 2, (wide[..., 2:] - wide[..., :-2]) / 2]
    shown, *slopes = sample(torch.cat([before, *slopes], 1), source, middle).unbind(1)
    limits = source.new_tensor(middle)
    difference = after[:, 0] - shown
    counted = (source.abs() <= limits).all(3) / (difference.square() + OUTLIER**2)
    slope = torch.stack(slopes, 3)  # (B, H, W, 2), of what is shown, along the rows and columns that it comes from
    by_shift = -(slope @ map_[:, None, :, :2])
    quarter = affine(motion + motion.new_tensor([0, 0, torch.pi / 2]), aspect)  # the derivative of a turn
    unit = 1 / max(middle)  # radians that move the edge of the view by a pixel
    by_turn = (slope * sources(quarter, where)).sum(3, keepdim=True) * unit
    change = torch.cat([by_shift, by_turn], 3).flatten(1, 2)
    weighted = change * counted.flatten(1)[..., None]
    normal = weighted.transpose(1, 2) @ change
    ridge = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-6)
    normal = normal + ridge[:, None, None] * torch.eye(3, device=normal.device)
    step = torch.linalg.solve(normal, weighted.transpose(1, 2) @ difference.flatten(1)[..., None])[..., 0].clamp(-2, 2)
    return motion + step * step.new_tensor([1, 1, unit]), step.abs().amax(1)


def _blurred(picture: Tensor, size: int) -> Tensor:
    """The mean of the `size` x `size` pixels around each."""
    return F.avg_pool2d(picture, size, 1, size // 2, count_include_pad=False) if size > 1 else picture

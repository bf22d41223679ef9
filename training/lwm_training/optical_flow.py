"""How a view in depth went between two real pictures: the field that a flow is told at its grid points.

Dense inverse search (Kroeger et al., 2016, arXiv:1603.03590), as OpenCV has it, and the field that fits it best.

Shapes: B pairs of pictures (B, 3, H, W) in [-1, 1].
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from lwm_env.flow import Flow
from lwm_env.registration import Sighting
from lwm_env.tokenizer import to_frames

BETTER = 0.9  # share of the error of a copy that stays where it is, from which on a field is believed
STILL = 0.02  # or an error this small
SMALLEST = 32  # pixels along a side: in smaller pictures nothing is looked for


@torch.no_grad()
def sight_field(flow: Flow, before: Tensor, after: Tensor) -> Sighting:
    """The field (B, motion_dim), and whether it explains the later picture, on the pictures' device; the flow may be on
    another one."""
    device = before.device
    before, after = before.to(flow.rows.device), after.to(flow.rows.device)
    if min(before.shape[-2:]) < SMALLEST:
        nothing = before.new_zeros(len(before), flow.motion_dim)
        return Sighting(nothing.to(device), (nothing[:, 0] > 0).to(device))
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    grey = [to_frames(picture).float().mean(-1).to(torch.uint8).cpu().numpy() for picture in (before, after)]
    came_from = np.stack([search.calc(later, earlier, None) for earlier, later in zip(*grey, strict=True)])
    dense = -torch.from_numpy(came_from).movedim(-1, 1).flip(1).to(before)  # down and right
    rows, columns = torch.linalg.pinv(flow.rows.float()), torch.linalg.pinv(flow.columns.float())
    field = (rows @ dense @ columns.T).flatten(1)
    copy, inside = flow.move(before, field)
    left, still = ((picture - after).abs() * inside for picture in (copy, before))
    left, still = left.mean((1, 2, 3)), still.mean((1, 2, 3))
    return Sighting(field.to(device), ((left < BETTER * still) | (left < STILL)).to(device))

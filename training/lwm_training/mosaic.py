"""What the real camera saw along a clip, laid out as one large picture: it shows what a dream whose camera went
elsewhere would see, without drawing any dream.

Shapes: B clips, T steps, H x W pixels; places and motions (B, 2) in pixels, down and right, of the picture's content.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.registration import FOLLOWED, REACH

PLAYER = 8 / 64  # side of the square in the middle that a followed player fills
DIFFERENT = 0.3  # from what lies behind, in a colour of -1 to 1, is the player


class Mosaic:
    """Frames (B, T + 1, 3, H, W) in [-1, 1] side by side, moved by the motions (B, T, 2) between them; only what is
    valid, (B, T + 1), is laid out. Later frames cover earlier ones, except for the square where the player is."""

    def __init__(self, frames: Tensor, motions: Tensor, valid: Tensor) -> None:
        batch, _, _, height, width = frames.shape
        self.frames = frames
        self.places = F.pad(motions.round().cumsum(1), (0, 0, 1, 0)) * valid[..., None]
        self.margin = int(self.places.abs().amax()) + REACH
        self.width = width + 2 * self.margin
        self.rows = torch.arange(height, device=frames.device) + self.margin
        self.columns = torch.arange(width, device=frames.device) + self.margin
        size = (height + 2 * self.margin) * self.width
        self.picture = frames.new_zeros(batch, 4, size + 1)  # plane 3: laid out; the last pixel takes what is not
        clear = ~_square(height, width, FOLLOWED, frames.device).flatten()
        for t in range(frames.shape[1]):
            index = torch.where(clear & valid[:, t, None], self._index(self.places[:, t]), size)
            laid = F.pad(frames[:, t].flatten(2), (0, 0, 0, 1), value=1.0)
            self.picture.scatter_(2, index[:, None].expand_as(laid), laid)
        self.picture[:, :, size] = 0
        self.player = _square(height, width, PLAYER, frames.device)

    def show(self, t: int, astray: Tensor) -> Tensor:
        """Frame t if the camera had gone astray by whole pixels (B, 2): the world behind has moved, the player is in
        the middle all the same. (B, 3, H, W)."""
        frame = self.frames[:, t]
        behind = self._look(self.places[:, t])
        elsewhere = self.seen_from(t, astray)
        is_player = self.player & (((frame - behind[:, :3]).abs().amax(1) > DIFFERENT) | (behind[:, 3] == 0))
        stays = is_player | (elsewhere[:, 3] == 0) | (astray == 0).all(1)[:, None, None]
        return torch.where(stays[:, None], frame, elsewhere[:, :3])

    def seen_from(self, t: int, astray: Tensor) -> Tensor:
        """What is in view of a camera that has gone astray by whole pixels (B, 2) by frame t, and where that is known:
        (B, 4, H, W)."""
        return self._look(self.places[:, t] + astray.clamp(-REACH, REACH))

    def _look(self, place: Tensor) -> Tensor:
        """What is seen from a place, and where anything is: (B, 4, H, W)."""
        index = self._index(place)[:, None].expand(-1, 4, -1)
        return self.picture.gather(2, index).unflatten(2, self.frames.shape[-2:])

    def _index(self, place: Tensor) -> Tensor:
        down, right = place.long().unbind(1)
        rows, columns = self.rows - down[:, None], self.columns - right[:, None]
        return (rows[:, :, None] * self.width + columns[:, None]).flatten(1)


def _square(height: int, width: int, share: float, device: torch.device) -> Tensor:
    """True in a square in the middle, bool (H, W)."""
    inside = torch.zeros(height, width, dtype=torch.bool, device=device)
    half = max(1, round(share * min(height, width) / 2))
    inside[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = True
    return inside

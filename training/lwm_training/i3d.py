"""Features of the I3D network that FVD is defined by, from a TorchScript file that the user has.

The file is not ours to ship. The one that is in use (`i3d_torchscript.pt` of StyleGAN-V) is called as
`net(videos, rescale=False, resize=False, return_features=True)` with float (B, 3, T, 224, 224) in [-1, 1].
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lwm_env.errors import ConfigMismatch, CorruptFile

SIDE, BATCH = 224, 8


class I3D:
    """Clips uint8 (B, 16, H, W, 3) -> features float32 (B, D)."""

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        """Raises CorruptFile: there is no such file, or TorchScript cannot load it."""
        if not path.is_file():
            raise CorruptFile(f"There is no file {path}. Name a TorchScript file of I3D with --i3d.")
        try:
            self._net = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            told = str(error).strip().splitlines()[0][:150]
            raise CorruptFile(f"{path} is no TorchScript file that torch can load ({told}). Get it again.") from error
        self.path, self._device = path, device

    @torch.inference_mode()
    def __call__(self, clips: Tensor) -> np.ndarray:
        """Raises ConfigMismatch: the network cannot be called as I3D is."""
        features = []
        for part in clips.split(BATCH):
            videos = F.interpolate(
                part.to(self._device).flatten(0, 1).movedim(-1, 1).float() / 127.5 - 1,
                size=(SIDE, SIDE),
                mode="bilinear",
                align_corners=False,
            )
            videos = videos.unflatten(0, part.shape[:2]).transpose(1, 2).contiguous()
            try:
                found = self._net(videos, rescale=False, resize=False, return_features=True)
            except (RuntimeError, TypeError) as error:
                raise self._mismatch(str(error).strip().splitlines()[-1][:150]) from error
            if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(part):
                raise self._mismatch(f"it gave {tuple(found.shape) if isinstance(found, Tensor) else type(found)}")
            features.append(found.float().cpu().numpy())
        return np.concatenate(features)

    def _mismatch(self, told: str) -> ConfigMismatch:
        return ConfigMismatch(
            f"{self.path} does not turn videos (B, 3, T, {SIDE}, {SIDE}) into features (B, D) when called as I3D is,"
            f" with rescale, resize and return_features: {told}. Name the file that FVD is computed with."
        )

"""A small network that looks at four frames and names the action in the middle: the instrument that measures obedience.

It is trained on the real game alone, so it lies beside a world without being a part of it. Evaluation asks it about
dreams, and takes its features for the distance between dreamed and real play.

Shapes: R windows of 4 frames, P players, A action numbers.
"""

import hashlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwm_env.errors import CorruptFile, StorageError
from lwm_env.spec import DiscreteActions, WorldSpec
from lwm_env.worlds import read_tensors
from lwm_env.worlds.storage import replace_file

FILE = "idm.safetensors"
FRAMES = 4  # two before the action, two after it
FEATURES = 32
SIDE = 64  # larger frames are shrunk to about this
GRID = 4  # cells a side that the trunk is pooled to
_WIDTHS, _HIDDEN = (32, 48, 64, 64), 128


class InverseDynamics(nn.Module):
    """Frames before and after -> the action between, and what was seen of it.

    Discrete actions are chosen by one head for each player; continuous ones are regressed, in shares of their range.
    """

    def __init__(self, spec: WorldSpec) -> None:
        super().__init__()
        self.spec, actions = spec, spec.actions
        self.discrete = isinstance(actions, DiscreteActions)
        dims = (3 * FRAMES, *_WIDTHS)
        blocks = [
            (nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU()) for before, after in pairwise(dims)
        ]
        self.trunk = nn.Sequential(*(layer for block in blocks for layer in block))
        self.hidden = nn.Linear(_WIDTHS[-1] * GRID**2, _HIDDEN)
        self.features = nn.Linear(_HIDDEN, FEATURES)
        self.heads = nn.Linear(FEATURES, len(spec.players) * actions.dim)
        self.register_buffer("feature_mean", torch.zeros(FEATURES))  # over real play
        self.register_buffer("feature_scale", torch.ones(FEATURES))

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (R, 4, H, W, 3) -> logits or numbers (R, P, A), features (R, FEATURES) as they are."""
        pixels = windows.permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 127.5 - 1
        factor = max(1, min(pixels.shape[-2:]) // SIDE)
        pixels = F.avg_pool2d(pixels, factor) if factor > 1 else pixels
        seen = F.adaptive_avg_pool2d(self.trunk(pixels), GRID).flatten(1)
        features = self.features(F.silu(self.hidden(seen)))
        return self.heads(F.silu(features)).view(len(windows), len(self.spec.players), -1), features

    def loss(self, windows: Tensor, actions: Tensor) -> Tensor:
        """How wrong it is about actions (R, P) or (R, P, A)."""
        named, _ = self(windows)
        if self.discrete:
            return F.cross_entropy(named.flatten(0, 1), actions.long().flatten())
        return F.mse_loss(named, self._shares(actions))

    @torch.inference_mode()
    def read(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """What it says, on the CPU: actions float32 (R, P) or (R, P, A), and features (R, FEATURES), each with mean 0
        and deviation 1 over the real play that it was trained on."""
        named, features = self(windows.to(self.feature_mean.device))
        named = named.argmax(-1).float() if self.discrete else self._numbers(named)
        return named.cpu(), ((features - self.feature_mean) / self.feature_scale).cpu()

    def _shares(self, actions: Tensor) -> Tensor:
        low, high = self._bounds(actions)
        return 2 * (actions - low) / (high - low) - 1

    def _numbers(self, shares: Tensor) -> Tensor:
        low, high = self._bounds(shares)
        return (shares + 1) / 2 * (high - low) + low

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        actions = self.spec.actions
        return like.new_tensor(actions.low), like.new_tensor(actions.high)


def save(net: InverseDynamics, path: Path, facts: Mapping[str, str]) -> None:
    """Write the weights as float16, with facts in the header; the file is replaced as a whole.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in net.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, safetensors.torch.save(tensors, dict(facts)))
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}. Name another --out.") from error


def load(path: Path, spec: WorldSpec, device: torch.device | str = "cpu") -> tuple[InverseDynamics, str]:
    """The net of a file, in eval mode, and the file's sha256.

    Raises:
        CorruptFile: the file is missing, damaged, or with weights that are not finite.
        ConfigMismatch: it was made for other players or actions.
    """
    with torch.device("meta"):
        shapes = InverseDynamics(spec).state_dict()
    arrays = read_tensors(path, {name: (tuple(tensor.shape), "float16") for name, tensor in shapes.items()})
    tensors = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise CorruptFile(f"{path} holds weights that are not finite. Make it anew with `lwm idm`.")
    net = InverseDynamics(spec)
    net.load_state_dict(tensors)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return net.to(device).eval().requires_grad_(False), digest

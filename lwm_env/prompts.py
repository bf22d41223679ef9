"""The prompt bank of a world: stretches of real play that its dreams begin with."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lwm_env import worlds
from lwm_env.errors import CorruptFile
from lwm_env.spec import DiscreteActions

PROMPTS = "prompts.safetensors"


@dataclass(frozen=True)
class Prompts:
    """Starts to choose from: frames uint8 (Q, T, H, W, 3), actions (Q, T - 1, P) or (Q, T - 1, P, A)."""

    frames: Tensor
    actions: Tensor


def read_prompts(folder: Path, manifest: worlds.Manifest) -> Prompts:
    """The bank of a verified folder; raises CorruptFile for one that does not fit together."""
    spec = manifest.spec
    discrete = isinstance(spec.actions, DiscreteActions)
    action = (None, None, len(spec.players)) if discrete else (None, None, len(spec.players), spec.actions.dim)
    expected = {
        "frames": ((None, None, *spec.frame_size, 3), "uint8"),
        "actions": (action, "int64" if discrete else "float32"),
    }
    tensors = worlds.read_tensors(folder / PROMPTS, expected)
    frames, actions = (torch.from_numpy(tensors[name]) for name in ("frames", "actions"))
    if len(frames) == 0 or len(frames) != len(actions) or frames.shape[1] != actions.shape[1] + 1:
        raise CorruptFile(
            f"{folder / PROMPTS} has frames {tuple(frames.shape)} and actions {tuple(actions.shape)}; expected as many"
            f" prompts of both, and one action fewer than frames. Restore it from where the world came from."
        )
    return Prompts(frames, actions)

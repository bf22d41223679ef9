"""The prompt bank of a world: short stretches of real play to start from."""

import numpy as np
import torch

from lwm_env.errors import ConfigMismatch
from lwm_env.spec import WorldSpec
from lwm_env.world_model import Prompts
from lwm_training.clips import Clips
from lwm_training.recipe import Data
from lwm_training.stream import open_data

NUM_PROMPTS, LENGTH = 48, 5


def prompt_bank(spec: WorldSpec, data: Data, seed: int) -> Prompts:
    """Real starts that do not end within their frames: uint8 (Q, T, H, W, 3) and actions (Q, T - 1, P[, A])."""
    data = data.model_copy(update={"policy": data.prompt_policy or data.policy})
    clips = open_data(spec, data, seed + 1).clips(0, 4 * NUM_PROMPTS, LENGTH - 1, LENGTH - 1)
    return choose(clips)


def choose(clips: Clips) -> Prompts:
    """The first prompts in which nothing ends; ConfigMismatch if there is none."""
    usable = np.flatnonzero(clips.valid.all(1) & ~clips.terminations.any(1))[:NUM_PROMPTS]
    if not len(usable):
        raise ConfigMismatch(
            f"of {len(clips.valid)} stretches of {clips.valid.shape[1]} steps not one is free of an episode's end, so "
            f"the world would have nothing to start from. Let the policy play longer episodes (data.policy)."
        )
    return Prompts(torch.from_numpy(clips.observations[usable]), torch.from_numpy(clips.actions[usable]))

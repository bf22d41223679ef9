"""What an env tells about its world besides steps: infos, action names, keys."""

import numpy as np
import torch

from lwm_env.engine import Transition
from lwm_env.spec import DiscreteActions, WorldSpec

# As pygame numbers the keys that have no character.
NAMED_KEYS = {
    "space": 32, "enter": 13, "escape": 27, "tab": 9, "backspace": 8,
    "right": 0x4000004F, "left": 0x40000050, "down": 0x40000051, "up": 0x40000052,
    "ctrl": 0x400000E0, "shift": 0x400000E1, "alt": 0x400000E2,
}  # fmt: skip

Infos = dict[str, np.ndarray]


def blank_infos(num_envs: int) -> Infos:
    """The infos of a reset: the keys of every step, each (N,)."""
    return {
        "surprise": np.zeros(num_envs),
        "termination_prob": np.zeros(num_envs),
        "error": np.zeros(num_envs, bool),
    }


def read_transition(transition: Transition) -> tuple[np.ndarray, np.ndarray, Infos]:
    """Rewards float64 (N, P), terminations bool (N,) and infos, brought to the host in one transfer.

    Infos: `surprise`, the mean entropy of a token in nats; `termination_prob`, what the model gave the end of the
    episode; `error`, whether the model's numbers stopped being finite, which ends the episode.
    """
    columns = (transition.terminated, transition.failed, transition.end_prob, transition.surprise)
    stacked = torch.cat([torch.stack([c.double() for c in columns], 1), transition.rewards.double()], 1)
    numbers = stacked.cpu().numpy().T
    terminated, failed, end_prob, surprise = numbers[:4]
    infos = {"surprise": surprise.copy(), "termination_prob": end_prob.copy(), "error": failed.astype(bool)}
    return numbers[4:].T.copy(), terminated.astype(bool), infos


def action_meanings(spec: WorldSpec) -> list[str]:
    """The name of every action, or of every number of a continuous one; index 0 of a discrete world is NOOP."""
    return list(spec.actions.meanings)


def keys_to_action(spec: WorldSpec) -> dict[tuple[int, ...], int]:
    """Keys held together (pygame's numbers, ascending) to the action they mean; NOOP is no key at all."""
    if not isinstance(spec.actions, DiscreteActions):
        return {}
    mapping = {}
    for index, meaning in enumerate(spec.actions.meanings):
        keys = spec.actions.keys.get(meaning, ())
        if keys:
            mapping[tuple(sorted(NAMED_KEYS[key.lower()] if len(key) > 1 else ord(key) for key in keys))] = index
    return mapping

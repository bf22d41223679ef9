"""A learned world model that is an environment: importing registers every shipped world, and those that the user
installed, with Gymnasium and PettingZoo.

The import stays light: it reads the small `world.json` of each world; torch is imported at the first `gym.make`.
"""

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from lwm_env.home import worlds_home

if TYPE_CHECKING:
    from lwm_env.envs.parallel_env import LwmParallelEnv

__version__ = "0.1.0"
__all__ = ["__version__", "parallel_env"]


def parallel_env(world: str, **options: Any) -> "LwmParallelEnv":
    """A world with an action a player, as a PettingZoo ParallelEnv; `options` are those of `LwmParallelEnv`."""
    from lwm_env.envs.parallel_env import LwmParallelEnv

    return LwmParallelEnv(world, **options)


def _register_worlds() -> None:
    """The shipped ones under the names of their folders, then the installed ones, whose ids must be others."""
    home = worlds_home()
    shipped = sorted(Path(__file__).parent.glob("worlds/*/world.json"))
    installed = sorted(home.glob("*/world.json")) if home else []
    for manifest in [*shipped, *installed]:
        try:
            content = json.loads(manifest.read_bytes())
            spec, provenance = content["spec"], content["provenance"]
            restricted = provenance.get("restricted") if isinstance(provenance, dict) else None
            if restricted:  # see `worlds.restrictions`
                warnings.warn(f"{manifest} is not registered: its world learned under {restricted}.", stacklevel=2)
                continue
            name = manifest.parent.name if manifest in shipped else str(manifest.parent)
            if manifest in shipped or spec["id"] not in gym.registry:
                _register(spec["id"], spec["max_episode_steps"], name)
        except (OSError, ValueError, LookupError, TypeError, gym.error.Error) as error:
            # One damaged world must not take the others, or `lwm doctor`, with it.
            warnings.warn(f"{manifest} is damaged and is not registered ({error}). Run `lwm doctor`.", stacklevel=2)


def _register(world_id: str, max_episode_steps: int, world: str) -> None:
    """`LWM-Name-v0` for Gymnasium, `lwm/name-v0` for PettingZoo."""
    gym.register(
        id=world_id,
        entry_point="lwm_env.envs.env:LwmEnv",
        vector_entry_point="lwm_env.envs.vector_env:LwmVectorEnv",
        max_episode_steps=max_episode_steps,
        kwargs={"world": world},
    )
    registry = _pettingzoo()
    name = f"lwm/{world_id.lower().removeprefix('lwm-')}"
    for kind in ("parallel", "aec"):
        entry_point = f"lwm_env.envs.parallel_env:{kind}_entry_point"
        registry.register(kind, name, entry_point, max_cycles=max_episode_steps, kwargs={"world": world})


def _pettingzoo() -> Any:
    """PettingZoo's registry (20 ms). Its import would turn off the sound of every game of this process."""
    sound = os.environ.get("SDL_AUDIODRIVER")
    from pettingzoo import env_registry

    if sound is None:
        os.environ.pop("SDL_AUDIODRIVER", None)
    else:
        os.environ["SDL_AUDIODRIVER"] = sound
    return env_registry


_register_worlds()

"""The Gymnasium envs of a world; PettingZoo's is in `parallel_env`. Importing this imports torch."""

from lwm_env.envs.env import LwmEnv
from lwm_env.envs.vector_env import LwmVectorEnv

__all__ = ["LwmEnv", "LwmVectorEnv"]

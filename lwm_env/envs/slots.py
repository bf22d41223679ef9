"""The single envs inside a vector env: their snapshots, attributes and methods."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lwm_env.engine import Engine
from lwm_env.envs import facts, inputs
from lwm_env.errors import InvalidInput, WrongOrder
from lwm_env.spec import WorldSpec

# What each env has alike; `observation_space` and `action_space` are those of one env.
_SHARED = {
    "spec", "metadata", "render_mode", "output", "device", "temperature", "world_spec", "weights_hash",
    "observation_space", "action_space", "get_action_meanings", "get_keys_to_action",
}  # fmt: skip


class SlotAccess:
    """The part of `LwmVectorEnv` that speaks of one env at a time."""

    num_envs: int
    world_spec: WorldSpec
    _engine: Engine | None
    _slot_attributes: dict[str, tuple[Any, ...]]

    def get_state(self, slot: int) -> bytes:
        """World `slot` as bytes, which any env of the same world continues; see `LwmEnv.get_state`."""
        return self._open().get_state(self._slot(slot))

    def set_state(self, state: bytes, slot: int) -> None:
        """Continue a snapshot in `slot`; see `LwmEnv.set_state`."""
        self._open().set_state(state, self._slot(slot))

    def fork(self, source: int, targets: Sequence[int]) -> None:
        """Make `targets` go on from where `source` is. Branches differ by their actions alone: sampling noise follows
        the seed, the episode and the step, which they share."""
        engine = self._open()
        engine.fork(self._slot(source), [self._slot(target) for target in targets])

    def _slot(self, slot: object) -> int:
        if isinstance(slot, bool) or not isinstance(slot, int | np.integer) or not 0 <= slot < self.num_envs:
            raise InvalidInput(f"env {slot!r:.60} was asked for; the envs are 0 to {self.num_envs - 1}.")
        return int(slot)

    def get_action_meanings(self) -> list[str]:
        """See `LwmEnv.get_action_meanings`."""
        return facts.action_meanings(self.world_spec)

    def get_keys_to_action(self) -> dict[tuple[int, ...], int]:
        """See `LwmEnv.get_keys_to_action`."""
        return facts.keys_to_action(self.world_spec)

    @property
    def temperature(self) -> float:
        """Of the sampled tokens, the same for all envs; may be set between steps."""
        return self._open().temperature

    @temperature.setter
    def temperature(self, value: float | None) -> None:
        checked = inputs.check_temperature(value)
        self._open().temperature = self.world_spec.temperature if checked is None else checked

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What a method or attribute of `LwmEnv` gives for each env, a tuple of N.

        Raises:
            AttributeError: a single env has no such name, or it must be called for the batch (`reset`, `step`).
        """
        engine = self._open()
        if name in self._slot_attributes:
            return self._slot_attributes[name]
        if name == "render":
            return self.render() or (None,) * self.num_envs
        if name in ("get_state", "set_state"):
            return tuple(getattr(self, name)(*args, **kwargs, slot=slot) for slot in range(self.num_envs))
        if name == "np_random_seed":
            return tuple(engine.seeds.tolist())
        if name not in _SHARED:
            raise AttributeError(f"the envs have no {name!r} of their own; known are {', '.join(sorted(_SHARED))}.")
        value = getattr(self, f"single_{name}" if name.endswith("_space") else name)
        return tuple(value(*args, **kwargs) if callable(value) else value for _ in range(self.num_envs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each env; see `call`."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each env, from a list or tuple of N or from one value for all.

        Raises:
            InvalidInput: not N values, temperatures that differ, or a name that is not to be set.
        """
        self._open()
        each = tuple(values) if isinstance(values, list | tuple) else (values,) * self.num_envs
        if len(each) != self.num_envs:
            raise InvalidInput(f"{len(each)} values of {name!r} came for {self.num_envs} envs. Give one for each.")
        if name == "temperature":
            if len(set(each)) > 1:
                raise InvalidInput("the envs share one temperature, several were given. Make an env for each.")
            self.temperature = each[0]
        elif name in _SHARED or hasattr(type(self), name):
            raise InvalidInput(f"{name!r} cannot be set for single envs. Give it to gym.make_vec().")
        else:
            self._slot_attributes[name] = each

    def _open(self) -> Engine:
        if self._engine is None:
            raise WrongOrder("the envs are closed. Make new ones with gym.make_vec().")
        return self._engine

"""Worlds on a GPU: everything a slot has stays in the same tensors on the device, and a step is one CUDA graph.

At batch 1 a step costs its kernel launches, so it is captured once and replayed. What a graph touches lives in tensors
that are allocated once and written in place; nothing inside a step waits for the device: actions travel from pinned
memory, slots that stand still or fail keep their state by `torch.where`, counters are advanced on the device.
Without a graph the same function runs eagerly, on any device, and gives the same bytes.

Shapes: N slots, P players, A action numbers.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwm_env.batch import State, Transition, World, compute, masked_numbers, select
from lwm_env.spec import DiscreteActions

WARM_UP_STEPS = 3  # cuBLAS and cuDNN choose their kernels and take their memory in the first

_capturing = threading.Lock()  # one capture at a time in a process
_streams: dict[str, Any] = {}  # one for each device, since each takes a work space of cuBLAS

log = logging.getLogger(__name__)


class Resident:
    """A `Batch` of N rows whose state never moves.

    Args:
        graph: replay a CUDA graph; False runs every operation anew, which shows errors where they are.
        dtype: what matrix products and convolutions are computed in, by autocast; weights and state keep their types.
    """

    def __init__(self, world: World, num_envs: int, *, graph: bool = True, dtype: torch.dtype = torch.float32) -> None:
        spec = world.spec
        self.world, self.num_envs, self.dtype = world, num_envs, dtype
        self.device = world.reward_values.device
        self.graph = graph and self.device.type == "cuda"
        self.graphed: float | None = None  # the temperature that the graph at hand was captured for
        self._graph: torch.cuda.CUDAGraph | None = None
        players, discrete = len(spec.players), isinstance(spec.actions, DiscreteActions)
        self._actions = self._zeros(players, dtype=torch.int64) if discrete else self._zeros(players, spec.actions.dim)
        self._active = self._zeros(dtype=torch.bool)
        self._keys, self._steps = self._zeros(dtype=torch.int64), self._zeros(dtype=torch.int64)
        self._frames = self._zeros(*spec.frame_size, 3, dtype=torch.uint8)
        self._state: State = {}  # allocated by the first `occupy`
        self._result: Transition | None = None  # what the graph writes

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(self.num_envs, *shape, dtype=dtype, device=self.device)

    @property
    def frames(self) -> Tensor:
        return self._frames.clone()

    def set_clocks(self, keys: np.ndarray, steps: np.ndarray) -> None:
        with self._on_device():
            self._upload(torch.from_numpy(keys), self._keys)
            self._upload(torch.from_numpy(steps), self._steps)

    # -- step --------------------------------------------------------------------------------------------------------

    def step(self, actions: Tensor, active: np.ndarray, temperature: float) -> Transition:
        with self._on_device():
            if self.graph and self.graphed != temperature:
                self._capture(temperature)
            self._upload(actions, self._actions)
            self._upload(torch.from_numpy(active), self._active)
            if self._graph is not None:
                self._graph.replay()
                result = self._result
            else:
                result = self._advance(temperature)
        return Transition(*(column.clone() for column in result))  # outside inference mode: usual tensors

    @torch.inference_mode()
    def _advance(self, temperature: float) -> Transition:
        """One step from the tensors of this object into them. The state is written last: an exception loses nothing."""
        narrow = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, cache_enabled=False) if narrow else nullcontext():
            inputs = (self._actions, self._keys, self._steps)
            new, out, ended, finite = compute(self.world, self._state, inputs, temperature)
        numbers = masked_numbers(out, ended, self._active, finite)
        good = self._active & finite
        state = {name: select(good, new[name].to(old.dtype), old) for name, old in self._state.items()}
        select(good, out.frame, self._frames, out=self._frames)
        for name, value in state.items():
            self._state[name].copy_(value)
        self._steps.add_(self._active)
        return Transition(self._frames, *(x.float() if x.is_floating_point() else x for x in numbers))

    def _capture(self, temperature: float) -> None:
        """Capture a step at this temperature, which a graph holds as a constant. Changes no slot: none is active."""
        self._graph, self._result, self.graphed = None, None, None  # gives back the memory of the old one
        current, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        with _capturing:
            stream = _streams.setdefault(str(self.device), torch.cuda.Stream(self.device))
            stream.wait_stream(current)
            try:
                with torch.inference_mode(), torch.cuda.stream(stream):
                    self._active.zero_()
                    for _ in range(WARM_UP_STEPS):
                        self._advance(temperature)
                current.wait_stream(stream)
                result = self._record(graph, stream, temperature)
            finally:
                torch.cuda.set_stream(current)  # a capture that fails stays on its own
        if result is not None:
            self._graph, self._result, self.graphed = graph, result, temperature

    def _record(self, graph: Any, stream: Any, temperature: float) -> Transition | None:
        """What a replay will write, or None where the model does what no graph can hold."""
        try:
            with torch.inference_mode(), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                return self._advance(temperature)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("this world cannot be captured as a CUDA graph and is stepped without one, slower: %s", error)
            self.graph = False
            return None

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """The device is the current one, and cuDNN takes kernels that repeat their bits instead of trying some out."""
        if self.device.type != "cuda":
            yield
            return
        cudnn = torch.backends.cudnn
        before = cudnn.benchmark, cudnn.deterministic
        with torch.cuda.device(self.device):
            cudnn.benchmark, cudnn.deterministic = False, True
            try:
                yield
            finally:
                cudnn.benchmark, cudnn.deterministic = before

    def _upload(self, values: Tensor, target: Tensor) -> None:
        """Copy without waiting. The allocator of pinned memory gives a block away again only when it has been read."""
        values = values.to(target.dtype)
        if self.device.type == "cuda" and values.device.type == "cpu":
            values = values.pin_memory()
        with torch.inference_mode():
            target.copy_(values, non_blocking=True)

    # -- slots -------------------------------------------------------------------------------------------------------

    def occupy(self, worlds: dict[int, tuple[State, Tensor]]) -> None:
        if not worlds:
            return
        states, frames = zip(*worlds.values(), strict=True)
        if not self._state:
            self._state = {name: self._zeros(*value.shape[1:], dtype=value.dtype) for name, value in states[0].items()}
        numbers = {slot: number for number, slot in enumerate(worlds)}
        source = torch.tensor([numbers.get(slot, 0) for slot in range(self.num_envs)])
        with self._on_device(), torch.inference_mode():
            where, mask = torch.empty_like(self._keys), torch.empty_like(self._active)
            self._upload(source, where)
            self._upload(torch.tensor([slot in numbers for slot in range(self.num_envs)]), mask)
            for name, old in self._state.items():
                select(mask, torch.cat([state[name] for state in states])[where], old, out=old)
            select(mask, torch.stack(frames)[where], self._frames, out=self._frames)

    def read(self, slot: int) -> tuple[State, Tensor]:
        return {name: value[slot : slot + 1] for name, value in self._state.items()}, self._frames[slot]

    def layout(self) -> State:
        return {name: value[:1] for name, value in self._state.items()}

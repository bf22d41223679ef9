"""Worlds on a CPU: chunks of a fixed number of rows, shared by threads.

A convolution over another number of rows differs by 1e-6, enough to flip a token, so slots are computed in chunks of R
rows whatever N is, and a slot's bytes depend on its seed and its actions alone.

Shapes: N slots, K chunks of R rows (K * R >= N, the rest is padding), P players, A action numbers.
"""

import numpy as np
import torch
from torch import Tensor

from lwm_env.batch import State, Transition, World, compute, masked_numbers, select
from lwm_env.threads import one_thread, share

# A single env has to be computed as a slot of a vector env is, and a chunk of 4 would cost it as much as 4 worlds do. A
# world that gives the same bytes however many rows it is asked for (`together`) is asked for several chunks at once.
CPU_ROWS = 1


class Chunks:
    """A `Batch` of states that are replaced, never written."""

    def __init__(self, world: World, num_envs: int, rows: int = CPU_ROWS) -> None:
        self.world, self.num_envs, self.rows = world, num_envs, rows
        self.device = world.reward_values.device
        self._padded = -(-num_envs // rows) * rows
        self._together = max(1, getattr(world, "together", rows) // rows)
        self._slices = [slice(first, first + rows) for first in range(0, self._padded, rows)]
        self._frames = torch.zeros(self._padded, *world.spec.frame_size, 3, dtype=torch.uint8, device=self.device)
        self._chunks: list[State] = []  # one for each slice, from the first reset on
        self._parallel = getattr(world, "thread_safe", isinstance(world, torch.nn.Module))
        self.set_clocks(np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64))

    @property
    def frames(self) -> Tensor:
        return self._frames[: self.num_envs].clone()

    def set_clocks(self, keys: np.ndarray, steps: np.ndarray) -> None:
        self._keys, self._steps = (self._pad(torch.from_numpy(clock)) for clock in (keys, steps))

    def step(self, actions: Tensor, active: np.ndarray, temperature: float) -> Transition:
        wanted, actions = self._pad(torch.from_numpy(active)), self._pad(actions)
        moving = [index for index, rows in enumerate(self._slices) if active[rows].any()]

        groups = self._groups(moving)

        def advance(number: int) -> list[tuple[State, Transition]]:
            rows = np.concatenate([np.arange(self._padded)[self._slices[index]] for index in groups[number]])
            inputs = (actions[rows], self._keys[rows], self._steps[rows])
            return self._advance(groups[number], wanted[rows], inputs, temperature)

        # One thread to the end: a worker of torch's own pool spins for milliseconds after a parallel operation, on the
        # core that a helper needs for its chunks.
        with one_thread(self.device) as allowed:
            advanced = share(advance, len(groups), allowed if self._parallel else 1)
            moved = dict(zip(moving, (chunk for group in advanced for chunk in group), strict=True))
            results = [
                moved[index] if index in moved else (self._chunks[index], self._stand_still(rows))
                for index, rows in enumerate(self._slices)
            ]
            columns = [torch.cat(column) for column in zip(*(part for _, part in results), strict=True)]
            # Nothing was stored until here, so an exception loses nothing.
            self._chunks = [chunk for chunk, _ in results]
            self._frames, self._steps = columns[0], self._steps + wanted
            return Transition(self.frames, *(column[: self.num_envs] for column in columns[1:]))

    def _groups(self, moving: list[int]) -> list[list[int]]:
        """Chunks that are computed in one call: as many as the world takes together, the rest one by one."""
        together = self._together
        full = len(moving) // together * together
        return [moving[i : i + together] for i in range(0, full, together)] + [[index] for index in moving[full:]]

    def _advance(
        self, group: list[int], wanted: Tensor, inputs: tuple[Tensor, Tensor, Tensor], temperature: float
    ) -> list[tuple[State, Transition]]:
        """The next state and output of each chunk of a group."""
        if len(group) == 1:
            return [
                self._compute(self._chunks[group[0]], self._frames[self._slices[group[0]]], wanted, inputs, temperature)
            ]
        chunks = [self._chunks[index] for index in group]
        old = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
        frames = torch.cat([self._frames[self._slices[index]] for index in group])
        state, transition = self._compute(old, frames, wanted, inputs, temperature)
        states = zip(*(value.split(self.rows) for value in state.values()), strict=True)
        transitions = zip(*(value.split(self.rows) for value in transition), strict=True)
        return [
            (dict(zip(state, values, strict=True)), Transition(*columns))
            for values, columns in zip(states, transitions, strict=True)
        ]

    def _compute(
        self, old: State, shown: Tensor, wanted: Tensor, inputs: tuple[Tensor, Tensor, Tensor], temperature: float
    ) -> tuple[State, Transition]:
        """The next state and output of some rows, which now show the frames `shown`."""
        with torch.inference_mode():
            new, out, ended, finite = compute(self.world, old, inputs, temperature)
            good = wanted & finite
            if good.all():  # the usual case, where asking costs nothing
                return new, Transition(out.frame, out.reward, ended, ~finite, out.terminated_prob, out.surprise)
            frames = select(good, out.frame, shown)
            state = {name: select(good, new[name], old[name]) for name in old}
            return state, Transition(frames, *masked_numbers(out, ended, wanted, finite))

    def _stand_still(self, rows: slice) -> Transition:
        zeros = torch.zeros(self.rows, device=self.device)
        rewards = zeros[:, None].expand(-1, len(self.world.spec.players))
        return Transition(self._frames[rows], rewards, zeros.bool(), zeros.bool(), zeros, zeros)

    def _pad(self, values: Tensor) -> Tensor:
        """(N, ...) -> (K * R, ...) in new memory; padding repeats the last slot."""
        padding = values[-1:].expand(self._padded - self.num_envs, *values.shape[1:])
        return torch.cat([values, padding]).to(self.device)

    # -- slots -------------------------------------------------------------------------------------------------------

    def occupy(self, worlds: dict[int, tuple[State, Tensor]]) -> None:
        if worlds and not self._chunks:
            like = next(iter(worlds.values()))[0]
            blank = {name: value.new_zeros((self.rows, *value.shape[1:])) for name, value in like.items()}
            self._chunks = [blank for _ in self._slices]
        self._frames = self._frames.clone()
        for index, rows in enumerate(self._slices):
            entering = {slot - rows.start: worlds[slot] for slot in range(rows.start, rows.stop) if slot in worlds}
            if entering:
                self._chunks[index] = self._merge(self._chunks[index], {row: new[0] for row, new in entering.items()})
            for row, (_, frame) in entering.items():
                self._frames[rows.start + row] = frame

    def _merge(self, old: State, entering: dict[int, State]) -> State:
        """A chunk with some of its rows replaced."""
        numbers = list(entering)
        mask = torch.tensor([row in entering for row in range(self.rows)], device=self.device)
        source = [numbers.index(row) if row in entering else 0 for row in range(self.rows)]
        news = {name: torch.cat([state[name] for state in entering.values()])[source] for name in old}
        return {name: select(mask, news[name], old[name]) for name in old}

    def read(self, slot: int) -> tuple[State, Tensor]:
        index, row = divmod(slot, self.rows)
        return {name: value[row : row + 1] for name, value in self._chunks[index].items()}, self._frames[slot]

    def layout(self) -> State:
        return {name: value[:1] for name, value in self._chunks[0].items()} if self._chunks else {}

"""N worlds in one batch: slots of fixed-shape tensors, masked resets, counter-based sampling, snapshots.

A slot's bytes depend on its seed and its actions alone. On a CPU a convolution over another number of rows differs by
1e-6, enough to flip a token, so slots are computed in chunks of `CPU_ROWS` whatever N is, by one thread; on CUDA one
chunk holds them all, and bytes repeat for the same N.

Shapes: N slots, K chunks of R rows (K * R >= N, the rest is padding), P players, A action numbers, T prompt frames.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lwm_env import snapshot
from lwm_env.errors import ConfigMismatch, WrongOrder
from lwm_env.noise import choose, episode_key, fold_seed, gumbel
from lwm_env.spec import DiscreteActions
from lwm_env.world_model import State, WorldModel

# Milliseconds a world of `nano` on one core, in chunks of 1, 2, 4 and 8: 10.9, 8.3, 7.8, 7.4. A single env has to be
# computed as a slot of a vector env is, and a chunk of 4 would cost it 31 ms a frame.
CPU_ROWS = 1


class Transition(NamedTuple):
    """What a step gave, in tensors that are never written again. Slots that stood still have zeros and their old frame.

    `terminated`: the end probability reached the world's threshold. `failed`: the model's numbers were not finite; the
    slot kept its last good state and frame.
    """

    frames: Tensor  # uint8 (N, H, W, 3)
    rewards: Tensor  # float32 (N, P)
    terminated: Tensor  # bool (N,)
    failed: Tensor  # bool (N,)
    end_prob: Tensor  # float32 (N,)
    surprise: Tensor  # float32 (N,), nats


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Two threads on small convolutions cost more than they give, and bytes must not depend on the caller's setting."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _select(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of `new` where the mask (R,) holds, else of `old`."""
    return torch.where(mask.view(-1, *[1] * (new.ndim - 1)), new, old)


def _finite(tensors: Iterable[Tensor]) -> Tensor:
    """bool (R,): whether all floating numbers of a row are finite."""
    rows = [tensor.reshape(len(tensor), -1).float() for tensor in tensors if tensor.is_floating_point()]
    return torch.cat(rows, 1).isfinite().all(1)


class Engine:
    """N worlds of one model. Threads take turns (`lock`); an error leaves every slot as it was."""

    def __init__(
        self, model: WorldModel, num_envs: int = 1, *, temperature: float | None = None, rows: int | None = None
    ) -> None:
        self.model, self.num_envs = model, num_envs
        self.device = model.reward_values.device
        self.temperature = model.spec.temperature if temperature is None else temperature
        self.lock = threading.RLock()
        self.rows = rows or (CPU_ROWS if self.device.type == "cpu" else num_envs)
        padded = -(-num_envs // self.rows) * self.rows
        self.seeds = np.zeros(num_envs, np.int64)  # as `fold_seed` gives them
        self.episodes = np.full(num_envs, -1, np.int64)  # of the seed's stream; -1: never reset
        self.steps = np.zeros(num_envs, np.int64)  # since the reset
        self.ended = np.zeros(num_envs, bool)  # kept for whoever decides that an episode is over
        self._keys = np.zeros(padded, np.int64)
        self._frames = torch.zeros(padded, *model.spec.frame_size, 3, dtype=torch.uint8, device=self.device)
        self._slices = [slice(first, first + self.rows) for first in range(0, padded, self.rows)]
        self._chunks: list[State] = []  # one for each slice, from the first reset on

    @property
    def frames(self) -> Tensor:
        """The current frames, uint8 (N, H, W, 3), a copy."""
        return self._frames[: self.num_envs].clone()

    @property
    def ready(self) -> np.ndarray:
        """bool (N,): which slots have been reset."""
        return self.episodes >= 0

    # -- reset and step ----------------------------------------------------------------------------------------------

    def reset(
        self, mask: np.ndarray, seeds: Sequence[int | None] | None = None, prompts: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Begin an episode in the slots of `mask`, leave the others alone, return all frames (N, H, W, 3).

        Args:
            mask: bool (N,).
            seeds: N seeds >= 0 or None. A seed begins its stream at episode 0; None goes on to the next episode.
            prompts: frames uint8 (N, T, H, W, 3) and actions (N, T - 1, P) or (N, T - 1, P, A) to start from. By
                default seed and episode choose one of the world's own.

        Raises:
            WrongOrder: a slot without a seed was never reset.
            ConfigMismatch: the world has no prompts and none were given.
        """
        with self.lock:
            streams = {int(i): self._next_stream(int(i), seeds[i] if seeds else None) for i in np.flatnonzero(mask)}
            starts = {slot: self._start(slot, stream, prompts) for slot, stream in streams.items()}
            self._occupy(starts)
            for slot, (seed, episode) in streams.items():
                self._place(slot, seed, episode)
            return self.frames

    def step(self, actions: Tensor, active: np.ndarray | None = None) -> Transition:
        """One step of every slot, or of the `active` ones.

        Args:
            actions: int64 (N, P) or float32 (N, P, A), already checked.
            active: bool (N,); a chunk without an active slot costs nothing.

        Raises:
            WrongOrder: an active slot was never reset.
        """
        with self.lock:
            active = np.ones(self.num_envs, bool) if active is None else active
            if not self.ready[active].all():
                missing = np.flatnonzero(active & ~self.ready).tolist()
                raise WrongOrder(f"slots {missing} were stepped but never reset. Call reset() first.")
            wanted = self._pad(torch.from_numpy(active.copy()))
            inputs = [self._pad(x) for x in (actions, torch.from_numpy(self.steps))]
            inputs += [torch.from_numpy(self._keys).to(self.device)]
            with _one_thread(self.device):
                results = [
                    self._advance(index, wanted[rows], [x[rows] for x in inputs])
                    if active[rows].any()
                    else (self._chunks[index], self._stand_still(rows))
                    for index, rows in enumerate(self._slices)
                ]
            self._chunks = [chunk for chunk, _ in results]
            columns = [torch.cat(column) for column in zip(*(part for _, part in results), strict=True)]
            self._frames = columns[0]
            self.steps += active
            return Transition(self.frames, *(column[: self.num_envs] for column in columns[1:]))

    def _advance(self, index: int, wanted: Tensor, inputs: Sequence[Tensor]) -> tuple[State, Transition]:
        """The next state and output of one chunk. Stores nothing, so an exception here loses nothing."""
        actions, steps, keys = inputs
        with torch.inference_mode():
            old = self._chunks[index]
            noise = gumbel(keys, steps, self.model.noise_dim) if self.temperature > 0 else None
            new, out = self.model.step(old, actions, noise, self.temperature)
            numbers = (out.reward, out.terminated_prob, out.surprise)
            finite = _finite([*new.values(), out.reward_probs, *numbers])
            good = wanted & finite
            if self.device.type == "cpu" and good.all():  # the usual case, where asking costs nothing
                end = out.terminated_prob >= self.model.spec.termination_threshold
                return new, Transition(out.frame, out.reward, end, ~finite, out.terminated_prob, out.surprise)
            reward, end_prob, surprise = (_select(good, x, torch.zeros_like(x)) for x in numbers)
            frames = _select(good, out.frame, self._frames[self._slices[index]])
            end = good & (end_prob >= self.model.spec.termination_threshold)
            state = {name: _select(good, new[name], old[name]) for name in old}
            return state, Transition(frames, reward, end, wanted & ~finite, end_prob, surprise)

    def _stand_still(self, rows: slice) -> Transition:
        zeros = torch.zeros(self.rows, device=self.device)
        rewards = zeros[:, None].expand(-1, len(self.model.spec.players))
        return Transition(self._frames[rows], rewards, zeros.bool(), zeros.bool(), zeros, zeros)

    def _pad(self, values: Tensor) -> Tensor:
        """(N, ...) -> (K * R, ...) on the device, in new memory; padding repeats the last slot."""
        padding = values[-1:].expand(len(self._keys) - self.num_envs, *values.shape[1:])
        return torch.cat([values, padding]).to(self.device)

    # -- slots -------------------------------------------------------------------------------------------------------

    def _next_stream(self, slot: int, seed: int | None) -> tuple[int, int]:
        """The seed and episode that a slot's next episode has."""
        if seed is not None:
            return fold_seed(int(seed)), 0
        if self.episodes[slot] < 0:
            raise WrongOrder(f"slot {slot} was never reset and got no seed. Give it one at its first reset.")
        return int(self.seeds[slot]), int(self.episodes[slot]) + 1

    def _start(self, slot: int, stream: tuple[int, int], prompts: tuple[Tensor, Tensor] | None) -> tuple[State, Tensor]:
        """State (one row) and last frame (H, W, 3) of the prompt that a slot starts from."""
        bank = self.model.prompts
        if prompts is not None:
            frames, actions = prompts[0][slot : slot + 1], prompts[1][slot : slot + 1]
        elif bank is not None and len(bank.frames):
            chosen = choose(episode_key(*stream), len(bank.frames))
            frames, actions = bank.frames[chosen : chosen + 1], bank.actions[chosen : chosen + 1]
        else:
            raise ConfigMismatch(
                f"the world {self.model.spec.id} has no prompt bank to start from. "
                f'Give it frames: reset(options={{"frames": frames, "actions": actions}}).'
            )
        return self._start_from(frames, actions)

    def _start_from(self, frames: Tensor, actions: Tensor) -> tuple[State, Tensor]:
        # One world at a time, since the length T may differ between worlds and the number of rows must not.
        frames, actions = frames.to(self.device), actions.to(self.device)
        with _one_thread(self.device), torch.inference_mode():
            return self.model.start(frames, actions), frames[0, -1]

    def _occupy(self, worlds: dict[int, tuple[State, Tensor]]) -> None:
        """Put states (one row each) and frames into slots. Masked, with fixed shapes; other rows keep their bits."""
        self._frames = self._frames.clone()
        for index, rows in enumerate(self._slices):
            entering = {slot - rows.start: world for slot, world in worlds.items() if rows.start <= slot < rows.stop}
            if not entering:
                continue
            numbers = list(entering)
            mask = torch.tensor([row in entering for row in range(self.rows)], device=self.device)
            source = [numbers.index(row) if row in entering else 0 for row in range(self.rows)]
            old = self._state_of(index, entering[numbers[0]][0])
            self._chunks[index] = {
                name: _select(mask, torch.cat([state[name] for state, _ in entering.values()])[source], old[name])
                for name in old
            }
            for row, (_, frame) in entering.items():
                self._frames[rows.start + row] = frame

    def _state_of(self, index: int, like: State) -> State:
        """A chunk's state; before the first reset, zeros with the shapes of `like`."""
        if not self._chunks:
            blank = {name: value.new_zeros((self.rows, *value.shape[1:])) for name, value in like.items()}
            self._chunks = [blank for _ in self._slices]  # chunks are replaced, never written
        return self._chunks[index]

    def _place(self, slot: int, seed: int, episode: int, steps: int = 0, ended: bool = False) -> None:
        self.seeds[slot], self.episodes[slot], self.steps[slot], self.ended[slot] = seed, episode, steps, ended
        self._keys[slot] = episode_key(seed, episode)

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def get_state(self, slot: int = 0) -> bytes:
        """A world as bytes, which any slot of any engine of the same weights continues bit for bit on a CPU.

        Raises:
            WrongOrder: the slot was never reset.
        """
        with self.lock:
            if not self.ready[slot]:
                raise WrongOrder(f"slot {slot} has no state before its first reset. Call reset() first.")
            index, row = divmod(slot, self.rows)
            state = {f"state.{name}": value[row] for name, value in self._chunks[index].items()}
            counts = {"seed": self.seeds, "episode": self.episodes, "steps": self.steps}
            facts = {"weights": self.model.weights_hash, "world": self.model.spec.id, "ended": bool(self.ended[slot])}
            facts |= {name: int(values[slot]) for name, values in counts.items()}
            return snapshot.encode(facts, {"frame": self._frames[slot], **state})

    def set_state(self, data: bytes, slot: int = 0) -> None:
        """Continue a world of `get_state` in a slot.

        Raises:
            CorruptFile: not a snapshot, cut short, or altered.
            ConfigMismatch: a snapshot of other weights or of another format.
        """
        with self.lock:
            facts, tensors = snapshot.decode(data)
            if facts.get("weights") != self.model.weights_hash:
                raise ConfigMismatch(
                    f"the snapshot is of {facts.get('world')} with weights {str(facts.get('weights'))[:12]}, this env "
                    f"has {self.model.spec.id} with weights {self.model.weights_hash[:12]}. Make the env of that world."
                )
            snapshot.check(facts, tensors, self._layout())
            tensors = {name: value.to(self.device) for name, value in tensors.items()}
            frame = tensors.pop("frame")
            self._occupy({slot: ({name.removeprefix("state."): value[None] for name, value in tensors.items()}, frame)})
            self._place(slot, facts["seed"], facts["episode"], facts["steps"], facts["ended"])

    def _layout(self) -> dict[str, Tensor]:
        """Tensors of the names, dtypes and shapes that a snapshot of this model has."""
        if not self._chunks:
            spec = self.model.spec
            none = (1, 0, len(spec.players))
            discrete = isinstance(spec.actions, DiscreteActions)
            actions = torch.zeros(none, dtype=torch.int64) if discrete else torch.zeros(*none, spec.actions.dim)
            self._state_of(0, self._start_from(self._frames[None, :1], actions)[0])
        return {"frame": self._frames[0], **{f"state.{name}": value[0] for name, value in self._chunks[0].items()}}

    def fork(self, source: int, targets: Sequence[int]) -> None:
        """Make the target slots continue the world of the source slot: with the same actions, the same bytes."""
        with self.lock:
            data = self.get_state(source)
            for target in targets:
                self.set_state(data, int(target))

"""N worlds in one batch: slots of fixed-shape tensors, masked resets, counter-based sampling, snapshots.

A slot's bytes depend on its seed and its actions alone. On a CPU that holds whatever N is (`lwm_env.chunks`); on CUDA
bytes repeat for the same N (`lwm_env.resident`).

Shapes: N slots, P players, A action numbers, T prompt frames.
"""

import os
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lwm_env import snapshot
from lwm_env.batch import Batch, State, Transition, World
from lwm_env.chunks import CPU_ROWS, Chunks
from lwm_env.errors import ConfigMismatch, WrongOrder
from lwm_env.noise import choose, episode_key, fold_seed
from lwm_env.resident import Resident
from lwm_env.spec import DiscreteActions
from lwm_env.threads import one_thread

__all__ = ["CPU_ROWS", "Engine", "Transition"]
PROMPT_CACHE_BYTES = 1 << 28  # of states that prompts of the world's bank lead to; to look one up is faster


class Engine:
    """N worlds of one model. Threads take turns (`lock`); an error leaves every slot as it was.

    Args:
        model: a `WorldModel`, or what offers the same (see `lwm_env.batch.World`).
        temperature: of the sampled tokens; the world's own by default.
        rows: of a chunk, on a CPU.
        graph: on CUDA, replay a graph of the step; by default unless the environment variable LWM_CUDA_GRAPH is 0.
        dtype: on CUDA, what matrix products and convolutions are computed in.
    """

    def __init__(
        self,
        model: World,
        num_envs: int = 1,
        *,
        temperature: float | None = None,
        rows: int | None = None,
        graph: bool | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.num_envs = model, num_envs
        self.device = model.reward_values.device
        self.temperature = model.spec.temperature if temperature is None else temperature
        self.lock = threading.RLock()
        self.batch: Batch
        if self.device.type == "cpu":
            self.batch = Chunks(model, num_envs, rows or CPU_ROWS)
        else:
            wanted = os.environ.get("LWM_CUDA_GRAPH") != "0" if graph is None else graph
            capturable = isinstance(model, torch.nn.Module)  # another runtime launches on streams of its own
            self.batch = Resident(model, num_envs, graph=wanted and capturable, dtype=dtype)
        self.seeds = np.zeros(num_envs, np.int64)  # as `fold_seed` gives them
        self.episodes = np.full(num_envs, -1, np.int64)  # of the seed's stream; -1: never reset
        self.steps = np.zeros(num_envs, np.int64)  # since the reset
        self.ended = np.zeros(num_envs, bool)  # kept for whoever decides that an episode is over
        self._keys = np.zeros(num_envs, np.int64)
        self._points = torch.zeros(num_envs, len(model.spec.players), dtype=torch.int64, device=self.device)
        self._prompts: dict[int, tuple[State, Tensor]] = {}

    @property
    def frames(self) -> Tensor:
        """The current frames, uint8 (N, H, W, 3), a copy."""
        return self.batch.frames

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
            self.batch.occupy(starts)
            for slot, (seed, episode) in streams.items():
                self._place(slot, seed, episode)
            self.batch.set_clocks(self._keys, self.steps)
            return self.frames

    def step(self, actions: Tensor, active: np.ndarray | None = None) -> Transition:
        """One step of every slot, or of the `active` ones.

        Args:
            actions: int64 (N, P) or float32 (N, P, A), already checked.
            active: bool (N,); on a CPU the others cost nothing.

        Raises:
            WrongOrder: an active slot was never reset.
        """
        with self.lock:
            active = np.ones(self.num_envs, bool) if active is None else active.copy()
            if not self.ready[active].all():
                missing = np.flatnonzero(active & ~self.ready).tolist()
                raise WrongOrder(f"slots {missing} were stepped but never reset. Call reset() first.")
            transition = self.batch.step(actions, active, self.temperature)
            self.steps += active
            return self._scored(transition)

    def _scored(self, transition: Transition) -> Transition:
        """The same, which also ends where a player has just won."""
        if self.model.spec.points_to_win is None:
            return transition
        scores = transition.rewards > 0
        self._points += scores
        won = (scores & (self._points >= self.model.spec.points_to_win)).any(1)
        return transition._replace(terminated=transition.terminated | won)

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
        if prompts is not None:
            return self._start_from(prompts[0][slot : slot + 1], prompts[1][slot : slot + 1])
        bank = self.model.prompts
        if bank is None or not len(bank.frames):
            raise ConfigMismatch(
                f"the world {self.model.spec.id} has no prompt bank to start from. "
                f'Give it frames: reset(options={{"frames": frames, "actions": actions}}).'
            )
        chosen = choose(episode_key(*stream), len(bank.frames))
        if chosen not in self._prompts:
            start = self._start_from(bank.frames[chosen : chosen + 1], bank.actions[chosen : chosen + 1])
            if (len(self._prompts) + 1) * sum(value.nbytes for value in start[0].values()) > PROMPT_CACHE_BYTES:
                self._prompts = {}
            self._prompts[chosen] = start
        return self._prompts[chosen]

    def _start_from(self, frames: Tensor, actions: Tensor) -> tuple[State, Tensor]:
        # One world at a time, since the length T may differ between worlds and the number of rows must not.
        frames, actions = frames.to(self.device), actions.to(self.device)
        with one_thread(self.device), torch.inference_mode():
            return self.model.start(frames, actions), frames[0, -1]

    def _place(
        self, slot: int, seed: int, episode: int, steps: int = 0, ended: bool = False, points: Sequence[int] = ()
    ) -> None:
        self.seeds[slot], self.episodes[slot], self.steps[slot], self.ended[slot] = seed, episode, steps, ended
        self._keys[slot] = episode_key(seed, episode)
        if self.model.spec.points_to_win is not None:
            self._points[slot] = torch.tensor(points or [0] * self._points.shape[1])

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def get_state(self, slot: int = 0) -> bytes:
        """A world as bytes, which any slot of any engine of the same weights continues bit for bit on a CPU.

        Raises:
            WrongOrder: the slot was never reset.
        """
        with self.lock:
            if not self.ready[slot]:
                raise WrongOrder(f"slot {slot} has no state before its first reset. Call reset() first.")
            rows, frame = self.batch.read(slot)
            state = {f"state.{name}": value[0] for name, value in rows.items()}
            counts = {"seed": self.seeds, "episode": self.episodes, "steps": self.steps}
            facts = {"weights": self.model.weights_hash, "world": self.model.spec.id, "ended": bool(self.ended[slot])}
            facts |= {name: int(values[slot]) for name, values in counts.items()}
            facts["points"] = self._points[slot].tolist()
            return snapshot.encode(facts, {"frame": frame, **state})

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
            snapshot.check(facts, tensors, self._layout(), self._points.shape[1])
            tensors = {name: value.to(self.device) for name, value in tensors.items()}
            frame = tensors.pop("frame")
            state = {name.removeprefix("state."): value[None] for name, value in tensors.items()}
            self.batch.occupy({slot: (state, frame)})
            counts = (facts[name] for name in ("seed", "episode", "steps", "ended"))
            self._place(slot, *counts, facts.get("points", ()))
            self.batch.set_clocks(self._keys, self.steps)

    def _layout(self) -> dict[str, Tensor]:
        """Tensors of the names, dtypes and shapes that a snapshot of this model has."""
        spec, layout = self.model.spec, self.batch.layout()
        blank = torch.zeros(1, 1, *spec.frame_size, 3, dtype=torch.uint8)
        if not layout:
            none = (1, 0, len(spec.players))
            discrete = isinstance(spec.actions, DiscreteActions)
            actions = torch.zeros(none, dtype=torch.int64) if discrete else torch.zeros(*none, spec.actions.dim)
            layout = self._start_from(blank, actions)[0]
        return {"frame": blank[0, 0], **{f"state.{name}": value[0] for name, value in layout.items()}}

    def fork(self, source: int, targets: Sequence[int]) -> None:
        """Make the target slots continue the world of the source slot: with the same actions, the same bytes.

        Raises:
            WrongOrder: the source was never reset.
        """
        with self.lock:
            if not self.ready[source]:
                raise WrongOrder(f"slot {source} has no state before its first reset. Call reset() first.")
            state, frame = self.batch.read(source)
            world = {name: value.clone() for name, value in state.items()}, frame.clone()
            self.batch.occupy({int(target): world for target in targets})
            for target in targets:
                counts = (int(values[source]) for values in (self.seeds, self.episodes, self.steps))
                self._place(int(target), *counts, bool(self.ended[source]), self._points[source].tolist())
            self.batch.set_clocks(self._keys, self.steps)

"""A planner: it forks a dream into many, lets each try a plan, and plays the best.

With one iteration it is random shooting, with more the cross-entropy method (Rubinstein, 1999,
doi:10.1023/A:1010091220143): plans are drawn anew around the best ones.

Shapes: N envs, P plans, T steps of a plan, A actions.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from lwm_env.envs import LwmEnv, LwmVectorEnv
from lwm_env.errors import ConfigMismatch, InvalidInput
from lwm_env.spec import DiscreteActions


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """How far and how widely a planner looks. A choice costs `num_plans * horizon * iterations` dreamed frames."""

    num_plans: int = 64
    horizon: int = 15  # steps of a plan
    iterations: int = 1  # 1: random shooting; more: the cross-entropy method
    replan_every: int = 4  # steps that are played of a plan
    elite_share: float = 0.1  # of the plans, around which the next are drawn
    hold: float = 0.8  # probability that a plan keeps its action for another step, as players do
    context_frames: int = 8  # of a real game, from which the dream starts
    discount: float = 0.99
    survival: float = 0.01  # worth of being alive at the end of a plan, in units of the game's largest reward

    def __post_init__(self) -> None:
        for name in ("num_plans", "horizon", "iterations", "replan_every", "context_frames"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"PlannerConfig.{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("elite_share", "hold", "discount"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"PlannerConfig.{name} must be from 0 to 1, got {getattr(self, name)}.")
        if self.replan_every > self.horizon:
            raise InvalidInput(f"replan_every={self.replan_every} is more than the {self.horizon} steps of a plan.")


@dataclass
class _Memory:
    """What the planner knows of one env: its last frames, the actions between them, and what is left of the plan."""

    frames: deque[np.ndarray]  # (H, W, 3), at most context_frames
    actions: deque[int]
    plan: list[int] = field(default_factory=list)


class Planner:
    """Plays by planning, with the `predict` of a trained policy.

    Args:
        world: id or folder of the dream.
        played: the dream that is played, if it is one: plans begin in its exact states, its future chance included. For
            any other env, such as the real game, they begin in a dream of its last frames.
        seed: of the plans.
        options: of the envs: `device`, `temperature`, `backend`.

    Raises:
        ConfigMismatch: the world's actions are no finite set, or `played` has other weights.
        What opening the world raises.
    """

    def __init__(
        self,
        world: str,
        config: PlannerConfig | None = None,
        played: VectorEnv | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.config = config or PlannerConfig()
        self._dreams = LwmVectorEnv(world, self.config.num_plans, max_episode_steps=-1, **options)
        self._opening = LwmEnv(world, **options)
        spec = self._dreams.world_spec
        if not isinstance(spec.actions, DiscreteActions):
            raise ConfigMismatch(f"{spec.id} has continuous actions; a planner needs a finite set. Train a policy.")
        self._played = None if played is None else played.unwrapped
        if self._played is not None and self._played.weights_hash != self._dreams.weights_hash:
            raise ConfigMismatch(f"the dream that is played has other weights than {world}. Name that world.")
        self.observation_space, self.action_space = spec.observation_space(), spec.action_space()
        self._scale = 1 / (max(map(abs, spec.reward_values)) or 1)
        self._rng = np.random.default_rng(seed)

    def predict(
        self,
        observation: np.ndarray,
        state: list[_Memory] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, list[_Memory]]:
        """Actions (N,) for observations uint8 (N, H, W, 3), and the memory to give back at the next call.

        Args:
            state: the memory that the last call returned; None at first.
            episode_start: bool (N,), whose episode begins with this observation.
            deterministic: has no meaning here; a plan is the best of those that were drawn.

        Raises:
            InvalidInput: observations that are not of the world's space.
        """
        space = self.observation_space
        if observation.dtype != space.dtype or observation.shape[1:] != space.shape:
            raise InvalidInput(
                f"observations of dtype {observation.dtype} and shape {observation.shape} were given; the planner's "
                f"world has uint8 (N, {', '.join(map(str, space.shape))})."
            )
        starts = np.zeros(len(observation), bool) if episode_start is None else episode_start
        memories = [self._blank() if state is None or starts[i] else state[i] for i in range(len(observation))]
        for i, (memory, frame) in enumerate(zip(memories, observation, strict=True)):
            memory.frames.append(frame)
            if not memory.plan:
                memory.plan = self._plan(i, memory)
            memory.actions.append(memory.plan.pop(0))
        return np.array([memory.actions[-1] for memory in memories]), memories

    def _blank(self) -> _Memory:
        length = self.config.context_frames
        return _Memory(deque(maxlen=length), deque(maxlen=length - 1))

    def _plan(self, env: int, memory: _Memory) -> list[int]:
        """The first actions of the best plan of all iterations."""
        config, odds = self.config, np.full((self.config.horizon, self.action_space.n), 1 / self.action_space.n)
        best, best_score = np.zeros(config.horizon, int), -np.inf
        start = self._start(env, memory)
        num_elites = max(1, round(config.elite_share * config.num_plans))
        for _ in range(config.iterations):
            plans = draw_plans(self._rng, odds, config.num_plans, config.hold)
            scores = self._scores(start, plans)
            order = np.argsort(-scores, kind="stable")
            if scores[order[0]] > best_score:
                best, best_score = plans[:, order[0]], scores[order[0]]
            odds = elite_odds(plans[:, order[:num_elites]], self.action_space.n)
        return best[: config.replan_every].tolist()

    def _start(self, env: int, memory: _Memory) -> bytes:
        """The state that plans begin in."""
        if self._played is not None:
            return self._played.get_state(env)
        prompt = {"frames": np.stack(memory.frames), "actions": np.array(memory.actions, np.int64)}
        self._opening.reset(seed=int(self._rng.integers(1 << 31)), options=prompt)
        return self._opening.get_state()

    def _scores(self, start: bytes, plans: np.ndarray) -> np.ndarray:
        """What plans (T, P) are worth, (P,): discounted rewards as long as the world goes on, and survival."""
        dreams, config = self._dreams, self.config
        dreams.set_state(start, 0)
        dreams.fork(0, range(1, config.num_plans))
        scores, alive = np.zeros(config.num_plans), np.ones(config.num_plans)
        for t, actions in enumerate(plans):
            _, rewards, terminations, truncations, infos = dreams.step(actions)
            scores += config.discount**t * alive * rewards * self._scale
            alive *= np.where(terminations | truncations, 0, 1 - infos["termination_prob"])
        return scores + config.survival * alive


def draw_plans(rng: np.random.Generator, odds: np.ndarray, num_plans: int, hold: float) -> np.ndarray:
    """Plans (T, P) of actions drawn by odds (T, A), each kept for another step with probability `hold`."""
    horizon, num_actions = odds.shape
    chances = rng.random((horizon, num_plans, 1))
    plans = (chances > odds.cumsum(1)[:, None]).sum(2).clip(max=num_actions - 1)
    for t in range(1, horizon):
        held = rng.random(num_plans) < hold
        plans[t, held] = plans[t - 1, held]
    return plans


def elite_odds(elites: np.ndarray, num_actions: int) -> np.ndarray:
    """How often the best plans (T, P) choose each action, (T, A); one more, shared by all actions, keeps each alive."""
    counts = (elites[..., None] == np.arange(num_actions)).sum(1) + 1 / num_actions
    return counts / counts.sum(1, keepdims=True)

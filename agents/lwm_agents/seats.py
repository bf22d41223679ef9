"""One seat of a game of several players as a Gymnasium env; policies, or chance, sit in the other seats.

env = SeatEnv(lwm_env.parallel_env("LWM-Pong-v0"), "first_0", {"second_0": policy})

The game may be a room of a server: `lwm_env.web.client.RemoteEnv` is a game whose only agent is one's own seat.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv

from lwm_agents.evaluation import Policy
from lwm_env import opponents
from lwm_env.errors import ConfigMismatch, InvalidInput, WrongOrder


class SeatEnv(gym.Env[Any, Any]):
    """What the player of `seat` sees, does and earns; an episode ends when that player is out.

    The others act on their own observations of the same moment, as they would in play. A policy with a memory
    (recurrent, or a planner) keeps it for an episode.

    Args:
        game: any PettingZoo parallel env; closed with this.
        seat: one of its `possible_agents`.
        others: for each other agent a policy (a model of SB3 or anything with its `predict`), the name of a bot
            (`lwm_env.opponents`), or None for random actions. Agents that are left out act at random.
        deterministic: whether the others take their likeliest actions.

    Raises:
        InvalidInput: the game has no such seat, or its world no such bot.
        ConfigMismatch: a policy has other spaces than its seat.
    """

    def __init__(
        self,
        game: ParallelEnv,
        seat: str,
        others: Mapping[str, Policy | str | None] | None = None,
        deterministic: bool = False,
    ) -> None:
        self.game, self.seat, self.deterministic = game, seat, deterministic
        self.policies: dict[str, Policy] = {}
        elsewhere = [agent for agent in game.possible_agents if agent != seat]
        if seat not in game.possible_agents or set(others or {}) - set(elsewhere):
            raise InvalidInput(
                f"seat {seat!r} and policies for {sorted(others or {})} were given; the seats are "
                f"{list(game.possible_agents)}, and each is taken once."
            )
        for agent, policy in (others or {}).items():
            if isinstance(policy, str):
                self.policies[agent] = BotPolicy(_find_bot(policy, game, agent))
            elif policy is not None:
                _check_spaces(agent, policy, game)
                self.policies[agent] = policy
        self.observation_space, self.action_space = game.observation_space(seat), game.action_space(seat)
        self.metadata = {name: game.metadata[name] for name in ("render_modes", "render_fps") if name in game.metadata}
        self.render_mode = getattr(game, "render_mode", None)
        self._random = {agent: game.action_space(agent) for agent in elsewhere if agent not in self.policies}
        self._observations: dict[str, Any] = {}
        self._memories: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode of the game; seed and options go to its `reset`, the seed also to chance and bots."""
        super().reset(seed=seed)
        if seed is not None:
            for index, space in enumerate(self._random.values(), start=1):
                space.seed(seed + index)
            for index, policy in enumerate(self.policies.values(), start=1):
                if isinstance(policy, BotPolicy):
                    policy.bot.reset(seed + index)
        self._observations, infos = self.game.reset(seed=seed, options=options)
        self._memories = {}
        return self._observations[self.seat], infos[self.seat]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act in this seat, with the others acting at the same moment.

        Raises:
            WrongOrder: before `reset`, or after the end of the episode. And what the game's `step` raises.
        """
        if self.seat not in self._observations or self.seat not in self.game.agents:
            raise WrongOrder("step() came before reset(), or after the end of the episode. Begin one with reset().")
        chosen = {agent: self._choose(agent) for agent in self.game.agents if agent != self.seat}
        self._observations, *outcome, infos = self.game.step({**chosen, self.seat: action})
        reward, terminated, truncated = (values[self.seat] for values in outcome)
        return self._observations[self.seat], float(reward), bool(terminated), bool(truncated), infos[self.seat]

    def _choose(self, agent: str) -> Any:
        if agent in self._random:
            return self._random[agent].sample()
        starts = np.array([agent not in self._memories])
        observations = np.asarray(self._observations[agent])[None]
        actions, self._memories[agent] = self.policies[agent].predict(
            observations, self._memories.get(agent), starts, self.deterministic
        )
        return actions[0]

    def render(self) -> Any:
        """What the game renders."""
        return self.game.render()

    def close(self) -> None:
        """Close the game."""
        self.game.close()


class BotPolicy:
    """A bot as a policy of one env."""

    def __init__(self, bot: opponents.Opponent) -> None:
        self.bot = bot

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """What the bot does at a frame, (1, H, W, 3); it has its own memory, and its own chances."""
        if episode_start is not None and episode_start[0]:
            self.bot.reset()
        return np.array([self.bot.act(observation[0])]), None


def _find_bot(name: str, game: ParallelEnv, agent: str) -> opponents.Opponent:
    spec = getattr(game, "world_spec", None)
    if spec is None:
        raise InvalidInput(f"the bot {name!r:.40} was named for {agent}, but bots play worlds alone, not {game}.")
    return opponents.make(name, spec, agent)


def _check_spaces(agent: str, policy: Policy, game: ParallelEnv) -> None:
    """A policy that tells its spaces must have those of its seat; SB3's see pictures with the channels first."""
    action, seen = getattr(policy, "action_space", None), getattr(policy, "observation_space", None)
    wanted = game.observation_space(agent)
    if (action is None or action == game.action_space(agent)) and (seen is None or _same_pictures(seen, wanted)):
        return
    raise ConfigMismatch(
        f"the policy for {agent} sees {seen} and does {action}; the seat has {wanted} and {game.action_space(agent)}. "
        f"Train one on this world."
    )


def _same_pictures(seen: gym.Space, wanted: gym.Space) -> bool:
    shapes = [wanted.shape, (wanted.shape[-1], *wanted.shape[:-1])] if wanted.shape else [()]
    return seen == wanted or (seen.dtype == wanted.dtype and seen.shape in shapes)

"""PPO in one file on the world's own vector env: python examples/cleanrl_ppo.py --num-steps 256 --rollout-steps 16

Written as CleanRL's single files are: `gym.make_vec`, Gymnasium's statistics, torch, and everything else in sight. The
world needs no adapter. So few steps show the way and teach nothing; how far the defaults get was not measured.
"""

import argparse
import time

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import lwm_env  # noqa: F401 (importing registers the worlds)

DISCOUNT, GAE_LAMBDA, CLIP, MAX_GRAD_NORM = 0.99, 0.95, 0.2, 0.5
VALUE_WEIGHT, ENTROPY_WEIGHT = 0.5, 0.01


def layer(module: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, no bias."""
    nn.init.orthogonal_(module.weight, gain)
    nn.init.zeros_(module.bias)
    return module


class Agent(nn.Module):
    """Frames uint8 (N, H, W, 3) -> a distribution over actions, and values (N,)."""

    def __init__(self, envs: gym.vector.VectorEnv) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            layer(nn.Conv2d(3, 32, 8, 4)), nn.ReLU(),
            layer(nn.Conv2d(32, 64, 4, 2)), nn.ReLU(),
            layer(nn.Conv2d(64, 64, 3, 1)), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        height, width, _ = envs.single_observation_space.shape
        size = self.trunk(torch.zeros(1, 3, height, width)).shape[1]
        self.hidden = nn.Sequential(layer(nn.Linear(size, 256)), nn.ReLU())
        self.actor = layer(nn.Linear(256, int(envs.single_action_space.n)), 0.01)
        self.critic = layer(nn.Linear(256, 1), 1.0)

    def forward(self, frames: Tensor) -> tuple[Categorical, Tensor]:
        features = self.hidden(self.trunk(frames.movedim(-1, 1) / 255))
        return Categorical(logits=self.actor(features)), self.critic(features)[:, 0]


def advantages_of(rewards: Tensor, values: Tensor, next_values: Tensor, dones: Tensor) -> Tensor:
    """Generalised advantages (T, N) (Schulman et al., 2016, arXiv:1506.02438); `next_values` are of the state that each
    step really led to, 0 where it ended the game."""
    deltas, result, last = rewards + DISCOUNT * next_values - values, torch.zeros_like(rewards), 0.0
    for t in reversed(range(len(rewards))):
        last = deltas[t] + DISCOUNT * GAE_LAMBDA * ~dones[t] * last
        result[t] = last
    return result


def loss_of(agent: Agent, frames: Tensor, actions: Tensor, old: Tensor, advantages: Tensor, targets: Tensor) -> Tensor:
    """PPO's clipped loss (Schulman et al., 2017, arXiv:1707.06347), with those of the values and the entropy."""
    policy, values = agent(frames)
    ratio = (policy.log_prob(actions) - old).exp()
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
    return VALUE_WEIGHT * (values - targets).square().mean() - gain - ENTROPY_WEIGHT * policy.entropy().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", default="LWM-Platformer-v0", help="of a registered world")
    parser.add_argument("--num-steps", type=int, default=200_000, help="of all envs")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--rollout-steps", type=int, default=128, help="of each env between two updates")
    parser.add_argument("--num-epochs", type=int, default=3)
    parser.add_argument("--num-minibatches", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    envs = gym.make_vec(arguments.id, num_envs=arguments.num_envs, autoreset_mode="SAME_STEP")
    scale = 1 / (max(map(abs, envs.unwrapped.world_spec.reward_values)) or 1)
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), arguments.learning_rate, eps=1e-5)

    shape = (arguments.rollout_steps, arguments.num_envs)
    frames = torch.zeros(*shape, *envs.single_observation_space.shape, dtype=torch.uint8)
    actions, dones = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    log_probs, rewards, values, next_values = (torch.zeros(shape) for _ in range(4))

    seen, _ = envs.reset(seed=arguments.seed)
    returns: list[float] = []
    updates, begin = max(1, arguments.num_steps // (shape[0] * shape[1])), time.perf_counter()
    for update in range(1, updates + 1):
        for t in range(arguments.rollout_steps):
            frames[t] = torch.from_numpy(seen)
            with torch.no_grad():
                policy, values[t] = agent(frames[t])
                actions[t] = policy.sample()
                log_probs[t] = policy.log_prob(actions[t])
            seen, reward, terminations, truncations, infos = envs.step(actions[t].numpy())
            rewards[t] = torch.from_numpy(reward * scale)
            dones[t] = torch.from_numpy(terminations | truncations)
            reached = seen
            if dones[t].any():  # what was seen last, not the first frame of the next episode
                reached = np.where(infos["_final_obs"][:, None, None, None], infos["final_obs"], seen)
                returns += infos["episode"]["r"][infos["_episode"]].tolist()
            with torch.no_grad():  # a dream that was cut has a future, one that ended has none
                next_values[t] = agent(torch.from_numpy(reached))[1] * torch.from_numpy(~terminations)

        advantages = advantages_of(rewards, values, next_values, dones)
        batch = [x.flatten(0, 1) for x in (frames, actions, log_probs, advantages, advantages + values)]
        for _ in range(arguments.num_epochs):
            for rows in torch.randperm(dones.numel()).chunk(arguments.num_minibatches):
                optimizer.zero_grad()
                loss_of(agent, *(x[rows] for x in batch)).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
                optimizer.step()
        steps, recent = update * dones.numel(), returns[-100:]
        told = f"return {np.mean(recent):g} of the last {len(recent)} episodes" if recent else "no episode ended yet"
        print(f"{steps} steps, {steps / (time.perf_counter() - begin):.1f} frames/s, updates included; {told}")
    envs.close()


if __name__ == "__main__":
    main()

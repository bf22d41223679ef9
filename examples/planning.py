"""Plans by forking the dream, random shooting: python examples/planning.py --num-steps 6 --num-plans 8 --horizon 5

Slot 0 is the game that is played. Before each action it is forked into the other slots, each dreams a random plan to
its end, and the first action of the best plan is taken. For the mean of many runs, take more steps and plans.
"""

import argparse
import time

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

import lwm_env  # noqa: F401 (importing registers the worlds)

DISCOUNT = 0.99


def draw_plans(rng: np.random.Generator, num_plans: int, horizon: int, num_actions: int) -> np.ndarray:
    """Actions (horizon, num_plans) that are held for a few steps, as a player's are; plan i begins with action i."""
    plans = rng.integers(num_actions, size=(horizon, num_plans))
    plans[0] = np.arange(num_plans) % num_actions
    for t in range(1, horizon):
        held = rng.random(num_plans) < 0.8
        plans[t, held] = plans[t - 1, held]
    return plans


def choose_action(envs: gym.vector.VectorEnv, rng: np.random.Generator, horizon: int) -> int:
    """The first action of the plan that the model rates best; slot 0 comes back to where it was."""
    num_plans = envs.num_envs - 1
    plans = draw_plans(rng, num_plans, horizon, envs.single_action_space.n)
    world = envs.unwrapped
    world.fork(source=0, targets=range(1, envs.num_envs))
    here = world.get_state(0)
    scores, alive = np.zeros(num_plans), np.ones(num_plans)
    for t, actions in enumerate(plans):
        _, rewards, terminations, truncations, infos = envs.step(np.concatenate([[0], actions]))
        scores += DISCOUNT**t * alive * rewards[1:]
        alive *= np.where(terminations | truncations, 0, 1 - infos["termination_prob"])[1:]
    world.set_state(here, 0)
    # A reward that is far away is not seen; staying alive is worth a little.
    return int(plans[0, np.argmax(scores + 0.1 * alive + 1e-3 * rng.random(num_plans))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", default="LWM-Platformer-v0", help="of a registered world")
    parser.add_argument("--num-steps", type=int, default=50, help="to play")
    parser.add_argument("--num-plans", type=int, default=27, help="to compare before each step")
    parser.add_argument("--horizon", type=int, default=12, help="steps of a plan")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    # SAME_STEP: a plan that ends goes on in a new episode, and `alive` stops counting what comes after.
    envs = gym.make_vec(arguments.id, num_envs=1 + arguments.num_plans, autoreset_mode=AutoresetMode.SAME_STEP)
    meanings = envs.unwrapped.get_action_meanings()
    rng, episode_return, num_episodes = np.random.default_rng(arguments.seed), 0.0, 1
    envs.reset(seed=arguments.seed)
    begin = time.perf_counter()
    for step in range(arguments.num_steps):
        action = choose_action(envs, rng, arguments.horizon)
        played = np.full(envs.num_envs, action)
        _, rewards, terminations, truncations, _ = envs.step(played)
        episode_return += rewards[0]
        if terminations[0] or truncations[0]:
            print(f"step {step}: episode {num_episodes} ended by {meanings[action]}, return {episode_return:g}")
            episode_return, num_episodes = 0.0, num_episodes + 1
    seconds = time.perf_counter() - begin
    frames = arguments.num_steps * envs.num_envs * (arguments.horizon + 1)
    print(f"{arguments.num_steps} steps planned, episode {num_episodes} has return {episode_return:g} so far")
    print(f"{frames} frames dreamed, {frames / seconds:.1f} frames/s")
    envs.close()


if __name__ == "__main__":
    main()

"""A random player in a dreamed world: python examples/random_player.py --num-steps 200"""

import argparse
import time

import gymnasium as gym

import lwm_env  # noqa: F401 (importing registers the worlds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--id", default="LWM-Platformer-v0", help="of a registered world")
    parser.add_argument("--num-steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    env = gym.make(arguments.id)
    meanings = env.unwrapped.get_action_meanings()
    env.action_space.seed(arguments.seed)
    env.reset(seed=arguments.seed)
    episode_return, num_episodes, begin = 0.0, 1, time.perf_counter()
    for _ in range(arguments.num_steps):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, info = env.step(action)
        episode_return += reward
        if terminated or truncated:
            print(
                f"episode {num_episodes}: return {episode_return:g}, ended by {meanings[action]} "
                f"with probability {info['termination_prob']:.2f}, surprise {info['surprise']:.2f} nats"
            )
            episode_return, num_episodes = 0.0, num_episodes + 1
            env.reset()
    seconds = time.perf_counter() - begin
    print(f"{arguments.num_steps} frames of {observation.shape}, {arguments.num_steps / seconds:.1f} frames/s")
    env.close()


if __name__ == "__main__":
    main()

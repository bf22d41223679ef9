"""A policy with a memory learns in a dream: python examples/ppo_recurrent.py --num-steps 32 --num-envs 2

Needs the extra `agents`: RecurrentPPO of sb3-contrib takes the world's vector env through `SB3VecEnv` as SB3's own do.
For a policy that plays well, take 200,000 steps and 16 envs.
"""

import argparse
import time

from sb3_contrib import RecurrentPPO

from lwm_agents.evaluation import play
from lwm_agents.sb3 import SB3VecEnv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", default="LWM-Platformer-v0", help="of a registered world")
    parser.add_argument("--num-steps", type=int, default=200_000, help="of all envs")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--max-episode-steps", type=int, default=32, help="until a dream is cut")
    parser.add_argument("--num-episodes", type=int, default=2, help="to measure")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    envs = SB3VecEnv(arguments.id, arguments.num_envs, max_episode_steps=arguments.max_episode_steps)
    rollout = min(128, max(1, arguments.num_steps // arguments.num_envs))
    settings = {"n_steps": rollout, "batch_size": rollout * arguments.num_envs, "n_epochs": 2}
    model = RecurrentPPO("CnnLstmPolicy", envs, seed=arguments.seed, device="auto", **settings)
    begin = time.perf_counter()
    model.learn(arguments.num_steps)
    seconds = time.perf_counter() - begin
    played = play(model, envs.envs, arguments.num_episodes, arguments.seed).summary()
    print(f"{model.num_timesteps} steps learned at {model.num_timesteps / seconds:.1f} frames/s, updates included")
    print(f"return {played['mean']:g} over {played['num_episodes']} dreams of {played['length']:g} steps")
    envs.close()


if __name__ == "__main__":
    main()

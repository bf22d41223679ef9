"""Worlds in TorchRL, one and a batch, on the device they are computed on: python examples/torchrl_env.py --num-steps 8

Needs torchrl (pip install torchrl). Its `GymEnv` and `GymWrapper` take the worlds as they are; a vector env must reset
in the same step, which is what TorchRL expects.
"""

import argparse
import time

import gymnasium as gym
import torch
from torchrl.envs import GymEnv, GymWrapper

import lwm_env  # noqa: F401 (importing registers the worlds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", default="LWM-Platformer-v0", help="of a registered world")
    parser.add_argument("--num-steps", type=int, default=100)
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    env = GymEnv(arguments.id)
    env.set_seed(arguments.seed)
    rollout = env.rollout(arguments.num_steps)  # ends with the episode
    print(f"one world: {tuple(rollout['pixels'].shape)} pixels, return {rollout['next', 'reward'].sum():g}")
    env.close()

    envs = GymWrapper(gym.make_vec(arguments.id, num_envs=arguments.num_envs, autoreset_mode="SAME_STEP"))
    envs.set_seed(arguments.seed)
    begin = time.perf_counter()
    with torch.no_grad():
        rollouts = envs.rollout(arguments.num_steps, break_when_any_done=False)
    seconds = time.perf_counter() - begin
    ends = int(rollouts["next", "done"].sum())
    print(f"{arguments.num_envs} worlds: {tuple(rollouts['observation'].shape)} pixels, {ends} ends")
    print(f"{rollouts.numel() / seconds:.1f} frames/s")
    envs.close()


if __name__ == "__main__":
    main()

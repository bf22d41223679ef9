"""The Dyna loop (Sutton, 1991, doi:10.1145/122344.122377): a policy learns in the dream and plays the real game, the
dream is trained on what that showed, the policy goes on in the new dream.

Playing and training the world are the commands `lwm collect` and `lwm train`, in processes of their own.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO

from lwm_agents.agent import choose_device, save_agent
from lwm_agents.imagination import Course, ImaginationConfig, train_in_dream
from lwm_env import worlds
from lwm_env.errors import InvalidInput, LwmError

KEPT = ("termination_threshold", "draw_ends", "temperature")


@dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """How the dream is renewed."""

    recipe: Path  # that the world was trained by, see `lwm train`
    num_rounds: int = 2  # times that the world is renewed
    num_frames: int = 20_000  # real ones for each round; the world is trained on those of all rounds
    num_envs: int = 16  # of the real game
    policy_share: float = 0.7  # of the episodes; a sticky random player plays the others, so that nothing is forgotten
    overrides: tuple[str, ...] = ()  # of the recipe: 'train.only=["unroll-8"]', "train.minutes=5"

    def __post_init__(self) -> None:
        if min(self.num_rounds, self.num_frames, self.num_envs) < 1 or not 0 < self.policy_share < 1:
            raise InvalidInput(
                f"rounds, frames and envs must be at least 1 and the share between 0 and 1, got {self.num_rounds}, "
                f"{self.num_frames}, {self.num_envs} and {self.policy_share}."
            )


class StepFailed(LwmError, RuntimeError):
    """A command that the loop runs ended with an error; what it said stands above."""


def train_with_refresh(
    world: str, folder: Path, config: ImaginationConfig, refresh: RefreshConfig, device: str = "auto", **ppo: Any
) -> PPO:
    """Train a policy in a world that is renewed between equal shares of its steps; the agent goes to `folder/agent`.

    Round i leaves its agent in `folder/round-i`, and the world that was renewed after it in `folder/round-i/world`; the
    real frames are in `folder/data`. A second call goes on where the first was stopped.

    Raises:
        InvalidInput: a policy that sees places.
        StepFailed: `lwm collect` or `lwm train` ended with an error. And what `train_in_dream` raises.
    """
    if config.sees == "places":
        raise InvalidInput("the real game is played by pixels when a world is renewed. Leave out --refresh or --sees.")
    start = None
    for index in range(refresh.num_rounds + 1):
        here = folder / f"round-{index}"
        steps = config.num_steps * (index + 1) // (refresh.num_rounds + 1)
        part = replace(config, num_steps=max(1, steps))
        model = train_in_dream(world, here, part, device, Course(start=start), **ppo)
        start = here / "agent"
        if index < refresh.num_rounds:
            world = _renewed(world, model, folder, index, refresh, device)
    facts = {"world": world, "rounds": refresh.num_rounds, "real_frames": refresh.num_rounds * refresh.num_frames}
    save_agent(folder / "agent", model, facts)
    return model


def _renewed(world: str, model: PPO, folder: Path, index: int, refresh: RefreshConfig, device: str) -> str:
    """The folder of the world after round `index`. How dreams end and are drawn stays as the world's spec has it,
    unless `refresh.overrides` say otherwise: a recipe may have been changed since."""
    here, data = folder / f"round-{index}", folder / "data"
    model.save(here / "policy.zip")
    policy = f"mix:{refresh.policy_share}*sb3:ppo:{here / 'policy.zip'}+{1 - refresh.policy_share:.6g}*sticky"
    wanted = {"--out": data, "--frames": refresh.num_frames * (index + 1), "--num-envs": refresh.num_envs}
    _run(["collect", world, "--policy", policy, *(str(word) for pair in wanted.items() for word in pair)])
    spec = worlds.read_spec(worlds.find(world))
    kept = [f"world.{name}={json.dumps(getattr(spec, name))}" for name in KEPT]
    changes = ('data.kind="store"', f"data.path={json.dumps(str(data))}", f"train.start={json.dumps(str(world))}")
    options = [word for change in (*kept, *refresh.overrides, *changes) for word in ("-o", change)]
    trained = _run(["train", str(refresh.recipe), "--out", str(here), "--device", choose_device(device), *options])
    return trained["world"]


def _run(words: Sequence[str]) -> dict[str, Any]:
    """What a subcommand of `lwm` prints as JSON."""
    command = [sys.executable, "-m", "lwm_env.cli", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise StepFailed(
            f"`lwm {' '.join(words)}` ended with code {done.returncode}. Mend it and start again to go on."
        )
    return json.loads(done.stdout)

"""A trained policy on disk: a folder of `policy.safetensors` and `agent.json`, written in one move. No pickle."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from lwm_agents.evaluation import Policy
from lwm_agents.places import SeeingPolicy, SeePlaces, Sight, seeing
from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, StorageError, UnknownWorld
from lwm_env.worlds.storage import previous_folder, replace_folder

FORMAT = 1
POLICY, FACTS = "policy.safetensors", "agent.json"
SIGHT = "sight."  # begins the names of its tensors among those of the policy
ROLLOUT = 64  # steps of each env between two updates
MIN_CNN_SIDE = 36  # pixels, of SB3's NatureCNN


def make_ppo(envs: Any, seed: int = 0, device: str = "auto", folder: Path | None = None, **settings: Any) -> PPO:
    """PPO with settings for small frames, or for places; `settings` go to SB3's PPO, `folder` is TensorBoard's."""
    sees_places = seeing(envs) is not None
    is_small = sees_places or min(sorted(envs.observation_space.shape)[1:]) < MIN_CNN_SIDE
    policy = "MlpPolicy" if is_small else "CnnPolicy"
    # With 64 envs the return in real CoinRun rises from the first 20,000 steps on; with 16, rollouts of 128, 3e-4 and
    # an entropy of 0.03, one run of two stood still after 60,000. With a discount of 0.999 a dream taught to die soon:
    # running pays no more there than wandering, since dreams of runners end too often.
    batch = math.gcd(envs.num_envs * ROLLOUT, 512)  # divides every rollout
    defaults = {"n_steps": ROLLOUT, "batch_size": batch, "n_epochs": 3, "learning_rate": 5e-4}
    defaults |= {"ent_coef": 0.01, "gamma": 0.99}
    if sees_places:
        # In real Pong, with places read from its memory, 10 passes in batches of 256 earned +5 in 1,000 steps after
        # 180,000, and 3 in batches of 512 +2.
        defaults |= {"n_epochs": 10, "batch_size": math.gcd(batch, 256)}
    board = None if folder is None else str(folder)
    return PPO(policy, envs, seed=seed, device=device, tensorboard_log=board, **{**defaults, **settings})


def save_agent(folder: Path, model: PPO, facts: Mapping[str, Any]) -> None:
    """Write weights, optimizer state and facts; a kill leaves what was there before.

    Raises:
        InvalidInput: the folder holds something else, or the weights are not finite.
        StorageError: the disk is full or read-only.
    """
    if folder.exists() and not (folder / FACTS).is_file() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} exists and is no agent. Name another folder, or empty it.")
    tensors = {f"policy.{name}": value for name, value in model.policy.state_dict().items()}
    for index, entry in model.policy.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in entry.items()}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    seen = seeing(model.get_env())
    if seen is not None:
        tensors |= {f"{SIGHT}{name}": value.contiguous() for name, value in seen.sight.state_dict().items()}
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise InvalidInput("the policy holds NaN or infinity, which is never saved. Resume with a lower learning rate.")
    told = {"format": FORMAT, "num_timesteps": model.num_timesteps, "spaces": _spaces(model), **facts}
    told["movers"] = 0 if seen is None else seen.sight.eyes.count
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        files = {POLICY: safetensors.torch.save(tensors), FACTS: json.dumps(told, indent=1).encode()}
        replace_folder(folder.resolve(), files, dropped={POLICY, FACTS})
    except OSError as error:
        raise StorageError(f"{folder} could not be written: {error}. What was there before is intact.") from error


def read_facts(folder: Path) -> dict[str, Any]:
    """What `save_agent` was told, with `num_timesteps`, `spaces`, and of how many `movers` the places are seen.

    Raises:
        UnknownWorld: no agent there.
        CorruptFile, ConfigMismatch: not JSON, or of another format.
    """
    try:
        facts = json.loads((_settled(folder) / FACTS).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnknownWorld(f"{folder} has no {FACTS}. Train an agent with: lwm agent train WORLD") from error
    except ValueError as error:
        raise CorruptFile(f"{folder / FACTS} is damaged ({error}). Train the agent anew.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ConfigMismatch(f"{folder / FACTS} is not of format {FORMAT}. Use the version of lwm-env that wrote it.")
    return facts


def digest_of(folder: Path) -> str:
    """The sha256 of an agent's weights, as hexadecimal digits."""
    return hashlib.sha256((_settled(folder) / POLICY).read_bytes()).hexdigest()


def open_agent(folder: Path, envs: VecEnv, device: str = "auto") -> Policy:
    """The saved agent, to act on the frames of envs of the same spaces. Raises what `load_agent` raises."""
    movers = read_facts(folder).get("movers", 0)
    if not movers:
        model = make_ppo(envs, device=choose_device(device))
        load_agent(folder, model)
        return model
    seen = SeePlaces(envs, Sight(movers, envs.observation_space.shape[:2]))
    model = make_ppo(seen, device=choose_device(device))
    load_agent(folder, model)
    return SeeingPolicy(model, seen)


def load_agent(folder: Path, model: PPO) -> dict[str, Any]:
    """Put the saved weights, optimizer state and step count into a PPO of the same spaces, and the saved eyes into what
    it sees with; returns the facts.

    Raises:
        ConfigMismatch: the agent has other spaces than the model's envs.
        UnknownWorld, CorruptFile: no agent there, or a damaged one; see `read_facts`.
    """
    facts = read_facts(folder)
    seen = seeing(model.get_env())
    movers, own_movers = facts.get("movers", 0), 0 if seen is None else seen.sight.eyes.count
    if movers != own_movers:
        raise ConfigMismatch(
            f"the agent in {folder} sees the places of {movers} movers and its envs show those of {own_movers}; 0 are "
            f"pixels. Train with the same --sees, and open it with open_agent."
        )
    here = _spaces(model)
    if facts.get("spaces") != here:
        raise ConfigMismatch(
            f"the agent in {folder} has the spaces {facts.get('spaces')}, the world has {here}. Name an agent of this "
            f"world, or train one with: lwm agent train WORLD"
        )
    try:
        tensors = safetensors.torch.load((_settled(folder) / POLICY).read_bytes())
        weights = {name.removeprefix("policy."): x for name, x in tensors.items() if name.startswith("policy.")}
        model.policy.load_state_dict(weights)
        if seen is not None:
            own = {name.removeprefix(SIGHT): x for name, x in tensors.items() if name.startswith(SIGHT)}
            seen.sight.load_state_dict(own)
        state: dict[int, dict[str, Tensor]] = {}
        for name in (name for name in tensors if name.startswith("optimizer.")):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensors[name]
        groups = model.policy.optimizer.state_dict()["param_groups"]
        model.policy.optimizer.load_state_dict({"state": state, "param_groups": groups})
        model.num_timesteps = int(facts["num_timesteps"])
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise CorruptFile(f"the agent in {folder} is damaged ({error!s:.200}). Train it anew.") from error
    return facts


def _spaces(model: PPO) -> dict[str, str]:
    """As they are told of an agent; the frames are told of one that sees places."""
    seen = seeing(model.get_env())
    observations = str(model.observation_space if seen is None else seen.venv.observation_space)
    return {"observations": observations, "actions": str(model.action_space)}


def _settled(folder: Path) -> Path:
    """The folder itself, or what it was if a writer was killed between its two renames."""
    return folder if folder.exists() or not previous_folder(folder).exists() else previous_folder(folder)


def choose_device(device: str) -> str:
    """The device of the policy: "auto" is CUDA where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device

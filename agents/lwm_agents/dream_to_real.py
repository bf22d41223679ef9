"""The dream-to-real report: does a policy that learned in the dream win in the real game?

For every seed a policy learns in the real game and another in the dream, for the same steps and by the same settings;
they and random actions are measured in the real game, all three of a seed on the same levels. Whatever is finished
stays in the folder of the report and is not done again: agents and their episodes, in `seed-0/random`, `seed-0/real`
and `seed-0/dream-<weights>-<chances>`. So the parts may be done in any order, one process for each.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from lwm_agents.agent import digest_of, open_agent, read_facts
from lwm_agents.evaluation import Played, play
from lwm_agents.imagination import ImaginationConfig, chances, name_of, train_in_dream, train_in_real
from lwm_agents.sb3 import SB3VecEnv
from lwm_env import worlds
from lwm_env.errors import ConfigMismatch, InvalidInput, StorageError
from lwm_env.world_model import WEIGHTS
from lwm_env.worlds.storage import replace_file

KINDS = ("random", "real", "dream")  # where a policy learned, if at all
# Policy k learns on levels from the seed 2 k APART on and is measured from (2 k + 1) APART on, as a vector env's copies
# have seeds that follow each other: were the seeds of policies 0, 1, 2, they would learn on nearly the same levels.
APART = 10_000_000

log = logging.getLogger("lwm.agent")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """What decides the figures of a report."""

    training: ImaginationConfig = field(default_factory=ImaginationConfig)  # its seed is that of the first policy
    num_seeds: int = 3
    num_episodes: int = 200  # of each policy in the real game
    num_dream_episodes: int | None = None  # of each policy in the dream, which is slower; None: as many. They begin
    # at the first pictures of episodes of the real game, as those of the prompt bank are anywhere in one
    split: str = "validation"  # whose levels of the real game
    deterministic: bool = False  # the likeliest action instead of a drawn one

    @property
    def seeds(self) -> range:
        return range(self.training.seed, self.training.seed + self.num_seeds)


@dataclass(frozen=True)
class Trial:
    """One policy: how it learned and what it reached."""

    seed: int
    kind: str  # of KINDS
    agent: str | None  # sha256 of its weights
    num_timesteps: int
    train_seconds: float
    played: dict[str, Played]  # by place: "real", and "dream" for a policy that learned there


class TransferRun:
    """The policies of a report, made and measured one after the other.

    Args:
        world: id or folder.
        make_real: makes the real game in mode SAME_STEP, see `lwm_agents.command_parts.REAL_ENV`.
        folder: of the report.
        ppo: settings of SB3's PPO, for both trainings.
    """

    def __init__(
        self,
        world: str,
        make_real: Callable[..., VectorEnv],
        folder: Path,
        config: TransferConfig,
        device: str = "auto",
        **ppo: Any,
    ) -> None:
        self.world, self.make_real, self.folder, self.config, self.device = world, make_real, folder, config, device
        self.ppo, self.real = ppo, name_of(make_real)
        manifest = worlds.read_manifest(worlds.find(world))
        self.spec, self.weights = manifest.spec, manifest.files[WEIGHTS].sha256
        self.dream = "-".join([self.weights[:12], *(f"{value:g}" for value in chances(self.spec).values())])

    def run(self, kinds: Sequence[str] = KINDS) -> list[Trial]:
        """Do what is left and return all trials, for each seed those of `kinds`.

        Raises:
            InvalidInput: fewer than one seed, or than two episodes, or no such kind.
            ConfigMismatch: the folder holds agents of another world, configuration or number of steps.
            And what training and the real game raise.
        """
        if self.config.num_seeds < 1 or self.config.num_episodes < 2:
            raise InvalidInput("a report needs at least one seed and two episodes.")
        if not kinds or set(kinds) - set(KINDS):
            raise InvalidInput(f"policies of the kinds {list(kinds)} were asked for; there are {list(KINDS)}.")
        trials = [self._trial(seed, kind) for seed in self.config.seeds for kind in KINDS if kind in kinds]
        steps = {trial.num_timesteps for trial in trials if trial.kind != "random"}
        if len(steps) > 1:
            raise ConfigMismatch(
                f"the agents in {self.folder} learned for {sorted(steps)} steps, which cannot be compared. "
                f"Ask for the largest number with --steps, or name another folder with --out."
            )
        return trials

    def _trial(self, seed: int, kind: str) -> Trial:
        folder, agent = self.trained(seed, kind)
        digest, facts = (digest_of(agent), read_facts(agent)) if agent else (None, {"num_timesteps": 0, "seconds": 0.0})
        places = ("real", "dream") if kind == "dream" else ("real",)
        played = {place: self.measured(folder, place, seed, agent) for place in places}
        return Trial(seed, kind, digest, facts["num_timesteps"], facts["seconds"], played)

    def trained(self, seed: int, kind: str) -> tuple[Path, Path | None]:
        """The folder of a policy of one of `KINDS`, and in it the agent (None: random actions), trained as asked."""
        folder = self.folder / f"seed-{seed}" / (f"dream-{self.dream}" if kind == "dream" else kind)
        config = self.config_of(seed)
        log.info("seed %d of %s: %s", seed, list(self.config.seeds), kind)
        if kind == "random":
            return folder, None
        if kind == "real":
            train_in_real(self.world, self.make_real, folder, config, self.device, **self.ppo)
        else:
            train_in_dream(self.world, folder, config, self.device, **self.ppo)
        return folder, folder / "agent"

    def config_of(self, seed: int) -> ImaginationConfig:
        """How the policies of a seed learn."""
        return replace(self.config.training, seed=2 * seed * APART)

    def measured(self, folder: Path, place: str, seed: int, agent: Path | None) -> Played:
        """Episodes from `folder/episodes-<place>.json`, or played now and kept there.

        Args:
            place: "real" or "dream".
            agent: its folder; None: random actions.
        """
        config, start = self.config, (2 * seed + 1) * APART
        asked = {"seed": start, "agent": None if agent is None else digest_of(agent), "game": self.real}
        if place == "dream":
            asked |= {"game": self.weights, "backend": config.training.backend, **chances(self.spec)}
        count, num_envs = config.num_episodes, config.training.num_envs
        if place == "dream":
            count = num_envs = config.num_dream_episodes or config.num_episodes
            asked["begins"] = self.real
        asked |= {"num_episodes": count, "num_envs": num_envs, "split": config.split}
        asked |= {"deterministic": config.deterministic}
        path = folder / f"episodes-{place}.json"
        kept = _read(path)
        if kept.get("asked") == asked:
            return Played(**kept["played"])
        pictures = self._first_pictures(count, start) if place == "dream" else None
        envs = self._open(place, start, num_envs)
        try:
            model = None if agent is None else open_agent(agent, SB3VecEnv(envs), self.device)
            played = play(model, envs, count, start, config.deterministic, pictures)
        finally:
            envs.close()
        _write(path, {"asked": asked, "played": asdict(played)})
        told, name = played.summary(), "the dream" if place == "dream" else "the real game"
        if len(set(zip(played.returns, played.lengths, strict=True))) == 1:  # such as Pong, which begins always alike
            log.warning(
                "%s: all %d episodes are alike; if they should not be, leave out --deterministic", folder, count
            )
        log.info("%s: return %.3f in %d episodes of %s", folder, told["mean"], told["num_episodes"], name)
        return played

    def _open(self, place: str, seed: int, num_envs: int) -> VectorEnv:
        if place == "dream":
            return SB3VecEnv(self.world, num_envs, device=self.device, backend=self.config.training.backend).envs
        made = {"num_envs": num_envs, "seed": seed, "split": self.config.split}
        return self.make_real(self.world, autoreset_mode="SameStep", **made)

    def _first_pictures(self, count: int, seed: int) -> np.ndarray:
        """Of so many episodes of the real game, uint8 (count, H, W, 3)."""
        envs = self._open("real", seed, count)
        try:
            return np.asarray(envs.reset(seed=seed)[0])
        finally:
            envs.close()


def _read(path: Path) -> dict[str, Any]:
    """What `_write` wrote; {} where there is nothing, or nothing whole."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(content, allow_nan=False).encode())
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error}. Free some space and start again.") from error

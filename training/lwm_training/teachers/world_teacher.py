"""A world as a teacher of clips: its dreams, recorded, so that a student needs no teacher in memory."""

from typing import Any

import numpy as np

import lwm_env
from lwm_env import worlds
from lwm_env.errors import ConfigMismatch
from lwm_env.spec import DiscreteActions, WorldSpec
from lwm_env.world_model import WEIGHTS
from lwm_training.policies import Players, parse_policy
from lwm_training.teachers import Rendered, facts_of


class WorldTeacher:
    """Episode n is what the world dreams with seed n and a scripted player."""

    num_episodes: int | None = None

    def __init__(self, name: str, spec: WorldSpec, policy: str = "sticky", seed: int = 0) -> None:
        """Raises ConfigMismatch if frames, players or actions are not those of `spec`; and what loading raises."""
        manifest = worlds.read_manifest(worlds.find(name))
        theirs = manifest.spec
        if (theirs.frame_size, theirs.actions, len(theirs.players)) != (
            spec.frame_size,
            spec.actions,
            len(spec.players),
        ):
            raise ConfigMismatch(f"{name} has other frames, players or actions than {spec.id}, so it cannot teach it.")
        self.spec, self.policy, self.seed = spec, policy, seed
        self.env = lwm_env.parallel_env(name, device="auto")
        handed_on = {key: manifest.provenance.get(key) for key in ("licences", "restricted")}
        teacher: dict[str, Any] = {"kind": "world", "name": theirs.id, "weights": manifest.files[WEIGHTS].sha256}
        teacher |= {key: value for key, value in handed_on.items() if value}
        self.facts = facts_of(spec, f"world:{theirs.id}", {**teacher, "plan": {"policy": policy, "seed": seed}})

    def episode(self, number: int) -> Rendered:
        actions = self.spec.actions
        weights = actions.sticky_weights if isinstance(actions, DiscreteActions) else ()
        players = Players(
            action_space=self.spec.action_space(),
            num_envs=1,
            num_players=len(self.spec.players),
            seed=(self.seed, number),
            weights=weights,
        )
        policy, first = parse_policy(self.policy, players), np.ones(1, bool)
        observations, _ = self.env.reset(seed=int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0]))
        names = list(self.env.agents)
        frames: list[np.ndarray] = [observations[names[0]]]
        rows: list[tuple[Any, ...]] = []
        while self.env.agents:
            joint = policy.act(frames[-1][None], first)[0]
            observations, rewards, ends, cuts, _ = self.env.step(dict(zip(names, joint, strict=True)))
            frames.append(observations[names[0]])
            rows.append((joint, [rewards[name] for name in names], any(ends.values()), any(cuts.values())))
            first = np.zeros(1, bool)
        columns = zip(("actions", "rewards", "terminations", "truncations"), zip(*rows, strict=True), strict=True)
        return Rendered(np.stack(frames), {name: np.array(column) for name, column in columns}, seed=number)

    def close(self) -> None:
        self.env.close()

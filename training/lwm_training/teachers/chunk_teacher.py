"""A teacher that is given a picture and one action for each chunk of frames, as the large video models are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lwm_env.errors import ConfigMismatch, CorruptFile
from lwm_env.spec import DiscreteActions, WorldSpec
from lwm_training.frames import resize
from lwm_training.teachers import Rendered, blank_steps, expand_chunks, facts_of
from lwm_training.teachers.worker_process import EpisodeRequest, WorkerProcess

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class ChunkPlan:
    """What a chunked teacher renders. The same plan and seed give the same starts and actions."""

    starts: Path  # a folder of pictures to begin from
    chunks: int = 4  # of an episode
    seed: int = 0
    prompt: str = ""
    speed: float = 0.2  # of every action but NOOP, whose speed is 0


class ChunkTeacher:
    """A worker's episodes: chunk by chunk, each with an action drawn by the world's sticky weights."""

    num_episodes: int | None = None

    def __init__(self, worker: WorkerProcess, spec: WorldSpec, plan: ChunkPlan, facts: dict[str, Any]) -> None:
        """
        Args:
            facts: of the teacher; what the worker says of itself in its `hello` stands behind them.

        Raises:
            ConfigMismatch: the world's actions are not the worker's, or there is no picture to begin from.
        """
        self.worker, self.spec, self.plan = worker, spec, plan
        _check_actions(spec, worker.hello.get("actions"), worker.name)
        self.starts = sorted(path for path in plan.starts.glob("*") if path.suffix.lower() in PICTURES)
        if not self.starts:
            raise ConfigMismatch(
                f"{plan.starts} holds no pictures ({', '.join(PICTURES)}) to begin from. See --starts."
            )
        said = {key: worker.hello.get(key) for key in ("name", "weights", "licences", "restricted")}
        teacher = {**{key: value for key, value in said.items() if value is not None}, **facts}
        teacher["plan"] = {"chunks": plan.chunks, "seed": plan.seed, "prompt": plan.prompt, "speed": plan.speed}
        self.facts = facts_of(spec, f"teacher:{teacher.get('name', worker.name)}", teacher)

    def episode(self, number: int) -> Rendered:
        size, rng = tuple(self.spec.frame_size), np.random.default_rng([self.plan.seed, number])
        picture = _read_picture(self.starts[int(rng.integers(len(self.starts)))])
        weights = np.array(self.spec.actions.sticky_weights or [1.0] * self.spec.actions.dim)
        chosen = rng.choice(self.spec.actions.dim, self.plan.chunks, p=weights / weights.sum())
        names = [self.spec.actions.meanings[index] for index in chosen]
        request = EpisodeRequest(
            picture=picture,
            actions=[{"action": name, "speed": 0.0 if name == "NOOP" else self.plan.speed} for name in names],
            frame_size=size,
            seed=int(rng.integers(1 << 31)),
            prompt=self.plan.prompt,
        )
        parts = [resize(picture[None], size), *self.worker.episode(request)]
        lengths = np.array([len(part) for part in parts[1:]])
        actions = expand_chunks(chosen[:, None], lengths)
        return Rendered(np.concatenate(parts), blank_steps(self.spec, actions), seed=number)

    def close(self) -> None:
        self.worker.close()


def _check_actions(spec: WorldSpec, known: Any, worker: str) -> None:
    if not isinstance(spec.actions, DiscreteActions) or len(spec.players) != 1:
        raise ConfigMismatch(f"{worker} plays one player with named actions; {spec.id} has others.")
    unknown = sorted(set(spec.actions.meanings) - {"NOOP", *(known or ())})
    if unknown:
        raise ConfigMismatch(
            f"{worker} does not know the actions {', '.join(unknown)} of {spec.id}; it knows {', '.join(known or ())} "
            f"and NOOP. Name them so in world.actions.meanings of the recipe."
        )


def _read_picture(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise CorruptFile(f"{path} cannot be read as a picture: {error}") from error

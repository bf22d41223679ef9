"""A policy in the real game and in the dream, side by side, as frames of a video.

In each pair of episodes the dream begins at the picture that the real game begins at, and then the policy plays each of
them by what it sees there. Shapes: H, W of the world's frame.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from PIL import Image, ImageDraw, ImageFont

from lwm_agents.evaluation import Policy
from lwm_agents.sb3 import SB3VecEnv
from lwm_env.demo import told_once

SIDE, LABEL, GAP = 256, 24, 4  # pixels; SIDE is what the shorter side of a picture has at least
REAL, DREAM = "real", "dream"  # the keys of `film`


@dataclass
class _Side:
    """One panel: a vector env of one env, what plays there, and where its episode stands."""

    title: str
    policy: Policy
    envs: SB3VecEnv
    frame: np.ndarray = field(init=False)  # uint8 (H, W, 3)
    memory: Any = None
    total: float = 0.0
    steps: int = 0
    over: bool = False

    def begin(self, picture: np.ndarray | None) -> None:
        """A new episode, at a picture or where the env begins."""
        if picture is not None:
            self.envs.set_options({"frames": picture[None]})
        self.frame = told_once(self.envs.reset)[0]
        self.memory, self.total, self.steps, self.over = None, 0.0, 0, False

    def step(self, deterministic: bool) -> None:
        """Play a step; nothing happens once the episode is over."""
        if self.over:
            return
        starts = np.array([self.steps == 0])
        actions, self.memory = self.policy.predict(self.frame[None], self.memory, starts, deterministic)
        observations, rewards, dones, infos = self.envs.step(actions)
        self.over, self.total, self.steps = bool(dones[0]), self.total + float(rewards[0]), self.steps + 1
        self.frame = infos[0]["terminal_observation"] if self.over else observations[0]

    def panel(self) -> np.ndarray:
        """The frame enlarged, under a line that says what it is."""
        scale = -(-SIDE // min(self.frame.shape[:2]))
        picture = self.frame.repeat(scale, 0).repeat(scale, 1)
        canvas = Image.new("RGB", (picture.shape[1], LABEL), "black")
        told = f"{self.title}: step {self.steps}, return {self.total:g}{', over' if self.over else ''}"
        ImageDraw.Draw(canvas).text((6, 4), told, "white", ImageFont.load_default(14))
        return np.concatenate([np.asarray(canvas), picture])


def film(
    players: Mapping[str, tuple[Policy, VectorEnv]], num_frames: int, seed: int = 0, deterministic: bool = False
) -> list[np.ndarray]:
    """Episodes of a policy in the real game, in the dream, or in both: frames uint8 (h, w, 3) with a panel for each.

    An episode that ends first waits for the other.

    Args:
        players: by `REAL` and `DREAM`, a policy and a vector env of one env in mode SAME_STEP to play it in.
        num_frames: of the video.
        seed: of the first episodes; the policy's own chances are torch's.

    Raises:
        What the envs raise.
    """
    titles = {REAL: "real game", DREAM: "dream"}
    sides = [_Side(titles[place], policy, SB3VecEnv(envs)) for place, (policy, envs) in _ordered(players)]
    for side in sides:
        side.envs.seed(seed)
    return [np.array(frame) for frame in islice(_frames(sides, deterministic), num_frames)]


def _ordered(players: Mapping[str, tuple[Policy, VectorEnv]]) -> list[tuple[str, tuple[Policy, VectorEnv]]]:
    """The real game first: it says where the dream begins."""
    return [(place, players[place]) for place in (REAL, DREAM) if place in players]


def _frames(sides: list[_Side], deterministic: bool) -> Iterator[np.ndarray]:
    while True:
        sides[0].begin(None)
        for side in sides[1:]:
            side.begin(sides[0].frame)
        yield _joined(sides)
        while not all(side.over for side in sides):
            for side in sides:
                side.step(deterministic)
            yield _joined(sides)


def _joined(sides: list[_Side]) -> np.ndarray:
    panels = [side.panel() for side in sides]
    gap = np.full((len(panels[0]), GAP, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (gap, panel)][1:]
    return np.concatenate(parts, 1)

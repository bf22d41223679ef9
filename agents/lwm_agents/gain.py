"""What a frame of the real game is worth to a policy that has a dream: how many it needs for the same return.

For every seed one policy learns in the real game alone. Another begins with what it learned in the dream and goes on in
the real game; a third, if asked for, learned in a dream that was renewed meanwhile by what it saw of the real game
(`lwm_agents.dyna`), and those frames count too. All are measured after the same numbers of real frames. Whatever is
finished stays in the folder and is not done again. The frames that the world was made of are not counted.

Shapes: S seeds, P points of a curve, E episodes, D draws of the bootstrap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lwm_agents.agent import read_facts
from lwm_agents.dream_to_real import TransferRun
from lwm_agents.dyna import RefreshConfig, train_with_refresh
from lwm_agents.evaluation import Played
from lwm_agents.imagination import Course, train_in_real
from lwm_agents.transfer import DRAWS, SEED
from lwm_env.errors import ConfigMismatch, InvalidInput

ALONE = "real"  # the kind of policy that has no dream


@dataclass(frozen=True)
class Curve:
    """What one policy reached in the real game, after more and more frames of it."""

    seed: int
    kind: str  # "real": of the real game alone; "dream", "renewed": where it had learned before
    frames: tuple[int, ...]  # of the real game that it had learned from, rising
    played: tuple[Played, ...]  # after each


class GainRun:
    """The curves of a report, made one after the other.

    Args:
        run: makes and measures the policies; its number of steps is that of the dream.
        frames: of the real game, rising: where policies are measured. Whole rollouts are played.
        refresh: None: without the third kind.
    """

    def __init__(self, run: TransferRun, frames: Sequence[int], refresh: RefreshConfig | None = None) -> None:
        if not frames or min(frames) < 1 or list(frames) != sorted(set(frames)):
            raise InvalidInput(f"the frames after which policies are measured must rise from 1 on, got {list(frames)}.")
        self.run, self.frames, self.refresh = run, frames, refresh
        self.kinds = (ALONE, "dream", *(["renewed"] if refresh else []))

    def curves(self, kinds: Sequence[str] = ()) -> list[Curve]:
        """Do what is left and return all curves, for each seed those of `kinds` (none: all). Raises what
        `TransferRun.run` and `train_with_refresh` raise."""
        return [self._curve(seed, kind) for seed in self.run.config.seeds for kind in kinds or self.kinds]

    def _curve(self, seed: int, kind: str) -> Curve:
        run, seen, steps = self.run, 0, 0
        folder, agent = self._begun(seed, kind)
        if agent is not None:
            facts = read_facts(agent)
            seen, steps = facts.get("real_frames", 0), facts["num_timesteps"]
        frames, played = [seen], [run.measured(folder, "real", seed, agent)]
        here = folder.with_name("alone") if kind == ALONE else folder / "then-real"
        places = {count: here / f"after-{count}" for count in self.frames}
        copies = {steps + count: place / "agent" for count, place in places.items()}
        config = replace(run.config_of(seed), num_steps=max(copies))
        course = Course(start=agent, copies=copies)
        train_in_real(run.world, run.make_real, here, config, run.device, course, **run.ppo)
        for place in places.values():
            if not (place / "agent").exists():
                raise ConfigMismatch(
                    f"the agent in {here} has learned from more frames than {place.name[6:]}, and no copy was kept of "
                    f"it then. Ask for the same --frames as before, or name another folder with --out."
                )
            frames.append(seen + read_facts(place / "agent")["num_timesteps"] - steps)
            played.append(run.measured(place, "real", seed, place / "agent"))
        return Curve(seed, kind, tuple(frames), tuple(played))

    def _begun(self, seed: int, kind: str) -> tuple[Path, Path | None]:
        """The folder of the policy that goes on in the real game, and its agent (None: one that knows nothing)."""
        run = self.run
        if kind != "renewed":
            return run.trained(seed, "random" if kind == ALONE else kind)
        folder = run.folder / f"seed-{seed}" / f"renewed-{run.dream}"
        train_with_refresh(run.world, folder, run.config_of(seed), self.refresh, run.device, **run.ppo)
        return folder, folder / "agent"


@dataclass(frozen=True)
class Gain:
    """What a kind of policy reached after some frames of the real game, and how many that alone takes for as much."""

    frames: int
    alone: float | None  # None: more than were measured
    low: float | None  # 95 % of a bootstrap over seeds and episodes
    high: float | None  # None: more than were measured

    @property
    def times(self) -> float | None:
        """How many times fewer frames the kind takes; None where it takes none, or where it is not known."""
        return self.alone / self.frames if self.alone and self.frames else None


def stack(curves: Sequence[Curve], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The frames (P,) of a kind and its returns (S, P, E)."""
    chosen = [curve for curve in curves if curve.kind == kind]
    return np.array(chosen[0].frames, float), np.array([[each.returns for each in curve.played] for curve in chosen])


def gains(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, list[Gain]]:
    """For each kind but the real game alone, after each number of frames, from what `stack` returns of each kind."""
    rng = np.random.default_rng(SEED)
    draws = {kind: _bootstrap(returns, rng) for kind, (_, returns) in curves.items()}
    frames_alone, returns_alone = curves[ALONE]
    found: dict[str, list[Gain]] = {}
    for kind, (frames, returns) in curves.items():
        if kind == ALONE:
            continue
        means = returns.mean((0, 2))
        alone = [frames_until(frames_alone, returns_alone.mean((0, 2)), mean) for mean in means]
        drawn = [
            [frames_until(frames_alone, line, mean) for mean in curve]
            for line, curve in zip(draws[ALONE], draws[kind], strict=True)
        ]
        beyond = np.array([[np.inf if count is None else count for count in row] for row in drawn])
        lows, highs = np.quantile(beyond, [0.025, 0.975], axis=0, method="nearest")
        ends = ([None if np.isinf(x) else float(x) for x in part] for part in (lows, highs))
        found[kind] = [Gain(int(count), *told) for count, *told in zip(frames, alone, *ends, strict=True)]
    return found


def frames_until(frames: np.ndarray, returns: np.ndarray, target: float) -> float | None:
    """Where the line through the points (P,) first reaches a return; None where it does not."""
    above = np.flatnonzero(returns >= target)
    if not len(above):
        return None
    i = above[0]
    if not i:
        return float(frames[0])
    share = (target - returns[i - 1]) / (returns[i] - returns[i - 1])
    return float(frames[i - 1] + share * (frames[i] - frames[i - 1]))


def _bootstrap(returns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mean curves (D, P) of returns (S, P, E): seeds are drawn anew, and then the episodes of each point."""
    num_seeds, num_points, num_episodes = returns.shape
    curves = np.empty((DRAWS, num_points))
    for draw in range(DRAWS):
        seeds = rng.integers(num_seeds, size=num_seeds)
        episodes = rng.integers(num_episodes, size=(num_seeds, num_points, num_episodes))
        curves[draw] = np.take_along_axis(returns[seeds], episodes, 2).mean((0, 2))
    return curves

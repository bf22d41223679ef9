"""`lwm demo`: a scripted player walks through a dreamed world, and what it sees becomes a video."""

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from tqdm import tqdm

from lwm_env import opponents, worlds
from lwm_env.errors import InvalidInput, StorageError, UnfamiliarPrompt, missing_extra
from lwm_env.prompt_file import read_prompt

VIDEO_SIDE = 512  # pixels that the shorter side of the video has at least


@click.command()
@click.option("--world", default="LWM-Platformer-v0", show_default=True, help="Id or folder of the world.")
@click.option("--out", type=click.Path(path_type=Path), default="demo.mp4", show_default=True, help="An .mp4.")
@click.option("--seconds", type=click.FloatRange(min=0.1, max=3600), default=30.0, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the world and the player.")
@click.option("--from", "start", type=click.Path(path_type=Path), metavar="FILE", help="A picture or clip to begin at.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def demo(
    world: str, out: Path, seconds: float, seed: int, device: str, as_json: bool, start: Path | None = None
) -> None:
    """Dream WORLD with a scripted player, write a video and tell how fast it went."""
    check_video_path(out)
    env = make(world, device)
    try:
        fps = env.metadata["render_fps"]
        options = read_prompt(start, env.unwrapped.world_spec) if start else None
        frames, figures = dream(env, max(1, round(seconds * fps)), seed, options)
    finally:
        env.close()
    write_video(out, frames, fps)
    if as_json:
        click.echo(json.dumps({"video": str(out), "video_fps": fps, **asdict(figures)}))
        return
    click.echo(
        f"{out}: {figures.num_frames} frames of {figures.world} ({figures.num_frames / fps:.1f} s at {fps} frames/s), "
        f"{figures.num_episodes} episodes, {figures.total_reward:g} points\n"
        f"dreamed at {figures.frames_per_second:.1f} frames/s on {figures.device}"
    )


@dataclass(frozen=True)
class Figures:
    """What a dream came to. `frames_per_second` counts env.step alone, without the first call and the video."""

    world: str
    device: str
    num_frames: int
    num_episodes: int
    total_reward: float
    frames_per_second: float


def make(world: str, device: str = "auto") -> gym.Env:
    """The env of a shipped world or of a world folder, as `gym.make` would give it."""
    folder = worlds.find(world)
    spec = worlds.read_spec(folder)
    return gym.make(
        EnvSpec(
            id=spec.id,
            entry_point="lwm_env.envs.env:LwmEnv",
            max_episode_steps=spec.max_episode_steps,
            kwargs={"world": str(folder), "device": device},
        ),
        render_mode="rgb_array",
    )


def dream(
    env: gym.Env, num_frames: int, seed: int, options: dict[str, Any] | None = None
) -> tuple[list[np.ndarray], Figures]:
    """`num_frames` steps of a scripted player: uint8 (H, W, 3) frames and the figures of the run.

    Args:
        options: of the first reset, such as the frames to start from.
    """
    spec = worlds.read_spec(env.spec.kwargs["world"])
    player = opponents.best_for(spec, spec.players[0], seed)
    observation, _ = told_once(env.reset, seed=seed, options=options)
    frames, seconds, total_reward, num_episodes = [], [], 0.0, 1
    for _ in tqdm(range(num_frames), desc="dreaming", unit="frame", disable=None):
        begin = time.perf_counter()
        observation, reward, terminated, truncated, _ = env.step(player.act(observation))
        seconds.append(time.perf_counter() - begin)
        frames.append(observation)
        total_reward += float(reward)
        if terminated or truncated:
            observation, _ = env.reset()
            num_episodes += 1
    timed = seconds[1:] or seconds
    return frames, Figures(
        world=env.spec.id,
        device=str(getattr(env.unwrapped, "device", "cpu")),
        num_frames=num_frames,
        num_episodes=num_episodes,
        total_reward=total_reward,
        frames_per_second=len(timed) / sum(timed),
    )


def told_once(call: Callable[..., Any], **arguments: Any) -> Any:
    """A call whose warning about an unfamiliar picture is a line on stderr instead of a Python warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnfamiliarPrompt)
        result = call(**arguments)
    for warning in caught:
        if issubclass(warning.category, UnfamiliarPrompt):
            click.echo(f"warning: {warning.message}", err=True)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return result


def check_video_path(out: Path, option: str = "--out") -> None:
    """Tell before the dream what would fail after it: InvalidInput, StorageError or MissingExtra."""
    if out.suffix.lower() != ".mp4":
        raise InvalidInput(
            f"{option} {out} has the suffix {out.suffix or 'none'}, but the video is an .mp4. Rename it."
        )
    if not out.parent.is_dir():
        raise StorageError(f"The folder {out.parent} for the video does not exist. Make it or name another one.")
    try:
        import moviepy  # noqa: F401
    except ImportError as error:
        raise missing_extra("moviepy", "video") from error


def write_video(
    out: Path, frames: list[np.ndarray], fps: int, side: int = VIDEO_SIDE, quality: int | None = None
) -> None:
    """Write uint8 (H, W, 3) frames as H.264, enlarged without smoothing; the file appears only when it is whole.

    Args:
        side: pixels that the shorter side has at least, by a whole factor.
        quality: H.264's constant rate factor, 0 to 51; higher is smaller and worse. None is the encoder's own.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    from moviepy import VideoClip

    scale = max(1, side // min(frames[0].shape[:2]))
    asked = [] if quality is None else ["-crf", str(quality)]

    def frame_at(t: float) -> np.ndarray:
        frame = frames[min(round(t * fps), len(frames) - 1)]
        return frame.repeat(scale, 0).repeat(scale, 1)

    partial = out.with_name(f".{out.stem}.part.mp4")
    try:
        clip = VideoClip(frame_at, duration=len(frames) / fps)
        clip.write_videofile(str(partial), fps=fps, codec="libx264", audio=False, logger=None, ffmpeg_params=asked)
        partial.replace(out)
    except OSError as error:
        reason = str(error)[-200:]
        raise StorageError(f"{out} could not be written: {reason}. Make room or name another place.") from error
    finally:
        partial.unlink(missing_ok=True)

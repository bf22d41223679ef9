"""`lwm play --window`: a world in a window of pygame, without a server."""

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from lwm_env.demo import make, told_once
from lwm_env.errors import InvalidInput, missing_extra
from lwm_env.prompt_file import read_prompt
from lwm_env.spec import DiscreteActions

SIDE = 640  # pixels that the longer side of the window has at least
ARROWS = {"a": "left", "d": "right", "w": "up", "s": "down"}


def play_in_window(
    world: str,
    device: str,
    seed: int,
    fps: float | None = None,
    num_frames: int | None = None,
    start: Path | None = None,
) -> None:
    """Play until the window is closed or Escape is pressed. R begins the next episode, P pauses.

    Args:
        num_frames: stop after so many steps.
        start: a picture or clip that the first episode begins at.

    Raises:
        MissingExtra: pygame is not installed.
        InvalidInput: the world has several players or no keys.
    """
    try:
        import pygame
    except ImportError as error:
        raise missing_extra("pygame", "play") from error
    env = make(world, device)
    with contextlib.closing(env):
        spec = env.unwrapped.world_spec
        if not isinstance(spec.actions, DiscreteActions) or not spec.actions.keys:
            raise InvalidInput(
                f"{spec.id} names no keys, so it cannot be played in a window. Use `lwm play` without it."
            )
        options = read_prompt(start, spec) if start else None
        observation, _ = told_once(env.reset, seed=seed, options=options)
        scale = max(1, SIDE // max(observation.shape[:2]))
        size = (observation.shape[1] * scale, observation.shape[0] * scale)
        pygame.display.init()
        try:
            screen, clock = pygame.display.set_mode(size), pygame.time.Clock()
            _play(pygame, env, (screen, clock, fps or spec.render_fps), observation, num_frames)
        finally:
            pygame.display.quit()


def _play(pygame: Any, env: Any, display: tuple[Any, Any, float], frame: np.ndarray, num_frames: int | None) -> None:
    screen, clock, fps = display
    spec, paused, score, shown = env.unwrapped.world_spec, False, 0.0, 0
    while num_frames is None or shown < num_frames:
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                return
            if event.type == pygame.KEYDOWN and event.key == pygame.K_p:
                paused = not paused
            if event.type == pygame.KEYDOWN and event.key == pygame.K_r:
                (frame, _), score = env.reset(), 0.0
        begin = time.perf_counter()
        if not paused:
            frame, reward, terminated, truncated, _ = env.step(_held_action(pygame, spec.actions))
            score += float(reward)
            if terminated or truncated:
                (frame, _), score = env.reset(), 0.0
        picture = pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        screen.blit(pygame.transform.scale(picture, screen.get_size()), (0, 0))
        milliseconds = 1000 * (time.perf_counter() - begin)
        pygame.display.set_caption(f"{spec.id} · {score:g} · {clock.get_fps():.0f} fps · {milliseconds:.0f} ms")
        pygame.display.flip()
        clock.tick(fps)
        shown += 1


def _held_action(pygame: Any, actions: DiscreteActions) -> int:
    """The action with the most keys, all of them held; arrows do what W, A, S and D do."""
    pressed = pygame.key.get_pressed()

    def is_held(key: str) -> bool:
        names = [key, ARROWS[key]] if key in ARROWS else [key]
        return any(pressed[pygame.key.key_code(name)] for name in names)

    held = [
        (len(keys), actions.meanings.index(meaning))
        for meaning, keys in actions.keys.items()
        if keys and all(map(is_held, keys))
    ]
    return max(held)[1] if held else 0

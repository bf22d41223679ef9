"""EnvPool's games (Procgen, Atari, CarRacing, ViZDoom and more), all copies in one C++ pool."""

import contextlib
import difflib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from lwm_env.errors import ConfigMismatch, InvalidInput, MissingExtra, UnknownWorld, missing_extra
from lwm_training.action_codec import ActionCodec
from lwm_training.frames import image_converter
from lwm_training.qt import load_qt
from lwm_training.source import Moved, SourceConfig

# What EnvPool takes besides the fields of an id's own configuration.
_MAKE_OPTIONS = ("from_pixels", "render_width", "render_height", "render_camera_id")
_OURS = ("num_envs", "batch_size", "num_threads", "seed", "env_seed", "max_num_players", "gym_reset_return_info")


def import_envpool() -> Any:
    """The `envpool` module, with Qt loaded before it.

    Raises:
        MissingExtra: EnvPool is not installed.
    """
    load_qt()
    try:
        import envpool
    except ImportError as error:
        raise missing_extra("envpool", "data") from error
    return envpool


class EnvPoolBackend:
    """A pool in which copy i is seeded by its own number, so that it does not depend on the others."""

    players = ("player_0",)

    def __init__(self, env_id: str, num_envs: int, options: dict[str, Any], config: SourceConfig) -> None:
        """Raises UnknownWorld, ConfigMismatch for an unknown option, MissingExtra without Qt."""
        self._envpool = import_envpool()
        self._id, self._num_envs, self._config = env_id, num_envs, config
        native = self._spec(options)
        self._options = {**_defaults(native.config, options, config), **options}
        spec = self._spec(self._options)
        self._image = image_converter(spec.observation_space, getattr(spec.config, "stack_num", 1))
        self._rendered = config.view == "render" or (config.view == "auto" and self._image is None)
        if self._image is None and not self._rendered:
            raise ConfigMismatch(f"{env_id} observes {spec.observation_space}, no image; use the view 'render'.")
        self._native_actions = spec.action_space
        self._doom = "vzd_path" in spec.config._fields
        self.codec = ActionCodec(spec.action_space)
        self.facts = {"library": f"envpool {self._envpool.__version__}", "options": self._options}
        self._pool: Any = None
        self._litter: tempfile.TemporaryDirectory | None = None  # ViZDoom writes into the folder it was started in
        self._seeds = np.zeros(num_envs, np.int64)

    def restart(self, rows: np.ndarray, seeds: np.ndarray | None) -> np.ndarray:
        if seeds is None:
            observations, info = self._pool.reset(rows.astype(np.int32))
        else:  # a pool cannot be seeded anew, but making one takes milliseconds
            if len(rows) != self._num_envs:
                raise InvalidInput(f"{self._id} can only be seeded all copies at once.")
            self.close()
            self._pool, self._seeds = self._make(seeds), seeds.copy()
            observations, info = self._pool.reset()
        order = self._order(rows, info)
        return self._frames(rows, observations, order)

    def advance(self, rows: np.ndarray, actions: np.ndarray) -> Moved:
        native = np.ascontiguousarray(actions[:, 0], dtype=self._native_actions.dtype)
        if native.ndim == 1:
            native = native.astype(np.int32)
        observations, rewards, terminations, truncations, info = self._pool.step(native, rows.astype(np.int32))
        order = self._order(rows, info)
        return Moved(
            self._frames(rows, observations, order),
            rewards[order, None].astype(np.float32),
            terminations[order].astype(bool),
            truncations[order].astype(bool),
        )

    def episode_seeds(self, rows: np.ndarray) -> np.ndarray:
        return self._seeds[rows]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._litter is not None:
            self._litter.cleanup()
            self._litter = None

    def _order(self, rows: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Threads may answer in another order than asked; also notes the level that each copy is in."""
        order = np.argsort(info["env_id"], kind="stable")
        if "level_seed" in info:
            self._seeds[rows] = info["level_seed"][order]
        return order

    def _frames(self, rows: np.ndarray, observations: np.ndarray, order: np.ndarray) -> np.ndarray:
        if self._rendered:
            return np.asarray(self._pool.render(env_ids=rows.tolist()))
        return self._image(observations[order])

    def _spec(self, options: dict[str, Any]) -> Any:
        if self._id not in self._envpool.list_all_envs():
            near = difflib.get_close_matches(self._id, self._envpool.list_all_envs(), n=3)
            hint = f"Did you mean {' or '.join(near)}?" if near else "envpool.list_all_envs() lists them."
            raise UnknownWorld(f"EnvPool has no {self._id!r}. {hint}")
        with _qt_named():
            known = [*self._envpool.make_spec(self._id).config._fields, *_MAKE_OPTIONS]
        for name in options:
            if name not in known or name in _OURS:
                near = difflib.get_close_matches(name, [key for key in known if key not in _OURS], n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(set(known) - set(_OURS)))}."
                raise ConfigMismatch(f"{self._id} has no option {name!r}. {hint}")
        try:
            return self._envpool.make_spec(self._id, **options)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ConfigMismatch(f"{self._id} does not take the options {options}: {error}") from error

    def _make(self, seeds: np.ndarray) -> Any:
        view = {"render_mode": "rgb_array"} if self._rendered else {}
        where: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self._doom:
            self._litter = tempfile.TemporaryDirectory(prefix="lwm-doom-", ignore_cleanup_errors=True)
            where = contextlib.chdir(self._litter.name)
        with where:
            return self._envpool.make(
                self._id,
                env_type="gymnasium",
                num_envs=self._num_envs,
                num_threads=min(self._config.num_threads, self._num_envs),
                env_seed=seeds.tolist(),
                **view,
                **self._options,
            )


def _defaults(config: Any, options: dict[str, Any], ours: SourceConfig) -> dict[str, Any]:
    """One RGB frame rather than a grey stack, at our size where the game scales itself, and its limit at ours."""
    chosen: dict[str, Any] = {"stack_num": 1, "gray_scale": False, "use_combined_action": True}
    if ours.frame_size is not None:
        chosen |= {"img_height": ours.frame_size[0], "img_width": ours.frame_size[1]}
    if ours.max_episode_steps is not None:
        chosen["max_episode_steps"] = ours.max_episode_steps
    return {name: value for name, value in chosen.items() if name in config._fields and name not in options}


@contextlib.contextmanager
def _qt_named() -> Iterator[None]:
    """Turns EnvPool's complaint about Qt into an error that names the wheel."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra(
            "EnvPool's Procgen needs Qt 5 and did not find it. Install it with: pip install PyQt5-Qt5 "
            "(or: apt install libqt5gui5), and let lwm_training import EnvPool, not your own code before it. "
            f"EnvPool says: {error}"
        ) from error

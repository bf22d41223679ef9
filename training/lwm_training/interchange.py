"""Data sets to and from Minari. Lossless, episode by episode, and without jax, which Minari's DataCollector needs."""

import difflib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from lwm_env.errors import ConfigMismatch, InvalidInput, UnknownWorld, missing_extra
from lwm_training.action_codec import ActionCodec
from lwm_training.episode import Layout, pack_episode
from lwm_training.episode_writer import EpisodeWriter
from lwm_training.episodes import EpisodeStore
from lwm_training.frames import image_converter, resize

_KEY = "lwm_env"  # of our own facts in Minari's metadata


def export_minari(folder: Path | str, dataset_id: str, author: str | None = None) -> dict[str, Any]:
    """Write a data set as a local Minari data set (HDF5, frames not compressed), where `minari.load_dataset` finds it.

    Joint actions become MultiDiscrete or a Box (P, A), and rewards (T, P); of one player they are plain. An episode
    that was cut off by the end of the recording is truncated there.

    Args:
        dataset_id: `namespace/env/name-v0`; the data go to $MINARI_DATASETS_PATH or ~/.minari/datasets.

    Raises:
        InvalidInput: not such an id, or one that exists.
    """
    minari = _import_minari()
    with EpisodeStore(folder) as store:
        layout = store.layout
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it wishes for an e-mail address and an environment
                dataset = minari.create_dataset_from_buffers(
                    dataset_id,
                    buffer=_buffers(minari, store),  # a generator: one episode in memory at a time
                    author=author,
                    algorithm_name=", ".join(sorted({session["policy"] for session in store.sessions})) or None,
                    description=f"{store.facts.get('source')}, recorded by lwm-env",
                    observation_space=spaces.Box(0, 255, layout.frame_shape, np.uint8),
                    action_space=_joint_space(layout),
                    jpeg_encoding=False,
                )
        except (ValueError, AssertionError) as error:
            raise InvalidInput(f"Minari does not take {dataset_id!r}: {error}") from error
        incomplete = np.flatnonzero(~store.complete).tolist()
        own = {"layout": layout.to_json(), "facts": store.facts, "incomplete": incomplete}
        dataset.storage.update_metadata({_KEY: json.dumps(own)})
        path = str(dataset.storage.data_path)
        return {"dataset_id": dataset_id, "path": path, "episodes": len(store), "frames": store.frames}


def import_minari(name: str, folder: Path | str, frame_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Turn a local Minari data set with image observations into one of ours.

    Args:
        name: its id, or the path of its folder.
        folder: where ours is made; it must be new or empty.
        frame_size: height and width; None keeps its own.

    Raises:
        UnknownWorld: no such data set.
        ConfigMismatch: its observations are no images, its actions are not supported, or the folder holds data.
        StorageError: the folder cannot be written.
    """
    dataset = _load(_import_minari(), name)
    image = image_converter(dataset.observation_space)
    if image is None:
        raise ConfigMismatch(f"{name} observes {dataset.observation_space}, no images.")
    own = json.loads(dataset.storage.metadata.get(_KEY, "{}"))
    codec = ActionCodec(dataset.action_space) if not own else None
    shown = next(iter(dataset.iterate_episodes([0]))).observations[:1]
    size = resize(image(np.asarray(shown)), frame_size).shape[1:3]
    layout = Layout.from_json({**own["layout"], "frame_size": list(size)}) if own else _layout(codec.space, size)
    facts = own.get("facts") or {"source": f"minari:{dataset.id}"}
    with EpisodeWriter(folder, layout, facts) as writer:
        if writer.frames:
            raise ConfigMismatch(f"{folder} holds {writer.frames} frames already; choose a new folder.")
        writer.begin_session({"policy": f"imported from {dataset.id}"})
        for data in dataset.iterate_episodes():
            metadata = next(iter(dataset.storage.get_episode_metadata([data.id])))
            actions = np.asarray(data.actions)
            steps = {
                "actions": codec.encode(actions) if codec else actions,
                "rewards": data.rewards,
                "terminations": data.terminations,
                "truncations": data.truncations,
            }
            complete = data.id not in own.get("incomplete", ())
            frames = resize(image(np.asarray(data.observations)), size)
            writer.append(pack_episode(layout, frames, steps, int(metadata.get("seed") or 0), complete))
        return {"folder": str(folder), "episodes": len(dataset), "frames": writer.frames}


def _import_minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise missing_extra("minari", "data") from error
    return minari


def _load(minari: Any, name: str) -> Any:
    folder = Path(name) / "data" if (Path(name) / "data").is_dir() else Path(name)
    try:
        return minari.MinariDataset(folder) if folder.is_dir() else minari.load_dataset(name)
    except (FileNotFoundError, ValueError, KeyError) as error:
        known = list(minari.list_local_datasets())
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Local ones: {', '.join(known[:10]) or 'none'}."
        raise UnknownWorld(f"There is no local Minari data set {name!r}. {hint}") from error


def _buffers(minari: Any, store: EpisodeStore) -> Iterator[Any]:
    alone = len(store.layout.players) == 1
    for number, episode in enumerate(store):
        actions, rewards = episode.steps["actions"], episode.steps["rewards"]
        yield minari.data_collector.EpisodeBuffer(
            id=number,
            seed=episode.seed,
            observations=episode.frames(store.layout.frame_shape),
            actions=actions[:, 0] if alone else actions,
            rewards=rewards[:, 0] if alone else rewards,
            terminations=episode.steps["terminations"],
            truncations=episode.steps["truncations"],
        )


def _joint_space(layout: Layout) -> spaces.Space:
    players = len(layout.players)
    if layout.num_actions:
        one = spaces.Discrete(layout.num_actions)
        return one if players == 1 else spaces.MultiDiscrete([layout.num_actions] * players)
    low, high = np.array(layout.low, np.float32), np.array(layout.high, np.float32)
    if players > 1:
        low, high = np.tile(low, (players, 1)), np.tile(high, (players, 1))
    return spaces.Box(low, high, dtype=np.float32)


def _layout(space: spaces.Discrete | spaces.Box, size: tuple[int, int]) -> Layout:
    if isinstance(space, spaces.Discrete):
        return Layout(tuple(size), ("player_0",), num_actions=int(space.n))
    return Layout(tuple(size), ("player_0",), low=tuple(space.low.tolist()), high=tuple(space.high.tolist()))

"""What a data set holds, in numbers."""

from pathlib import Path
from typing import Any

import numpy as np

from lwm_training.episodes import EpisodeStore


def data_facts(folder: Path | str) -> dict[str, Any]:
    """Counts, sizes, rewards and ends of a data set, and the facts of its source; for JSON."""
    with EpisodeStore(folder) as store:
        steps = [store.steps(episode) for episode in range(len(store))]
        returns = np.array([step["rewards"].sum(0) for step in steps]).reshape(len(store), -1)
        terminated = np.array([step["terminations"][-1] for step in steps], bool)
        counts: dict[str, int] = {}
        for step in steps:
            values, numbers = np.unique(step["rewards"], return_counts=True)
            for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
                counts[f"{value:g}"] = counts.get(f"{value:g}", 0) + number
        raw = int(np.prod(store.layout.frame_shape)) * (store.frames + len(store))
        return {
            "folder": str(folder),
            **store.facts,
            "layout": store.layout.to_json(),
            "sessions": list(store.sessions),
            "frames": store.frames,
            "episodes": len(store),
            "terminated": int(terminated.sum()),
            "truncated": int((store.complete & ~terminated).sum()),
            "cut_by_recording": int((~store.complete).sum()),
            "mean_length": round(float(store.lengths.mean()), 1) if len(store) else 0,
            "mean_return": [round(value, 4) for value in returns.mean(0).tolist()] if len(store) else [],
            "reward_counts": dict(sorted(counts.items(), key=lambda pair: -pair[1])[:10]),
            "distinct_seeds": len(np.unique(store.seeds)),
            "bytes": store.size,
            "compression": round(raw / store.size, 1) if store.size else 0,
        }

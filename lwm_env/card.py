"""What the command line tells about worlds and presets."""

import json
from typing import Any

from lwm_env.spec import DiscreteActions, WorldSpec
from lwm_env.worlds import Manifest


def describe(manifest: Manifest) -> str:
    """A page in the order of Gymnasium's own: description, actions, observations, rewards, start, end, origin."""
    spec = manifest.spec
    sections = {
        spec.id: spec.description,
        "Action space": _actions(spec),
        "Observation space": f"{spec.observation_space()}",
        "Rewards": f"one of {', '.join(f'{value:g}' for value in spec.reward_values)} a step",
        "Players": ", ".join(spec.players),
        "Starting state": "a stretch of real play from the prompt bank, chosen by the seed",
        "Episode end": (
            f"terminated when the model's end probability reaches {spec.termination_threshold:g};"
            f" truncated after {spec.max_episode_steps} steps"
        ),
        "Real twin": spec.real.source,
        "Files": "\n".join(f"{name}  {record.size} bytes" for name, record in manifest.files.items()),
        "Provenance": json.dumps(manifest.provenance, indent=2, ensure_ascii=False),
    }
    return "\n\n".join(f"{title}\n{'-' * len(title)}\n{text}" for title, text in sections.items())


def _actions(spec: WorldSpec) -> str:
    lines = [f"{spec.action_space()}"]
    if isinstance(spec.actions, DiscreteActions):
        for index, meaning in enumerate(spec.actions.meanings):
            keys = "+".join(spec.actions.keys.get(meaning, ())) or "-"
            lines.append(f"{index:3}  {meaning:12} keys {keys}")
    else:
        lines += [f"{index:3}  {meaning}" for index, meaning in enumerate(spec.actions.meanings)]
    return "\n".join(lines)


def preset_rows() -> dict[str, dict[str, Any]]:
    """Frame size and parameter counts of every preset, for a one-player world with nine actions.

    The models are built without memory (on torch's meta device).
    """
    import torch

    from lwm_env.presets import PRESETS
    from lwm_env.spec import RealSource
    from lwm_env.world_model import WorldModel

    rows = {}
    for name, config in PRESETS.items():
        actions = DiscreteActions(meanings=("NOOP",) * 9, source_actions=tuple(range(9)))
        spec = WorldSpec(
            id="LWM-Preset-v0",
            description="",
            frame_size=config.frame_size,
            actions=actions,
            reward_values=(0.0, 1.0),
            real=RealSource(source="none"),
        )
        with torch.device("meta"):
            model = WorldModel(config, spec)
        parts = {part: sum(p.numel() for p in child.parameters()) for part, child in model.named_children()}
        parts = {part: count for part, count in parts.items() if count}
        rows[name] = {"frame_size": config.frame_size, "parameters": sum(parts.values()), "parts": parts}
    return rows

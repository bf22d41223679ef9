"""What the command line tells about worlds and presets."""

import json
from typing import TYPE_CHECKING, Any

from lwm_env.spec import DiscreteActions, WorldSpec
from lwm_env.worlds import Manifest

if TYPE_CHECKING:
    from lwm_env.world_model import WorldModel


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
            f"terminated when the model's end probability reaches {spec.termination_threshold:g}"
            + (", or with that probability where the temperature is above 0" if spec.draw_ends else "")
            + (f" or a player has {spec.points_to_win} points" if spec.points_to_win else "")
            + f"; truncated after {spec.max_episode_steps} steps"
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
    """What every preset is, for a one-player world with nine actions: frame size, parameters and those of each part,
    FLOPs a frame, bytes of the weights in float32 and of one world's state, and `at_most_frames_per_second` by card.

    The last is the roofline of one world: a frame takes at least its FLOPs at the fp32 rate, and reading all weights
    once at the memory bandwidth, that the card's maker states. It is a bound and no measurement.

    The models are built without memory (on torch's meta device).
    """
    import torch

    from lwm_env.machine import CARDS
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
        flops, state_bytes = work_of_a_frame(model)
        weight_bytes = 4 * sum(parts.values())
        rows[name] = {
            "frame_size": config.frame_size,
            "parameters": sum(parts.values()),
            "parts": parts,
            "flops_per_frame": flops,
            "weight_bytes": weight_bytes,
            "state_bytes_per_world": state_bytes,
            "at_most_frames_per_second": {
                card: round(1 / max(flops / (1e9 * gflops), weight_bytes / (1e9 * gb_per_second)), 1)
                for card, (gflops, gb_per_second) in CARDS.items()
            },
        }
    return rows


def work_of_a_frame(model: "WorldModel") -> tuple[int, int]:
    """FLOPs of one step of one world by torch's own counter, and the bytes of its state; on the model's device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    spec, device = model.spec, next(model.parameters()).device
    frames = torch.zeros(1, 1, *spec.frame_size, 3, dtype=torch.uint8, device=device)
    shape: tuple[int, ...] = (1, len(spec.players))
    dtype = torch.int64
    if not isinstance(spec.actions, DiscreteActions):
        shape, dtype = (*shape, spec.actions.dim), torch.float32
    action = torch.zeros(shape, dtype=dtype, device=device)
    with torch.no_grad():  # in inference mode the counter does not see linear layers
        state = model.start(frames, action[:, None][:, :0])
        with FlopCounterMode(display=False) as counter:
            model.step(state, action)
    return counter.get_total_flops(), sum(value.nbytes for value in state.values())


def preset_lines(rows: dict[str, dict[str, Any]]) -> list[str]:
    """`preset_rows` as text."""
    lines = []
    for name, row in rows.items():
        height, width = row["frame_size"]
        parts = ", ".join(f"{part} {count / 1e6:.2f}" for part, count in row["parts"].items())
        lines.append(f"{name:6} {width}x{height}  {row['parameters'] / 1e6:.2f} M parameters ({parts})")
        bounds = ", ".join(f"{card} {rate:,.0f}" for card, rate in row["at_most_frames_per_second"].items())
        lines.append(
            f"       {row['flops_per_frame'] / 1e9:.2f} GFLOP a frame, weights {row['weight_bytes'] / 1e6:,.0f} MB in"
            f" float32, state {row['state_bytes_per_world'] / 1e6:.2f} MB a world; frames/s at most: {bounds}"
        )
    return [*lines, "At most: by the fp32 rate and bandwidth that the maker states; a bound, no measurement."]

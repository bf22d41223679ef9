"""An exported step with int8 convolutions and linear layers, and the proof that its dreams are still as good.

Static QDQ: the ranges of all activations are fixed beforehand, from dreams that start at the world's prompts.

Shapes: Q clips of T real frames, P players, A action numbers.
"""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwm_env.errors import ConfigMismatch, InvalidInput, StorageError
from lwm_env.export.graph import ACTION, NOISE
from lwm_env.export.onnx_world import OnnxWorld
from lwm_env.spec import ContinuousActions, WorldSpec
from lwm_env.world_model import Prompts

QUANTIZED = ["Conv", "MatMul", "Gemm"]
EXACT = ("model.camera.", "model.motion.layers.", "model.motion.write.")  # fractions of a pixel; exact copies
MAX_DROP = 0.3  # dB of pooled PSNR to the real frames
STEPS = 60  # of a dream, when there are as many real frames
KEPT_STEPS = 4  # every fourth state of a dream is calibrated on
MAX_DREAMS = 32
KEEP_PROBABILITY = 0.85  # of an action, for one more step


@dataclass(frozen=True)
class Check:
    """Pooled PSNR in dB of the dreams of both against the same real frames."""

    float32: float
    int8: float
    clips: int
    steps: int

    @property
    def drop(self) -> float:
        return self.float32 - self.int8

    def __str__(self) -> str:
        return (
            f"int8 {self.int8:.2f} dB, float32 {self.float32:.2f} dB, a drop of {self.drop:.2f} dB "
            f"(pooled PSNR to the real frames of {self.clips} clips over {self.steps} steps)"
        )


def quantize(world: OnnxWorld, starts: Prompts) -> Any:
    """The step of a world as an int8 `onnx.ModelProto`, calibrated on dreams from `starts`.

    Args:
        world: in float32, for one world at a time.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._inputs = calibration_inputs(world, starts)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._inputs, None)

    logger = logging.getLogger()  # onnxruntime advises there to pre-process, which changed nothing here
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "int8.onnx"
            quantize_static(
                str(world.file),
                str(out),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=QUANTIZED,
                nodes_to_exclude=_exact_nodes(onnx.load(world.file)),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return onnx.load(out)
    except OSError as error:
        raise StorageError(f"no room for the temporary files of int8: {error.strerror or error}.") from error
    finally:
        logger.setLevel(level)


def _exact_nodes(proto: Any) -> list[str]:
    """Names of the nodes whose weights are those of `EXACT` layers."""
    return [node.name for node in proto.graph.node if any(name.startswith(EXACT) for name in node.input)]


def calibration_inputs(world: OnnxWorld, starts: Prompts) -> Iterator[dict[str, np.ndarray]]:
    """What goes into some steps of dreams with held random actions."""
    rng = np.random.default_rng(0)
    for clip in range(min(len(starts.frames), MAX_DREAMS)):
        state = world.start(starts.frames[clip : clip + 1], starts.actions[clip : clip + 1])
        action = random_action(world.spec, rng)
        for step in range(STEPS):
            if rng.random() > KEEP_PROBABILITY:
                action = random_action(world.spec, rng)
            if step % KEPT_STEPS == 0:
                inputs = {**state, ACTION: action, **({NOISE: world.no_noise} if world.sampled else {})}
                yield {name: value.contiguous().numpy() for name, value in inputs.items()}
            state, _ = world.step(state, action)


def random_action(spec: WorldSpec, rng: np.random.Generator) -> Tensor:
    """One joint action, (1, P) or (1, P, A)."""
    players, actions = len(spec.players), spec.actions
    if isinstance(actions, ContinuousActions):
        drawn = rng.uniform(actions.low, actions.high, (1, players, actions.dim))
        return torch.from_numpy(drawn.astype(np.float32))
    return torch.from_numpy(rng.integers(actions.dim, size=(1, players)))


@torch.inference_mode()
def squared_error(world: OnnxWorld, clips: Prompts, context: int) -> float:
    """Mean squared error in grey levels of greedy dreams that see the first `context` frames of every clip."""
    total = 0.0
    for frames, actions in zip(clips.frames.split(1), clips.actions.split(1), strict=True):
        state = world.start(frames[:, :context], actions[:, : context - 1])
        for step in range(context, frames.shape[1]):
            state, out = world.step(state, actions[:, step - 1])
            total += (out.frame.float() - frames[:, step].float()).square().mean().item()
    return total / (len(clips.frames) * (clips.frames.shape[1] - context))


def compare(float32: OnnxWorld, int8: OnnxWorld, clips: Prompts) -> Check:
    """Dream the clips with both; all but the last `STEPS` frames, one at least, are context."""
    context = max(1, clips.frames.shape[1] - STEPS)
    errors = [max(squared_error(world, clips, context), 1e-9) for world in (float32, int8)]
    one, other = (10 * np.log10(255**2 / error) for error in errors)
    return Check(float(one), float(other), len(clips.frames), clips.frames.shape[1] - context)


def accept(check: Check) -> None:
    """Raises ConfigMismatch unless int8 dreams lose less than `MAX_DROP`."""
    if not check.drop < MAX_DROP:
        raise ConfigMismatch(
            f"int8 is refused for this world: {check}; less than {MAX_DROP} dB is allowed. Export without --int8."
        )


def read_clips(file: Path, spec: WorldSpec) -> Prompts:
    """Real clips: an .npz of `frames` uint8 (Q, T, H, W, 3) and `actions` (Q, T - 1, P) or (Q, T - 1, P, A).

    Raises:
        InvalidInput: it is not that, or of another world's shapes.
    """
    try:
        with np.load(file) as arrays:
            frames, actions = arrays["frames"], arrays["actions"]
    except (OSError, ValueError, LookupError) as error:
        raise InvalidInput(f"{file} is not an .npz of `frames` and `actions`: {error}"[:300]) from error
    continuous = isinstance(spec.actions, ContinuousActions)
    tail = (len(spec.players), spec.actions.dim) if continuous else (len(spec.players),)
    good = frames.ndim == 5 and frames.shape[2:] == (*spec.frame_size, 3) and frames.dtype == np.uint8
    if not good or frames.shape[1] < 2 or actions.shape != (len(frames), frames.shape[1] - 1, *tail):
        raise InvalidInput(
            f"{file} has frames {frames.dtype} {frames.shape} and actions {actions.shape}; expected uint8 "
            f"(Q, T, {', '.join(map(str, spec.frame_size))}, 3), T >= 2, and (Q, T - 1, {', '.join(map(str, tail))})."
        )
    actions = actions.astype(np.float32 if continuous else np.int64)
    return Prompts(torch.from_numpy(frames), torch.from_numpy(actions))

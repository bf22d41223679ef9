"""`WorldModel.step` of a fixed batch as an ONNX graph, whatever tensors the model's state has.

Inputs: every tensor of the state under its own name, `action`, and `noise`, Gumbel numbers times the temperature.
Outputs: the new state as `new_NAME`, then the fields of `Output`. The world's weights lie inside the graph.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lwm_env.belief import Output, State
from lwm_env.errors import missing_extra
from lwm_env.spec import DiscreteActions
from lwm_env.world_model import WorldModel

OPSET = 20
REVISION = 3  # of how a step is written as a graph; what was exported by another is not run from the cache
ACTION, NOISE, NEW = "action", "noise", "new_"


class Step(nn.Module):
    """The step with the state's tensors as arguments one by one, in the order of `names`."""

    def __init__(self, model: WorldModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self.names, inputs, strict=False))
        action, *noise = inputs[len(self.names) :]
        new, out = self.model.step(state, action, noise[0] if noise else None, 1.0 if noise else 0.0)
        return (*(new[name] for name in self.names), *out)


def example_state(model: WorldModel, batch: int) -> State:
    """The state of `batch` worlds that have seen one black picture, for its names, dtypes and shapes."""
    spec, device = model.spec, model.reward_values.device
    frames = torch.zeros(batch, 1, *spec.frame_size, 3, dtype=torch.uint8, device=device)
    state = model.start(frames, example_action(model, batch)[:, None][:, :0])
    return {name: value.contiguous() for name, value in state.items()}


def example_action(model: WorldModel, batch: int) -> Tensor:
    """A joint action of `batch` worlds: zeros (B, P) or (B, P, A)."""
    spec, device = model.spec, model.reward_values.device
    if isinstance(spec.actions, DiscreteActions):
        return torch.zeros(batch, len(spec.players), dtype=torch.int64, device=device)
    return torch.zeros(batch, len(spec.players), spec.actions.dim, device=device)


def export_step(model: WorldModel, batch: int, sampled: bool = True) -> Any:
    """The step as an `onnx.ModelProto` with no external data.

    Args:
        model: never written to.
        batch: the number of worlds, fixed in the graph.
        sampled: whether there is an input `noise`; without it the likeliest tokens are drawn.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
    """
    for package in ("onnx", "onnxscript"):
        if not _importable(package):
            raise missing_extra(package, "onnx")
    state = example_state(model, batch)
    inputs = {**state, ACTION: example_action(model, batch)}
    if sampled:
        inputs[NOISE] = torch.zeros(batch, model.noise_dim, device=model.reward_values.device)
    with _quiet(), torch.no_grad():
        program = torch.export.export(Step(model, list(state)).eval(), tuple(inputs.values()))
        program = program.run_decompositions(_DECOMPOSITIONS)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[*(NEW + name for name in state), *Output._fields],
            verbose=False,
        )
    return exported.model_proto


def _importable(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of libraries it does not need and of its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# -- operators that not every runtime has, or that are slow, in terms of others ---------------------------------------


def _slice_scatter(
    base: Tensor, part: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """Writing into a slice as a concatenation of what is before, the part, and what is after; else a ScatterND."""
    if step != 1:
        return NotImplemented
    size = base.shape[dim]
    first, last, _ = slice(start, end).indices(size)
    pieces = [base.narrow(dim, 0, first), part, base.narrow(dim, last, size - last)]
    return torch.cat([piece for piece in pieces if piece.shape[dim]], dim)


def _index(table: Tensor, indices: list[Tensor | None]) -> Tensor:
    """Rows of a table as a Gather; else a GatherND."""
    rows = indices[0]
    if len(indices) != 1 or rows is None or rows.dtype == torch.bool:
        return NotImplemented
    return table.index_select(0, rows.flatten()).reshape(*rows.shape, *table.shape[1:])


def _sum(x: Tensor, dims: list[int], keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """Over dimension 1 as additions: ONNX Runtime adds up a batch of one in another order than a larger one, and the
    bytes of a row must not depend on the number of rows."""
    if dims != [1] or dtype is not None:
        return NotImplemented
    total = x.narrow(1, 0, 1)
    for index in range(1, x.shape[1]):
        total = total + x.narrow(1, index, 1)
    return total if keepdim else total.squeeze(1)


def _pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """As two transpositions that each move one axis: ONNX Runtime does these 3 to 6 times faster than one of six."""
    batch, planes, height, width = x.shape
    rows, columns = height // factor, width // factor
    x = x.reshape(batch * planes, rows, factor, width).permute(0, 2, 1, 3)
    x = x.reshape(batch * planes * factor, rows * columns, factor).permute(0, 2, 1)
    return x.reshape(batch, planes * factor**2, rows, columns)


def _pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """The inverse, likewise."""
    batch, planes, rows, columns = x.shape
    planes //= factor**2
    x = x.reshape(batch * planes * factor, factor, rows * columns).permute(0, 2, 1)
    x = x.reshape(batch * planes, factor, rows, columns * factor).permute(0, 2, 1, 3)
    return x.reshape(batch, planes, rows * factor, columns * factor)


_DECOMPOSITIONS = {
    torch.ops.aten.sum.dim_IntList: _sum,
    torch.ops.aten.pixel_unshuffle.default: _pixel_unshuffle,
    torch.ops.aten.pixel_shuffle.default: _pixel_shuffle,
    torch.ops.aten.slice_scatter.default: _slice_scatter,
    torch.ops.aten.index.Tensor: _index,
}

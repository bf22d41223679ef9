"""What the commands of `lwm agent` share.

The real game comes from a function that is named, not imported: `lwm_agents` and `lwm_training` know nothing of each
other, and another maker of real envs is one option away.
"""

import importlib.util
import logging
import pkgutil
from collections.abc import Callable
from typing import Any

import click

from lwm_env.errors import InvalidInput, LwmError

REAL_ENV = "lwm_training.real:make_real_vec"  # called with the world, num_envs, seed, split and autoreset_mode

sees = click.option(
    "--sees",
    type=click.Choice(["pixels", "places"]),
    default="pixels",
    show_default=True,
    help="What a policy sees: the frame, or where the world finds its movers in it.",
)


def show_progress() -> None:
    """What trainings tell at their checkpoints, unless `lwm -q` asked for errors alone."""
    if logging.getLogger().getEffectiveLevel() <= logging.WARNING:
        logging.getLogger("lwm.agent").setLevel(logging.INFO)


def choose_backend(name: str, device: str) -> str:
    """What is faster: on a CPU ONNX Runtime, where it and the exporter are installed."""
    if name != "auto":
        return name
    from lwm_agents.agent import choose_device

    there = all(importlib.util.find_spec(module) for module in ("onnx", "onnxscript", "onnxruntime"))
    return "onnx" if there and choose_device(device) == "cpu" else "torch"


def resolve(name: str) -> Callable[..., Any]:
    """What `--real` names."""
    try:
        return pkgutil.resolve_name(name)
    except LwmError:
        raise
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(f"--real {name!r:.80} cannot be imported ({error}). Give MODULE:FUNCTION.") from error

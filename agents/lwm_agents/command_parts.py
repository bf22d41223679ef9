"""What the commands of `lwm agent` share.

The real game comes from a function that is named, not imported: `lwm_agents` and `lwm_training` know nothing of each
other, and another maker of real envs is one option away.
"""

import importlib.util
import logging
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lwm_env.errors import InvalidInput, LwmError

if TYPE_CHECKING:
    from lwm_agents.dream_to_real import TransferRun

REAL_ENV = "lwm_training.real:make_real_vec"  # called with the world, num_envs, seed, split and autoreset_mode

sees = click.option(
    "--sees",
    type=click.Choice(["pixels", "places"]),
    default="pixels",
    show_default=True,
    help="What a policy sees: the frame, or where the world finds its movers in it.",
)

backend = click.option(
    "--backend", type=click.Choice(["auto", "torch", "onnx"]), default="auto", show_default=True, help="Of dreams."
)
device = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
real = click.option(
    "--real", default=REAL_ENV, show_default=True, metavar="MODULE:FUNCTION", help="Makes the real game."
)


def policies(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which policies a report trains and how it measures them: the options that `open_run` takes."""
    shown = {"show_default": True}
    options = (
        click.option("--seeds", "num_seeds", type=click.IntRange(1), default=3, help="Policies of a kind.", **shown),
        click.option("--steps", "num_steps", type=click.IntRange(1), default=200_000, help="Of each policy.", **shown),
        click.option("--envs", "num_envs", type=click.IntRange(1, 65_536), default=64, **shown),
        click.option("--seed", type=click.IntRange(0), default=0, help="The first one.", **shown),
        click.option(
            "--horizon", type=click.IntRange(1), help="Steps until a dream is cut; the world's limit by default."
        ),
        click.option("--surprise-penalty", type=click.FloatRange(0), default=0.0, help="Per nat and step.", **shown),
        sees,
        click.option("--save-every", type=click.IntRange(1), default=20_000, help="Steps.", **shown),
        click.option("--episodes", "num_episodes", type=click.IntRange(2), default=200, help="Of a policy.", **shown),
        click.option("--split", default="validation", help="Whose levels measure; it learns on train.", **shown),
        click.option("--deterministic", is_flag=True, help="The likeliest action instead of a drawn one."),
        real,
        device,
        backend,
    )
    for option in reversed(options):
        command = option(command)
    return command


def into(mark: str) -> Callable[..., Any]:
    """Where a report's table goes beside its folder."""
    return click.option(
        "--into",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"A Markdown file to get the table between its lines <!-- {mark} WORLD --> and <!-- /{mark} -->.",
    )


def open_run(world: str, folder: Path, options: dict[str, Any]) -> "TransferRun":
    """What makes and measures the policies of a report in `folder`, from the values of the options of `policies`."""
    from lwm_agents.dream_to_real import TransferConfig, TransferRun
    from lwm_agents.imagination import ImaginationConfig

    names = ("num_seeds", "num_episodes", "num_dream_episodes", "split", "deterministic")
    measuring = {name: options.pop(name) for name in names if name in options}
    device, make_real = options.pop("device"), resolve(options.pop("real"))
    options["backend"] = choose_backend(options["backend"], device)
    config = TransferConfig(training=ImaginationConfig(**options), **measuring)
    return TransferRun(world, make_real, folder, config, device)


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

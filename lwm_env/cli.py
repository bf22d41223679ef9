"""The `lwm` command. Subcommands are imported when they are called, so that `lwm --help` needs no torch and no extra.

Results go to stdout, logs and progress to stderr. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.
"""

import difflib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import sys
from typing import Any, NamedTuple

import click

from lwm_env import __version__
from lwm_env.errors import LwmError, MissingExtra, missing_extra

# The import names that each extra brings; the first extra that has a missing one is the one to name.
EXTRA_MODULES = {
    "agents": ("stable_baselines3", "sb3_contrib", "tensorboard"),
    "train": ("accelerate", "h5py", "matplotlib", "tensorboard"),
    "data": ("h5py", "hdf5plugin", "minari", "envpool", "cv2"),
    "video": ("moviepy",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "web": ("fastapi", "starlette", "uvicorn", "wsproto", "websockets", "limits", "prometheus_client"),
    "play": ("pygame",),
    "hub": ("huggingface_hub",),
    "ray": ("ray", "aiohttp", "yarl"),
    "atari": ("ale_py", "multi_agent_ale_py", "pygame"),
}

log = logging.getLogger("lwm")


class Mount(NamedTuple):
    """A subcommand that is imported when it is called."""

    module: str
    attribute: str
    help: str


MOUNTS = {
    "agent": Mount("lwm_agents.commands", "agent", "Train a policy inside a world, and measure it there and outside."),
    "demo": Mount("lwm_env.demo", "demo", "Dream a world with a scripted player and write a video."),
    "doctor": Mount("lwm_env.doctor", "doctor", "Show versions, devices, extras and shipped worlds, and check them."),
    "bench": Mount("lwm_env.bench", "bench", "Measure how fast a world steps, and what share of the machine that is."),
    "export": Mount("lwm_env.export.command", "export", "Write a world as one ONNX file, for other runtimes."),
    "play": Mount("lwm_env.web.play", "play", "Play a world in the browser, alone or with others."),
    "serve": Mount("lwm_env.web.play", "serve", "Serve worlds to other machines."),
    "loadtest": Mount("lwm_env.web.loadtest", "loadtest", "Measure a server with many players at once."),
    "collect": Mount("lwm_training.commands_data", "collect", "Record episodes of a real environment."),
    "data": Mount("lwm_training.commands_data", "data", "Look at, import and export recorded episodes."),
    "new": Mount("lwm_training.commands_new", "new", "Make a world of any game in one command."),
    "train": Mount("lwm_training.commands_train", "train", "Train a world from a recipe."),
    "distill": Mount("lwm_training.commands_distill", "distill", "Distil a large world into a smaller one."),
    "evaluate": Mount("lwm_training.commands_evaluate", "evaluate", "Measure a world against the real game."),
    "gallery": Mount(
        "lwm_training.gallery", "gallery", "Draw one picture of all worlds, a row of dreamed frames each."
    ),
    "idm": Mount("lwm_training.commands_idm", "idm", "Train the net by which lwm evaluate measures obedience."),
}


class LazyGroup(click.Group):
    """A group whose further commands stand in `MOUNTS`; those whose module is not installed do not exist."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        mounted = [name for name, mount in MOUNTS.items() if _is_installed(mount.module)]
        return sorted([*super().list_commands(ctx), *mounted])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        mount = MOUNTS.get(name)
        if mount is None or not _is_installed(mount.module):
            return super().get_command(ctx, name)
        return getattr(importlib.import_module(mount.module), mount.attribute)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            nearest = difflib.get_close_matches(args[0], known, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else f" Commands: {', '.join(known)}."
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            own = self.commands.get(name)
            rows.append((name, own.get_short_help_str(80) if own else MOUNTS[name].help))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    parts = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "gymnasium")]
    click.echo(f"lwm-env {__version__} ({', '.join(parts)}, Python {sys.version.split()[0]})")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="And exit.")
@click.option("-v", "--verbose", count=True, help="More logs on stderr; -vv shows the origin of an error.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors on stderr.")
def lwm(verbose: int, quiet: bool) -> None:
    """Learned worlds that are environments: dream, record, train, evaluate."""
    levels = [logging.WARNING, logging.INFO, logging.DEBUG]
    level = logging.ERROR if quiet else levels[min(verbose, 2)]
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


@lwm.group()
def envs() -> None:
    """List the shipped and the installed worlds, or show one."""


@envs.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def list_envs(as_json: bool) -> None:
    """The ids to give to gym.make."""
    from lwm_env import worlds

    folders = {**worlds.installed(), **worlds.shipped()}
    specs = {world_id: worlds.read_spec(folder) for world_id, folder in folders.items()}
    if as_json:
        click.echo(json.dumps({world_id: spec.model_dump(mode="json") for world_id, spec in specs.items()}))
        return
    for world_id, spec in specs.items():
        height, width = spec.frame_size
        click.echo(f"{world_id}  {width}x{height}  {spec.actions.dim} actions  {spec.description}")
    if not specs:
        click.echo("no world is shipped in this installation", err=True)


@envs.command("show")
@click.argument("world")
@click.option("--json", "as_json", is_flag=True, help="The whole world.json on stdout.")
def show_env(world: str, as_json: bool) -> None:
    """What WORLD (an id or a folder) observes, does, rewards and was made from."""
    from lwm_env import card, worlds

    manifest = worlds.read_manifest(worlds.find(world))
    click.echo(manifest.model_dump_json() if as_json else card.describe(manifest))


@lwm.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def presets(as_json: bool) -> None:
    """The model sizes: parameters, work and memory of a frame, and the roofline of two cards."""
    from lwm_env import card

    rows = card.preset_rows()
    if as_json:
        click.echo(json.dumps(rows))
        return
    click.echo("\n".join(card.preset_lines(rows)))


def _extra_of(error: ModuleNotFoundError) -> MissingExtra | None:
    """The typed error, when what could not be imported belongs to an extra."""
    package = (error.name or "").partition(".")[0]
    for extra, modules in EXTRA_MODULES.items():
        if package in modules:
            return missing_extra(package, extra)
    return None


def main(args: list[str] | None = None) -> int:
    """Run `lwm` and return its exit code."""
    try:
        result = lwm.main(args=args, prog_name="lwm", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        return 130
    except (LwmError, ModuleNotFoundError) as error:
        told = error if isinstance(error, LwmError) else _extra_of(error)
        if told is None:
            raise
        log.debug("the error came from here", exc_info=True)
        click.echo(f"error: {told}", err=True)
        return 1
    return result if isinstance(result, int) else 0  # an int comes from ctx.exit(code)


if __name__ == "__main__":  # for `torchrun -m lwm_env.cli train RECIPE`
    sys.exit(main())

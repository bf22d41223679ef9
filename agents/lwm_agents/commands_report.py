"""`lwm agent report`: what a policy that learned in the dream keeps in the real game."""

import json
from pathlib import Path
from typing import Any

import click

from lwm_agents import command_parts


@click.command()
@click.argument("world")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder [runs/agent-report-WORLD].")
@click.option("--seeds", "num_seeds", type=click.IntRange(1), default=3, show_default=True, help="Policies of a kind.")
@click.option(
    "--only", "kinds", type=click.Choice(["random", "real", "dream"]), multiple=True, help="Do these now, not the rest."
)
@click.option(
    "--steps", "num_steps", type=click.IntRange(1), default=200_000, show_default=True, help="Of each policy."
)
@click.option("--envs", "num_envs", type=click.IntRange(1, 65_536), default=64, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The first one.")
@click.option("--horizon", type=click.IntRange(1), help="Steps until a dream is cut; the world's limit by default.")
@click.option("--surprise-penalty", type=click.FloatRange(0), default=0.0, show_default=True, help="Per nat and step.")
@command_parts.sees
@click.option("--save-every", type=click.IntRange(1), default=20_000, show_default=True, help="Steps.")
@click.option("--episodes", "num_episodes", type=click.IntRange(2), default=200, show_default=True, help="Of a policy.")
@click.option("--dream-episodes", "num_dream_episodes", type=click.IntRange(2), help="In the dream [as --episodes].")
@click.option("--split", default="validation", show_default=True, help="Whose levels measure; it learns on train.")
@click.option("--deterministic", is_flag=True, help="The likeliest action instead of a drawn one.")
@click.option(
    "--real", default=command_parts.REAL_ENV, show_default=True, metavar="MODULE:FUNCTION", help="Makes the real game."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--backend", type=click.Choice(["auto", "torch", "onnx"]), default="auto", show_default=True, help="Of dreams."
)
@click.option(
    "--into",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A Markdown file to get the table between its lines <!-- agents WORLD --> and <!-- /agents -->.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def report(
    world: str,
    out: Path | None,
    kinds: tuple[str, ...],
    real: str,
    device: str,
    into: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Does a policy that learned inside WORLD win in the real game? Random actions, PPO in the real game and PPO in the
    dream, all measured in the real game.

    The run may be stopped and started again. It may also be done in parts, as --only dream or with more and more
    --seeds; a call without --only does what is left and writes the report.
    """
    from lwm_agents import transfer_report
    from lwm_agents.dream_to_real import TransferConfig, TransferRun
    from lwm_agents.imagination import ImaginationConfig

    names = ("num_seeds", "num_episodes", "num_dream_episodes", "split", "deterministic")
    measuring = {name: options.pop(name) for name in names}
    options["backend"] = command_parts.choose_backend(options["backend"], device)
    config = TransferConfig(training=ImaginationConfig(**options), **measuring)
    folder = out or Path("runs") / f"agent-report-{Path(world).name}"
    run = TransferRun(world, command_parts.resolve(real), folder, config, device)
    command_parts.show_progress()
    if kinds:
        rows = [transfer_report.as_row(trial) for trial in run.run(kinds)]
        lines = [" ".join(f"{name} {value}" for name, value in row.items()) for row in rows]
        click.echo(json.dumps({"trials": rows}) if as_json else "\n".join(lines))
        return
    found = transfer_report.build(run, run.run())
    transfer_report.write_report(folder, found)
    if into:
        transfer_report.insert_table(into, found)
    click.echo(
        found.to_json().strip() if as_json else f"{transfer_report.as_table(found)}\n{folder / transfer_report.RECORD}"
    )

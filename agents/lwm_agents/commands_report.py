"""`lwm agent report` and `lwm agent gain`: what a policy that learned in the dream keeps in the real game, and how many
frames of the real game that saves."""

import json
from pathlib import Path
from typing import Any

import click

from lwm_agents import command_parts


@click.command()
@click.argument("world")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder [runs/agent-report-WORLD].")
@click.option(
    "--only", "kinds", type=click.Choice(["random", "real", "dream"]), multiple=True, help="Do these now, not the rest."
)
@command_parts.policies
@click.option("--dream-episodes", "num_dream_episodes", type=click.IntRange(2), help="In the dream [as --episodes].")
@command_parts.into("agents")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def report(
    world: str, out: Path | None, kinds: tuple[str, ...], into: Path | None, as_json: bool, **options: Any
) -> None:
    """Does a policy that learned inside WORLD win in the real game? Random actions, PPO in the real game and PPO in the
    dream, all measured in the real game.

    The run may be stopped and started again. It may also be done in parts, as --only dream or with more and more
    --seeds; a call without --only does what is left and writes the report.
    """
    from lwm_agents import transfer_report
    from lwm_agents.report_files import insert_table

    folder = out or Path("runs") / f"agent-report-{Path(world).name}"
    run = command_parts.open_run(world, folder, options)
    command_parts.show_progress()
    if kinds:
        rows = [transfer_report.as_row(trial) for trial in run.run(kinds)]
        lines = [" ".join(f"{name} {value}" for name, value in row.items()) for row in rows]
        click.echo(json.dumps({"trials": rows}) if as_json else "\n".join(lines))
        return
    found = transfer_report.build(run, run.run())
    transfer_report.write_report(folder, found)
    if into:
        insert_table(into, "agents", found.world, transfer_report.as_table(found))
    click.echo(
        found.to_json().strip() if as_json else f"{transfer_report.as_table(found)}\n{folder / transfer_report.RECORD}"
    )


@click.command()
@click.argument("world")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder [runs/agent-report-WORLD].")
@click.option("--only", "kinds", type=click.Choice(["real", "dream", "renewed"]), multiple=True, help="Do these now.")
@click.option(
    "--frames",
    type=click.IntRange(1),
    multiple=True,
    default=(8192, 16384, 32768, 65536, 131072, 200704),
    show_default=True,
    help="Of the real game, rising: policies are measured after so many.",
)
@command_parts.policies
@click.option(
    "--refresh", "num_rounds", type=click.IntRange(0), default=0, help="Also in a dream that is renewed so often."
)
@click.option("--recipe", type=click.Path(path_type=Path, dir_okay=False), help="To renew the world by.")
@click.option("--real-frames", "num_frames", type=click.IntRange(1), default=20_000, show_default=True, help="A round.")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe: train.minutes=5.")
@command_parts.into("gain")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def gain(
    world: str,
    out: Path | None,
    kinds: tuple[str, ...],
    frames: tuple[int, ...],
    into: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """How many frames of the real game does a policy need that learned inside WORLD first, and one that did not?

    Each is measured in the real game after --frames of it. What is finished is not done again, and a folder of
    `lwm agent report` with the same options lends its policies. With --only a call does those and writes no report.
    """
    from lwm_agents import gain_report
    from lwm_agents.dyna import RefreshConfig
    from lwm_agents.gain import GainRun
    from lwm_agents.report_files import insert_table

    renewing = {name: options.pop(name) for name in ("recipe", "num_rounds", "num_frames", "overrides")}
    if renewing["num_rounds"] and renewing["recipe"] is None:
        raise click.UsageError("--refresh needs the --recipe of the world.")
    folder = out or Path("runs") / f"agent-report-{Path(world).name}"
    run = command_parts.open_run(world, folder, options)
    refresh = RefreshConfig(num_envs=run.config.training.num_envs, **renewing) if renewing["num_rounds"] else None
    gains = GainRun(run, frames, refresh)
    command_parts.show_progress()
    curves = gains.curves(kinds)
    if kinds:
        rows = [gain_report.as_row(curve) for curve in curves]
        click.echo(json.dumps({"curves": rows}) if as_json else "\n".join(map(json.dumps, rows)))
        return
    found = gain_report.build(gains, curves)
    gain_report.write(folder, found)
    if into:
        insert_table(into, "gain", found.world, gain_report.as_table(found))
    told = found.to_json().strip() if as_json else f"{gain_report.as_table(found)}\n{folder / gain_report.RECORD}"
    click.echo(told)

"""`lwm agent`: policies that learn inside a world."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from lwm_agents import command_parts
from lwm_agents.commands_report import gain, report


@click.group()
def agent() -> None:
    """Train a policy inside a world, and measure it there and outside."""


agent.add_command(report)
agent.add_command(gain)


@agent.command()
@click.argument("world")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the run [runs/agent-WORLD].")
@click.option("--steps", "num_steps", type=click.IntRange(1), default=200_000, show_default=True, help="Of all envs.")
@click.option("--envs", "num_envs", type=click.IntRange(1, 65_536), default=64, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--horizon", type=click.IntRange(1), help="Steps until a dream is cut; the world's time limit by default."
)
@click.option("--surprise-penalty", type=click.FloatRange(0), default=0.0, show_default=True, help="Per nat and step.")
@command_parts.sees
@click.option("--save-every", type=click.IntRange(1), default=20_000, show_default=True, help="Steps.")
@command_parts.device
@command_parts.backend
@click.option(
    "--ray", "num_actors", type=click.IntRange(0), default=0, show_default=True, help="Ray actors that dream."
)
@click.option("--resume/--no-resume", default=True, show_default=True, help="Go on from the run's last checkpoint.")
@click.option(
    "--then-real", type=click.IntRange(0), default=0, show_default=True, help="Steps in the real game, after."
)
@command_parts.real
@click.option("--refresh", "num_rounds", type=click.IntRange(0), default=0, show_default=True, help="See above.")
@click.option("--recipe", type=click.Path(path_type=Path, dir_okay=False), help="To renew the world by.")
@click.option("--real-frames", "num_frames", type=click.IntRange(1), default=20_000, show_default=True, help="A round.")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the recipe: train.minutes=5.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def train(
    world: str, out: Path | None, device: str, resume: bool, then_real: int, real: str, as_json: bool, **options: Any
) -> None:
    """Train a policy by PPO inside WORLD (an id or a folder), and with --then-real in the real game after it. The run
    may be stopped and started again.

    --refresh N renews the world N times meanwhile: the policy plays --real-frames of the real game (`lwm collect`), the
    world is trained on them by --recipe (`lwm train`), and the policy goes on in the new world.
    """
    from lwm_agents.imagination import Course, ImaginationConfig, train_in_dream, train_in_real

    folder, rounds = out or _default_folder(world), options.pop("num_rounds")
    renewing = {name: options.pop(name) for name in ("recipe", "num_frames", "overrides")}
    options["backend"] = command_parts.choose_backend(options["backend"], device)
    config = ImaginationConfig(**options)
    command_parts.show_progress()
    if not rounds:
        model = train_in_dream(world, folder, config, device, Course(resume=resume))
    elif renewing["recipe"] is None or not resume:
        raise click.UsageError("--refresh needs the --recipe of the world, and goes without --no-resume.")
    else:
        from lwm_agents.dyna import RefreshConfig, train_with_refresh

        refresh = RefreshConfig(num_rounds=rounds, num_envs=config.num_envs, **renewing)
        model = train_with_refresh(world, folder, config, refresh, device)
    trained = folder / "agent"
    if then_real:
        make_real, config = command_parts.resolve(real), replace(config, num_steps=model.num_timesteps + then_real)
        course = Course(resume=resume, start=trained)
        model = train_in_real(world, make_real, folder / "then-real", config, device, course)
        trained = folder / "then-real" / "agent"
    if as_json:
        click.echo(json.dumps({"agent": str(trained), "num_timesteps": model.num_timesteps}))
    else:
        click.echo(f"{trained}\nMeasure it with: lwm agent evaluate {world} --agent {trained}")


@agent.command()
@click.argument("world")
@click.option("--agent", "path", type=click.Path(path_type=Path), help="Its folder [runs/agent-WORLD/agent].")
@click.option("--where", type=click.Choice(["dream", "real", "both"]), default="both", show_default=True)
@click.option("--episodes", type=click.IntRange(2), default=200, show_default=True)
@click.option("--envs", "num_envs", type=click.IntRange(1, 65_536), default=16, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--split", default="validation", show_default=True, help="Whose levels of the real game.")
@click.option("--deterministic", is_flag=True, help="The likeliest action instead of a drawn one.")
@click.option("--planner", is_flag=True, help="Instead of an agent, search by forking the dream; see --num-plans.")
@click.option("--num-plans", type=click.IntRange(1), default=64, show_default=True, help="Tried for each choice.")
@click.option("--horizon", type=click.IntRange(1), default=15, show_default=True, help="Steps of a plan.")
@click.option("--iterations", type=click.IntRange(1), default=1, show_default=True, help="Over 1: cross-entropy.")
@click.option("--replan-every", type=click.IntRange(1), default=4, show_default=True, help="Steps played of a plan.")
@command_parts.real
@command_parts.device
@command_parts.backend
@click.option("--video", type=click.Path(path_type=Path, dir_okay=False), help="An .mp4 of both, side by side.")
@click.option("--video-seconds", type=click.FloatRange(min=0.1, max=3600), default=30.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def evaluate(
    world: str, path: Path | None, where: str, planner: bool, video: Path | None, as_json: bool, **options: Any
) -> None:
    """Returns of an agent, or of a planner, and of random actions in WORLD and in the real game it was learned from."""
    from lwm_agents.evaluation import play
    from lwm_env.demo import check_video_path

    if planner and path:
        raise click.UsageError("--planner plays instead of an agent. Leave out --agent.")
    options["backend"] = command_parts.choose_backend(options["backend"], options["device"])
    path, rows, name = path or _default_folder(world) / "agent", {}, "planner" if planner else "agent"
    places = ("dream", "real") if where == "both" else (where,)
    if video:
        check_video_path(video, "--video")
        _film(world, places, None if planner else path, video, options)
    for place in places:
        envs = _open(world, place, options)
        try:
            policy = _player(world, place, envs, None if planner else path, options)
            chosen = {"num_episodes": options["episodes"], "seed": options["seed"]}
            rows[f"{place}, {name}"] = play(policy, envs, deterministic=options["deterministic"], **chosen).summary()
            rows[f"{place}, random"] = play(None, envs, **chosen).summary()
        finally:
            envs.close()
    if as_json:
        told = {"world": world, "agent": None if planner else str(path), "results": rows}
        click.echo(json.dumps({**told, "video": str(video)} if video else told))
        return
    for name, row in rows.items():
        click.echo(f"{name:14} return {row['mean']:.3f} ±{row['interval']:.3f}  length {row['length']:.0f}")


@agent.command()
@click.argument("url")
@click.argument("room")
@click.argument("seat")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--episodes", type=click.IntRange(0), default=0, show_default=True, help="0: until Ctrl-C.")
@click.option("--deterministic", is_flag=True, help="The likeliest action instead of a drawn one.")
@click.option("--access-token", envvar="LWM_ACCESS_TOKEN", help="Of the server. [env: LWM_ACCESS_TOKEN]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
def join(
    url: str, room: str, seat: str, checkpoint: Path, access_token: str | None, as_json: bool, **options: Any
) -> None:
    """Let the agent in the folder CHECKPOINT play the SEAT (a player's name) of a ROOM of the server at URL.

    ROOM is the end of the room's link. The agent sees what people see, as JPEG, and acts in real time.
    """
    from lwm_agents.remote import play_seat
    from lwm_env.web.client import RemoteEnv

    with contextlib.closing(RemoteEnv(url, room, seat, access_token=access_token)) as remote:
        for played in play_seat(remote, checkpoint, **options):
            if as_json:
                click.echo(json.dumps({"episode": played.episode, "return": played.total, "length": played.length}))
            else:
                click.echo(f"episode {played.episode}: return {played.total:g} in {played.length} frames")


def _default_folder(world: str) -> Path:
    return Path("runs") / f"agent-{Path(world).name}"


def _film(world: str, places: Sequence[str], path: Path | None, video: Path, options: dict[str, Any]) -> None:
    """Write the video of `--video`: an env of each place, played by the agent at `path`, or by the planner for None."""
    from lwm_agents.film import film
    from lwm_env.demo import write_video

    alone, players = {**options, "num_envs": 1}, {}
    with contextlib.ExitStack() as opened:
        for place in places:
            envs = opened.enter_context(contextlib.closing(_open(world, place, alone)))
            players[place] = (_player(world, place, envs, path, alone), envs)
        fps = envs.metadata["render_fps"]
        num_frames = max(1, round(options["video_seconds"] * fps))
        write_video(video, film(players, num_frames, options["seed"], options["deterministic"]), fps, side=1)


def _player(world: str, place: str, envs: Any, path: Path | None, options: dict[str, Any]) -> Any:
    """The agent at `path`, or the planner for None."""
    return _planner(world, place, envs, options) if path is None else _trained(path, envs, options["device"])


def _trained(path: Path, envs: Any, device: str) -> Any:
    from lwm_agents.agent import open_agent
    from lwm_agents.sb3 import SB3VecEnv

    return open_agent(path, SB3VecEnv(envs), device)


def _planner(world: str, place: str, envs: Any, options: dict[str, Any]) -> Any:
    from lwm_agents.planning import Planner, PlannerConfig

    names = ("num_plans", "horizon", "iterations", "replan_every")
    config = PlannerConfig(**{name: options[name] for name in names})
    played = envs if place == "dream" else None
    return Planner(world, config, played, options["seed"], **_where(options))


def _open(world: str, place: str, options: dict[str, Any]) -> Any:
    return _dream(world, options) if place == "dream" else _real(world, options)


def _dream(world: str, options: dict[str, Any]) -> Any:
    from lwm_agents.sb3 import SB3VecEnv

    return SB3VecEnv(world, options["num_envs"], **_where(options)).envs


def _where(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("device", "backend")}


def _real(world: str, options: dict[str, Any]) -> Any:
    make = command_parts.resolve(options["real"])
    arguments = {"num_envs": options["num_envs"], "seed": options["seed"], "split": options["split"]}
    return make(world, autoreset_mode="SameStep", **arguments)

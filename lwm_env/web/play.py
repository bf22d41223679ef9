"""`lwm play` and `lwm serve`."""

import json
import logging
import threading
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lwm_env.errors import InvalidInput, LwmError

if TYPE_CHECKING:
    from lwm_env.spec import WorldSpec


@click.command()
@click.argument("world", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Another address needs `lwm serve`.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0 takes a free one.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or auto.")
@click.option("--backend", type=click.Choice(["torch", "onnx"]), default="torch", show_default=True)
@click.option("--fps", type=click.FloatRange(1, 240), help="Steps per second; the world's own by default.")
@click.option("--window", is_flag=True, help="Play in a window of pygame instead (extra `play`).")
@click.option("--headless", type=click.Path(path_type=Path), metavar="MP4", help="Let a script play into a video.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.1, max=3600), default=30.0, show_default=True, help="Of --headless."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of --window and --headless.")
@click.option("--from", "start", type=click.Path(path_type=Path), metavar="FILE", help="A picture or clip to begin at.")
@click.pass_context
def play(ctx: click.Context, world: str | None, **options: Any) -> None:
    """Play WORLD (an id or a folder; all shipped and installed ones without it) in the browser, in real time."""
    if options["window"] and options["headless"]:
        raise click.UsageError("--window and --headless exclude each other.")
    if options["headless"]:
        from lwm_env.demo import demo

        names = {name: options[name] for name in ("seconds", "seed", "start")} | {"out": options["headless"]}
        ctx.invoke(demo, world=_one_world(world), device=options["device"], as_json=False, **names)
    elif options["window"]:
        from lwm_env.web.window import play_in_window

        play_in_window(_one_world(world), options["device"], options["seed"], options["fps"], start=options["start"])
    else:
        ctx.exit(_serve_page(world, options))


def _one_world(world: str | None) -> str:
    from lwm_env import worlds

    return world or next(iter(worlds.shipped()))


def _worlds_here() -> tuple[str, ...]:
    """The shipped worlds, then those that this user installed; one whose files are damaged is told and left out."""
    from lwm_env import worlds

    shipped, found = worlds.shipped(), []
    for world_id, folder in {**shipped, **worlds.installed(), **shipped}.items():
        try:
            worlds.verify(folder)
        except LwmError as error:
            click.echo(f"warning: {world_id} is left out: {error}", err=True)
        else:
            found.append(str(folder))
    return tuple(found)


def _serve_page(world: str | None, options: dict[str, Any]) -> int:
    from lwm_env.web.server import Server, find_worlds
    from lwm_env.web.settings import is_loopback, make_settings

    if not is_loopback(options["host"]):
        raise InvalidInput(
            f"lwm play is for this machine; --host {options['host']} needs `lwm serve`, see docs/play.md."
        )
    names = ("host", "port", "device", "backend", "fps")
    offered = (world,) if world else _worlds_here()
    settings = make_settings(worlds=offered, **{name: options[name] for name in names})
    played = next(iter(find_worlds(settings).values()))
    fragment = f"#world={played.spec.id}" if world else ""
    picture = _last_picture(options["start"], played.spec) if options["start"] else None

    def tell(url: str) -> None:
        if picture is not None:  # the server that we are in has to answer meanwhile
            threading.Thread(target=_open_room, args=(url, played.spec.id, picture, show), daemon=True).start()
        else:
            show(f"{url}/{fragment}")

    def show(page: str) -> None:
        click.echo(page)
        click.echo("Ctrl-C stops it.", err=True)
        if not options["no_browser"]:
            webbrowser.open(page)

    return Server(settings, tell).start()


def _last_picture(path: Path, spec: "WorldSpec") -> bytes:
    """The picture, or the last of a clip, as the PNG that a room begins at."""
    from lwm_env.prompt_file import read_prompt
    from lwm_env.web.pictures import encode_png

    return encode_png(read_prompt(path, spec)["frames"][-1])


def _open_room(url: str, world: str, picture: bytes, show: Callable[[str], None]) -> None:
    """Make a room that begins at a picture, and show its page; the plain page if that fails."""
    from lwm_env.web.client import Api
    from lwm_env.web.loadtest import wait_until_ready

    try:
        wait_until_ready(url)
        api = Api(url)
        room = api.call("POST", "rooms", {"world": world})
        warning = api.call("POST", f"rooms/{room['room']}/prompt", picture, room["token"])["warning"]
    except LwmError as error:
        click.echo(f"error: the picture could not be taken: {error}", err=True)
        show(url)
        return
    if warning:
        click.echo(f"warning: {warning}", err=True)
    show(f"{url}/#room={room['room']}")


@click.command()
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--check", is_flag=True, help="Only check the file.")
@click.option(
    "--engines", type=click.IntRange(1, 64), help="Processes to share the rooms among; instead of the file's."
)
@click.option("--threads", type=click.IntRange(min=1), help="That each engine computes with; instead of the file's.")
@click.option(
    "--ray", "num_hosts", type=click.IntRange(1, 1000), help="Hosts on a Ray cluster to share the rooms among."
)
@click.option("--log-json", is_flag=True, help="Logs as one JSON object a line.")
@click.pass_context
def serve(
    ctx: click.Context,
    config: Path,
    check: bool,
    engines: int | None,
    threads: int | None,
    num_hosts: int | None,
    log_json: bool,
) -> None:
    """Serve worlds to other machines as the TOML file CONFIG says (docs/play.md)."""
    from lwm_env.web.server import Server, find_worlds
    from lwm_env.web.settings import read_settings

    given = {"engines": engines, "threads": threads}
    settings = read_settings(config, **{name: value for name, value in given.items() if value is not None})
    if check:
        click.echo(f"{config}: {', '.join(find_worlds(settings))} on {settings.host}:{settings.port}")
        return
    if log_json:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())
    if num_hosts:
        from lwm_env.web.ray_hosts import RayServer

        ctx.exit(RayServer(settings, num_hosts, lambda url: click.echo(url)).start())
    ctx.exit(Server(settings, lambda url: click.echo(url)).start())


class JsonFormatter(logging.Formatter):
    """A log line as a JSON object: time (UTC), level, logger, message."""

    converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)

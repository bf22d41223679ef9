"""`lwm gallery`: one picture with a row of dreamed frames for each world."""

import io
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw

from lwm_env.errors import InvalidInput, StorageError

GAP, LABEL, SIDE = 2, 14, 128  # pixels between frames, above a row, and of a frame at about this height
COLOURS = (256, 128, 64, 32, 16)  # of the palette, fewer until the picture is small enough
MAX_BYTES = 100_000


@click.command()
@click.argument("worlds", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="docs/gallery.png", show_default=True)
@click.option("--frames", type=click.IntRange(1, 40), default=8, show_default=True, help="In a row.")
@click.option("--every", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="Seconds.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the start and the player.")
def gallery(worlds: tuple[str, ...], out: Path, frames: int, every: float, seed: int) -> None:
    """Dream WORLDS (ids or folders; all shipped ones by default) with a scripted player, a row of frames each.

    The first frame of a row is the real one that the dream begins with.
    """
    from lwm_env import worlds as shipped

    chosen = worlds or tuple(shipped.shipped())
    if not chosen:
        raise InvalidInput("No world is shipped in this installation. Name the folder of one.")
    rows = [dreamed_row(world, frames, every, seed) for world in chosen]
    try:
        out.write_bytes(picture(rows))
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror or error}. Name another --out.") from error
    click.echo(str(out))


def dreamed_row(world: str, num_frames: int, seconds: float, seed: int) -> tuple[str, np.ndarray]:
    """The world's id, and frames uint8 (num_frames, H, W, 3) of a dream, so many seconds apart; ends begin anew."""
    from lwm_env import opponents, parallel_env, worlds

    env = parallel_env(str(worlds.find(world)), max_cycles=-1, render_mode="rgb_array")
    try:
        spec = env.world_spec
        players = {name: opponents.best_for(spec, name, seed + index) for index, name in enumerate(spec.players)}
        env.reset(seed=seed)
        shown = [env.render()]
        for _ in range(num_frames - 1):
            for _ in range(max(1, round(seconds * spec.render_fps))):
                if not env.agents:
                    env.reset()
                frame = env.render()
                env.step({name: player.act(frame) for name, player in players.items()})
            shown.append(env.render())
        return spec.id, np.stack(shown)
    finally:
        env.close()


def picture(rows: Sequence[tuple[str, np.ndarray]]) -> bytes:
    """A PNG with a named row for each world, of at most `MAX_BYTES` unless sixteen colours need more."""
    strips = [_strip(frames) for _, frames in rows]
    width, height = max(strip.width for strip in strips), sum(strip.height + LABEL for strip in strips)
    sheet = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for (name, _), strip in zip(rows, strips, strict=True):
        draw.text((2, top + 1), name, fill=(60, 60, 60))
        sheet.paste(strip, (0, top + LABEL))
        top += LABEL + strip.height
    data = b""
    for colours in COLOURS:
        buffer = io.BytesIO()
        sheet.quantize(colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        data = buffer.getvalue()
        if len(data) <= MAX_BYTES:
            break
    return data


def _strip(frames: np.ndarray) -> Image.Image:
    padded = np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    strip = Image.fromarray(np.concatenate(list(padded), 1))
    zoom = max(1, SIDE // frames.shape[1])
    return strip.resize((strip.width * zoom, strip.height * zoom), Image.Resampling.NEAREST)

"""What a training run tells: a progress bar, TensorBoard scalars and frames, and one JSON line per logged step."""

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from lwm_env.worlds.storage import replace_file
from lwm_training.disk import storage_errors

if TYPE_CHECKING:
    from lwm_env.world_model import WorldModel
    from lwm_training.recipe import Stage

SMOOTHING = 0.98  # of the losses in the bar and the logs


class TrainLog:
    """Written by the first process alone (`enabled`)."""

    def __init__(self, folder: Path, enabled: bool, log_every: int) -> None:
        self.enabled, self.log_every = enabled, log_every
        self._smoothed: dict[str, float] = {}
        self._counted = self._since = 0.0
        if enabled:
            from torch.utils.tensorboard import SummaryWriter

            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / "log.jsonl"
            self._lines = self._path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> "TrainLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.enabled:
            self._lines.close()
            self._board.close()

    def facts(self) -> dict[str, float]:
        """The smoothed losses, for a checkpoint."""
        return dict(self._smoothed)

    def resume(self, smoothed: dict[str, float], total_steps: int) -> None:
        """Go on from a checkpoint of `total_steps`: lines that were written after it are dropped."""
        if not self.enabled:
            return
        self._smoothed = dict(smoothed)
        self._lines.close()
        with storage_errors(f"Going on with {self._path}"):
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            replace_file(self._path, "".join(line for line in lines if _step_of(line) <= total_steps).encode())
            self._lines = self._path.open("a", encoding="utf-8")

    def bar(self, stage: "Stage", done: int) -> tqdm:
        """The progress bar of a stage, in steps or in percent of its minutes."""
        if not done:
            self._smoothed = {}
        self._counted, self._since = 0.0, time.monotonic()
        hidden = not (self.enabled and sys.stderr.isatty())
        if stage.steps is not None:
            return tqdm(total=stage.steps, initial=done, desc=stage.name, unit="step", disable=hidden)
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
        return tqdm(total=1.0, desc=stage.name, bar_format=layout, disable=hidden)

    def step(self, bar: tqdm, place: dict[str, Any], losses: dict[str, Tensor], frames: int, share: float) -> None:
        """One training step: `place` names the stage and counts the steps, `frames` were learned from."""
        if not self.enabled:
            return
        numbers = torch.stack([value.float() for value in losses.values()]).tolist()  # the device waits once
        for name, number in zip(losses, numbers, strict=True):
            if not math.isfinite(number):  # the step was skipped; it must not spoil the mean for ever
                continue
            self._smoothed[name] = SMOOTHING * self._smoothed.get(name, number) + (1 - SMOOTHING) * number
        self._counted += frames
        bar.update(1 if bar.total != 1.0 else max(0.0, share - bar.n))
        if place["step"] % self.log_every == 0:
            rate = self._counted / (time.monotonic() - self._since)
            bar.set_postfix_str(f"{rate:.0f} frames/s " + " ".join(f"{k} {v:.3f}" for k, v in self._smoothed.items()))
            numbers = {name: round(value, 5) for name, value in self._smoothed.items()}
            line = {**place, "share": round(share, 4), "frames_per_second": round(rate, 1), **numbers}
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()
            for name, value in numbers.items():
                self._board.add_scalar(f"{place['stage']}/{name}", value, place["total_steps"])

    def frames(self, model: "WorldModel", pictures: Tensor, step: int) -> None:
        """A strip of real frames (B, 3, H, W in [-1, 1]) over what the tokenizer makes of them."""
        if self.enabled:
            with torch.no_grad():
                tokenizer = model.tokenizer
                drawn = tokenizer.decode(tokenizer.quantize(tokenizer.encode(pictures))).clamp(-1, 1)
            strip = torch.cat([torch.cat(list(pictures), -1), torch.cat(list(drawn), -1)], -2)
            self._board.add_image("codec", (strip + 1) / 2, step)


def _step_of(line: str) -> float:
    """The run's step of a line; infinity for one that a kill cut short."""
    try:
        return json.loads(line)["total_steps"]
    except ValueError:
        return math.inf

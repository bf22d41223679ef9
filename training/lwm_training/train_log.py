"""What a training run tells: a progress bar, TensorBoard scalars and frames, and one JSON line per logged step."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

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
            self._lines = (folder / "log.jsonl").open("a")
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> "TrainLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.enabled:
            self._lines.close()
            self._board.close()

    def bar(self, stage: "Stage", done: int) -> tqdm:
        """The progress bar of a stage, in steps or in percent of its minutes."""
        self._smoothed, self._counted, self._since = {}, 0.0, time.monotonic()
        hidden = not (self.enabled and sys.stderr.isatty())
        if stage.steps is not None:
            return tqdm(total=stage.steps, initial=done, desc=stage.name, unit="step", disable=hidden)
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
        return tqdm(total=1.0, desc=stage.name, bar_format=layout, disable=hidden)

    def step(self, bar: tqdm, place: dict[str, Any], losses: dict[str, Tensor], frames: int, share: float) -> None:
        """One training step: `place` names the stage and counts the steps, `frames` were learned from."""
        if not self.enabled:
            return
        for name, value in losses.items():
            number = float(value)
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

"""What to do when a loss or a gradient is not finite: skip, fall back, give up."""

import enum
import math
from typing import SupportsFloat

from lwm_env.errors import TrainingDiverged


class Verdict(enum.Enum):
    """What the trainer does with the step whose gradients it has just computed."""

    STEP = "step"  # apply it
    SKIP = "skip"  # drop the gradients, go on with the next batch
    ROLLBACK = "rollback"  # load the last checkpoint, go on with `learning_rate_scale`


class LossGuard:
    """Counts steps whose loss or gradient is not finite.

    `skip_limit` of them in a row ask for a rollback, which halves the learning rate; the time after `rollback_limit`
    rollbacks raises TrainingDiverged. A rollback leaves the guard as it is: its counts outlive the checkpoint that is
    loaded (call `restore` only when a process starts), else a hopeless run would fall back for ever.
    """

    def __init__(self, skip_limit: int = 10, rollback_limit: int = 3) -> None:
        self.skip_limit = skip_limit
        self.rollback_limit = rollback_limit
        self.skipped = 0  # of the whole run
        self.in_a_row = 0
        self.rollbacks = 0

    @property
    def learning_rate_scale(self) -> float:
        """Multiply the scheduled learning rate by this."""
        return 0.5**self.rollbacks

    def check(self, loss: SupportsFloat, gradient_norm: SupportsFloat = 0.0) -> Verdict:
        """Judge one step from its loss and total gradient norm, before the optimizer applies it.

        With several processes pass values that are the same on all of them (reduced), so that all decide alike.

        Raises:
            TrainingDiverged: `skip_limit` bad steps in a row again, after `rollback_limit` rollbacks.
        """
        loss, gradient_norm = float(loss), float(gradient_norm)
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self.in_a_row = 0
            return Verdict.STEP
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row < self.skip_limit:
            return Verdict.SKIP
        if self.rollbacks >= self.rollback_limit:
            raise TrainingDiverged(
                f"{self.in_a_row} steps in a row were not finite (loss {loss}, gradient norm {gradient_norm}) after "
                f"{self.rollbacks} rollbacks, at {self.learning_rate_scale} of the learning rate. Set a lower "
                f"learning_rate in the recipe, or look for NaN in the data; the last checkpoint is good."
            )
        self.rollbacks += 1
        self.in_a_row = 0
        return Verdict.ROLLBACK

    def facts(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "rollbacks": self.rollbacks}

    def restore(self, facts: dict[str, int]) -> None:
        """Take the counts of a checkpoint when a run resumes."""
        self.skipped, self.in_a_row, self.rollbacks = (facts[key] for key in ("skipped", "in_a_row", "rollbacks"))

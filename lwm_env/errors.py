"""Errors a user can act on: each message says what came, what was expected and what to do next."""

import gymnasium as gym


class LwmError(Exception):
    """Base of every error that lwm-env raises on purpose."""


class UnknownWorld(LwmError, gym.error.NameNotFound):
    """No world of that name is shipped or lies at that path."""


class MissingExtra(LwmError, ImportError):
    """A library of an optional extra is not installed; the message names the pip command."""


class CorruptFile(LwmError, ValueError):
    """A weight file, checkpoint or data set is truncated, altered or not what its manifest says."""


class ConfigMismatch(LwmError, ValueError):
    """A configuration does not fit the weights, the data or the recipe it came with."""


class InvalidInput(LwmError, ValueError):
    """An argument has the wrong shape, dtype or range; nothing was changed."""


class WrongOrder(LwmError, gym.error.ResetNeeded):
    """A call came before `reset`, after the episode ended, or after `close`."""


class StorageError(LwmError, OSError):
    """The disk is full, read-only or locked by another writer; what was saved before is intact."""


class TrainingDiverged(LwmError, RuntimeError):
    """The loss stayed not-finite after falling back to the last good checkpoint."""


class TeacherFailed(LwmError, RuntimeError):
    """A teacher's process died, hung, or answered what it should not; what it rendered before is kept."""


class UnfamiliarPrompt(UserWarning):
    """A picture to start from is far from what the world was trained on; it was taken nevertheless."""


def missing_extra(package: str, extra: str) -> MissingExtra:
    """The error for `package`, which comes with `pip install "lwm-env[extra]"`."""
    return MissingExtra(
        f'{package} is not installed but is needed here. Install it with: pip install "lwm-env[{extra}]"'
    )

"""Every error a user can cause, in one tree.

The command line prints an :class:`ActKitError` as its message alone and exits with code 2: the message names
what was wrong, what was expected and what to type. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable


class ActKitError(Exception):
    """Base of all errors that a user's input can cause."""


class ConfigError(ActKitError):
    """An option or override that does not exist or cannot have the value it was given."""


class TaskError(ActKitError):
    """A task name that Meta-World does not have."""


class InitialStateError(ActKitError):
    """An initial state that the task cannot be reset to."""


class ArrayError(ActKitError, ValueError):
    """An array of another type, shape or meaning than expected, or with numbers that are not finite."""


class InUseError(ActKitError, RuntimeError):
    """Something that one thread at a time can use, and another is using now."""


class DatasetError(ActKitError):
    """A dataset that is missing, foreign, truncated, of another version, or unfit for what was asked."""


class CheckpointError(ActKitError):
    """A checkpoint that is missing, damaged, or made for something else."""


class OutputError(ActKitError):
    """An output folder that exists, or that cannot be written."""


class DamagedFileError(ActKitError, ValueError):
    """A file that cannot be what it should be: not a regular file, too large, not UTF-8, not JSON or YAML."""


class ComparisonError(ActKitError):
    """Evaluations that are missing, damaged, or cannot be held against each other."""


class MetricError(ActKitError):
    """A metric that was never declared, or a log that does not hold what was written to it."""


class TrainingError(ActKitError):
    """A training run that cannot go on: a loss that is not finite, a step that hangs."""


class WorkerError(ActKitError):
    """A process that does part of the work has died, or cannot be started."""


class RenderError(ActKitError):
    """No OpenGL library that works, or frames that come out blank."""


def install_hint(extra: str) -> str:
    """Return the command that installs what an extra of this package needs: the package itself is on no index."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    found = [Requirement(text) for text in requires("act_kit") or ()]
    names = [f"{each.name}{each.specifier}" for each in found if each.marker and each.marker.evaluate({"extra": extra})]
    return shlex.join(["pip", "install", *names])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``known``, or an empty string if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""

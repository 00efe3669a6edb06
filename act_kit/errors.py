"""Every error a user can cause, in one tree.

The command line prints only the message of an :class:`ActKitError` and exits with code 2. The message states what is
wrong, what was expected and what to type. Any other exception that reaches the user is a bug in this package.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable


class ActKitError(Exception):
    """Base of all errors that a user's input can cause."""


class ConfigError(ActKitError):
    """An option or override that does not exist or has an invalid value."""


class TaskError(ActKitError):
    """A task name that Meta-World does not have."""


class InitialStateError(ActKitError):
    """An initial state that the task cannot be reset to."""


class ArrayError(ActKitError, ValueError):
    """An array with an unexpected dtype, shape or meaning, or with values that are not finite."""


class InUseError(ActKitError, RuntimeError):
    """An object that is limited to one thread at a time and is in use by another thread."""


class DatasetError(ActKitError):
    """A dataset that is missing, foreign, truncated, of another version, or unsuitable for the command."""


class CheckpointError(ActKitError):
    """A checkpoint that is missing, damaged, or made for another policy, task or environment."""


class OutputError(ActKitError):
    """An output folder that already exists or cannot be written."""


class DamagedFileError(ActKitError, ValueError):
    """A file with unexpected content: not a regular file, too large, not UTF-8, or not JSON or YAML."""


class ExportError(ActKitError):
    """A policy that cannot be exported, or whose export predicts other actions."""


class ComparisonError(ActKitError):
    """Evaluations that are missing, damaged, or not comparable."""


class MetricError(ActKitError):
    """A metric that was not declared, or a damaged log of metrics."""


class TrainingError(ActKitError):
    """A training run that cannot continue, for example because its loss is not finite or a step hangs."""


class WorkerError(ActKitError):
    """A worker process that died or cannot be started."""


class ServingError(ActKitError):
    """A policy server or its client that cannot be reached, or that sends invalid messages."""


class RenderError(ActKitError):
    """A missing or broken OpenGL library, or rendered frames that are blank."""


def install_hint(extra: str) -> str:
    """Return the command that installs the requirements of an extra; this package itself is not on a package index."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    found = [Requirement(text) for text in requires("act_kit") or ()]
    names = [f"{each.name}{each.specifier}" for each in found if each.marker and each.marker.evaluate({"extra": extra})]
    return shlex.join(["pip", "install", *names])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``known``, or an empty string if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""

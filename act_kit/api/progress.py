"""Progress and messages of long work: one callback for the former, the logger ``act_kit`` for the latter."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("act_kit")
"""Logger of all messages; warnings are printed unless the caller configures it otherwise."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of one stage, such as ``train``.

    Attributes:
        stage: Name of the stage, unique within a call.
        num_done, num: Finished and total units: demonstrations, gradient steps or episodes (fractions of running ones
            count); ``num`` is 0 if unknown.
        text: Further results so far.
        is_record: True for steps whose losses are recorded, False for the steps between; None in other stages.
    """

    stage: str
    num_done: float
    num: int
    text: str = ""
    is_record: bool | None = None


OnProgress = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Report no progress."""

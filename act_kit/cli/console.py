"""The terminal: where messages go, and progress bars."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

_MIN_INTERVAL_S, _MAX_INTERVAL_S = 1.0, 10.0
"""Minimum and maximum time between two lines of progress in a log, in seconds."""


def info(message: str) -> None:
    """Print a message verbatim: brackets are not markup."""
    console.print(Text(message), soft_wrap=True)


def warn(message: str) -> None:
    """Print an error or a warning, on standard error."""
    errors.print(Text(message, style="red"))


def progress_bar(*fields: str, disable: bool = False) -> Progress:
    """Return a progress bar that shows the text ``fields`` of its tasks; ``disable`` shows nothing.

    If the output is not a terminal, progress is printed as plain lines instead.
    """
    if not console.is_terminal and not disable:
        return _Lines(fields)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        *(TextColumn(f"{{task.fields[{name}]}}") for name in fields),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        disable=disable,
    )


class _Lines(Progress):
    """Progress as lines of a log: every 10 % or 10 s, at most one per second, plus one line for every record."""

    def __init__(self, fields: Sequence[str]) -> None:
        super().__init__(disable=True)
        self._names = fields
        self._start_time = time.monotonic()
        self._printed: dict[TaskID, tuple[float, float]] = {}
        self._first: dict[TaskID, tuple[float, float]] = {}

    def update(self, task_id: TaskID, *, record: bool | None = None, **values: Any) -> None:
        """Update a task. ``record`` True always prints a line; False prints one only when the task is finished."""
        super().update(task_id, **values)
        task, now = self.tasks[self.task_ids.index(task_id)], time.monotonic()
        self._first.setdefault(task_id, (now, task.completed))
        printed_at, printed = self._printed.setdefault(task_id, (now, task.completed))
        has_advanced = task.completed > printed
        is_a_tenth = task.total is not None and task.completed - printed >= task.total / 10
        is_due = now - printed_at >= (_MIN_INTERVAL_S if is_a_tenth else _MAX_INTERVAL_S)
        if record or (has_advanced and (task.finished or (record is None and is_due))):
            self._printed[task_id] = now, task.completed
            print(self._line(task, now), file=console.file, flush=True)

    def _line(self, task: Task, now: float) -> str:
        since, first = self._first[task.id]
        parts = [
            f"[{duration(now - self._start_time)}] {task.description} {int(task.completed)}/{int(task.total or 0)}"
        ]
        parts += [str(task.fields[name]) for name in self._names if task.fields.get(name)]
        if task.total is not None and task.completed > first and not task.finished:
            left = (task.total - task.completed) * (now - since) / (task.completed - first)
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a duration as ``h:mm:ss``, or as ``m:ss`` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Rate:
    """The rate of a counter since the first call."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def __call__(self, num: float) -> str:
        """Return ``"3.2/s"`` or, below that, ``"12/min"``; empty in the first second."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, num
        seconds, done = now - self._first[0], num - self._first[1]
        return rate(done / seconds) if seconds >= 1 and done > 0 else ""


def rate(per_second: float) -> str:
    """Return a rate as text with two significant digits."""
    if per_second >= 10:
        return f"{per_second:.0f}/s"
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.2g}/min"

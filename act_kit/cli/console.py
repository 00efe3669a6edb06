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

_LEAST_S, _LINE_S = 1.0, 10.0
"""Seconds between two lines of progress in a log, at least and at most."""


def say(message: str) -> None:
    """Print a line as it is: brackets in it are not markup."""
    console.print(Text(message), soft_wrap=True)


def complain(message: str) -> None:
    """Print an error or a warning, on standard error."""
    errors.print(Text(message, style="red"))


def progress_bar(*fields: str, disable: bool = False) -> Progress:
    """Return a progress bar whose tasks carry text in ``fields``; ``disable`` shows nothing.

    Where the output is no terminal, it is a plain line now and then instead.
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
    """Progress as lines of a log: one every tenth of the way or ten seconds, no two in a second; and all records."""

    def __init__(self, fields: Sequence[str]) -> None:
        super().__init__(disable=True)
        self._names = fields
        self._began = time.monotonic()
        self._told: dict[TaskID, tuple[float, float]] = {}
        self._first: dict[TaskID, tuple[float, float]] = {}

    def update(self, task_id: TaskID, *, record: bool | None = None, **values: Any) -> None:
        """Note where a task stands; with ``record`` False print no line unless it is finished, with True one."""
        super().update(task_id, **values)
        task, now = self.tasks[self.task_ids.index(task_id)], time.monotonic()
        self._first.setdefault(task_id, (now, task.completed))
        when, where = self._told.setdefault(task_id, (now, task.completed))
        moved = task.completed > where
        is_a_tenth = task.total is not None and task.completed - where >= task.total / 10
        is_due = now - when >= (_LEAST_S if is_a_tenth else _LINE_S)
        if record or (moved and (task.finished or (record is None and is_due))):
            self._told[task_id] = now, task.completed
            print(self._line(task, now), file=console.file, flush=True)

    def _line(self, task: Task, now: float) -> str:
        since, first = self._first[task.id]
        parts = [f"[{duration(now - self._began)}] {task.description} {int(task.completed)}/{int(task.total or 0)}"]
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
    """Counts things per second from the first call on, and is silent until that means something."""

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
    """Return a rate with two digits that matter."""
    if per_second >= 10:
        return f"{per_second:.0f}/s"
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.2g}/min"

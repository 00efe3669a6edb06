"""The terminal: where messages go, and progress bars."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from act_kit.api.progress import OnProgress, Progress

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


class LogHandler(logging.Handler):
    """Handler that prints the library's messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning as an error, and any other message on standard output."""
        show = warn if record.levelno >= logging.WARNING else info
        show(record.getMessage())


@contextmanager
def shown_progress() -> Generator[OnProgress]:
    """Yield a callback that shows progress: a bar per stage or, if the output is not a terminal, lines."""
    bar = _Lines() if not console.is_terminal else _make_bar()
    lines: dict[str, TaskID] = {}

    def show(progress: Progress) -> None:
        if not lines:
            bar.start()
        if progress.stage not in lines:
            lines[progress.stage] = bar.add_task(progress.stage, text="")
        bar.update(
            lines[progress.stage],
            completed=progress.num_done,
            total=progress.num or None,
            text=progress.text,
            record=progress.is_record,
        )

    try:
        yield show
    finally:
        bar.stop()


def _make_bar() -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
    )


class _Lines(Bar):
    """Progress as lines of a log: every 10 % or 10 s, at most one per second, plus one line for every record."""

    def __init__(self) -> None:
        super().__init__(disable=True)
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
        line = f"[{_duration(now - self._start_time)}] {task.description} {int(task.completed)}/{int(task.total or 0)}"
        if task.fields["text"]:
            line += f", {task.fields['text']}"
        if task.total is not None and task.completed > first and not task.finished:
            left = (task.total - task.completed) * (now - since) / (task.completed - first)
            line += f", {_duration(left)} left"
        return line


def _duration(seconds: float) -> str:
    """Return a duration as ``h:mm:ss``, or as ``m:ss`` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

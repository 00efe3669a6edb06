"""The terminal: where messages go, and progress bars."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print a line as it is: brackets in it are not markup."""
    console.print(Text(message), soft_wrap=True)


def complain(message: str) -> None:
    """Print an error or a warning, on standard error."""
    errors.print(Text(message, style="red"))


def progress_bar(*fields: str, disable: bool = False) -> Progress:
    """Return a progress bar whose tasks carry text in ``fields``; ``disable`` shows nothing."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        *(TextColumn(f"{{task.fields[{name}]}}") for name in fields),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        disable=disable,
    )

"""A report: one object that is printed to the terminal, written as JSON, and written as an HTML page.

Every page but the interactive ones is a :class:`Report`; a module of this package builds it from its object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import rich.table
from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from act_kit.files import write_json
from act_kit.pages import figure_svg, poster_uri, video_uri, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Level = Literal["OK", "WARN", "FAIL"]

COLORS: dict[Level, str] = {"OK": "green", "WARN": "yellow", "FAIL": "red"}
"""Terminal colors of the levels."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A number in large type.

    Attributes:
        label: Name of the quantity.
        value: The number with its unit.
        detail: Counts, interval or explanation, in small type.
        interval: Lower end, value and upper end as fractions from 0 to 1, drawn as a bar; None if there is none.
    """

    label: str
    value: str
    detail: str = ""
    interval: tuple[float, float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell that is more than its text.

    Attributes:
        text: The text.
        value: Number by which the rows are sorted; None if they are sorted by the text.
        href: Address of a link.
        level: Level that is shown as a mark; None for no mark.
        share: Fraction from 0 to 1 that is drawn as a bar; None for no bar.
        is_code: If True, the text is a command, a path or a hash.
        title: Explanation that the browser shows on hovering.
    """

    text: str
    value: float | None = None
    href: str = ""
    level: Level | None = None
    share: float | None = None
    is_code: bool = False
    title: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Heading.
        unit: Unit, shown in the heading.
        digits: Decimals of its numbers, which are aligned; None for a column of text.
    """

    name: str
    unit: str = ""
    digits: int | None = None

    @property
    def heading(self) -> str:
        """Name with the unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def cell(self, value: Any) -> Cell:
        """Return a value as a cell: floats with the column's digits and separated thousands, None as n/a."""
        if isinstance(value, Cell):
            return value
        if value is None:
            return Cell(text="n/a")
        if self.digits is not None and isinstance(value, int | float):
            return Cell(text=f"{value:,.{self.digits}f}", value=value)
        return Cell(text=str(value), value=getattr(value, "value", None))


def text_columns(*names: str) -> list[Column]:
    """Return columns of text."""
    return list(map(Column, names))


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        columns: The columns.
        rows: One value per column: a :class:`Cell`, a number or text.
        title: Title in the terminal; that of the section in a report.
        id: Name of the table on the page, which its filters refer to.
        is_sortable: If True, a click on a heading sorts the rows.
        filters: Label and tag of each button that filters the rows; the tag of the button for all is empty.
        tags: Tags of each row, separated by ``|``; empty without filters.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    id: str = ""
    is_sortable: bool = False
    filters: Sequence[tuple[str, str]] = ()
    tags: Sequence[str] = ()

    def cells(self) -> Iterator[list[Cell]]:
        """Yield the cells of each row."""
        for row in self.rows:
            yield [column.cell(value) for column, value in zip(self.columns, row, strict=True)]

    def __rich__(self) -> rich.table.Table:
        """Return the table for the terminal, where brackets are not markup."""
        table = rich.table.Table(title=Text(self.title), title_justify="left")
        for column in self.columns:
            table.add_column(Text(column.heading), justify="left" if column.digits is None else "right")
        for row in self.cells():
            table.add_row(*(Text(cell.text) for cell in row))
        return table


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with a description for those who cannot see it, and a caption."""

    figure: Figure
    label: str
    caption: str = ""

    def svg(self) -> Markup:
        """Return the figure as SVG."""
        return figure_svg(self.figure, self.label)


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video that is embedded in the page, with its caption and the result that it shows."""

    path: Path
    caption: str
    is_success: bool
    id: str = ""

    def uri(self) -> str:
        """Return the video as a data URI."""
        return video_uri(self.path)

    def poster(self) -> str:
        """Return the first frame as a data URI."""
        return poster_uri(self.path)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report.

    Attributes:
        title: Heading.
        text: Paragraph below it.
        charts: Figures, in a grid.
        table: A table.
        videos: Videos, in a grid.
        explanation: Text that is folded away on the page.
        is_synchronized: If True, the videos play, pause and seek together.
        is_half: If True, the section takes half of the width of a large screen.
        level: Level of what it says, which colors its heading in the terminal; None for no color.
        in_terminal: If True, the terminal prints the table, or a section without one as heading and text.
    """

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    table: Table | None = None
    videos: Sequence[Video] = ()
    explanation: str = ""
    is_synchronized: bool = False
    is_half: bool = False
    level: Level | None = None
    in_terminal: bool = False

    def __rich__(self) -> rich.table.Table | Text:
        """Return what the terminal prints."""
        if self.table:
            return replace(self.table, title=self.title).__rich__()
        style = f"bold {COLORS[self.level]}" if self.level else "bold"
        indented = "".join(f"\n    {line}" for line in self.text.splitlines())
        return Text.assemble((self.title, style), indented)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a verb found out.

    Attributes:
        kind: Kind of the report, in a word or two.
        title: Title.
        verdicts: Level and sentence of each verdict; ``Fix:`` in it begins the command to type.
        headlines: The numbers that matter most.
        warnings: Sentences that qualify the verdicts; the terminal prints them to standard error.
        notes: Further sentences.
        sections: The parts.
        provenance: Where the results come from: commands, versions, hashes.
        data: The results for JSON.
    """

    kind: str
    title: str
    verdicts: Sequence[tuple[Level, str]] = ()
    headlines: Sequence[Headline] = ()
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    sections: Sequence[Section]
    provenance: Sequence[tuple[str, str]] = ()
    data: Any = field(default=None, repr=False)

    def print(self, file: TextIO | None = None) -> None:
        """Print the title, the sections for the terminal, the warnings, the notes and the verdicts to the terminal.

        ``file`` gets all but the warnings instead.
        """
        console = Console(highlight=False, file=file)
        console.print(Text(self.title, style="bold"), soft_wrap=True)
        for section in self.sections:
            if section.in_terminal:
                console.print(section, soft_wrap=section.table is None)
        for warning in self.warnings:
            Console(stderr=True, highlight=False).print(Text(warning, style="red"), soft_wrap=True)
        for note in self.notes:
            console.print(Text(note), soft_wrap=True)
        for level, sentence in self.verdicts:
            console.print(Text(sentence, style=f"bold {COLORS[level]}"), soft_wrap=True)

    def write(self, page: Path, data: Path | None = None) -> Path:
        """Write the page, and the results as JSON to ``data``; return the path of the page."""
        page.parent.mkdir(parents=True, exist_ok=True)
        if data:
            write_json(data, self.data)
        return write_page(page, "report.html.j2", {"title": self.title, "report": self})

"""Self-contained HTML pages: Jinja2 templates with embedded Matplotlib figures and videos."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act_kit.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GRAY = "#2563eb", "#d97706", "#15803d", "#dc2626", "#c4c9d4"
PALETTE = (BLUE, GREEN, "#7c3aed", "#0891b2", "#db2777", "#854d0e", "#111827")
"""Colors of items of one kind; none of them suggests a warning."""


def new_maps(num: int, num_rows: int = 1) -> Figure:
    """Create a figure of ``num`` maps side by side, without pyplot, which keeps figures alive and needs a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.45 * num if num > 1 else 3.2, 2.7 * num_rows), layout="constrained")
    figure.subplots(num_rows, num)
    return figure


def figure_uri(figure: Figure) -> str:
    """Return a figure as a ``data:`` URI, SVG."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "act_kit"}):  # random ids would make every page different
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _uri("image/svg+xml", buffer.getvalue().encode())


def video_uri(path: Path) -> str:
    """Return an mp4 file as a ``data:`` URI."""
    return _uri("video/mp4", path.read_bytes())


def _uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> None:
    """Render ``templates/<template>`` to ``path``."""
    text = render_page(template, values)
    # If the locale is not UTF-8, file names contain lone surrogates, which represent bytes.
    write_text(path, text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def render_page(template: str, values: Mapping[str, Any]) -> str:
    """Render ``templates/<template>`` and return the text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("act_kit"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(**values)

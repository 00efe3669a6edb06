"""Self-contained HTML pages: templates with figures that follow the color scheme, videos, and one stylesheet."""

from __future__ import annotations

import base64
import io
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from act_kit.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PURPLE, SKY, GRAY = "#cc79a7", "#56b4e9", "#a8b0ba"
"""Colors that people with color vision deficiency can tell apart (Okabe and Ito 2008), and a gray for references."""

_THEME = {
    "#000000": "currentColor",
    "#ffffff": "var(--surface)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    RED: "var(--red)",
    PURPLE: "var(--purple)",
    SKY: "var(--sky)",
    GRAY: "var(--gray)",
}
"""Variables of the stylesheet that replace the colors of a figure, so that it is readable in light and dark."""


def new_figure(num_cols: int = 1, num_rows: int = 1) -> Figure:
    """Create a figure of axes of the same size, without pyplot, which keeps figures alive and needs a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * num_cols, 3.1 * num_rows), layout="constrained")
    figure.subplots(num_rows, num_cols)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
    return figure


def figure_text(name: str, max_length: int) -> str:
    """Return a user's name for a figure: at most its last ``max_length`` characters, and no formula between ``$``."""
    shown = name if len(name) <= max_length else f"…{name[1 - max_length :]}"
    return shown.replace("$", r"\$")


def figure_svg(figure: Figure, label: str) -> Markup:
    """Return a figure as an inline SVG image with the description ``label``, in the colors of the page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "act_kit", "svg.fonttype": "none"}):  # random ids would make every page different
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    head, _, drawing = buffer.getvalue().partition("<svg ")[2].partition(">")
    (view_box,) = re.findall(r'viewBox="[^"]+"', head)
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r' id="[a-zA-Z.]+_\d+"', "", drawing)  # names of groups, which repeat on a page
    drawing = drawing.replace("xlink:href", "href")
    for color, variable in _THEME.items():
        drawing = drawing.replace(color, variable)
    return Markup(f'<svg {view_box} role="img" aria-label="{escape(label)}">{drawing}')


def video_uri(path: Path) -> str:
    """Return an mp4 file as a ``data:`` URI."""
    return _uri("video/mp4", path.read_bytes())


def poster_uri(path: Path) -> str:
    """Return a frame near the end of a video as a ``data:`` URI, JPEG: a page shows it until the video plays."""
    import imageio_ffmpeg

    seek = ["-sseof", "-0.3", "-i", str(path), "-frames:v", "1", "-c:v", "mjpeg", "-f", "image2pipe", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *seek]
    return _uri("image/jpeg", subprocess.run(command, capture_output=True, check=True).stdout)


def _uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> Path:
    """Render ``templates/<template>`` to ``path``, and return it."""
    text = render_page(template, values)
    # If the locale is not UTF-8, file names contain lone surrogates, which represent bytes.
    write_text(path, text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    return path


def render_page(template: str, values: Mapping[str, Any]) -> str:
    """Render ``templates/<template>`` and return the text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("act_kit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)

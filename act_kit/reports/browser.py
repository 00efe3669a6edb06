"""A page for browsing a dataset: maps of the initial states, a table of the episodes, and their signals and videos.

The output is a folder with ``view.html`` and ``videos/``, which needs neither a server nor a network.

Shapes: N episodes, T steps of all, L lines of a plot.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from act_kit.datasets.episode_table import episode_table
from act_kit.datasets.expressions import MAX_CHARACTERS, MAX_DEPTH, SIGNS, SPELLINGS, Columns
from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.reference import reference_init_states
from act_kit.errors import DatasetError, RenderError
from act_kit.files import quoted, write_mp4
from act_kit.pages import write_page
from act_kit.parallel import LocalExecutor
from act_kit.reports.figures import Plane, map_coordinates
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import RenderSettings, check_cameras, find_gl, render_episode
from act_kit.sim.tasks import TASKS, Task, map_planes

_FPS = 20
"""Approximate maximum frame rate of the videos."""
_NUM_REFERENCE = 250
_MAX_VALUES = 400_000
"""Maximum number of signal values in a page, 6 bytes each; beyond it, only every second, third, … step is shown."""
_MAX_LINES = 7
"""Maximum number of lines in a plot of unnamed signals."""
_MARGIN = 0.06
"""Margin of a map around the reset box, as a fraction of the map."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Signals that share an axis.

    Attributes:
        name: Title of the plot, with the unit.
        lines: Name of each signal.
        values: float64 (T, L).
        spans: Values that the axis must include.
        is_centered: If True, each signal is plotted relative to the middle of its range, because the coordinates of a
            position are far apart.
    """

    name: str
    lines: Sequence[str]
    values: np.ndarray
    spans: tuple[float, ...] = ()
    is_centered: bool = False

    def to_dict(self, ends: np.ndarray, every: int) -> dict[str, Any]:
        """Return the plot data of the episodes that end at ``ends``, with one value per ``every`` steps.

        The axis (``limits``) is the same for all episodes.
        """
        finite = np.where(np.isfinite(self.values), self.values, np.nan_to_num(self.values[:1]))
        low, high = finite.min(axis=0), finite.max(axis=0)
        middles = (low + high) / 2 if self.is_centered else np.zeros(len(low))
        shown = [*(low - middles), *(high - middles), *self.spans]
        minimum, maximum = float(min(shown)), float(max(shown))
        margin = 0.04 * (maximum - minimum) or 0.5
        episodes = np.split(self.values[: ends[-1]], ends[:-1])
        return {
            "name": self.name,
            "lines": list(self.lines),
            "middles": _to_lists(middles),
            "limits": [_rounded(minimum - margin), _rounded(maximum + margin)],
            "values": [_to_lists(part[::every].T) for part in episodes],
        }


def plots_of(store: EpisodeStore) -> list[Plot]:
    """Return the plots of a dataset: named signals for Meta-World, all dimensions by index for other data."""
    state, action = store.steps("state"), store.steps("action").astype(np.float64)
    plots = []
    if store.is_metaworld:
        plots = [
            Plot(name="hand (m)", lines="xyz", values=state[:, :3], is_centered=True),
            Plot(name="object (m)", lines="xyz", values=state[:, 4:7], is_centered=True),
            Plot(name="gripper opening (0 closed, 1 open)", lines=["opening"], values=state[:, 3:4], spans=(0.0, 1.0)),
            Plot(name="action (-1 to 1)", lines=[*"xyz", "gripper"], values=action, spans=(-1.0, 1.0)),
        ]
    else:
        for name, values in (("state", state), ("action", action)):
            columns = values.reshape(len(values), -1)
            for first in range(0, columns.shape[1], _MAX_LINES):
                last = min(first + _MAX_LINES, columns.shape[1]) - 1
                lines = list(map(str, range(first, last + 1)))
                title = f"{name} {first} to {last}, as recorded"
                plots.append(Plot(name=title, lines=lines, values=columns[:, first : last + 1]))
    if "distance" in store.fields:
        unit = TASKS[store.info.task].unit if store.info.task in TASKS else "m"
        distance = store.steps("distance")[:, None]
        plots.append(Plot(name=f"distance ({unit})", lines=["remaining"], values=distance, spans=(0.0,)))
    return plots


# -- videos --------------------------------------------------------------------------------------------------------


def stride_of(store: EpisodeStore) -> int:
    """Return the number of steps between two frames of a video."""
    return max(1, store.info.control_hz // _FPS)


def make_videos(
    store: EpisodeStore,
    num: int,
    folder: Path,
    cameras: Sequence[str] = (),
    settings: RenderSettings | None = None,
    *,
    num_workers: int,
    on_progress: Callable[[int], None] = lambda num_done: None,
) -> str:
    """Write a video of each of the first ``num`` episodes, in real time, with the cameras side by side.

    The videos show the requested images if the dataset has them, and are rendered from the recorded physics otherwise.

    Args:
        store: The dataset.
        num: Number of episodes.
        folder: Output folder of ``0000.mp4``, …
        cameras: Cameras to show; by default all for which the dataset has images, or else corner4.
        settings: Render settings; by default those of the images, or else 192 px.
        num_workers: Number of processes.
        on_progress: Function called with the number of finished videos.

    Returns:
        The reason for which there are no videos, or an empty string.

    Raises:
        DatasetError: The dataset has no episode yet.
    """
    if not num:
        raise DatasetError(
            f"{store.path} has no demonstration yet. Fix: {store.info.command} --out {quoted(store.path)} --resume"
        )
    stored: dict[str, ImageStore] = {}
    for name in ImageStore.cameras(store):
        image = ImageStore(store, name)
        if image.is_complete and settings in (None, image.settings):
            stored[name] = image
    cameras = cameras or list(stored) or ["corner4"]
    stride = stride_of(store)
    fps = store.info.control_hz / stride
    paths = [folder / f"{episode:04d}.mp4" for episode in range(num)]
    variables = None
    jobs: Any
    if set(cameras) <= set(stored):
        function: Callable[..., None] = write_clip
        images = list(map(stored.__getitem__, cameras))

        def stored_views() -> Iterator[tuple[Path, float, list[np.ndarray]]]:
            for episode, path in enumerate(paths):
                yield path, fps, [image.episode(episode)[::stride] for image in images]

        jobs = stored_views()
    else:
        available = f"images of {', '.join(stored)}" if stored else "no images"
        names = {"init_state": "initial state", "physics": "physics"}
        missing = [name for key, name in names.items() if key in store.missing_fields]
        if missing or store.info.task not in TASKS:
            needed = f"{' and '.join(missing)} of each episode" if missing else f"simulator of {store.info.task}"
            return f"There is no video: the dataset has {available}, and rendering needs the {needed}."
        check_cameras(cameras)
        try:
            variables = find_gl(num_workers).environment
        except RenderError as error:
            return f"There is no video: {error}"
        function, settings = render_clip, settings or RenderSettings(height_px=192, width_px=192)
        physics = store.steps_by_episode("physics")
        jobs = (
            (path, fps, settings, cameras, init_state, rows[::stride])
            for path, init_state, rows in zip(paths, store.init_states, physics, strict=False)
        )
    folder.mkdir(parents=True, exist_ok=True)
    with LocalExecutor(num_workers, variables) as executor, closing(executor.map(function, jobs)) as outcomes:
        for num_done, _ in enumerate(outcomes, 1):
            on_progress(num_done)
    return ""


def render_clip(
    path: Path,
    fps: float,
    settings: RenderSettings,
    cameras: Sequence[str],
    init_state: InitialState,
    physics: np.ndarray,
) -> None:
    """Render recorded physics states, float64 (T, P), to a video, in a process that has a GL library configured."""
    images = render_episode(settings, cameras, init_state, physics).images
    write_clip(path, fps, list(np.moveaxis(images, 1, 0)))


def write_clip(path: Path, fps: float, views: Sequence[np.ndarray]) -> None:
    """Write the frames of all cameras, uint8 (T, H, W, 3) each, side by side to a video."""
    sizes = np.array([view.shape[1:3] for view in views])
    height, width = 16 * np.ceil([sizes[:, 0].max() / 16, sizes[:, 1].sum() / 16]).astype(int)
    canvas = np.zeros((len(views[0]), height, width, 3), dtype=np.uint8)
    left = 0
    for view in views:
        canvas[:, : view.shape[1], left : left + view.shape[2]] = view
        left += view.shape[2]
    write_mp4(
        path, canvas, fps, quality=8, macro_block_size=16, output_params=["-g", "5"]
    )  # keyframes: seeking has no delay


# -- the page ------------------------------------------------------------------------------------------------------


def write_view(store: EpisodeStore, num: int, out: Path, *, no_video: str = "") -> Path:
    """Write the page of the first ``num`` episodes to ``out``, and return its path.

    ``no_video`` is the reason for which there are no videos; if empty, they are in ``out / "videos"``.
    """
    columns: dict[str, list[Any]] = {}
    finite: dict[str, list[Any]] = {}
    shown = ["episode", "steps"]
    for name, values in episode_table(store).items():
        columns[name] = values[:num]
        finite[name] = list(map(_finite, values[:num]))
        if len(set(map(str, values[:num]))) > 1 and name not in ("random", *shown):
            shown.append(name)
    maps, no_map = _maps(store, num)
    ends = store.episode_ends[:num]
    plots = plots_of(store)
    every = math.ceil(ends[-1] * sum(len(plot.lines) for plot in plots) / _MAX_VALUES)
    success: list[list[list[int]]] = [[]] * num
    if "success" in store.fields:
        success = [_spans(part) for part in np.split(store.steps("success")[: ends[-1]], ends[:-1])]
    data = {
        "hz": store.info.control_hz,
        "stride": stride_of(store),
        "every": every,
        "columns": finite,
        "units": _units(store, columns),
        "language": {"spellings": SPELLINGS, "signs": SIGNS, "characters": MAX_CHARACTERS, "depth": MAX_DEPTH},
        "maps": maps,
        "plots": [plot.to_dict(ends, every) for plot in plots],
        "success": success,
        "filter": shlex.join(["act", "data", "filter", str(store.path)]),
    }
    cells = [list(map(_cell, columns[name])) for name in shown]
    out.mkdir(parents=True, exist_ok=True)
    page = out / "view.html"
    write_page(
        page,
        "view.html.j2",
        {
            "title": f"{store.path.resolve().name}: {num} demonstrations of {store.info.task}",
            "info": store.info,
            "shown": shown,
            "rows": list(zip(*cells, strict=True)),
            "shortcuts": _shortcuts(columns),
            "no_map": no_map,
            "no_video": no_video,
            "data": Markup(json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")),
        },
    )
    return page


def _maps(store: EpisodeStore, num: int) -> tuple[list[dict[str, Any]], str]:
    """Return the maps of the initial states, in coordinates from 0 to 1, and the reason if there are none."""
    task = TASKS.get(store.info.task)
    if not store.has_init_states:
        return [], "The initial states of these episodes were not recorded, so there is no map."
    if task is None or store.rand_vecs.shape[1] != len(task.low):
        return [], f"{store.info.task} is not a Meta-World task, so there is no map of its initial states."
    groups = {
        "reference": reference_init_states(task, _NUM_REFERENCE),
        "episodes": store.rand_vecs[:num],
        "lost": store.failed_rand_vecs.reshape(-1, len(task.low)),
    }
    maps: list[dict[str, Any]] = []
    for plane in map_planes(task):
        axes = []
        for arrow, dim in zip("→↑", plane, strict=True):
            if dim is not None:
                axes.append(f"{arrow} {task.dim_name(dim)}: {task.low[dim]:.3g} to {task.high[dim]:.3g} m")
        points = {name: _to_lists(_locate(task, init_states, plane)) for name, init_states in groups.items()}
        maps.append({"axes": axes, **points})
    return maps, ""


def _locate(task: Task, rand_vecs: np.ndarray, plane: Plane) -> np.ndarray:
    """Return the positions of initial states (N, D) on a map, (N, 2) from 0 to 1.

    Initial states outside the reset box are clipped to the margin.
    """
    placed = np.stack(map_coordinates(rand_vecs, plane), axis=1)
    for column, dim in enumerate(plane):
        if dim is not None:
            placed[:, column] = (placed[:, column] - task.low[dim]) / task.width[dim]
    located: np.ndarray = np.clip(_MARGIN + (1 - 2 * _MARGIN) * np.nan_to_num(placed), 0.0, 1.0)
    return located


def _units(store: EpisodeStore, columns: Columns) -> dict[str, str]:
    """Return the units of the columns that have one."""
    task = TASKS.get(store.info.task)
    units = {"final_distance": task.unit if task else "m", "jerk": "m/s³"}
    if task:
        for dim in range(len(task.low)):
            units[task.dim_name(dim).replace(" ", "_")] = "m"
    return {name: unit for name, unit in units.items() if name in columns}


def _shortcuts(columns: Columns) -> list[tuple[str, str, int]]:
    """Return the filter buttons: label, expression, and number of episodes that it selects."""
    shortcuts = [("all", "", len(columns["episode"]))]
    succeeded = columns.get("succeeded", [])
    if len(set(succeeded)) > 1:
        shortcuts += [("succeeded", "succeeded", sum(succeeded)), ("failed", "not succeeded", succeeded.count(False))]
    sources = columns["source"]
    if len(set(sources)) > 1:
        shortcuts += [(source, f"source == {source!r}", sources.count(source)) for source in dict.fromkeys(sources)]
    return shortcuts


def _spans(flags: np.ndarray) -> list[list[int]]:
    """Return the intervals in which bools (T,) are true, as first step and step after the last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    spans: list[list[int]] = edges.reshape(-1, 2).tolist()
    return spans


def _to_lists(values: np.ndarray) -> list[Any]:
    return [_to_lists(row) if row.ndim else _rounded(float(row)) for row in values]


def _rounded(value: float) -> float | None:
    """Round a value to four digits for JSON; None if it is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _finite(value: Any) -> Any:
    """Return a value for JSON with all digits, so that the page's filter selects the same episodes as the command."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else ""
    return str(value)

"""``act data browse``: a page for browsing a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.api.progress import Progress
from act_kit.cli.console import info, shown_progress, warn
from act_kit.cli.options import Overwrite, Workers
from act_kit.outputs import new_folder, require_no_overlap
from act_kit.preflight import require_datasets, require_free
from act_kit.processors import num_cpus


def browse(
    dataset: Annotated[Path, typer.Argument(help="A dataset.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder of the page.", show_default="DATASET-view")] = None,
    camera: Annotated[
        list[str] | None, typer.Option(help="Camera; repeatable.", show_default="those of its images, or corner4")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Video size in pixels.", show_default="that of its images, or 192")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Number of episodes to show, from the first.", show_default="all")
    ] = None,
    workers: Workers = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make a page for browsing a dataset: maps of its initial states, and each episode's signals next to its video.

    \b
    act data browse data/pick-place-v3
    """
    datasets = require_datasets([dataset])
    named = dataset if dataset.name not in ("", "..") else dataset.resolve()
    out = out or named.with_name(named.name + "-view")
    require_no_overlap(out, datasets)
    require_free(out, overwrite=overwrite, otherwise="It holds an earlier page")
    from act_kit.datasets.store import EpisodeStore
    from act_kit.reports.browser import make_videos, write_view
    from act_kit.sim.render import RenderSettings

    store = EpisodeStore.open(dataset)
    settings = RenderSettings.of_size(size) if size else None
    num = min(store.num_episodes, episodes or store.num_episodes)
    with new_folder(out, overwrite=overwrite) as fresh, shown_progress() as show:
        no_video = make_videos(
            store,
            num,
            fresh / "videos",
            camera or (),
            settings,
            num_workers=workers or num_cpus(),
            on_progress=lambda num_done: show(Progress(stage="videos", num_done=num_done, num=num)),
        )
        page = write_view(store, num, fresh, no_video=no_video)
    if no_video:
        warn(no_video)
    info(f"Page: {out / page.name}")

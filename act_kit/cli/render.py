"""``act render``: pictures for a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit import interrupts
from act_kit.cli.console import say
from act_kit.cli.options import ExecutorName, Workers, count_workers
from act_kit.cli.preflight import require_datasets, require_writable
from act_kit.files import quoted


def render(
    context: typer.Context,
    dataset: Annotated[Path, typer.Argument(help="A dataset that act collect made.", show_default=False)],
    camera: Annotated[list[str] | None, typer.Option(help="One or more of them.", show_default="corner4")] = None,
    size: Annotated[str, typer.Option(help="Pixels: 128, or 480x640 for height and width.")] = "128",
    workers: Workers = 0,
    executor: ExecutorName = "local",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Draw the frames anew that are there.")] = False,
) -> None:
    """Add pictures to a dataset, drawn from its recorded physics. Stopped, the same command goes on where it was.

    [dim]act render data/pick-place-v3 --camera corner4 --camera gripperPOV --size 128[/]
    """
    require_datasets([dataset])
    require_writable(dataset, fix="copy the dataset to where you can write, and render the copy")
    from act_kit.cli.data_stages import run_rendering
    from act_kit.datasets.images import ImageStore
    from act_kit.datasets.store import EpisodeStore
    from act_kit.files import locked, require_space
    from act_kit.parallel import ExecutorConfig
    from act_kit.sim.render import RenderSettings, check_cameras

    cameras = camera or ["corner4"]
    settings = RenderSettings.of_size(size)
    check_cameras(cameras)
    EpisodeStore.open(dataset)
    context.with_resource(locked(dataset))
    store = EpisodeStore.open(dataset, writable=True)
    num_bytes = store.num_steps * len(cameras) * settings.height_px * settings.width_px
    require_space(dataset, num_bytes, f"{store.num_steps} frames of {len(cameras)} cameras")
    spread = ExecutorConfig(executor=executor, num_workers=count_workers(workers))
    with interrupts.resumed_by(
        " ".join([f"act render {quoted(dataset)}", *(f"--camera {name}" for name in cameras), f"--size {size}"])
    ):
        run_rendering(store, cameras, settings, spread=spread, overwrite=overwrite)
    drawn = ", ".join(f"{name} by {ImageStore(store, name).renderer}" for name in cameras)
    say(f"{store.num_steps} frames of {settings} px from each camera in {dataset}: {drawn}")

"""``act render``: images for a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit import interrupts
from act_kit.cli.console import info
from act_kit.cli.options import ExecutorName, Workers, count_workers
from act_kit.cli.preflight import require_datasets, require_writable
from act_kit.files import quoted


def render(
    context: typer.Context,
    dataset: Annotated[Path, typer.Argument(help="A dataset that act collect made.", show_default=False)],
    camera: Annotated[list[str] | None, typer.Option(help="Camera; repeatable.", show_default="corner4")] = None,
    size: Annotated[str, typer.Option(help="Image size in pixels: 128, or 480x640 (height x width).")] = "128",
    workers: Workers = 0,
    executor: ExecutorName = "local",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Render existing images again.")] = False,
) -> None:
    """Add images to a dataset, rendered from its recorded simulator states. The same command resumes a stopped one.

    [dim]act render data/pick-place-v3 --camera corner4 --camera gripperPOV --size 128[/]
    """
    require_datasets([dataset])
    require_writable(dataset, fix="copy the dataset to a writable folder, and render the copy")
    from act_kit.cli.data_stages import run_rendering
    from act_kit.datasets.images import ImageStore
    from act_kit.datasets.store import EpisodeStore
    from act_kit.files import require_space
    from act_kit.outputs import locked
    from act_kit.parallel import ExecutorConfig
    from act_kit.sim.render import RenderSettings, check_cameras

    cameras = camera or ["corner4"]
    settings = RenderSettings.of_size(size)
    check_cameras(cameras)
    EpisodeStore.open(dataset)
    context.with_resource(locked(dataset))
    store = EpisodeStore.open(dataset, writable=True)
    num_bytes = store.num_steps * len(cameras) * settings.height_px * settings.width_px
    require_space(dataset, num_bytes, f"{store.num_steps} images of {len(cameras)} cameras")
    executor_config = ExecutorConfig(executor=executor, num_workers=count_workers(workers))
    camera_options = " ".join(f"--camera {name}" for name in cameras)
    with interrupts.resume_command(f"act render {quoted(dataset)} {camera_options} --size {size}"):
        run_rendering(store, cameras, settings, executor_config=executor_config, overwrite=overwrite)
    renderers = ", ".join(f"{name} by {ImageStore(store, name).renderer}" for name in cameras)
    info(f"{store.num_steps} images of {settings} px from each camera in {dataset}: {renderers}")

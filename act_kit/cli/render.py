"""``act render``: images for a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.api import render as rendering
from act_kit.cli.console import info, shown_progress
from act_kit.cli.options import ExecutorName, Workers


def render(
    dataset: Annotated[Path, typer.Argument(help="A dataset that act collect made.", show_default=False)],
    camera: Annotated[list[str] | None, typer.Option(help="Camera; repeatable.", show_default="corner4")] = None,
    size: Annotated[str, typer.Option(help="Image size in pixels: 128, or 480x640 (height x width).")] = "128",
    workers: Workers = 0,
    executor: ExecutorName = "local",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Render existing images again.")] = False,
) -> None:
    """Add images to a dataset, rendered from its recorded simulator states. The same command resumes a stopped one.

    \b
    act render data/pick-place-v3 --camera corner4 --camera gripperPOV --size 128
    """
    cameras = camera or ["corner4"]
    with shown_progress() as on_progress:
        store = rendering.render(
            dataset,
            cameras=cameras,
            size=size,
            workers=workers,
            executor=executor,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    from act_kit.datasets.images import ImageStore

    images = [ImageStore(store, name) for name in cameras]
    renderers = ", ".join(f"{image.camera} by {image.renderer}" for image in images)
    info(f"{store.num_steps} images of {images[0].settings} px from each camera in {dataset}: {renderers}")

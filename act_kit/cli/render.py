"""``act render``: images for a dataset."""

from __future__ import annotations

from pathlib import Path

from act_kit.api import render as rendering
from act_kit.cli.console import info, shown_progress
from act_kit.cli.options import ExecutorName, Workers, command


@command
def render(
    dataset: Path,
    *,
    camera: list[str] | None = None,
    size: str = "128",
    workers: Workers = 0,
    executor: ExecutorName = "local",
    overwrite: bool = False,
) -> None:
    """Add images to a dataset, rendered from its recorded simulator states. The same command resumes a stopped one.

    \b
    act render data/pick-place-v3 --camera corner4 --camera gripperPOV --size 128

    Args:
        dataset: A dataset that act collect made.
        camera: Camera; repeatable. [default: corner4]
        size: Image size in pixels: 128, or 480x640 (height x width).
        overwrite: Render existing images again.
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

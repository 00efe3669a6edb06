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
    size: str | None = None,
    look: str = "closeup",
    workers: Workers = 0,
    executor: ExecutorName = "local",
    overwrite: bool = False,
) -> None:
    """Add images to a dataset, or to all datasets of a folder, rendered from their recorded simulator states.

    The same command resumes a stopped one.

    \b
    act render data/pick-place-v3
    act render data/pick-place-v3 --look fast --camera corner4 --camera gripperPOV --size 128
    act render data/pick-place-v3 --look lerobot

    Args:
        dataset: A dataset that act collect made, or a folder of several.
        camera: Camera; repeatable. [default: corner and corner2; of fast, corner4; of metaworld and lerobot, corner2]
        size: Image size in pixels: 128, or 480x640 (height x width). [default: 64; of fast, 128; of metaworld and
            lerobot, 480]
        look: How images are drawn: closeup, of which fixed cameras show only the workspace; fast, the whole images;
            metaworld, as Meta-World's own environment; lerobot, as LeRobot's.
        overwrite: Render existing images again.
    """
    with shown_progress() as on_progress:
        stores = rendering.render_datasets(
            dataset,
            cameras=camera or (),
            size=size,
            look=look,
            workers=workers,
            executor=executor,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    from act_kit.datasets.images import ImageStore
    from act_kit.sim.looks import find_look

    for store in stores:
        images = [ImageStore(store, name) for name in camera or find_look(look).cameras]
        renderers = ", ".join(f"{image.camera} by {image.renderer}" for image in images)
        info(f"{store.num_steps} images of {images[0].settings} px from each camera in {store.path}: {renderers}")

"""``render``: images for one or several datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from act_kit import interrupts
from act_kit.api.progress import OnProgress, Progress, ignore, log
from act_kit.files import quoted
from act_kit.parallel import ExecutorConfig
from act_kit.preflight import require_datasets, require_one_dataset, require_writable
from act_kit.processors import num_cpus
from act_kit.sim.looks import find_look
from act_kit.workers import end_if_importing

if TYPE_CHECKING:
    from act_kit.datasets.store import EpisodeStore


def render(
    dataset: str | Path,
    *,
    cameras: Sequence[str] = (),
    size: str | int | None = None,
    look: str = "closeup",
    workers: int = 0,
    executor: str = "local",
    overwrite: bool = False,
    on_progress: OnProgress = ignore,
) -> EpisodeStore:
    """Add images to a dataset, rendered from its recorded simulator states, as ``act render`` does, and return it.

    The same call resumes a stopped one. ``size`` is 128, or ``"480x640"`` (height x width), in pixels. ``look`` is how
    the images are drawn: ``closeup``, ``fast``, ``metaworld`` or ``lerobot``; it has cameras and a size of its own for
    where none are given. The defaults are what the image presets for a processor are trained on. ``overwrite`` renders
    existing images again.

    Raises:
        ActKitError: There is no such dataset, camera or look, no OpenGL library, or too little space.
    """
    require_one_dataset(Path(dataset))
    (store,) = render_datasets(
        dataset,
        cameras=cameras,
        size=size,
        look=look,
        workers=workers,
        executor=executor,
        overwrite=overwrite,
        on_progress=on_progress,
    )
    return store


def render_datasets(
    path: str | Path,
    *,
    cameras: Sequence[str],
    size: str | int | None,
    look: str,
    workers: int,
    executor: str,
    overwrite: bool,
    on_progress: OnProgress,
) -> list[EpisodeStore]:
    """Add images to a dataset, or to all datasets of a folder, one after the other; see :func:`render`."""
    end_if_importing()
    path, defaults = Path(path), find_look(look)
    executor_config = ExecutorConfig(executor=executor, num_workers=workers or num_cpus())
    datasets = require_datasets([path])
    for dataset in datasets:
        require_writable(dataset, fix="copy the dataset to a writable folder, and render the copy")
    from act_kit.collection.render import render as render_images
    from act_kit.datasets.store import EpisodeStore
    from act_kit.files import require_space
    from act_kit.outputs import locked
    from act_kit.sim.render import RenderSettings, check_cameras, find_gl

    settings = RenderSettings.of_size(str(defaults.size_px if size is None else size), look)
    cameras = cameras or defaults.cameras
    check_cameras(cameras)
    num_steps = sum(EpisodeStore.open(dataset).num_steps for dataset in datasets)  # refuses a damaged one
    num_bytes = num_steps * len(cameras) * settings.height_px * settings.width_px
    require_space(path, num_bytes, f"{num_steps} images of {len(cameras)} cameras")
    camera_flags = " ".join(f"--camera {name}" for name in cameras)
    stores: list[EpisodeStore] = []
    with interrupts.resume_command(f"act render {quoted(path)} {camera_flags} {settings.flags}"):
        gl = find_gl(executor_config.num_workers)
        log.info(f"Rendering with {gl}")
        with executor_config.make_executor(gl.environment) as running, interrupts.deferred() as raise_if_interrupted:
            for dataset in datasets:
                with locked(dataset):
                    store = EpisodeStore.open(dataset, writable=True)
                    stage = f"render {', '.join(cameras)}" + (f", {store.info.task}" if len(datasets) > 1 else "")

                    def show(num_done: int, stage: str = stage, num: int = store.num_episodes) -> None:
                        on_progress(Progress(stage=stage, num_done=num_done, num=num))
                        raise_if_interrupted()

                    render_images(store, cameras, settings, executor=running, overwrite=overwrite, on_progress=show)
                stores.append(store)
    return stores

"""``render``: images for a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from act_kit import interrupts
from act_kit.api.progress import OnProgress, Progress, ignore, log
from act_kit.files import quoted
from act_kit.preflight import require_one_dataset, require_writable
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
    end_if_importing()
    dataset, defaults = Path(dataset), find_look(look)
    require_one_dataset(dataset)
    require_writable(dataset, fix="copy the dataset to a writable folder, and render the copy")
    from act_kit.collection.render import render as render_images
    from act_kit.datasets.store import EpisodeStore
    from act_kit.files import require_space
    from act_kit.outputs import locked
    from act_kit.parallel import ExecutorConfig
    from act_kit.sim.render import RenderSettings, check_cameras, find_gl

    settings = RenderSettings.of_size(str(defaults.size_px if size is None else size), look)
    cameras = cameras or defaults.cameras
    check_cameras(cameras)
    EpisodeStore.open(dataset)  # refuses a damaged dataset before it is locked
    camera_flags = " ".join(f"--camera {name}" for name in cameras)
    with locked(dataset), interrupts.resume_command(f"act render {quoted(dataset)} {camera_flags} {settings.flags}"):
        store = EpisodeStore.open(dataset, writable=True)
        num_bytes = store.num_steps * len(cameras) * settings.height_px * settings.width_px
        require_space(dataset, num_bytes, f"{store.num_steps} images of {len(cameras)} cameras")
        executor_config = ExecutorConfig(executor=executor, num_workers=workers or num_cpus())
        gl = find_gl(executor_config.num_workers)
        log.info(f"Rendering with {gl}")
        stage = f"render {', '.join(cameras)}"
        with executor_config.make_executor(gl.environment) as running, interrupts.deferred() as raise_if_interrupted:

            def show(num_done: int) -> None:
                on_progress(Progress(stage=stage, num_done=num_done, num=store.num_episodes))
                raise_if_interrupted()

            render_images(store, cameras, settings, executor=running, overwrite=overwrite, on_progress=show)
    return store

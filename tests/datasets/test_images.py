"""Images of a dataset: an interrupted rendering gives the same bytes, and damage is detected."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from act_kit.collection.render import render
from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError
from act_kit.parallel import LocalExecutor
from act_kit.sim.render import Gl, RenderSettings
from tests.conftest import ONE_THREAD, SERIAL, act, contents, make_dataset

TINY = RenderSettings(height_px=16, width_px=24)


class InterruptError(Exception):
    """Exception with which a test interrupts a rendering."""


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("collected") / "data", n=5).path


@pytest.fixture
def store(collected: Path, tmp_path: Path) -> EpisodeStore:
    shutil.copytree(collected, tmp_path / "data")
    return EpisodeStore.open(tmp_path / "data", writable=True)


@pytest.mark.e2e
@pytest.mark.gl
def test_an_interrupted_parallel_rendering_gives_the_bytes_of_an_uninterrupted_one(
    gl: Gl, store: EpisodeStore, collected: Path, tmp_path: Path
) -> None:
    shutil.copytree(collected, tmp_path / "whole")
    whole = EpisodeStore.open(tmp_path / "whole", writable=True)
    with LocalExecutor(1, gl.environment) as executor:
        render(whole, ["corner4", "topview"], TINY, executor=executor)

    def stop(num_done: int) -> None:
        if num_done == 2:
            raise InterruptError

    with LocalExecutor(2, gl.environment) as executor:
        with pytest.raises(InterruptError):
            render(store, ["corner4"], TINY, executor=executor, on_progress=stop)
        half = ImageStore(store, "corner4")
        assert (half.num_episodes, half.is_complete) == (2, False)
        with pytest.raises(DatasetError, match=r"Only 2 of 5 .* act render .* --camera corner4 --size 16x24"):
            list(half.blocks())
        # As after a kill: frames without their digest.
        half._frames.resize((half._frames.shape[0] + 7, *half._frames.shape[1:]))
        render(EpisodeStore.open(store.path, writable=True), ["corner4", "topview"], TINY, executor=executor)
    assert contents(store.path) == contents(whole.path)
    image = ImageStore(whole, "topview")
    assert np.concatenate([frames for _, frames in image.blocks()]).shape == (whole.num_steps, 16, 24, 3)
    assert (image.settings, image.renderer) == (TINY, gl.renderer)
    assert whole.compute_fingerprint() == whole.fingerprint, "images are not part of the fingerprint"


@pytest.mark.e2e
@pytest.mark.gl
def test_a_killed_rendering_resumes_to_the_same_bytes(gl: Gl, store: EpisodeStore, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "whole")
    command = [
        sys.executable,
        "-c",
        "from act_kit.cli import main; main()",
        "render",
        str(store.path),
        "--look",
        "fast",
    ]
    frames = store.path / "data" / "images" / "corner4" / "c"
    for num_kills in range(3):  # the last run is not killed
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=ONE_THREAD
        )
        while num_kills < 2 and not frames.exists() and process.poll() is None:
            time.sleep(0.005)
        if num_kills < 2:
            time.sleep(0.05 * num_kills)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=100)
    act("render", tmp_path / "whole", "--look", "fast", check=0)
    assert contents(store.path) == contents(tmp_path / "whole")


def test_a_kill_between_resizing_and_writing_keeps_the_committed_frames(store: EpisodeStore) -> None:
    image = fill_frames(store)
    committed: dict[str, Any] = {"num_steps": int(store.episode_ends[1]), "digests": image._digests[:2]}
    image._frames.attrs.update(committed)
    image._frames.resize((5000, 16, 24, 3))
    again = ImageStore(EpisodeStore.open(store.path, writable=True), "corner4")
    again.begin("llvmpipe")
    assert again._frames.shape[0] == store.episode_ends[1]
    with pytest.raises(DatasetError, match="Only 2 of 5"):
        list(again.blocks())


def test_missing_frames_are_not_zeros(store: EpisodeStore) -> None:
    image = fill_frames(store)
    (store.path / "data" / "images" / "corner4" / "c" / "0" / "0" / "0" / "0").unlink()
    with pytest.raises(DatasetError, match=r"lacks frames of corner4. Fix: act render"):
        list(image.blocks())


def fill_frames(store: EpisodeStore, renderer: str = "llvmpipe") -> ImageStore:
    """Write random frames without rendering."""
    image = ImageStore.create(store, "corner4", TINY)
    image.begin(renderer)
    for seed, length in enumerate(store.episode_lengths):
        image.append(np.random.default_rng(seed).integers(0, 255, (length, 16, 24, 3), dtype=np.uint8))
    return image


def test_other_settings_or_another_renderer_are_rejected(store: EpisodeStore) -> None:
    fill_frames(store, renderer="another")
    with pytest.raises(DatasetError, match=r"frames of corner4 at 16x24, not the 32x32 .* --overwrite"):
        render(store, ["corner4"], RenderSettings(height_px=32, width_px=32), executor=SERIAL)
    with pytest.raises(DatasetError, match="rendered by 'another', the renderer here is 'llvmpipe'"):
        ImageStore(store, "corner4").begin("llvmpipe")


def test_a_rejected_rendering_does_not_change_other_cameras(store: EpisodeStore) -> None:
    fill_frames(store)
    with pytest.raises(DatasetError, match="frames of corner4 at 16x24"):
        render(store, ["topview", "corner4"], RenderSettings(height_px=32, width_px=32), executor=SERIAL)
    assert ImageStore.cameras(store) == ("corner4",)


def test_frames_are_replaced_when_the_new_ones_are_complete(store: EpisodeStore) -> None:
    old = fill_frames(store)
    new = ImageStore.create(store, "corner4", RenderSettings(height_px=16, width_px=16))
    new.begin("llvmpipe")
    lengths = store.episode_lengths
    for length in lengths[:-1]:
        new.append(np.zeros((length, 16, 16, 3), np.uint8))
    there = ImageStore(EpisodeStore.open(store.path), "corner4")
    assert ImageStore.cameras(store) == ("corner4",)
    assert (there.settings, there.is_complete, there.damaged_episodes()) == (old.settings, True, [])
    again = ImageStore.find_new(EpisodeStore.open(store.path, writable=True), "corner4")
    assert again is not None
    again.begin("llvmpipe")
    again.append(np.zeros((lengths[-1], 16, 16, 3), np.uint8))
    again.take_over()
    there = ImageStore(EpisodeStore.open(store.path), "corner4")
    assert (there.settings, there.is_complete, there.damaged_episodes()) == (new.settings, True, [])
    assert {path.name for path in store.path.parent.iterdir()} == {"data"}


def test_only_finished_collections_are_rendered(store: EpisodeStore) -> None:
    store.group.attrs["fingerprint"] = None
    with pytest.raises(DatasetError, match=r"is not finished. Resume with: act collect"):
        render(store, ["corner4"], TINY, executor=SERIAL)


def test_a_changed_pixel_is_detected_and_the_error_names_the_fix(store: EpisodeStore) -> None:
    image = fill_frames(store)
    assert image.damaged_episodes() == []
    frames = store.group["data/images/corner4"]
    assert isinstance(frames, zarr.Array)
    at = int(store.episode_ends[2])
    frames[at, 3, 4] = 255 - np.asarray(frames[at, 3, 4])
    assert image.damaged_episodes() == [3]
    stderr = act("data", "info", store.path, "--verify", check=2).stderr
    assert "images of corner4 in 1 episodes (the first: 3)" in stderr
    assert "--overwrite" in stderr

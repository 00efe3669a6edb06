"""Images for training: those of every camera and dataset, in the order of the steps, on the device or on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from act_kit.collection.render import render
from act_kit.datasets.frames import load_frames
from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import DatasetError, RenderError
from act_kit.parallel import LocalExecutor
from act_kit.sim.render import Gl, RenderSettings

CPU = torch.device("cpu")


@pytest.mark.gl
@pytest.mark.parametrize("where", ["device", "disk"])
def test_frames_are_ordered_by_dataset_and_step_then_camera(
    images_store: EpisodeStore, tmp_path: Path, where: str
) -> None:
    twice = [images_store, images_store]
    frames = load_frames(twice, ("topview", "corner4"), where=where, device=CPU, scratch=tmp_path)
    images = [ImageStore(images_store, camera) for camera in ("topview", "corner4")]
    frames_of_cameras: list[np.ndarray] = []
    for image in images:
        frames_of_cameras.append(np.concatenate([block for _, block in image.blocks()]))
    expected = np.stack(frames_of_cameras, axis=1)
    assert np.array_equal(frames.images_TCHW3.numpy(), np.concatenate([expected, expected]))
    assert list(tmp_path.iterdir()) == [], "the file on disk is unnamed, and deleted with the process"


@pytest.mark.gl
def test_frames_that_do_not_fit_on_the_device_are_read_from_disk(
    images_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = load_frames([images_store], ("corner4",), where="auto", device=CPU, scratch=tmp_path)
    assert fits.reason.endswith("GB free on cpu: kept on the device")
    memory = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    large = load_frames([images_store], ("corner4",), where="auto", device=CPU, scratch=tmp_path)
    assert large.reason.endswith("read from disk, since they do not fit")
    assert torch.equal(large.images_TCHW3, fits.images_TCHW3)


@pytest.mark.gl
def test_errors_name_differing_or_missing_images_and_the_command_that_renders_them(
    gl: Gl, images_store: EpisodeStore, tmp_path: Path
) -> None:
    shutil.copytree(images_store.path, tmp_path / "other")
    other = EpisodeStore.open(tmp_path / "other", writable=True)
    with LocalExecutor(1, gl.environment) as executor:
        smaller = RenderSettings(height_px=16, width_px=16)
        render(other, ["corner4"], smaller, executor=executor, overwrite=True)
    stores = [images_store, EpisodeStore.open(other.path)]
    with pytest.raises(DatasetError, match=r"are 16x16 px .* 32x32 px .*corner4 --size 32x32 --look fast --overwrite"):
        load_frames(stores, ("corner4",), where="auto", device=CPU, scratch=tmp_path)
    with pytest.raises(RenderError, match="Did you mean 'corner4'"):
        load_frames(stores, ("korner4",), where="auto", device=CPU, scratch=tmp_path)
    with pytest.raises(
        DatasetError,
        match=r"no images of corner2: only of corner4, topview. Fix: act render .* --camera corner2 --size 32x32",
    ):
        load_frames(stores, ("corner2",), where="auto", device=CPU, scratch=tmp_path)

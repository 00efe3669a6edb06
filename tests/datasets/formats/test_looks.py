"""Imported images get the camera and the look of Meta-World that draw them: a policy is evaluated on the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from act_kit.collection.render import render
from act_kit.datasets.formats import looks
from act_kit.datasets.formats.convert import convert
from act_kit.datasets.frames import load_frames
from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.first_observations import recover_init_states
from act_kit.doctor.consistency import _compare_resets
from act_kit.errors import RenderError
from act_kit.parallel import LocalExecutor
from act_kit.sim.render import CameraViews, Gl, RenderSettings
from act_kit.sim.sentences import SENTENCES
from tests.conftest import act, make_dataset
from tests.datasets.formats import lerobot_files
from tests.datasets.formats.lerobot_files import Steps, steps_of

pytestmark = pytest.mark.gl

REACH = SENTENCES["reach-v3"]


@pytest.fixture(scope="module")
def lerobot_store(gl: Gl, tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """A demonstration drawn as LeRobot's environment draws it, from two cameras."""
    store = make_dataset(tmp_path_factory.mktemp("looks") / "data", n=1)
    settings = RenderSettings(height_px=64, width_px=64, look="lerobot")
    with LocalExecutor(1, gl.environment) as executor:
        render(store, ["corner2", "topview"], settings, executor=executor)
    return store


def import_(path: Path, out: Path) -> tuple[EpisodeStore, str, str]:
    """Import a dataset of one task; return it, its notes and its warnings."""
    _, (content,) = convert(path, out, to="act_kit", task="", overwrite=False, recover=recover_init_states)
    return EpisodeStore.open(out), "; ".join(content.notes), "; ".join(content.warnings)


def as_public(store: EpisodeStore) -> list[Steps]:
    """Return the episodes as ``lerobot/metaworld_mt50`` has them, with one camera, which has no name of Meta-World."""
    episodes = steps_of(store, REACH)
    for index, episode in enumerate(episodes):
        episode.frames["observation.image"] = ImageStore(store, "corner2").episode(index)
    return episodes


def test_the_look_of_an_export_is_found_without_its_metadata(lerobot_store: EpisodeStore, tmp_path: Path) -> None:
    """Of topview alone it would be ambiguous: there, the looks metaworld and lerobot are equal."""
    convert(lerobot_store.path, tmp_path / "export", to="lerobot", task="", overwrite=False)
    known, notes, _ = import_(tmp_path / "export", tmp_path / "known")
    assert ImageStore(known, "corner2").settings.look == "lerobot"
    assert "look" not in notes
    (tmp_path / "export/act_kit.json").unlink()
    store, notes, warnings = import_(tmp_path / "export", tmp_path / "out")
    assert "the images of corner2 are those of corner2 of the look lerobot (mean difference " in notes
    assert warnings == ""
    settings = RenderSettings(height_px=64, width_px=64, look="lerobot")
    assert [ImageStore(store, camera).settings for camera in ("corner2", "topview")] == [settings, settings]
    frames = load_frames(
        [store], ("corner2", "topview"), where="auto", device=torch.device("cpu"), scratch=tmp_path
    )  # of a training: the views are those of the policy in an evaluation
    assert frames.views.settings == settings


@pytest.mark.parametrize("hides_goal", [False, True])
def test_a_camera_without_a_name_of_meta_world_is_named(
    lerobot_store: EpisodeStore, tmp_path: Path, hides_goal: bool
) -> None:
    """The look shows also where the initial state is unknown."""
    episodes = as_public(lerobot_store)
    if hides_goal:
        episodes[0].arrays["observation.environment_state"][:, 36:] = 0
    lerobot_files.write(tmp_path / "in", episodes, "v2.1")
    store, notes, warnings = import_(tmp_path / "in", tmp_path / "out")
    assert ImageStore.cameras(store) == ("corner2",)
    assert ImageStore(store, "corner2").settings.look == "lerobot"
    assert "the images of image are those of corner2 of the look lerobot" in notes
    assert "and are called corner2" in notes
    assert warnings == ""
    assert store.has_init_states is not hides_goal


def test_images_that_no_look_draws_are_a_warning(lerobot_store: EpisodeStore, tmp_path: Path) -> None:
    episodes = as_public(lerobot_store)
    for episode in episodes:
        episode.frames["observation.image"] = 255 - episode.frames["observation.image"]
    lerobot_files.write(tmp_path / "in", episodes)
    shown = act("data", "convert", tmp_path / "in", tmp_path / "out", check=0)
    assert "Warning: no look draws the images of image: the nearest is " in " ".join(shown.stderr.split())
    store = EpisodeStore.open(tmp_path / "out")
    assert ImageStore.cameras(store) == ("image",)
    assert "no look draws" in "; ".join(store.info.parents[0]["notes"])


def test_the_doctor_compares_imported_images_with_those_of_an_evaluation(
    lerobot_store: EpisodeStore, tmp_path: Path
) -> None:
    lerobot_files.write(tmp_path / "in", as_public(lerobot_store))
    store, _, _ = import_(tmp_path / "in", tmp_path / "out")
    for look, status in (("lerobot", "RULED OUT"), ("fast", "CONFIRMED")):
        settings = RenderSettings(height_px=64, width_px=64, look=look)
        views = CameraViews(cameras=("corner2",), settings=settings)
        result = _compare_resets(store, views)
        assert result.status == status, result.message


def test_without_a_renderer_the_look_is_unknown(
    lerobot_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_no_gl() -> Gl:
        raise RenderError("no OpenGL library works here")

    monkeypatch.setattr(looks, "find_gl", find_no_gl)
    lerobot_files.write(tmp_path / "in", as_public(lerobot_store))
    store, _, warnings = import_(tmp_path / "in", tmp_path / "out")
    assert warnings == "the look of the images is unknown, 'fast' is assumed: no OpenGL library works here"
    assert np.array_equal(store.steps("action"), lerobot_store.steps("action"))

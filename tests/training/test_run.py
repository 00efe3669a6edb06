"""Run folders, and the checks of the data before training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from act_kit.datasets.store import EpisodeStore, find_datasets
from act_kit.errors import CheckpointError, DatasetError, OutputError
from act_kit.training.run import check_data, load_run
from tests.conftest import TINY, make_run


def test_data_of_low_diversity_is_refused_unless_allowed(one_init_state_store: EpisodeStore) -> None:
    with pytest.raises(DatasetError, match=r"the same initial state.*\n.*--allow-low-diversity"):
        check_data(one_init_state_store, allow_low_diversity=False)
    warning = check_data(one_init_state_store, allow_low_diversity=True)
    assert warning is not None
    assert warning.startswith("FAIL")


def test_good_data_passes_without_a_warning(reach_store: EpisodeStore) -> None:
    assert check_data(reach_store, allow_low_diversity=False) is None


def test_a_run_loads_as_it_was_created(reach_store: EpisodeStore, tmp_path: Path) -> None:
    config = make_run(tmp_path / "run", [reach_store.path], TINY, {"trainer.seed": 3})
    assert load_run(tmp_path / "run") == (config, [reach_store.path])
    with pytest.raises(OutputError, match=r"exists. act train --resume .* Fix: --overwrite replaces it"):
        make_run(tmp_path / "run", [reach_store.path], TINY, {})
    make_run(tmp_path / "run", [reach_store.path], TINY, {}, overwrite=True)


def test_a_run_without_its_images_creates_no_folder(reach_store: EpisodeStore, tmp_path: Path) -> None:
    presets = {
        "act_image_small": "corner, corner2: it has none. Fix: act render .* --look closeup$",
        "act_keypoints": "corner, corner2: it has none. Fix: act render .* --look closeup$",
        "act_image": "corner4: it has none. Fix: act render .* --look fast$",
    }
    for preset, message in presets.items():
        with pytest.raises(DatasetError, match=f"no images of {message}"):
            make_run(tmp_path / "run", [reach_store.path], [f"policy={preset}"], {})
    assert not (tmp_path / "run").exists()


def test_a_folder_of_datasets_stands_for_all_of_them(reach_store: EpisodeStore, tmp_path: Path) -> None:
    for name in ("b", "a"):
        shutil.copytree(reach_store.path, tmp_path / name)
    assert find_datasets([tmp_path]) == [tmp_path / "a", tmp_path / "b"]
    assert find_datasets([tmp_path / "b", Path("nowhere")]) == [tmp_path / "b", Path("nowhere")]


def test_missing_and_damaged_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no run at"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_text("data: [")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_run(tmp_path)
    (tmp_path / "config.yaml").write_text("data: [data]")
    with pytest.raises(CheckpointError, match=r"another version of act_kit: .*missing"):
        load_run(tmp_path)


def test_a_folder_of_the_user_is_never_deleted(reach_store: EpisodeStore, tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="was not made by act"):
        make_run(precious, [reach_store.path], TINY, {}, overwrite=True)
    assert (precious / "thesis.tex").exists()

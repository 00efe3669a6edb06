"""LeRobot datasets of versions 2.1 and 3.0 come in: steps, images, tasks, initial states, and what is said of them."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from act_kit.datasets.formats.content import Content, Keys
from act_kit.datasets.formats.convert import convert
from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.first_observations import FirstObservations, measure_dataset, recover_init_states
from act_kit.errors import DatasetError
from act_kit.reports.dataset import dataset_report
from act_kit.sim.sentences import SENTENCES
from tests.conftest import act, make_dataset
from tests.datasets.formats import lerobot_files
from tests.datasets.formats.lerobot_files import Steps, Version, steps_of

VERSIONS = ("v2.1", "v3.0")
PUSH = SENTENCES["push-v3"]


def read(path: Path, out: Path, task: str = "", **keys: str) -> list[Content]:
    return convert(path, out, to="act_kit", task=task, overwrite=False, keys=Keys(**keys), recover=recover_init_states)[
        1
    ]


def notes_of(path: Path, out: Path, task: str = "", **keys: str) -> str:
    (content,) = read(path, out, task, **keys)
    return "; ".join(content.notes)


@pytest.fixture(scope="module")
def push_back_store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    return make_dataset(tmp_path_factory.mktemp("back") / "data", task="push-back-v3", n=2)


# -- both versions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", ["video", "image"])
@pytest.mark.parametrize("version", VERSIONS)
def test_meta_world_is_imported(images_store: EpisodeStore, tmp_path: Path, version: Version, images: str) -> None:
    """The features are those of lerobot/metaworld_mt50; a file of version 3.0 has several episodes."""
    episodes = steps_of(images_store, SENTENCES["reach-v3"], ["corner4", "topview"])
    lerobot_files.write(tmp_path / "in", episodes, version, images=images)
    notes = notes_of(tmp_path / "in", tmp_path / "out")
    assert "states are read from observation.environment_state of 39 numbers" in notes
    assert "ignored: task_id (1 features" in notes
    store = EpisodeStore.open(tmp_path / "out")
    assert (store.info.task, store.sources) == ("reach-v3", ["imported"] * 4)
    assert (store.info.control_hz, store.info.horizon) == (80, 500)
    assert store.fields == ("state", "action", "reward", "success")
    assert store.episode_ends.tolist() == images_store.episode_ends.tolist()
    assert np.array_equal(store.steps("state"), images_store.steps("state").astype(np.float32))
    for name in ("action", "success"):
        assert np.array_equal(store.steps(name), images_store.steps(name))
    assert np.abs(store.rand_vecs - images_store.rand_vecs).max() < 1e-6
    assert ImageStore.cameras(store) == ("corner4", "topview")
    for camera in ImageStore.cameras(store):
        for index in range(4):
            difference = np.abs(
                ImageStore(store, camera).episode(index).astype(float)
                - episodes[index].frames[f"observation.images.{camera}"]
            )
            assert difference.mean() < 12 if images == "video" else not difference.any()
    assert store.info.command == f"act data convert {tmp_path / 'in'} {tmp_path / 'out'} --task reach-v3"


@pytest.mark.parametrize("version", VERSIONS)
def test_each_frame_of_a_video_is_that_of_its_step(push_store: EpisodeStore, tmp_path: Path, version: Version) -> None:
    """The brightness of a frame counts the steps of all episodes."""
    episodes, num = steps_of(push_store, PUSH), 0
    for episode in episodes:
        steps = num + np.arange(len(episode.arrays["action"]))
        brightness = (8 * (steps % 30)).astype(np.uint8)
        episode.frames["observation.image"] = np.tile(brightness[:, None, None, None], (1, 32, 48, 3))
        num += len(steps)
    lerobot_files.write(tmp_path / "in", episodes, version, per_file=3)
    read(tmp_path / "in", tmp_path / "out")
    store = EpisodeStore.open(tmp_path / "out")
    frames = np.concatenate([block for _, block in ImageStore(store, "image").blocks()])
    assert np.array_equal(np.round(frames.mean(axis=(1, 2, 3)) / 8), np.arange(num) % 30)


def test_version_2_0_is_imported(push_store: EpisodeStore, tmp_path: Path) -> None:
    """It has no statistics per episode, which are not read."""
    lerobot_files.write(tmp_path / "in", steps_of(push_store, PUSH), "v2.1")
    info = tmp_path / "in/meta/info.json"
    info.write_text(info.read_text().replace('"v2.1"', '"v2.0"'))
    read(tmp_path / "in", tmp_path / "out")
    assert EpisodeStore.open(tmp_path / "out").num_episodes == 4


def test_states_of_a_robot_are_imported(push_store: EpisodeStore, tmp_path: Path) -> None:
    """Without Meta-World's observation, the states are proprioception, and no initial state follows."""
    episodes = steps_of(push_store, "push-v3")
    for episode in episodes:
        del episode.arrays["observation.environment_state"]
    lerobot_files.write(tmp_path / "in", episodes)
    read(tmp_path / "in", tmp_path / "out")
    store = EpisodeStore.open(tmp_path / "out")
    assert np.array_equal(store.steps("state"), push_store.steps("state")[:, :4].astype(np.float32))
    assert not store.has_init_states
    assert "actions are read from observation.state" in notes_of(
        tmp_path / "in", tmp_path / "keys", state="action", action="observation.state"
    )
    with pytest.raises(
        DatasetError, match=r"lacks the vector qpos; it has observation.state, action, .* Fix: --state KEY"
    ):
        read(tmp_path / "in", tmp_path / "no", state="qpos")


# -- the round trip ----------------------------------------------------------------------------------------------------


def test_an_export_comes_back_equal(images_store: EpisodeStore, tmp_path: Path) -> None:
    """All fields, the initial states and attempts are exact; the images are those of the videos."""
    convert(images_store.path, tmp_path / "export", to="lerobot", task="", overwrite=False)
    notes = notes_of(tmp_path / "export", tmp_path / "back")
    assert notes == "the images are those of videos with lossy compression, not the rendered ones"
    back = EpisodeStore.open(tmp_path / "back")
    assert back.fingerprint == back.compute_fingerprint() == images_store.fingerprint
    assert back.attempts() == images_store.attempts()
    rendered, decoded = ImageStore(images_store, "corner4"), ImageStore(back, "corner4")
    assert (decoded.settings, decoded.renderer) == (rendered.settings, rendered.renderer)
    assert np.abs(decoded.episode(3).astype(float) - rendered.episode(3)).mean() < 12


def test_an_edited_export_is_recognized(reach_store: EpisodeStore, tmp_path: Path) -> None:
    convert(reach_store.path, tmp_path / "export", to="lerobot", task="", overwrite=False)
    file = tmp_path / "export/data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    for name, expected in (("observation.state", "the dataset was edited"), ("action", "")):
        rows = np.stack(table[name].to_numpy())
        rows[7, 0] += 0.001
        at = table.column_names.index(name)
        pq.write_table(table.set_column(at, name, lerobot_files.list_array(rows)), file)
        if expected:
            with pytest.raises(DatasetError, match=expected):
                read(tmp_path / "export", tmp_path / "back")
        else:
            assert "the files were changed" in notes_of(tmp_path / "export", tmp_path / "back")
    pq.write_table(table, file)
    exact = tmp_path / "export/act_kit/steps.parquet"
    pq.write_table(pq.read_table(exact).slice(1), exact)
    with pytest.raises(DatasetError, match=r"steps, the episodes [0-9]+\. Fix: copy the data again, or delete"):
        read(tmp_path / "export", tmp_path / "no")
    exact.write_bytes(exact.read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"steps\.parquet is damaged or not Parquet"):
        read(tmp_path / "export", tmp_path / "no")
    (tmp_path / "export/act_kit.json").unlink()
    notes = notes_of(tmp_path / "export", tmp_path / "foreign")
    assert "observation.state of 4 numbers, observation.environment_state of 35 numbers" in notes
    foreign = EpisodeStore.open(tmp_path / "foreign")
    assert np.array_equal(foreign.steps("state"), reach_store.steps("state").astype(np.float32))


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_several_tasks_become_several_datasets(
    push_store: EpisodeStore, push_back_store: EpisodeStore, reach_store: EpisodeStore, tmp_path: Path
) -> None:
    """push-v3 and push-back-v3 share a sentence; the position of the puck tells them apart."""
    push, back = steps_of(push_store, PUSH), steps_of(push_back_store, PUSH)
    reach = steps_of(reach_store, "reach-v2")[:2]
    lerobot_files.write(tmp_path / "in", [push[0], back[0], reach[0], push[1], back[1], reach[1]])
    contents = read(tmp_path / "in", tmp_path / "out")
    stores = {task: EpisodeStore.open(tmp_path / "out" / task) for task in ("push-v3", "push-back-v3", "reach-v3")}
    assert [content.info.task for content in contents] == list(stores)
    assert json.loads((tmp_path / "out/datasets.json").read_text())["datasets"] == list(stores)
    for episodes, store in zip((push, back, reach), stores.values(), strict=True):
        states = [episode.arrays["observation.environment_state"] for episode in episodes[:2]]
        assert np.array_equal(store.steps("state"), np.concatenate(states))
    assert "reach-v2 is imported as reach-v3" in "; ".join(contents[2].notes)
    assert stores["push-v3"].info.command.endswith("--task push-v3")
    convert(
        tmp_path / "in", tmp_path / "one", to="act_kit", task="push-v3", overwrite=False, recover=recover_init_states
    )
    assert EpisodeStore.open(tmp_path / "one").fingerprint == stores["push-v3"].fingerprint
    with pytest.raises(DatasetError, match=r"writes one. Fix: --task, one of push-v3, push-back-v3, reach-v3"):
        convert(tmp_path / "in", tmp_path / "no", to="act-hdf5", task="", overwrite=False)
    with pytest.raises(DatasetError, match=r"no episode of 'push-wall-v3': its tasks are 'Push the puck to a goal'"):
        read(tmp_path / "in", tmp_path / "no", "push-wall-v3")


def test_a_task_that_the_observations_do_not_show_must_be_named(push_store: EpisodeStore, tmp_path: Path) -> None:
    episodes = steps_of(push_store, PUSH)
    for episode in episodes:
        del episode.arrays["observation.environment_state"]
    lerobot_files.write(tmp_path / "in", episodes)
    with pytest.raises(DatasetError, match=r"sentence of push-back-v3 and of push-v3, .*Fix: --task push-back-v3"):
        read(tmp_path / "in", tmp_path / "out")
    notes = notes_of(tmp_path / "in", tmp_path / "out", "push-v3")
    assert "4 episodes have a sentence that another task shares: they are taken as push-v3" in notes


def test_unknown_tasks_are_named_in_one_error(tmp_path: Path) -> None:
    episodes = [other("Fold the shirt"), other("Open the box"), other("Fold the shirt"), other("Reach a goal position")]
    lerobot_files.write(tmp_path / "in", episodes)
    with pytest.raises(
        DatasetError, match=r"2 tasks that Meta-World does not have: 'Fold the shirt', 'Open the box'. Fix"
    ):
        read(tmp_path / "in", tmp_path / "out")
    read(tmp_path / "in", tmp_path / "out", "Fold the shirt")
    store = EpisodeStore.open(tmp_path / "out")
    assert (store.info.task, store.num_episodes) == ("Fold-the-shirt", 2)
    act(*shlex.split(store.reproduce_command)[1:], check=0)
    assert EpisodeStore.open(tmp_path / "out-2").fingerprint == store.fingerprint


def test_a_single_unknown_task_takes_the_name_of_the_folder(tmp_path: Path) -> None:
    lerobot_files.write(tmp_path / "folding", [other("Fold the shirt")])
    assert "'Fold the shirt' is not a task of Meta-World: its episodes are taken as folding" in notes_of(
        tmp_path / "folding", tmp_path / "out"
    )
    read(tmp_path / "folding", tmp_path / "named", "shirts")
    assert EpisodeStore.open(tmp_path / "named").info.task == "shirts"


def other(task: str, num_steps: int = 6) -> Steps:
    """Return an episode of another robot, whose actions are angles."""
    rng = np.random.default_rng(len(task))
    arrays = {
        "observation.state": rng.normal(size=(num_steps, 3)).astype(np.float32),
        "action": (5 * rng.normal(size=(num_steps, 2))).astype(np.float32),
    }
    return Steps(task, arrays)


# -- the audit ---------------------------------------------------------------------------------------------------------


def test_the_audit_counts_initial_states_and_clipped_actions(reach_store: EpisodeStore, tmp_path: Path) -> None:
    """Three episodes begin equally, and two have actions out of range."""
    episodes = steps_of(reach_store, SENTENCES["reach-v3"])
    episodes[1], episodes[2] = episodes[0], steps_of(reach_store, SENTENCES["reach-v3"])[0]
    for index, num in ((2, 3), (5, 1)):
        action = episodes[index].arrays["action"].copy()
        action[:num, 2] = -1.5
        episodes[index].arrays["action"] = action
    lerobot_files.write(tmp_path / "in", episodes)
    notes = notes_of(tmp_path / "in", tmp_path / "out")
    num_steps = sum(len(episode.arrays["action"]) for episode in episodes)
    assert f"4 of {num_steps} actions, in 2 of 10 episodes, are outside [-1, 1]: they are clipped" in notes
    store = EpisodeStore.open(tmp_path / "out")
    assert np.abs(store.steps("action")).max() <= 1
    assert (store.info.parents[0]["clipped_actions"], store.info.parents[0]["clipped_episodes"]) == (4, 2)
    measured = measure_dataset(store)
    assert isinstance(measured, FirstObservations)
    assert measured.init_states is not None
    assert measured.init_states.num_distinct == 8
    shown = dataset_report(store, measured).sections
    rows = [row for section in shown if section.table for row in section.table.rows]
    assert ("actions outside [-1, 1], clipped at the import", "4, in 2 of 10 demonstrations", "0") in rows
    assert ("distinct initial states", "8 of 10", "all") in rows


def test_a_hidden_goal_hides_the_initial_states(reach_store: EpisodeStore, tmp_path: Path) -> None:
    episodes = steps_of(reach_store, SENTENCES["reach-v3"])
    for episode in episodes:
        episode.arrays["observation.environment_state"][:, 36:] = 0
    lerobot_files.write(tmp_path / "in", episodes, "v2.1")
    assert "the initial states are unknown: the goal is hidden in 10 of 10 episodes" in notes_of(
        tmp_path / "in", tmp_path / "out"
    )
    store = EpisodeStore.open(tmp_path / "out")
    assert not store.has_init_states
    assert "a hidden goal" in measure_dataset(store).verdict


@pytest.mark.e2e
def test_the_commands_import_audit_and_train(
    push_store: EpisodeStore, reach_store: EpisodeStore, tmp_path: Path
) -> None:
    episodes = [*steps_of(push_store, PUSH), *steps_of(reach_store, SENTENCES["reach-v3"])]
    lerobot_files.write(tmp_path / "in", episodes)
    done = act("data", "convert", tmp_path / "in", tmp_path / "out", check=0)
    assert "push-v3, 4 episodes, from lerobot to act_kit" in done.stdout
    shown = act("report", tmp_path / "out", check=0).stdout
    assert "distinct initial states" in shown
    assert "actions outside [-1" in shown
    tiny = ("trainer.steps=2", "selection.episodes=1", "policy.dim_model=32", "policy.dim_feedforward=64")
    act("train", "--data", tmp_path / "out", "--out", tmp_path / "run", "--allow-low-diversity", *tiny, check=0)


# -- what belongs together ---------------------------------------------------------------------------------------------


def test_a_folder_with_links_to_its_files_is_read(push_store: EpisodeStore, tmp_path: Path) -> None:
    """The cache of the Hugging Face Hub is such a folder."""
    lerobot_files.write(tmp_path / "blobs", steps_of(push_store, PUSH))
    for file in [file for file in (tmp_path / "blobs").rglob("*") if file.is_file()]:
        link = tmp_path / "in" / file.relative_to(tmp_path / "blobs")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    read(tmp_path / "in", tmp_path / "out")
    shutil.rmtree(tmp_path / "blobs")
    with pytest.raises(DatasetError, match=r"info\.json"):
        read(tmp_path / "in", tmp_path / "again")

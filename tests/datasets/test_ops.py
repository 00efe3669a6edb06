"""Derived datasets: their steps and provenance, and no partial output after an interruption."""

from __future__ import annotations

import itertools
import math
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from act_kit.datasets.episode_table import episode_table, select_episodes
from act_kit.datasets.images import ImageStore
from act_kit.datasets.ops import filter_episodes, merge, split_by, split_parts, write_derived
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.diversity.measure import measure_diversity
from act_kit.errors import ConfigError, DatasetError
from act_kit.rollouts.episode import Episode
from act_kit.sim.initial_states import distinct
from act_kit.training.trainer import Trainer
from tests.conftest import act, contents, make_dataset, tiny_config


def derive(out: Path, derivations: object) -> list[EpisodeStore]:
    return write_derived(out, derivations, "act data …", overwrite=False)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Twelve demonstrations from three initial states, for which some attempts failed."""
    store = make_dataset(
        tmp_path_factory.mktemp("noisy") / "data", task="soccer-v3", n=12, num_init_states=4, noise=0.4
    )
    assert len(store.attempts()) > 12
    return store


def import_foreign(path: Path, like: EpisodeStore) -> EpisodeStore:
    """Write three episodes of another robot, by two operators, without initial states."""
    rng = np.random.default_rng(0)
    recordings: list[Episode] = []
    for source in ("lab/ann", "bob", "bob"):
        state, action = rng.normal(size=(20, 14)), rng.normal(size=(20, 14)).astype(np.float32)
        recordings.append(Episode(init_state=None, source=source, state=state, action=action))
    return write_dataset(path, replace(like.info, task="aloha-cube", demonstrator="people", seed=None), recordings)


def test_splitting_and_merging_restores_the_episodes(noisy: EpisodeStore, tmp_path: Path) -> None:
    wheres = ["steps > 120", "not steps > 120"]
    parts = [derive(tmp_path / str(i), filter_episodes([noisy], where))[0] for i, where in enumerate(wheres)]
    (again,) = derive(tmp_path / "again", merge(parts))
    longer = noisy.episode_lengths > 120
    assert 0 < longer.sum() < 12, "the filter of the test must select some episodes but not all"
    order = np.concatenate([np.flatnonzero(longer), np.flatnonzero(~longer)])
    episodes = list(noisy.iter_episodes())
    for recording, episode in zip(again.iter_episodes(), order, strict=True):
        assert (recording.init_state, recording.source) == (episodes[episode].init_state, "scripted")
        for name, values in episodes[episode].steps.items():
            np.testing.assert_array_equal(recording.steps[name], values)
    np.testing.assert_array_equal(again.success_steps, noisy.success_steps[order])
    # Every attempt stays recorded, twice after merging: in each part an attempt is kept, not selected or failed.
    for store, num_kept in ((parts[0], longer.sum()), (again, 12)):
        kept = [i for i, attempt in enumerate(store.attempts()) if attempt.kept]
        assert (kept, len(kept)) == ([r.attempt for r in store.iter_episodes()], num_kept)
        assert [store.attempts()[i].init_state for i in kept] == store.init_states
    assert len(parts[0].attempts()) == len(noisy.attempts())
    assert len(again.attempts()) == 2 * len(noisy.attempts())


def test_derived_datasets_record_their_provenance(noisy: EpisodeStore, tmp_path: Path) -> None:
    (part,) = derive(tmp_path / "part", filter_episodes([noisy], "random < 0.5", seed=1))
    assert part.info.command == f"act data filter {noisy.path} --where 'random < 0.5' --seed 1"
    assert part.info.parents == [
        {"path": str(noisy.path), "made_by": noisy.info.command, "fingerprint": noisy.fingerprint}
    ]
    assert (part.info.demonstrator, part.info.noise, part.info.num_wanted) == ("scripted", 0.4, part.num_episodes)
    assert part.fingerprint == part.compute_fingerprint()
    derive(tmp_path / "same", filter_episodes([noisy], "random < 0.5", seed=1))
    assert contents(tmp_path / "part") == contents(tmp_path / "same")
    (part,) = derive(tmp_path / "other", filter_episodes([noisy], "random < 0.5", seed=2))
    assert part.fingerprint != EpisodeStore.open(tmp_path / "same").fingerprint


def test_parts_share_no_initial_state_and_can_be_trained_on(noisy: EpisodeStore, tmp_path: Path) -> None:
    parts = derive(tmp_path / "parts", split_parts([noisy], [50, 25, 25]))
    assert [part.path.name for part in parts] == ["part-0", "part-1", "part-2"]
    assert sum(part.num_episodes for part in parts) == 12
    for one, other in itertools.combinations(parts, 2):
        both = np.concatenate([one.rand_vecs, other.rand_vecs])
        assert len(distinct(both)) == len(distinct(one.rand_vecs)) + len(distinct(other.rand_vecs))
    assert measure_diversity(parts[0]).num == parts[0].num_episodes
    (tmp_path / "run").mkdir()
    Trainer(tiny_config("trainer.steps=2"), [parts[0]], tmp_path / "run", evaluator=None).train()
    with pytest.raises(DatasetError, match=r"too few distinct initial states for the parts 1000,1,1: .*Fix: fewer"):
        split_parts([noisy], [1000, 1, 1])
    for shares in ([math.nan, 1], [math.inf, 1], [1e308, 1e308], [0, 1], [1]):
        with pytest.raises(ConfigError, match="takes the positive sizes"):
            split_parts([noisy], shares)
    # The command of a part reproduces this part alone.
    act(*shlex.split(parts[1].info.command)[1:], "--out", tmp_path / "alone", check=0)
    assert EpisodeStore.open(tmp_path / "alone").fingerprint == parts[1].fingerprint


def test_datasets_of_several_tasks_are_merged_into_a_folder(
    reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path: Path
) -> None:
    merged = derive(tmp_path / "all", merge([reach_store, push_store]))
    assert [store.path for store in merged] == [tmp_path / "all" / "reach-v3", tmp_path / "all" / "push-v3"]
    assert merged[0].fingerprint == reach_store.fingerprint
    for verb in ("info", "verify", "browse"):
        done = act("data", verb, tmp_path / "all", check=2)
        assert "all holds 2 datasets: expected one. Fix: give one, such as" in done.stderr
    act("data", "split", tmp_path / "all", "--by", "first_with_init_state", "--out", tmp_path / "split", check=0)
    assert EpisodeStore.open(tmp_path / "split/first_with_init_state/push-v3").fingerprint == push_store.fingerprint
    act("data", "split", tmp_path / "all", "--parts", "1,1", "--out", tmp_path / "split", "--overwrite", check=0)
    assert {path.name for path in (tmp_path / "split").iterdir()} == {"part-0", "part-1", "datasets.json"}


def test_imported_data_can_be_split_and_merged(noisy: EpisodeStore, tmp_path: Path) -> None:
    foreign = import_foreign(tmp_path / "foreign", noisy)
    assert list(episode_table(foreign)) == ["episode", "steps", "task", "source", "random"]
    bob, ann = derive(tmp_path / "by", split_by([foreign], "source"))
    assert (bob.path.name, ann.path.name) == ("bob", "lab-ann")
    assert (ann.num_episodes, bob.num_episodes, bob.sources, bob.has_init_states) == (1, 2, ["bob", "bob"], False)
    (again,) = derive(tmp_path / "again", merge([ann, bob]))
    assert again.fingerprint == foreign.fingerprint
    assert again.sources == foreign.sources
    assert [store.num_episodes for store in derive(tmp_path / "parts", split_parts([foreign], [2, 1]))] == [2, 1]


def test_a_dataset_without_episodes(reach_store: EpisodeStore, tmp_path: Path) -> None:
    """A collection whose attempts all fail leaves one."""
    empty = EpisodeStore.create(tmp_path / "empty", reach_store.info, reach_store[0])
    empty.append([], [replace(attempt, kept=False) for attempt in reach_store.attempts()])
    (merged,) = derive(tmp_path / "merged", merge([empty, reach_store]))
    assert merged.fingerprint == reach_store.fingerprint
    assert len(merged.attempts()) == 20
    assert set(map(len, episode_table(empty).values())) == {0}
    with pytest.raises(DatasetError, match="is true for none"):
        filter_episodes([empty], "steps > 0")
    with pytest.raises(DatasetError, match="no demonstrations to split"):
        split_by([empty], "source")
    assert re.search(r"steps +│ 0 +│", act("data", "info", empty.path, check=0).stdout)


@pytest.mark.gl
def test_images_are_copied(images_store: EpisodeStore, tmp_path: Path) -> None:
    (part,) = derive(tmp_path / "part", filter_episodes([images_store], "episode in [1, 3]"))
    assert ImageStore.cameras(part) == ("corner4", "topview")
    for camera in ImageStore.cameras(part):
        old, new = ImageStore(images_store, camera), ImageStore(part, camera)
        assert (new.is_complete, new.renderer, new.settings) == (True, old.renderer, old.settings)
        np.testing.assert_array_equal(new.episode(1), old.episode(3))
    bare = make_dataset(tmp_path / "bare", n=2, seed=1)
    with pytest.raises(DatasetError, match="their images differ"):
        merge([part, bare])


def test_columns_of_the_episode_table(noisy: EpisodeStore) -> None:
    columns = episode_table(noisy)
    assert select_episodes(columns, "first_with_init_state").tolist() == sorted(
        np.unique(noisy.rand_vecs, axis=0, return_index=True)[1].tolist()
    )
    same = np.flatnonzero(noisy.rand_vecs[:, 0] == noisy.rand_vecs[3, 0]).tolist()
    assert select_episodes(columns, f"object_x == {noisy.rand_vecs[3, 0]}").tolist() == same
    shares = dict(zip(columns["random"], columns["goal_x"], strict=True))
    assert sorted(shares) == [i / len(shares) for i in range(len(shares))]
    never = {**columns, "success_step": [float("nan")] * 12}
    assert len(select_episodes(never, "success_step < 1000")) == 0, "comparisons with a missing value are false"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("stepz < 3", "Did you mean 'steps'"),
        ("steps = 3", "not an expression"),
        ("steps", "must be true or false, but steps is a number"),
        ("steps < 'a'", "steps is a number, 'a' is text"),
        ("source.__class__ == 'A'", "'.__class__' is not understood"),
        ("__import__('os')", "no column '__import__'"),
        ("steps / 0 > 1", "division by zero"),
        ("", "not an expression"),
    ],
)
def test_invalid_expressions_are_rejected(noisy: EpisodeStore, where: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        select_episodes(episode_table(noisy), where)
    assert "\n" not in str(caught.value)
    assert "gripper_switches" in str(caught.value)


@pytest.mark.e2e
def test_wrong_arguments_exit_with_one_line(noisy: EpisodeStore, reach_store: EpisodeStore, tmp_path: Path) -> None:
    wrong: list[tuple[tuple[object, ...], str]] = [
        (("split", noisy.path, "--out", tmp_path / "out"), "expected either --by or --parts"),
        (("split", noisy.path, "--by", "jerk", "--out", tmp_path / "out"), "--by takes one of episode, steps"),
        (("filter", noisy.path, "--where", "steps < 0", "--out", tmp_path / "out"), "is true for none"),
        (("filter", noisy.path, "--where", "steps > 0", "--out", noisy.path, "--overwrite"), "overlap"),
        (("merge", noisy.path, noisy.path, "--out", tmp_path / "out"), "hold the same demonstrations"),
    ]
    for arguments, message in wrong:
        done = act("data", *arguments, check=2)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert noisy.fingerprint == EpisodeStore.open(noisy.path).compute_fingerprint()


@pytest.mark.parametrize("kind", ["one", "several"])
def test_an_interruption_leaves_no_output(
    noisy: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    original: Callable[..., None] = EpisodeStore.append
    written: list[int] = []

    def stop(store: EpisodeStore, episodes: list[Episode], attempts: object) -> None:
        written.append(len(episodes))
        if sum(written) > 6:
            raise KeyboardInterrupt
        original(store, episodes, attempts)

    monkeypatch.setattr(EpisodeStore, "append", stop)
    derivations = merge([noisy]) if kind == "one" else split_parts([noisy], [1, 1])
    with pytest.raises(KeyboardInterrupt):
        derive(tmp_path / "out", derivations)
    assert list(tmp_path.iterdir()) == []


def test_only_committed_episodes_of_a_killed_collection_are_used(noisy: EpisodeStore, tmp_path: Path) -> None:
    shutil.copytree(noisy.path, tmp_path / "killed")
    group = EpisodeStore.open(tmp_path / "killed", writable=True).group
    ends, kept = noisy.episode_ends, np.flatnonzero([attempt.kept for attempt in noisy.attempts()])
    committed = {"num_episodes": 5, "num_steps": int(ends[4]), "num_attempts": int(kept[4]) + 1}
    group.attrs.update({"fingerprint": None, "committed": committed})  # the rest was written but not committed
    killed = EpisodeStore.open(tmp_path / "killed")
    (taken,) = derive(tmp_path / "taken", filter_episodes([killed], "episode != 1"))
    assert taken.num_episodes == 4
    assert [r.init_state for r in taken.iter_episodes()] == [noisy.init_states[i] for i in (0, 2, 3, 4)]
    assert sum(attempt.kept for attempt in taken.attempts()) == 4
    assert taken.info.parents[0]["fingerprint"] == killed.compute_fingerprint()

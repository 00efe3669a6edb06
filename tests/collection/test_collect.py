"""Collection: the bytes do not depend on the number of processes or on interruptions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from act_kit.collection import collect as module
from act_kit.collection.collect import collect, run_attempt
from act_kit.config.collection import CollectConfig
from act_kit.datasets.ops import merge, write_derived
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.measure import measure_diversity
from act_kit.errors import DatasetError
from act_kit.overrides import compose
from act_kit.parallel import LocalExecutor
from act_kit.rollouts.episode import Episode
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from tests.conftest import SERIAL, contents, make_dataset


def config(**flags: object) -> CollectConfig:
    return compose(CollectConfig, flags={"task": "reach-v3", "n": 10, **flags})


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path, noise: float) -> None:
    collect(config(noise=noise), tmp_path / "one", executor=SERIAL)
    with LocalExecutor(2) as executor:
        collect(config(noise=noise), tmp_path / "two", executor=executor)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


SHELF = config(task="shelf-place-v3", n=16, noise=0.3)


class InterruptError(Exception):
    """Exception with which a test stops a collection."""


@pytest.fixture(scope="module")
def store_with_failures(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Collect a dataset in which some attempts fail."""
    store = collect(SHELF, tmp_path_factory.mktemp("whole") / "data", executor=SERIAL)
    assert len(store.attempts()) > store.num_episodes, "no attempt failed: the tests below would have no effect"
    return store


@pytest.mark.parametrize("after", [16, 18])
def test_a_resumed_collection_gives_the_same_dataset(
    tmp_path: Path, store_with_failures: EpisodeStore, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop at a commit, and just after one."""
    monkeypatch.setattr(module, "COMMIT_EVERY", 16)

    def stop(num_kept: int, num_attempts: int) -> None:
        if num_attempts == after:
            raise InterruptError

    with pytest.raises(InterruptError):
        collect(SHELF, tmp_path / "parts", executor=SERIAL, on_progress=stop)
    assert len(EpisodeStore.open(tmp_path / "parts").attempts()) == after
    assert EpisodeStore.open(tmp_path / "parts").fingerprint is None
    collect(SHELF, tmp_path / "parts", executor=SERIAL, resume=True)
    assert contents(tmp_path / "parts") == contents(store_with_failures.path)


def test_an_interrupted_commit_leaves_no_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config(n=10)
    collect(wanted, tmp_path / "whole", executor=SERIAL)
    original, calls = EpisodeStore._extend, []

    def break_at(self: EpisodeStore, name: str, rows: np.ndarray, at: int) -> None:
        calls.append(name)
        if name == "meta/episode_ends" and len(calls) < 20:
            raise InterruptError
        original(self, name, rows, at)

    monkeypatch.setattr(EpisodeStore, "_extend", break_at)
    with pytest.raises(InterruptError):
        collect(wanted, tmp_path / "parts", executor=SERIAL)
    monkeypatch.undo()
    torn = EpisodeStore.open(tmp_path / "parts")
    assert torn.num_episodes in (0, 10)
    collect(wanted, tmp_path / "parts", executor=SERIAL, resume=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("broken", range(0, 22, 3))
def test_an_interruption_at_any_array_leaves_only_committed_episodes(
    tmp_path: Path, broken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt at each array, before and after it grows: fill values are never read as data."""
    monkeypatch.setattr(module, "COMMIT_EVERY", 2)
    wanted = config(n=6)
    collect(wanted, tmp_path / "whole", executor=SERIAL)
    original, calls = EpisodeStore._extend, []

    def break_at(self: EpisodeStore, name: str, rows: np.ndarray, at: int) -> None:
        calls.append(name)
        if len(calls) - 14 > broken // 2:  # the first commit has 14 arrays
            array = self._array(name)
            array.resize((at + len(rows) * (broken % 2), *array.shape[1:]))
            raise InterruptError
        original(self, name, rows, at)

    monkeypatch.setattr(EpisodeStore, "_extend", break_at)
    with pytest.raises(InterruptError):
        collect(wanted, tmp_path / "parts", executor=SERIAL)
    monkeypatch.undo()
    torn = EpisodeStore.open(tmp_path / "parts")
    assert (torn.num_episodes, len(torn.attempts())) == (2, 2)
    assert [len(recording) for recording in torn.iter_episodes()] == torn.episode_lengths.tolist()
    assert (torn.success_steps >= 0).all()
    assert torn.sources == ["scripted"] * 2
    (merged,) = write_derived(tmp_path / "merged", merge([torn]), "act data merge", overwrite=False)
    assert merged.num_episodes == 2
    assert measure_diversity(torn).num == 2
    collect(wanted, tmp_path / "parts", executor=SERIAL, resume=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_resuming_a_missing_dataset_collects_it(tmp_path: Path) -> None:
    collect(config(n=2, steps_after_success=10, noise=0), tmp_path / "data", executor=SERIAL, resume=True)
    assert contents(tmp_path / "data") == contents(make_dataset(tmp_path / "other", n=2).path)


def _num_committed(path: Path) -> int:
    """Return the number of episodes in a dataset that another process may be writing; 0 before it exists."""
    return EpisodeStore.open(path).num_episodes if path.exists() else 0


@pytest.mark.e2e
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_resumes_to_the_same_bytes(tmp_path: Path, kill: signal.Signals) -> None:
    arguments = ["collect", "--task", "reach-v3", "--n", "150", "--workers", "2", "--out"]
    command = [sys.executable, "-c", "from act_kit.cli import main; main()", *arguments]
    killed = subprocess.Popen(
        [*command, str(tmp_path / "parts")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not _num_committed(tmp_path / "parts") and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.01)
    os.killpg(killed.pid, kill) if kill == signal.SIGKILL else os.kill(killed.pid, kill)
    output, _ = killed.communicate(timeout=60)
    if kill == signal.SIGINT:
        assert killed.returncode == 130
        assert "--resume" in output
        assert "Traceback" not in output
    partial = EpisodeStore.open(tmp_path / "parts")
    assert 0 < partial.num_episodes < 150
    assert partial.episodes()[-1].success_once
    resumed = subprocess.run([*command, str(tmp_path / "parts"), "--resume"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    collect(config(n=150), tmp_path / "whole", executor=SERIAL)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_resuming_with_other_options_is_refused_and_the_error_names_the_command(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", n=2)
    with pytest.raises(
        DatasetError, match=r"collected with other options: --seed was not given, now 1. Resume with: .*--resume"
    ):
        collect(config(n=2, seed=1, steps_after_success=10, noise=0), tmp_path / "data", executor=SERIAL, resume=True)


def test_resuming_a_damaged_dataset_is_refused(tmp_path: Path) -> None:
    """A new fingerprint would hide the damage."""
    make_dataset(tmp_path / "data", n=2)
    EpisodeStore.open(tmp_path / "data", writable=True)._array("data/state")[3] = 7.0
    before = contents(tmp_path / "data")
    for num in (2, 4):
        with pytest.raises(DatasetError, match="does not match its fingerprint"):
            make_dataset(tmp_path / "data", n=num, resume=True)
    assert contents(tmp_path / "data") == before


def test_resuming_a_dataset_that_was_not_collected_is_refused(tmp_path: Path) -> None:
    write_derived(tmp_path / "data", merge([make_dataset(tmp_path / "one", n=2)]), "", overwrite=False)
    with pytest.raises(DatasetError, match=r"was not collected, but made by: act data merge .*one\. Fix: collect into"):
        make_dataset(tmp_path / "data", n=2, resume=True)


def test_a_second_interruption_leaves_a_valid_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one leaves uncommitted rows, the second one comes before the first commit of the resumed collection."""
    monkeypatch.setattr(module, "COMMIT_EVERY", 2)
    make_dataset(tmp_path / "whole", n=4)
    original, calls = EpisodeStore._extend, []

    def break_late(self: EpisodeStore, name: str, rows: np.ndarray, at: int) -> None:
        original(self, name, rows, at)
        calls.append(name)
        if len(calls) > 14 and name == "meta/attempts/kept":  # the last array of the second commit
            raise InterruptError

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeStore, "_extend", break_late)
        with pytest.raises(InterruptError):
            make_dataset(tmp_path / "parts", n=4)
        patch.setattr(module, "_init_states", interrupt)
        with pytest.raises(InterruptError):
            make_dataset(tmp_path / "parts", n=4, resume=True)
    assert EpisodeStore.open(tmp_path / "parts").num_episodes == 2
    make_dataset(tmp_path / "parts", n=4, resume=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def interrupt(*arguments: object) -> None:
    raise InterruptError


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for content in ("missing", "empty", "there"):
        if content == "empty":
            (tmp_path / "elsewhere").mkdir()
        make_dataset(tmp_path / "link", n=1, resume=content == "there")
        assert (tmp_path / "link").is_symlink()
        assert EpisodeStore.open(tmp_path / "elsewhere").num_episodes == 1
        if content == "missing":
            shutil.rmtree(tmp_path / "elsewhere")


def run(init_state: InitialState, attempt: int = 0, **options: object) -> Episode:
    """Run one attempt."""
    return run_attempt(config(task=init_state.task, **{"noise": 0, **options}), "", attempt, init_state)


def test_noise_changes_executed_actions_but_not_labels() -> None:
    (init_state,) = InitialStateDistribution("push-v3").sample(1, seed=0, stream="collect")
    noisy, expert = run(init_state, attempt=2, seed=4, noise=0.3), ScriptedExpert("push-v3")
    assert not np.array_equal(noisy.action, noisy.executed_action)
    assert np.abs(noisy.executed_action).max() <= 1
    assert np.abs(noisy.action).max() <= 1
    for state, action in zip(noisy.state, noisy.action, strict=True):
        assert np.array_equal(expert.act(state), action)
    again = run(init_state, attempt=2, seed=4, noise=0.3)
    other = run(init_state, attempt=3, seed=4, noise=0.3)
    assert np.array_equal(noisy.executed_action, again.executed_action)
    assert not np.array_equal(noisy.executed_action[:5], other.executed_action[:5])
    clean = run(init_state)
    assert np.array_equal(clean.action, clean.executed_action)


def test_an_episode_ends_some_steps_after_its_first_success() -> None:
    (init_state,) = InitialStateDistribution("reach-v3").sample(1, seed=0, stream="collect")
    for more in (0, 7):
        episode = run(init_state, steps_after_success=more)
        assert episode.success_step is not None
        assert len(episode) == episode.success_step + 1 + more


def test_failed_attempts_are_recorded_but_not_in_the_data(store_with_failures: EpisodeStore) -> None:
    attempts = store_with_failures.attempts()
    assert sum(attempt.kept for attempt in attempts) == 16
    assert [attempt.init_state for attempt in attempts if attempt.kept] == store_with_failures.init_states
    assert all(episode.success.any() for episode in store_with_failures.episodes())
    distribution = InitialStateDistribution("shelf-place-v3").sample(len(attempts), seed=0, stream="collect")
    assert [attempt.init_state for attempt in attempts] == distribution


def test_a_collection_without_successes_stops_and_the_error_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_FAILED_ATTEMPTS", 2)
    with pytest.raises(DatasetError, match=r"failed all of its first 2 attempts.*Fix: another --seed, or less --noise"):
        make_dataset(tmp_path / "data", task="peg-insert-side-v3", n=2, noise=1.0)


def test_distinct_initial_states_are_reused(tmp_path: Path) -> None:
    store = make_dataset(tmp_path / "data", n=7, init_distribution="sobol", num_init_states=3)
    distinct = InitialStateDistribution("reach-v3", "sobol").sample(3, seed=0, stream="collect")
    three = [list(init_state.rand_vec) for init_state in distinct]
    assert store.rand_vecs.tolist() == [*three, *three, three[0]]


def test_resuming_with_more_episodes_gives_the_same_bytes_or_is_refused(tmp_path: Path) -> None:
    collect(config(n=3), tmp_path / "parts", executor=SERIAL)
    collect(config(n=6), tmp_path / "parts", executor=SERIAL, resume=True)
    collect(config(n=6), tmp_path / "whole", executor=SERIAL)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    with pytest.raises(DatasetError, match="already holds 6 episodes"):
        collect(config(n=4), tmp_path / "parts", executor=SERIAL, resume=True)
    collect(config(n=4, init_distribution="grid"), tmp_path / "grid", executor=SERIAL)
    with pytest.raises(DatasetError, match="with --n 9 they would differ"):
        collect(config(n=9, init_distribution="grid"), tmp_path / "grid", executor=SERIAL, resume=True)

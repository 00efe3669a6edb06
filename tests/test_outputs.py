"""Output folders: one process at a time, replaced only by what is complete, and nothing else is touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from act_kit.cli.preflight import require_datasets
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ActKitError, DatasetError, OutputError
from act_kit.files import (
    check_name,
    discard,
    finish_output,
    hidden_sibling,
    locked,
    new_folder,
    prepare_output,
    restore_output,
)
from act_kit.training.run import create_run
from tests.conftest import ONE_THREAD, TINY, act, contents, make_dataset


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def somebody_else(*folders: Path) -> Iterator[int]:
    """Let another process hold the locks of folders; yield its number."""
    code = (
        "import sys; from pathlib import Path; from contextlib import ExitStack; from act_kit.files import locked\n"
        "with ExitStack() as stack:\n"
        "    for path in sys.argv[1:]: stack.enter_context(locked(Path(path)))\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, folders)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process.pid
    finally:
        process.communicate("")


def old_one(path: Path) -> Path:
    path.mkdir()
    (path / "summary.json").write_text("old")
    return path


def test_a_second_process_is_told_who_writes_and_nothing_stays_behind(tmp_path: Path) -> None:
    out = tmp_path / "made" / "out"
    with somebody_else(out) as pid:
        says = rf"out is being written by process {pid} on .* since .*: act .*kill {pid}"
        with pytest.raises(OutputError, match=says), locked(out):
            pass
    assert names(tmp_path) == set()
    with locked(out), locked(out):
        assert names(out.parent) == {".out.act-lock"}
    assert names(tmp_path) == set()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with somebody_else(tmp_path / "out") as pid:
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)], timeout=5)
        assert names(tmp_path) == {".out.act-lock"}
        with locked(tmp_path / "out"):
            pass
    assert names(tmp_path) == set()


def test_a_folder_is_replaced_by_a_complete_one_or_stays(tmp_path: Path) -> None:
    out = old_one(tmp_path / "out")
    with pytest.raises(OutputError, match="out exists"), new_folder(out):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(out, overwrite=True) as fresh:
        (fresh / "summary.json").write_text(str(1 / 0))
    assert (names(tmp_path), contents(out)) == ({"out"}, {"summary.json": b"old"})
    with new_folder(out, overwrite=True) as fresh:
        (fresh / "summary.json").write_text("new")
        assert contents(out) == {"summary.json": b"old"}
    assert (names(tmp_path), contents(out)) == ({"out"}, {"summary.json": b"new"})


def test_what_is_built_in_place_keeps_what_it_replaces_until_it_is_complete(tmp_path: Path) -> None:
    out = old_one(tmp_path / "out")
    old = hidden_sibling(out, "old")
    with locked(out):
        prepare_output(out, overwrite=True)
        assert names(tmp_path) == {".out.act-lock", ".out.act-old"}
    assert contents(out) == {"summary.json": b"old"}, "nothing was built"
    for _ in range(2):  # a second attempt replaces the first, which was not completed
        with locked(out):
            prepare_output(out, overwrite=True)
            out.mkdir()
            (out / "config.yaml").write_text("half")
        assert contents(old) == {"summary.json": b"old"}
    finish_output(out)
    assert (names(tmp_path), contents(out)) == ({"out"}, {"config.yaml": b"half"})


def test_of_two_finished_folders_the_newer_is_kept(tmp_path: Path) -> None:
    """A kill between completing the one and deleting the other leaves both."""
    newer = old_one(tmp_path / "out")
    (newer / "summary.json").write_text("newer")
    old_one(hidden_sibling(newer, "old"))
    with locked(newer):
        prepare_output(newer, overwrite=True)
    assert (names(tmp_path), contents(newer)) == ({"out"}, {"summary.json": b"newer"})


def test_a_kill_between_two_renames_is_mended_by_whoever_comes_next(tmp_path: Path, reach_store: EpisodeStore) -> None:
    shutil.copytree(reach_store.path, hidden_sibling(tmp_path / "out", "old"))
    with somebody_else(tmp_path / "out"), pytest.raises(DatasetError, match="There is no dataset"):
        EpisodeStore.open(tmp_path / "out")
    assert EpisodeStore.open(tmp_path / "out").num_episodes == 10
    assert names(tmp_path) == {"out"}
    (tmp_path / "out").rename(hidden_sibling(tmp_path / "out", "old"))
    require_datasets([tmp_path / "out"])
    assert names(tmp_path) == {"out"}


def test_a_deletion_that_was_killed_is_finished(tmp_path: Path) -> None:
    for what in ("trash", "new"):
        old_one(hidden_sibling(tmp_path / "out", what))
    with locked(tmp_path / "out"):
        pass
    assert names(tmp_path) == set()
    old_one(tmp_path / "half")
    discard(tmp_path / "half", tmp_path / "half")
    assert names(tmp_path) == set()
    restore_output(tmp_path / "half")


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    old_one(tmp_path / "disk" / "there")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "there")
    with new_folder(tmp_path / "out", overwrite=True) as fresh:
        (fresh / "summary.json").write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert contents(tmp_path / "disk") == {"there/summary.json": b"new"}


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "text").write_text("mine")
    with pytest.raises(OutputError, match="was not made by act"), new_folder(tmp_path / "precious", overwrite=True):
        pass
    assert contents(tmp_path) == {"precious/text": b"mine"}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../evil", "a/b", "/etc", ".hidden", "a\nb", "a\\b", "x" * 300, "ü" * 150]
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ActKitError, match="cannot be the name of a task"):
        check_name(name, "task")


@pytest.mark.e2e
def test_nothing_is_written_where_a_file_says(
    reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path: Path
) -> None:
    for number, store in enumerate((reach_store, push_store)):
        shutil.copytree(store.path, tmp_path / "in" / str(number))
    evil = EpisodeStore.open(tmp_path / "in" / "0", writable=True)
    evil.group.attrs["task"] = "../../evil"
    before = contents(tmp_path)
    said = act("data", "merge", tmp_path / "in" / "0", tmp_path / "in" / "1", "--out", tmp_path / "a" / "out", check=2)
    assert "cannot be the name of a task" in said.stderr
    runs = tmp_path / "runs"
    runs.mkdir()
    for text in ('["../../evil"]', '{"a": 1}', "[true]", "[-1]", "[0, 1"):
        (runs / "seeds.json").write_text(text)
        assert act("train", "--resume", "--out", runs, check=2).stderr.count("\n") == 1
    shutil.rmtree(runs)
    assert contents(tmp_path) == before


@pytest.mark.e2e
@pytest.mark.parametrize("verb", ["merge", "collect", "train", "eval", "render", "seeds"])
def test_two_at_once(verb: str, reach_store: EpisodeStore, tiny_run: Path, tmp_path: Path) -> None:
    """The second one ends in a line, whatever it is, and changes nothing."""
    out = tmp_path / "out"
    if verb in ("train", "seeds"):
        create_run(out, [reach_store.path], TINY, {}, overwrite=False)
    if verb == "seeds":
        (out / "seeds.json").write_text("[0]")
    if verb == "render":
        shutil.copytree(reach_store.path, out)
    commands: dict[str, tuple[object, ...]] = {
        "merge": ("data", "merge", reach_store.path, "--out", out),
        "collect": ("collect", "--task", "reach-v3", "--n", 1, "--out", out),
        "train": ("train", "--resume", "--out", out),
        "seeds": ("train", "--resume", "--out", out),
        "eval": ("eval", tiny_run, "--episodes", 1, "--out", out),
        "render": ("render", out),
    }
    before = contents(tmp_path)
    with somebody_else(out) as pid:
        done = act(*commands[verb], check=2)
        assert f"out is being written by process {pid}" in done.stderr
        assert done.stderr.count("\n") == 1
    assert contents(tmp_path) == before


def test_of_two_merges_one_wins_and_the_other_says_so(reach_store: EpisodeStore, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from act_kit.cli import main; main()", "data", "merge", str(reach_store.path)]
    both = [
        subprocess.Popen(
            [*command, "--out", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ends = [(process.communicate(timeout=100)[1], process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 2], ends
    (said,) = (err for err, code in ends if code == 2)
    assert said.count("\n") == 1
    assert "is being written by process" in said or "out exists" in said
    assert EpisodeStore.open(tmp_path / "out").fingerprint == reach_store.fingerprint
    assert names(tmp_path) == {"out"}


@pytest.mark.e2e
@pytest.mark.parametrize("verb", ["collect", "train"])
def test_deleted_while_it_is_written_is_one_line(verb: str, reach_store: EpisodeStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command: list[object] = ["collect", "--task", "reach-v3", "--n", 2000, "--workers", 1]
    if verb == "train":
        command = ["train", "--data", reach_store.path, *TINY, "trainer.steps=100000", "selection.num_evaluations=0"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from act_kit.cli import main; main()", *map(str, [*command, "--out", out])],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ONE_THREAD,
    )  # fmt: skip
    written = out / ("checkpoints/last" if verb == "train" else "meta/attempt/c/0")
    while not written.exists() and process.poll() is None:
        time.sleep(0.01)
    out.rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved")
    _, said = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "out was deleted or moved while it was being written" in said
    assert said.count("\n") == 1


@pytest.mark.e2e
def test_no_orphan_trains_on(reach_store: EpisodeStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["train", "--data", str(reach_store.path), "--seeds", "2", *TINY, "selection.num_evaluations=0"]
    killed = subprocess.Popen(
        [sys.executable, "-c", "from act_kit.cli import main; main()", *command, "trainer.steps=100000", "--out", out],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ONE_THREAD,
    )  # fmt: skip
    last = out / "seed-0" / "checkpoints" / "last"
    while not last.exists() and killed.poll() is None:
        time.sleep(0.05)
    children = psutil.Process(killed.pid).children(recursive=True)
    assert children
    assert "is being written by" in act("train", "--resume", "--out", out / "seed-0", check=2).stderr
    killed.kill()
    killed.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


@pytest.mark.e2e
def test_damage_is_not_laundered(reach_store: EpisodeStore, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(reach_store.path, tmp_path / "changed"))
    EpisodeStore.open(changed, writable=True).group["data/action"][3, 0] = 0.123  # type: ignore[index]
    infinite = make_dataset(tmp_path / "infinite", n=2)
    EpisodeStore.open(infinite.path, writable=True).group["data/state"][4, 2] = float("nan")  # type: ignore[index]
    EpisodeStore.open(infinite.path, writable=True).finish()
    before = names(tmp_path)
    for path, says in ((changed, "does not match its fingerprint"), (infinite.path, "not finite at 1 steps")):
        for command in (
            ("data", "merge", path, "--out", tmp_path / "out"),
            ("data", "convert", path, tmp_path / "out", "--to", "act-hdf5"),
            (
                "collect",
                "--task",
                "reach-v3",
                "--n",
                1,
                "--demonstrator",
                "replay",
                "--source",
                path,
                "--out",
                tmp_path / "out",
            ),
            ("render", path, "--size", 16),
        ):
            assert says in act(*command, check=2).stderr
    assert names(tmp_path) == before

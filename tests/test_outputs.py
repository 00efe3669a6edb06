"""Output folders: one writing process, replaced only by a complete folder, and other folders are unchanged."""

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

from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ActKitError, DatasetError, OutputError
from act_kit.files import check_name
from act_kit.outputs import discard, finish_output, hidden_sibling, locked, new_folder, prepare_output, restore_output
from act_kit.preflight import require_datasets
from tests.conftest import ONE_THREAD, TINY, act, contents, make_dataset, make_run


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def locked_by_other_process(*folders: Path) -> Iterator[int]:
    """Let another process hold the locks of folders; yield its process ID."""
    code = (
        "import sys; from pathlib import Path; from contextlib import ExitStack; from act_kit.outputs import locked\n"
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


def make_old_folder(path: Path) -> Path:
    path.mkdir()
    (path / "summary.json").write_text("old")
    return path


def test_the_error_names_the_writing_process_and_no_file_remains(tmp_path: Path) -> None:
    out = tmp_path / "made" / "out"
    with locked_by_other_process(out) as pid:
        message = rf"out is being written by process {pid} on .* since .*: act .*kill {pid}"
        with pytest.raises(OutputError, match=message), locked(out):
            pass
    assert names(tmp_path) == set()
    with locked(out), locked(out):
        assert names(out.parent) == {".out.act-lock"}
    assert names(tmp_path) == set()


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    with locked_by_other_process(tmp_path / "out") as pid:
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)], timeout=5)
        assert names(tmp_path) == {".out.act-lock"}
        with locked(tmp_path / "out"):
            pass
    assert names(tmp_path) == set()


def test_a_folder_is_replaced_by_a_complete_one_or_kept(tmp_path: Path) -> None:
    out = make_old_folder(tmp_path / "out")
    with pytest.raises(OutputError, match="out exists"), new_folder(out):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(out, overwrite=True) as fresh:
        (fresh / "summary.json").write_text(str(1 / 0))
    assert (names(tmp_path), contents(out)) == ({"out"}, {"summary.json": b"old"})
    with new_folder(out, overwrite=True) as fresh:
        (fresh / "summary.json").write_text("new")
        assert contents(out) == {"summary.json": b"old"}
    assert (names(tmp_path), contents(out)) == ({"out"}, {"summary.json": b"new"})


def test_the_replaced_folder_is_kept_until_the_new_one_is_complete(tmp_path: Path) -> None:
    out = make_old_folder(tmp_path / "out")
    old = hidden_sibling(out, "old")
    with locked(out):
        prepare_output(out, overwrite=True)
        assert names(tmp_path) == {".out.act-lock", ".out.act-old"}
    assert contents(out) == {"summary.json": b"old"}, "nothing was built"
    for _ in range(2):  # a second attempt replaces the first, incomplete one
        with locked(out):
            prepare_output(out, overwrite=True)
            out.mkdir()
            (out / "config.yaml").write_text("half")
        assert contents(old) == {"summary.json": b"old"}
    finish_output(out)
    assert (names(tmp_path), contents(out)) == ({"out"}, {"config.yaml": b"half"})


def test_the_newer_of_two_complete_folders_is_kept(tmp_path: Path) -> None:
    """A kill between completing the new folder and deleting the old one leaves both."""
    newer = make_old_folder(tmp_path / "out")
    (newer / "summary.json").write_text("newer")
    make_old_folder(hidden_sibling(newer, "old"))
    with locked(newer):
        prepare_output(newer, overwrite=True)
    assert (names(tmp_path), contents(newer)) == ({"out"}, {"summary.json": b"newer"})


def test_the_next_reader_restores_a_folder_after_a_kill_between_two_renames(
    tmp_path: Path, reach_store: EpisodeStore
) -> None:
    shutil.copytree(reach_store.path, hidden_sibling(tmp_path / "out", "old"))
    with locked_by_other_process(tmp_path / "out"), pytest.raises(DatasetError, match="There is no dataset"):
        EpisodeStore.open(tmp_path / "out")
    assert EpisodeStore.open(tmp_path / "out").num_episodes == 10
    assert names(tmp_path) == {"out"}
    (tmp_path / "out").rename(hidden_sibling(tmp_path / "out", "old"))
    require_datasets([tmp_path / "out"])
    assert names(tmp_path) == {"out"}


def test_the_next_writer_finishes_a_killed_deletion(tmp_path: Path) -> None:
    for what in ("trash", "new"):
        make_old_folder(hidden_sibling(tmp_path / "out", what))
    with locked(tmp_path / "out"):
        pass
    assert names(tmp_path) == set()
    make_old_folder(tmp_path / "half")
    discard(tmp_path / "half", tmp_path / "half")
    assert names(tmp_path) == set()
    restore_output(tmp_path / "half")


def test_a_link_to_a_folder_remains_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    make_old_folder(tmp_path / "disk" / "there")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "there")
    with new_folder(tmp_path / "out", overwrite=True) as fresh:
        (fresh / "summary.json").write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert contents(tmp_path / "disk") == {"there/summary.json": b"new"}


def test_foreign_folders_are_unchanged(tmp_path: Path) -> None:
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
def test_names_read_from_files_cannot_redirect_output(
    reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path: Path
) -> None:
    for number, store in enumerate((reach_store, push_store)):
        shutil.copytree(store.path, tmp_path / "in" / str(number))
    evil = EpisodeStore.open(tmp_path / "in" / "0", writable=True)
    evil.group.attrs["task"] = "../../evil"
    before = contents(tmp_path)
    done = act("data", "merge", tmp_path / "in" / "0", tmp_path / "in" / "1", "--out", tmp_path / "a" / "out", check=2)
    assert "cannot be the name of a task" in done.stderr
    runs = tmp_path / "runs"
    runs.mkdir()
    for text in ('["../../evil"]', '{"a": 1}', "[true]", "[-1]", "[0, 1"):
        (runs / "seeds.json").write_text(text)
        assert act("train", "--resume", "--out", runs, check=2).stderr.count("\n") == 1
    shutil.rmtree(runs)
    assert contents(tmp_path) == before


@pytest.mark.e2e
@pytest.mark.parametrize("verb", ["merge", "collect", "train", "eval", "render", "seeds"])
def test_a_second_writer_is_refused(verb: str, reach_store: EpisodeStore, tiny_run: Path, tmp_path: Path) -> None:
    """The second process prints one line and changes nothing."""
    out = tmp_path / "out"
    if verb in ("train", "seeds"):
        make_run(out, [reach_store.path], TINY, {})
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
    with locked_by_other_process(out) as pid:
        done = act(*commands[verb], check=2)
        assert f"out is being written by process {pid}" in done.stderr
        assert done.stderr.count("\n") == 1
    assert contents(tmp_path) == before


def test_one_of_two_concurrent_merges_succeeds_and_the_other_is_refused(
    reach_store: EpisodeStore, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "from act_kit.cli import main; main()", "data", "merge", str(reach_store.path)]
    both = [
        subprocess.Popen(
            [*command, "--out", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    ends = [(process.communicate(timeout=100)[1], process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 2], ends
    (stderr,) = (err for err, code in ends if code == 2)
    assert stderr.count("\n") == 1
    assert "is being written by process" in stderr or "out exists" in stderr
    assert EpisodeStore.open(tmp_path / "out").fingerprint == reach_store.fingerprint
    assert names(tmp_path) == {"out"}


@pytest.mark.e2e
@pytest.mark.parametrize("verb", ["collect", "train"])
def test_deleting_the_folder_while_it_is_written_is_one_line(
    verb: str, reach_store: EpisodeStore, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command: list[object] = ["collect", "--task", "reach-v3", "--n", 2000, "--workers", 1]
    if verb == "train":
        command = ["train", "--data", reach_store.path, *TINY, "trainer.steps=100000", "selection.num_evaluations=0"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from act_kit.cli import main; main()", *map(str, [*command, "--out", out])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ONE_THREAD,
    )
    written = out / ("checkpoints/last" if verb == "train" else "meta/attempt/c/0")
    while not written.exists() and process.poll() is None:
        time.sleep(0.01)
    out.rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved")
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "out was deleted or moved while it was being written" in stderr
    assert stderr.count("\n") == 1


@pytest.mark.e2e
def test_child_processes_end_with_a_killed_parent(reach_store: EpisodeStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["train", "--data", str(reach_store.path), "--seeds", "2", *TINY, "selection.num_evaluations=0"]
    killed = subprocess.Popen(
        [sys.executable, "-c", "from act_kit.cli import main; main()", *command, "trainer.steps=100000", "--out", out],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ONE_THREAD,
    )
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
def test_damaged_data_cannot_be_derived_converted_replayed_or_rendered(
    reach_store: EpisodeStore, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(reach_store.path, tmp_path / "changed"))
    EpisodeStore.open(changed, writable=True).group["data/action"][3, 0] = 0.123  # type: ignore[index]
    infinite = make_dataset(tmp_path / "infinite", n=2)
    EpisodeStore.open(infinite.path, writable=True).group["data/state"][4, 2] = float("nan")  # type: ignore[index]
    EpisodeStore.open(infinite.path, writable=True).finish()
    before = names(tmp_path)
    for path, message in ((changed, "does not match its fingerprint"), (infinite.path, "not finite at 1 steps")):
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
            assert message in act(*command, check=2).stderr
    assert names(tmp_path) == before

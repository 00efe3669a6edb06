"""Unreadable files are refused with their name; reading never hangs or fills the memory."""

import os
import time
from pathlib import Path

import pytest

from act_kit.errors import DamagedFileError
from act_kit.files import next_free_path, read_json, read_text, read_yaml, sibling, write_json, write_text
from act_kit.outputs import new_folder

_ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


def test_text_is_utf8_in_every_locale(tmp_path: Path) -> None:
    path = tmp_path / "umläut.json"
    write_json(path, {"name": "Änne"})
    assert read_json(path) == {"name": "Änne"}
    write_text(path, "Änne")
    assert path.read_bytes() == "Änne".encode()
    path.write_bytes("Änne".encode("latin-1"))
    with pytest.raises(DamagedFileError, match="not UTF-8"):
        read_text(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "9" * 10_000, ""])
def test_text_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DamagedFileError, match=r"file\.json is not JSON"):
        read_json(path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (_ALIASES, "alias"),
        ("[" * 100_000, "nested|not YAML"),
        ("a: [1", "not YAML"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_yaml_bombs_are_refused_at_once(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    start_time = time.monotonic()
    with pytest.raises(DamagedFileError, match=what):
        read_yaml(path)
    assert time.monotonic() - start_time < 2


def test_pipes_folders_and_huge_files_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DamagedFileError, match="not a regular file"):
        read_text(pipe)
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 2**40)
    with pytest.raises(DamagedFileError, match="at most"):
        read_text(huge)
    with pytest.raises((DamagedFileError, IsADirectoryError)):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "missing")


@pytest.mark.parametrize("kind", ["folder", "loop", "pipe", "/dev/zero"])
def test_other_kinds_of_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name if kind == "loop" else kind)
    with pytest.raises(DamagedFileError, match=r"file\.json"):
        read_json(path)


def test_an_unpaired_surrogate_is_refused_on_reading(tmp_path: Path) -> None:
    """It could not be written to a page or to a terminal."""
    path = tmp_path / "file.json"
    path.write_text('{"name": "\\ud800"}', encoding="utf-8")
    with pytest.raises(DamagedFileError, match=r"file\.json is not JSON"):
        read_json(path)


@pytest.mark.parametrize("what", ["new", "trash", "old"])
def test_a_stray_file_next_to_an_output_folder_is_no_obstacle(tmp_path: Path, what: str) -> None:
    (tmp_path / f".out.act-{what}").write_text("hello", encoding="utf-8")
    with new_folder(tmp_path / "out", overwrite=True) as fresh:
        write_text(fresh / "zarr.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("name", "expected"), [("data", "data"), (".", "here"), ("..", "above")])
def test_a_path_next_to_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str) -> None:
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    for path, suffix in ((sibling(Path(name), "-report"), "-report"), (next_free_path(Path(name)), "-2")):
        assert path.name == expected + suffix
        assert path.absolute().parent == Path(name).resolve().parent

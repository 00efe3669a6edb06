"""Damaged or inconsistent evaluations, and calls that make no sense, are refused by ``act compare``."""

from __future__ import annotations

import csv
import json
import operator
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from act_kit.comparison.compare import compare
from act_kit.comparison.experiments import read_method
from act_kit.errors import ActKitError
from act_kit.eval.results import OPTIONAL, PROVENANCE
from tests.comparison.conftest import NUM, Copy, edit
from tests.conftest import act, contents


def leaves(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all numbers in nested values."""
    items: Any = ()
    if isinstance(values, (dict, list)):
        items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        yield from leaves(value, (*path, key))
    if isinstance(values, (int, float)):
        yield path


def test_every_number_of_a_summary_is_recomputed_from_the_episodes(copy: Copy) -> None:
    results = copy("a", 12) / "eval-test"
    original = json.loads((results / "summary.json").read_text())
    read_method(Path("a"))
    counted = set(original) - {*PROVENANCE, *OPTIONAL, "num_far"}
    paths = [path for path in leaves(original) if path[0] in counted]
    assert len(paths) > 30

    def raise_by(amount: float, *, path: tuple[Any, ...]) -> Callable[[Any], None]:
        def change(summary: Any) -> None:
            for key in path[:-1]:
                summary = summary[key]
            summary[path[-1]] += amount

        return change

    for path in paths:
        for amount in (1, -0.01, float("nan")):
            edit(results / "summary.json", raise_by(amount, path=path))
            with pytest.raises(ActKitError, match=r"summary.json") as refused:
                read_method(Path("a"))
            assert str(path[-1]) in str(refused.value), path
            (results / "summary.json").write_text(json.dumps(original))
    for key in counted:
        edit(results / "summary.json", operator.methodcaller("pop", key))
        with pytest.raises(ActKitError, match=key):
            read_method(Path("a"))
        (results / "summary.json").write_text(json.dumps(original))


INVALID_CELLS: dict[str, str] = {
    "success_once": "2",
    "success_at_end": "",
    "success_step": "-1",
    "initial_distance": "nan",
    "min_distance": "9",
    "final_distance": "-0.1",
    "distance_to_nearest_demo": "1e999",
    "largest_z": "z",
    "clip_fraction": "1.5",
    "furthest_stage": "moon",
    "failure_mode": "tired",
    "num_steps": "501",
    "crash": "once",
    "episode": "7",
    "init_state": "0 0 0",
}


@pytest.mark.parametrize("column", INVALID_CELLS)
def test_inconsistent_row_is_named(column: str, copy: Copy) -> None:
    file = copy("a", NUM) / "eval-test" / "episodes.csv"
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[3][column] = INVALID_CELLS[column]
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ActKitError, match=r"episodes.csv, row 3: ") as refused:
        read_method(Path("a"))
    assert "\n" not in str(refused.value)


def _replace(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": lambda file: _replace(file, b""),
    "cut": lambda file: _replace(file, file.read_bytes()[:-40]),
    "not UTF-8": lambda file: _replace(file, b"\xff" + file.read_bytes()),
    "another type": lambda file: _replace(file, b"[1, 2]"),
    "deep": lambda file: _replace(file, b"[" * 100_000),
    "a long cell": lambda file: _replace(file, file.read_bytes() + b"9" * 200_000),
    "a pipe": _pipe,
    "a folder": _folder,
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", ["summary.json", "episodes.csv", "init_states.json"])
@pytest.mark.parametrize("case", DAMAGE)
def test_damage_gives_a_one_line_error(case: str, name: str, copy: Copy) -> None:
    a = copy("a")
    DAMAGE[case](a / "eval-test" / name)
    with pytest.raises(ActKitError) as refused:
        read_method(a)
    assert "\n" not in str(refused.value)
    if (case, name) != ("gone", "summary.json"):
        assert "a/eval-test" in str(refused.value)


@pytest.mark.e2e
def test_only_comparisons_are_overwritten_and_only_with_the_flag(copy: Copy) -> None:
    copy("a", 10)
    copy("b", 30)
    act("compare", "a", "b", check=0)
    first = (Path("comparison") / "compare.json").read_text()
    refused = act("compare", "b", "a", check=2)
    assert "comparison/compare.json exists. Fix: --overwrite replaces it, or choose another --out." in refused.stderr
    assert (Path("comparison") / "compare.json").read_text() == first
    act("compare", "b", "a", "--overwrite", check=0)
    assert (Path("comparison") / "compare.json").read_text() != first
    before = contents(Path("a"))
    act("compare", "a", "b", "--out", "a", "--overwrite", check=0)
    assert contents(Path("a")).items() > before.items(), "the compared run is unchanged"
    Path("file").write_text("mine", encoding="utf-8")
    assert "file exists" in act("compare", "a", "b", "--out", "file", "--overwrite", check=2).stderr
    assert Path("file").read_text(encoding="utf-8") == "mine"


def truncate_episodes(run: Path) -> Path:
    lines = (run / "eval-test" / "episodes.csv").read_text().splitlines()
    (run / "eval-test" / "episodes.csv").write_text("\n".join(lines[:-3]))
    return run


INVALID_CALLS: dict[str, tuple[Callable[[Path, Path], list[Path]], list[str], str]] = {
    "one": (lambda a, b: [a], [], "requires two or more"),
    "missing": (lambda a, b: [a, Path("nowhere")], [], "There is no folder nowhere"),
    "the same": (lambda a, b: [a, a], [], "The same folder is given twice"),
    "the same by another path": (lambda a, b: [a, a / "eval-test"], [], "are both a/eval-test"),
    "something else": (
        lambda a, b: [a, a / "checkpoints"],
        [],
        "neither an evaluation, nor a run, nor a folder of runs",
    ),
    "a typo": (lambda a, b: [a, b], ["policy.chunk_sise"], "Did you mean 'policy.chunk_size'?"),
    "damaged": (lambda a, b: [a, truncate_episodes(b)], [], "has 27 episodes for 30 initial states"),
}


@pytest.mark.parametrize("case", INVALID_CALLS)
def test_invalid_calls_are_refused(case: str, copy: Copy) -> None:
    paths, factors, hint = INVALID_CALLS[case]
    with pytest.raises(ActKitError) as refused:
        compare(paths(copy("a"), copy("b")), factors)
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)

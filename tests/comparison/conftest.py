"""A real evaluation, and copies of its files with known outcomes and configurations, whose correct result is known."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from act_kit.datasets.store import EpisodeStore
from act_kit.eval.files import read_evaluation
from act_kit.eval.init_state_sets import make_init_state_set
from act_kit.eval.results import summarize
from tests.conftest import TINY, act

NUM = 30

BARE = ("baseline_episodes=0", "demonstrated_episodes=0")

Copy = Callable[..., Path]


@pytest.fixture(scope="session")
def run(reach_store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and evaluate a run by the command line."""
    run = tmp_path_factory.mktemp("runs") / "run"
    act("train", "--data", reach_store.path, *TINY, "selection.num_evaluations=0", "--out", run, check=0)
    act("eval", run, "--episodes", NUM, *BARE, "--workers", 1, check=0)
    return run


def edit(file: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture
def copy(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    monkeypatch.chdir(tmp_path)

    def copy(
        name: str, successes: int | np.ndarray = 20, *, seed: int = 0, init_states: int = 0, **options: Any
    ) -> Path:
        """Copy the run with other successes (a number: the first episodes), training seed, states and options."""
        target = Path(name)
        shutil.copytree(run, target, symlinks=True)
        results = target / "eval-test"

        def change(summary: dict[str, Any]) -> None:
            summary["training"]["config"]["trainer"]["seed"] = seed
            for key, value in options.items():
                group, _, option = key.partition("__")
                (summary["training"]["config"][group] if option else summary["training"])[option or group] = value

        edit(results / "summary.json", change)
        if init_states:
            make_init_state_set("reach-v3", "test", NUM, init_states, []).save(results / "init_states.json")
        succeeded = np.arange(NUM) < successes if isinstance(successes, int) else successes
        rewrite(results, [episode(bool(success), z=next(counter)) for success in succeeded])
        return target

    counter = count(1)
    return copy


def episode(success: bool, *, z: int) -> dict[str, str]:
    """Return the cells of a row; a different ``z`` makes it a different evaluation."""
    cells = {
        "success_once": "1",
        "success_at_end": "1",
        "success_step": "9",
        "furthest_stage": "success",
        "failure_mode": "",
    }
    if not success:
        cells = {
            "success_once": "0",
            "success_at_end": "0",
            "success_step": "",
            "furthest_stage": "",
            "failure_mode": "frozen",
        }
    return {**cells, "largest_z": f"{z}.000"}


def rewrite(results: Path, changes: list[dict[str, str]]) -> None:
    """Change rows of an evaluation, and update their initial states and the summary."""
    with (results / "episodes.csv").open(newline="") as file:
        rows = [{**row, **change} for row, change in zip(csv.DictReader(file), changes, strict=True)]
    init_states = json.loads((results / "init_states.json").read_text())["init_states"]
    for row, init_state in zip(rows, init_states, strict=True):
        row["init_state"] = " ".join(map(repr, init_state))
    with (results / "episodes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    edit(results / "summary.json", lambda summary: summary.update(summarize(read_evaluation(results))))


def seeds(copy: Copy, name: str, successes: list[int | np.ndarray], **options: Any) -> Path:
    for seed, seed_successes in enumerate(successes):
        copy(f"{name}/seed-{seed}", seed_successes, seed=seed, **options)
    return Path(name)


def result(comparison: str = "comparison") -> dict[str, Any]:
    return dict(json.loads((Path(comparison) / "compare.json").read_text()))

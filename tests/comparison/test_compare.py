"""Tests of comparisons, on the files of a real evaluation and by the command line.

Known outcomes and configurations are written into copies of these files, so that the correct result is known.
"""

from __future__ import annotations

import csv
import json
import operator
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from act_kit.comparison.compare import compare
from act_kit.comparison.experiments import read_method, read_methods
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ActKitError
from act_kit.eval.files import read_evaluation
from act_kit.eval.init_state_sets import InitialStateSet, make_init_state_set
from act_kit.eval.results import OPTIONAL, PROVENANCE, Evaluation, summarize, summarize_all
from act_kit.reports.comparison import method_row
from act_kit.statistics import mcnemar
from tests.conftest import TINY, Open, act, contents
from tests.eval.untrained import untrained_policy

NUM = 30
BARE = ("baseline_episodes=0", "demonstrated_episodes=0")

Copy = Callable[..., Path]


@pytest.fixture(scope="module")
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


@pytest.mark.e2e
def test_undeclared_differences_confound(copy: Copy) -> None:
    copy("short", 10, trainer__steps=30, data=[{"task": "reach-v3", "fingerprint": "abc", "command": "act collect"}])
    copy("long", 30)
    done = act("compare", "short", "long", "--vary", "trainer.steps", check=2)
    assert "CONFOUNDED: short and long differ in options that were not declared" in done.stdout
    assert "data (abc (act collect) | " in done.stdout
    (pair,) = result()["pairs"]
    assert pair["verdict"] == "CONFOUNDED"
    declared_by_key = {change["key"]: change["declared"] for change in pair["changes"]}
    assert declared_by_key == {"trainer.steps": True, "data": False}
    assert "is better" not in done.stdout + (Path("comparison") / "compare.html").read_text()
    declared = act("compare", "short", "long", "--vary", "trainer", "--vary", "data", "--out", "declared", check=0)
    assert "long is better than short" in declared.stdout
    page = (Path("declared") / "compare.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", ""), "self-contained"


def test_evaluation_settings_confound(run: Path, copy: Copy) -> None:
    a, b = copy("a"), copy("b")
    edit(b / "eval-test" / "summary.json", lambda summary: summary["chunking"].update(n_action_steps=8))
    edit(b / "eval-test" / "summary.json", lambda summary: summary["versions"].update(mujoco="3.4.0"))
    edit(b / "eval-test" / "summary.json", lambda summary: summary["versions"].update(platform="arm64 Darwin"))
    keys = {change.key for change in compare([a, b], []).pairs[0].confounds}
    assert keys == {"eval.chunking.n_action_steps", "eval.versions.mujoco"}
    assert compare([a, b], ["chunking", "eval.versions"]).decided


def test_checkpoint_outside_a_run_has_unknown_training(run: Path, copy: Copy) -> None:
    a, b = copy("a"), copy("b", config=None)
    (confound,) = compare([a, b], []).pairs[0].confounds
    assert (confound.key, confound.a, confound.b) == ("config", "known", "unknown")


def test_checkpoints_are_paired_only_on_the_same_initial_states(copy: Copy) -> None:
    copy("a", np.arange(NUM) % 2 == 0)
    copy("b", np.arange(NUM) % 3 > 0, policy__chunk_size=16)
    done = act("compare", "a", "b/eval-test", "--vary", "policy.chunk_size", check=0)
    found = result()["pairs"][0]["result"]["difference"]
    assert found["test"] == "McNemar's exact test"
    assert found["p"] == pytest.approx(mcnemar(5, 10))
    assert "No difference shown between b and a" in done.stdout, "labels are those of the runs, not eval-test"
    assert f"the minimum detectable difference is {100 * found['detectable']:.0f} points" in done.stdout
    assert "one training seed per method is too few" in done.stdout
    copy("c", 20, init_states=1)
    (pair,) = compare([Path("a"), Path("c")], []).pairs
    assert pair.result is not None
    assert pair.result.difference.test == "Boschloo's exact test"


def test_three_seeds_compare_methods_and_are_all_shown(copy: Copy) -> None:
    seeds(copy, "bad", [3, 5, 4])
    seeds(copy, "good", [27, 29, 28], policy__dim_model=64)
    done = act("compare", "bad", "good", "--vary", "policy", check=0)
    assert "good is better than bad" in done.stdout
    assert "90.0 %, 96.7 %, 93.3 %" in done.stdout
    assert "these two checkpoints only" not in done.stdout
    assert result()["pairs"][0]["result"]["difference"]["test"] == "t test of seeds"
    worse = compare([Path("good"), Path("bad")], ["policy"])
    assert worse.pairs[0].verdict == "worse"


def test_evaluations_in_memory_are_compared_like_their_files(copy: Copy) -> None:
    a, b = seeds(copy, "a", [3, 5, 4]), seeds(copy, "b", [27, 29, 28], policy__dim_model=64)
    evaluations: dict[str, list[Evaluation]] = {}
    for path in (a, b):
        evaluations[path.name] = [read_evaluation(path / f"seed-{seed}" / "eval-test") for seed in range(3)]
    (pair,), (expected,) = compare(evaluations, ["policy"]).pairs, compare([a, b], ["policy"]).pairs
    assert (pair.sentence, pair.result) == (expected.sentence, expected.result)
    with pytest.raises(ActKitError, match="seed 0 and seed 1 are the same evaluation"):
        compare({"a": evaluations["a"], "b": evaluations["b"][:1] * 2})


def test_episodes_are_not_pooled_over_seeds(copy: Copy) -> None:
    """Pooled, 150 episodes at 54 % against 150 at 80 % would be a difference."""
    seeds(copy, "wild", [27, 26, 1, 25, 2])
    seeds(copy, "steady", [24, 25, 23, 24, 24], policy__dim_model=64)
    comparison = compare([Path("wild"), Path("steady")], ["policy"])
    assert comparison.pairs[0].verdict == "no difference shown"
    assert any("bimodal, 2 at 3 to 7 % and 3 at 83 to 90 %" in note for note in comparison.notes)
    sentence = comparison.pairs[0].sentence
    assert "2 of 5 collapsed: 5 to 85 % of new seeds may collapse (Clopper–Pearson, 95 %)" in sentence
    assert "versus 5.0 % (2 of 5 seeds) and 86.7 % (3 of 5 seeds)" in sentence
    assert "None of the 5 seeds of steady collapsed, but up to 45 % of new seeds may collapse" in sentence
    assert "29 such seeds would bound it at 10 %" in sentence
    wild, steady = comparison.to_dict()["methods"]
    assert wild["mean"] is None, "no mean for bimodal seeds"
    assert wild["kinds"]["collapsed"] == pytest.approx({"num": 2, "low": 0.0527, "high": 0.8534}, abs=1e-3)
    assert steady["kinds"]["largest_unseen_share"] == pytest.approx(1 - 0.05 ** (1 / 5))
    assert [method_row(method)[3].partition(":")[0] for method in comparison.methods] == [
        "bimodal",
        "80.0 % [64, 96 %]",
    ]


@pytest.mark.e2e
def test_missing_seeds_and_crashes_are_counted(copy: Copy) -> None:
    a = seeds(copy, "a", [20, 21, 22, 20, 21])
    b = seeds(copy, "b", [20, 21, 22])
    shutil.rmtree(a / "seed-1" / "eval-test")
    edit(a / "seed-3" / "checkpoints" / "last" / "training.json", lambda values: values.update(step=20))
    crash = {**episode(False, z=0), "failure_mode": "crashed", "crash": "MujocoException"}
    rewrite(b / "seed-0" / "eval-test", [crash if i == 7 else {} for i in range(NUM)])
    done = act("compare", a, b, check=0)
    assert "2 of 5 seeds of a missing" in done.stderr
    assert "a/seed-1: it was not evaluated. Fix: act eval a/seed-1" in done.stderr
    assert "a/seed-3: its training is unfinished, at step 20 of 60. Resume with: act train --resume" in done.stderr
    assert "b, seed-0, reach-v3: 1 of 30 episodes crashed and count as failed (number 7)" in done.stderr
    assert "3 of 5" in done.stdout
    assert set(result()["methods"][0]["missing"]) == {"seed-1", "seed-3"}
    shutil.rmtree(a / "seed-0")
    few = act("compare", a, b, "--overwrite", check=2)
    assert "No verdict on a and b: a has 2 of the 3 training seeds" in few.stdout


def test_three_methods_are_corrected_by_holm(copy: Copy) -> None:
    for name, successes in (("a", 18), ("b", 24), ("c", 26)):
        copy(name, successes, policy__dim_model=successes)
    comparison = compare([Path(name) for name in "abc"], ["policy"])
    results = {(pair.a.label, pair.b.label): pair.result for pair in comparison.pairs}
    first, second = results["a", "b"], results["a", "c"]
    assert first is not None
    assert second is not None
    assert (first.difference.p, second.difference.p) == (mcnemar(0, 6), mcnemar(0, 8))
    assert first.p_holm == pytest.approx(2 * mcnemar(0, 6))
    assert (first.verdict, second.verdict) == ("no difference shown", "better")
    assert (second.difference.level, first.difference.level) == pytest.approx((0.05 / 3, 0.05 / 2))
    assert first.difference.low <= 0 < second.difference.low, "intervals agree with the verdicts"
    assert "] at 98.3 %" in next(pair.sentence for pair in comparison.pairs if pair.b.label == "c")


@pytest.mark.e2e
def test_multi_task_policies_are_compared_by_task_and_in_the_mean(
    reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    policy = untrained_policy([reach_store, push_store])
    self_test = {"states": np.ones((1, 39)), "tasks": np.zeros(1, np.int64)}
    policy.save(tmp_path, self_test)
    for n_action_steps in (4, 8):
        out = f"executing-{n_action_steps}"
        options = ("--episodes", 8, *BARE, "--n-action-steps", n_action_steps, "--workers", 1)
        act("eval", ".", *options, "--out", out, check=0)
    for task, successes in (("reach-v3", 8), ("push-v3", 0)):
        rewrite(Path("executing-8") / task, [episode(i < successes, z=8) for i in range(8)])
        rewrite(Path("executing-4") / task, [episode(False, z=4)] * 8)
    for results in (Path("executing-4"), Path("executing-8")):
        of_tasks = summarize_all([read_evaluation(results / task) for task in ("reach-v3", "push-v3")])
        edit(results / "summary.json", operator.methodcaller("update", of_tasks))
    factors = ("--vary", "chunking", "--vary", "config")
    done = act("compare", "executing-4", "executing-8", *factors, check=0)
    assert "executing-8 is better than executing-4: success 50.0 % versus 0.0 %" in done.stdout
    assert "Better: reach-v3. No difference shown: push-v3." in done.stdout
    (pair,) = result()["pairs"]
    assert pair["result"]["difference"]["p"] == pytest.approx(mcnemar(0, 8))
    assert pair["tasks"]["reach-v3"]["p_holm"] == pytest.approx(2 * mcnemar(0, 8))
    one = compare([Path("executing-4/push-v3"), Path("executing-8/push-v3")], ["chunking", "config"])
    assert one.pairs[0].verdict == "no difference shown"
    with pytest.raises(ActKitError, match="executing-4 was evaluated on reach-v3, push-v3; push-v3 on push-v3"):
        compare([Path("executing-4"), Path("executing-8/push-v3")], [])


def test_labels_of_methods_are_unique(copy: Copy) -> None:
    paths = [copy("x/run"), copy("y/run"), copy("y/other")]
    assert [method.label for method in read_methods(paths)] == ["x/run", "y/run", "y/other"]
    assert [method.label for method in read_methods(paths[:2])] == ["x", "y"]
    folders = [path / "eval-test" for path in paths[1:]]
    assert [method.label for method in read_methods(folders)] == ["run", "other"]
    paths = [copy("x/seed-0"), copy("y/seed-1")]
    assert [method.label for method in read_methods(paths)] == ["x/seed-0", "y/seed-1"]


def test_factor_that_does_not_differ_is_named(copy: Copy) -> None:
    a, b = copy("a"), copy("b")
    notes = compare([a, b], ["policy.dim_model"]).notes
    assert "--vary policy.dim_model does not differ between any two." in notes
    assert any("The configurations do not differ" in note for note in notes)


def test_seeds_must_be_replicates_and_options_that_vary_within_a_method_confound(copy: Copy) -> None:
    a = seeds(copy, "a", [20, 20])
    copy("a/seed-2", seed=1)
    with pytest.raises(ActKitError, match="seed-1 and seed-2 are not replicates"):
        read_method(a)
    shutil.rmtree(a / "seed-2")
    copy("a/seed-2", seed=2, init_states=5)
    with pytest.raises(ActKitError, match="seed-0 and seed-2 were evaluated from different initial states"):
        read_method(a)
    shutil.rmtree(a / "seed-2")
    copy("a/seed-2", seed=2, trainer__steps=30)
    b = seeds(copy, "b", [20, 20, 20])
    (confound,) = compare([a, b], ["trainer"]).pairs[0].confounds
    assert (confound.key, confound.a, confound.b) == ("trainer.steps", "30 and 60", "60")


def test_steps_that_follow_the_data_do_not_confound_a_comparison_of_datasets(copy: Copy) -> None:
    a, b, given = copy("a"), copy("b"), copy("given", trainer__steps=7300)

    def follow_data(steps: int) -> Callable[[dict[str, Any]], None]:
        def change(summary: dict[str, Any]) -> None:
            config = summary["training"]["config"]
            config["steps_follow_data"], config["trainer"]["steps"] = True, steps
            config["trainer"]["validate_every"] = steps // 10

        return change

    edit(a / "eval-test" / "summary.json", follow_data(7200))
    edit(b / "eval-test" / "summary.json", follow_data(7300))
    assert not compare([a, b], []).pairs[0].confounds
    (confound,) = compare([a, given], []).pairs[0].confounds
    assert (confound.key, confound.a, confound.b) == ("trainer.steps", "chosen for the data", "7300")


def with_states(run: Path, num_shared: int) -> None:
    """Replace all but ``num_shared`` initial states of an evaluation, and move the shared ones to the end."""
    file = run / "eval-test" / "init_states.json"
    old, new = InitialStateSet.load(file), make_init_state_set("reach-v3", "test", NUM, 5, [])
    init_state_set = replace(old, init_states=new.init_states[num_shared:] + old.init_states[:num_shared])
    init_state_set.save(file)
    rewrite(run / "eval-test", [{}] * NUM)


def test_shared_initial_states_are_paired_if_sufficient_and_the_note_explains_it(copy: Copy) -> None:
    copy("a", np.arange(NUM) < 25, policy__dim_model=64)
    b = copy("b", np.arange(NUM) >= 5)
    with_states(b, 25)
    comparison = compare([Path("a"), b], ["policy"])
    (pair,) = comparison.pairs
    assert pair.result is not None
    difference = pair.result.difference
    assert (difference.test, difference.p, difference.value) == ("McNemar's exact test", 1.0, 0.0)
    assert pair.result.means == (1.0, 1.0), "over the shared ones"
    expected = "a and b were evaluated from different initial states: 25 are shared, of 30 and 30. Only the shared"
    assert any(expected in note for note in comparison.notes)
    c = copy("c", np.arange(NUM) >= 5)
    with_states(c, 12)
    comparison = compare([Path("a"), c], ["policy"])
    (pair,) = comparison.pairs
    assert pair.result is not None
    assert pair.result.difference.test == "Boschloo's exact test"
    assert any("12 are shared, of 30 and 30. A paired test requires 20" in note for note in comparison.notes)
    assert comparison.to_dict()["pairs"][0]["initial_states"] == {"reach-v3": {"a": 30, "b": 30, "shared": 12}}


def test_copies_of_an_evaluation_give_no_verdict(copy: Copy) -> None:
    copy("a")
    shutil.copytree("a", "copy", symlinks=True)
    edit(
        Path("copy/eval-test/summary.json"),
        lambda summary: summary["training"]["config"]["policy"].update(dim_model=64),
    )
    done = act("compare", "a", "copy", "--vary", "policy", check=2)
    assert "No verdict on a and copy: they are not independent" in done.stdout
    assert "a/eval-test and copy/eval-test" in done.stdout
    assert result()["pairs"][0]["verdict"] == "SAME EVALUATION"
    assert result()["pairs"][0]["result"] is None
    a, b = seeds(copy, "of-a", [20, 21, 22]), seeds(copy, "of-b", [20, 21, 22])
    shutil.rmtree(b / "seed-1")
    shutil.copytree(a / "seed-1", b / "seed-1", symlinks=True)
    (pair,) = compare([a, b], []).pairs
    assert pair.copies == [(str(a / "seed-1" / "eval-test"), str(b / "seed-1" / "eval-test"))]
    shutil.rmtree(b / "seed-2")
    shutil.copytree(b / "seed-1", b / "seed-2", symlinks=True)
    edit(b / "seed-2/eval-test/summary.json", lambda summary: summary["training"]["config"]["trainer"].update(seed=2))
    with pytest.raises(ActKitError, match="seed-1 and seed-2 are the same evaluation"):
        read_method(b)


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


def test_planned_seeds_without_a_folder_are_missing(copy: Copy) -> None:
    a = seeds(copy, "a", [20, 21, 22])
    (a / "seeds.json").write_text("[0, 1, 2, 7]")
    method = read_method(a)
    assert list(method.missing) == ["seed-7"]
    assert "act train --resume --out a" in method.missing["seed-7"]
    for damaged in ("{}", '["../b"]', "[-1]", "[0, true]", "[", "9"):
        (a / "seeds.json").write_text(damaged)
        with pytest.raises(ActKitError, match=r"seeds\.json"):
            read_method(a)


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


@pytest.mark.browser
def test_page_opens(copy: Copy, show: Open) -> None:
    rng = np.random.default_rng(0)
    for name, chance in (("short", 0.3), ("long", 0.9)):
        seeds(copy, name, [rng.random(NUM) < chance for _ in range(3)], policy__chunk_size=len(name))
    act("compare", "short", "long", "--vary", "policy.chunk_size", check=0)
    page = show((Path("comparison") / "compare.html").resolve())
    assert "better" in page.inner_text("body")

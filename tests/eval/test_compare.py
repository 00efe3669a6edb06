"""Comparisons: a verdict only where one can be given, by the command line, on the files of a real evaluation.

Outcomes and configurations are then written into copies of them, so that what should come out is known.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ActKitError
from act_kit.eval.arms import read_arm, read_arms
from act_kit.eval.compare import compare
from act_kit.eval.evalset import make_evalset
from act_kit.statistics import mcnemar
from tests.conftest import TINY, Open, act
from tests.eval.untrained import untrained_policy

NUM = 30
BARE = ("control_episodes=0", "demonstrated_episodes=0")

Copy = Callable[..., Path]


@pytest.fixture(scope="module")
def run(reach_store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, trained and evaluated as a user does it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    act("train", "--data", reach_store.path, *TINY, "selection.rollouts=0", "--out", run, check=0)
    act("eval", run, "--episodes", NUM, *BARE, "--workers", 1, check=0)
    return run


def edit(file: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture
def copy(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    monkeypatch.chdir(tmp_path)

    def copy(name: str, successes: int | np.ndarray = 20, *, seed: int = 0, starts: int = 0, **options: Any) -> Path:
        """Copy the run, with these successes (the first so many starts), training seed, starts and options."""
        to = Path(name)
        shutil.copytree(run, to, symlinks=True)
        results = to / "eval-fresh"

        def change(summary: dict[str, Any]) -> None:
            summary["training"]["config"]["trainer"]["seed"] = seed
            for key, value in options.items():
                group, _, option = key.partition("__")
                (summary["training"]["config"][group] if option else summary["training"])[option or group] = value

        edit(results / "summary.json", change)
        if starts:
            make_evalset("reach-v3", "fresh", NUM, starts, []).save(results / "starts.json")
        succeeded = np.arange(NUM) < successes if isinstance(successes, int) else successes
        rewrite(results, [{"success_once": str(int(success))} for success in succeeded])
        return to

    return copy


def rewrite(results: Path, changes: list[dict[str, str]]) -> None:
    with (results / "episodes.csv").open(newline="") as file:
        rows = [{**row, **change} for row, change in zip(csv.DictReader(file), changes, strict=True)]
    with (results / "episodes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def seeds(copy: Copy, name: str, successes: list[int | np.ndarray], **options: Any) -> Path:
    for seed, of_seed in enumerate(successes):
        copy(f"{name}/seed-{seed}", of_seed, seed=seed, **options)
    return Path(name)


def result(comparison: str = "comparison") -> dict[str, Any]:
    return dict(json.loads((Path(comparison) / "compare.json").read_text()))


def test_what_differs_and_was_not_declared_confounds(copy: Copy) -> None:
    copy("short", 10, trainer__steps=30, data=[{"task": "reach-v3", "fingerprint": "abc", "command": "act collect"}])
    copy("long", 30)
    done = act("compare", "short", "long", "--factor", "trainer.steps", check=2)
    assert "CONFOUNDED: short and long differ in what was not declared" in done.stdout
    assert "data (abc (act collect) | " in done.stdout
    (pair,) = result()["pairs"]
    assert pair["verdict"] == "CONFOUNDED"
    assert {(change["key"], change["declared"]) for change in pair["changes"]} == {
        ("trainer.steps", True), ("data", False)
    }  # fmt: skip
    assert "is better" not in done.stdout + (Path("comparison") / "compare.html").read_text()
    declared = act("compare", "short", "long", "--factor", "trainer", "--factor", "data", "--out", "declared", check=0)
    assert "long is better than short" in declared.stdout
    page = (Path("declared") / "compare.html").read_text()
    assert "data:image/svg+xml" in page
    assert "http" not in page.replace("http-equiv", ""), "self-contained"


def test_how_it_was_evaluated_confounds_too(run: Path, copy: Copy) -> None:
    a, b = copy("a"), copy("b")
    edit(b / "eval-fresh" / "summary.json", lambda summary: summary["execution"].update(execute=8))
    edit(b / "eval-fresh" / "summary.json", lambda summary: summary["versions"].update(mujoco="3.4.0"))
    keys = {change.key for change in compare([a, b], []).pairs[0].confounds}
    assert keys == {"eval.execution.execute", "eval.versions.mujoco"}
    assert compare([a, b], ["execution", "eval.versions"]).decided


def test_a_checkpoint_outside_its_run_is_of_unknown_training(run: Path, copy: Copy) -> None:
    a, b = copy("a"), copy("b", config=None)
    (confound,) = compare([a, b], []).pairs[0].confounds
    assert (confound.key, confound.a, confound.b) == ("config", "known", "unknown")


def test_checkpoints_on_the_same_starts_are_paired_and_on_others_not(copy: Copy) -> None:
    copy("a", np.arange(NUM) % 2 == 0)
    copy("b", np.arange(NUM) % 3 > 0, policy__chunk_size=16)
    done = act("compare", "a", "b/eval-fresh", "--factor", "policy.chunk_size", check=0)
    found = result()["pairs"][0]["result"]["difference"]
    assert found["test"] == "McNemar's exact test"
    assert found["p"] == pytest.approx(mcnemar(5, 10))
    assert "No difference shown between b and a" in done.stdout, "labels are the runs', not eval-fresh"
    assert f"one of {100 * found['detectable']:.0f} points would have been" in done.stdout
    assert "one training seed cannot tell methods apart" in done.stdout
    copy("c", 20, starts=1)
    (pair,) = compare([Path("a"), Path("c")], []).pairs
    assert pair.result is not None
    assert pair.result.difference.test == "Boschloo's exact test"


def test_three_seeds_tell_methods_apart_and_every_one_is_shown(copy: Copy) -> None:
    seeds(copy, "bad", [3, 5, 4])
    seeds(copy, "good", [27, 29, 28], policy__width=64)
    done = act("compare", "bad", "good", "--factor", "policy", check=0)
    assert "good is better than bad" in done.stdout
    assert "90.0 %, 96.7 %, 93.3 %" in done.stdout
    assert "these two checkpoints only" not in done.stdout
    assert result()["pairs"][0]["result"]["difference"]["test"] == "t test of seeds"
    worse = compare([Path("good"), Path("bad")], ["policy"])
    assert worse.pairs[0].verdict == "worse"


def test_episodes_are_not_pooled_over_seeds(copy: Copy) -> None:
    """Pooled, 150 episodes at 54 % against 150 at 80 % would be a difference."""
    seeds(copy, "wild", [27, 26, 1, 25, 2])
    seeds(copy, "steady", [24, 25, 23, 24, 24], policy__width=64)
    comparison = compare([Path("wild"), Path("steady")], ["policy"])
    assert comparison.pairs[0].verdict == "no difference shown"
    assert any("of two kinds, 2 at 3 to 7 % and 3 at 83 to 90 %" in note for note in comparison.notes)


def test_what_is_missing_or_crashed_is_counted(copy: Copy) -> None:
    a = seeds(copy, "a", [20, 21, 22, 20, 21])
    b = seeds(copy, "b", [20, 21, 22])
    shutil.rmtree(a / "seed-1" / "eval-fresh")
    edit(a / "seed-3" / "checkpoints" / "last" / "training.json", lambda values: values.update(step=20))
    crash = [{"crash": "MujocoException" if i == 7 else ""} for i in range(NUM)]
    rewrite(b / "seed-0" / "eval-fresh", crash)
    done = act("compare", a, b, check=0)
    assert "2 of 5 seeds of a missing" in done.stderr
    assert "a/seed-1: it was not evaluated. act eval a/seed-1" in done.stderr
    assert "a/seed-3: its training is unfinished, at step 20 of 60. Go on: act train --resume" in done.stderr
    assert "b, seed-0, reach-v3: 1 of 30 episodes crashed and count as failed (number 7)" in done.stderr
    assert "3 of 5" in done.stdout
    assert set(result()["arms"][0]["missing"]) == {"seed-1", "seed-3"}
    shutil.rmtree(a / "seed-0")
    few = act("compare", a, b, check=2)
    assert "No verdict on a and b: a has 2 of the 3 training seeds" in few.stdout


def test_three_arms_share_their_errors(copy: Copy) -> None:
    for name, successes in (("a", 18), ("b", 24), ("c", 26)):
        copy(name, successes, policy__width=successes)
    comparison = compare([Path(name) for name in "abc"], ["policy"])
    results = {(pair.a.label, pair.b.label): pair.result for pair in comparison.pairs}
    first, second = results["a", "b"], results["a", "c"]
    assert first is not None
    assert second is not None
    assert (first.difference.p, second.difference.p) == (mcnemar(0, 6), mcnemar(0, 8))
    assert first.p_holm == pytest.approx(2 * mcnemar(0, 6))
    assert (first.verdict, second.verdict) == ("no difference shown", "better")


def test_policies_of_several_tasks_are_compared_by_task_and_in_the_mean(
    reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    policy = untrained_policy([reach_store, push_store])
    probe = {"states": np.ones((1, 39)), "tasks": np.zeros(1, np.int64)}
    policy.save(tmp_path, probe)
    for execute in (4, 8):
        out = f"executing-{execute}"
        act("eval", ".", "--episodes", 8, *BARE, "--execute", execute, "--workers", 1, "--out", out, check=0)
    for task, successes in (("reach-v3", 8), ("push-v3", 0)):
        rewrite(Path("executing-8") / task, [{"success_once": str(int(i < successes))} for i in range(8)])
        rewrite(Path("executing-4") / task, [{"success_once": "0"}] * 8)
    factors = ("--factor", "execution", "--factor", "config")
    done = act("compare", "executing-4", "executing-8", *factors, check=0)
    assert "executing-8 is better than executing-4: success 50.0 % against 0.0 %" in done.stdout
    assert "Better: reach-v3. No difference shown: push-v3." in done.stdout
    (pair,) = result()["pairs"]
    assert pair["result"]["difference"]["p"] == pytest.approx(mcnemar(0, 8))
    assert pair["tasks"]["reach-v3"]["p_holm"] == pytest.approx(2 * mcnemar(0, 8))
    one = compare([Path("executing-4/push-v3"), Path("executing-8/push-v3")], ["execution", "config"])
    assert one.pairs[0].verdict == "no difference shown"
    with pytest.raises(ActKitError, match="executing-4 was evaluated on reach-v3, push-v3; push-v3 on push-v3"):
        compare([Path("executing-4"), Path("executing-8/push-v3")], [])


def test_labels_tell_arms_apart(copy: Copy) -> None:
    paths = [copy("x/run"), copy("y/run"), copy("y/other")]
    assert [arm.label for arm in read_arms(paths)] == ["x/run", "y/run", "y/other"]
    assert [arm.label for arm in read_arms(paths[:2])] == ["x", "y"]
    folders = [path / "eval-fresh" for path in paths[1:]]
    assert [arm.label for arm in read_arms(folders)] == ["run", "other"]
    paths = [copy("x/seed-0"), copy("y/seed-1")]
    assert [arm.label for arm in read_arms(paths)] == ["x/seed-0", "y/seed-1"]


def test_a_factor_that_does_not_differ_is_named(copy: Copy) -> None:
    a, b = copy("a"), copy("b")
    notes = compare([a, b], ["policy.width"]).notes
    assert "--factor policy.width does not differ between any two." in notes
    assert any("The configurations do not differ" in note for note in notes)


def test_seeds_that_are_no_replicates_are_refused_and_an_option_that_varies_within_an_arm_confounds(copy: Copy) -> None:
    a = seeds(copy, "a", [20, 20])
    copy("a/seed-2", seed=1)
    with pytest.raises(ActKitError, match="seed-1 and seed-2 do not replicate each other"):
        read_arm(a)
    shutil.rmtree(a / "seed-2")
    copy("a/seed-2", seed=2, starts=5)
    with pytest.raises(ActKitError, match="seed-0 and seed-2 were evaluated from different starts"):
        read_arm(a)
    shutil.rmtree(a / "seed-2")
    copy("a/seed-2", seed=2, trainer__steps=30)
    b = seeds(copy, "b", [20, 20, 20])
    (confound,) = compare([a, b], ["trainer"]).pairs[0].confounds
    assert (confound.key, confound.a, confound.b) == ("trainer.steps", "30 and 60", "60")


def damage(run: Path) -> Path:
    lines = (run / "eval-fresh" / "episodes.csv").read_text().splitlines()
    (run / "eval-fresh" / "episodes.csv").write_text("\n".join(lines[:-3]))
    return run


WRONG: dict[str, tuple[Callable[[Path, Path], list[Path]], list[str], str]] = {
    "one": (lambda a, b: [a], [], "needs two or more"),
    "missing": (lambda a, b: [a, Path("nowhere")], [], "There is no folder nowhere"),
    "the same": (lambda a, b: [a, a], [], "The same folder is given twice"),
    "the same otherwise": (lambda a, b: [a, a / "eval-fresh"], [], "are both a/eval-fresh"),
    "something else": (
        lambda a, b: [a, a / "checkpoints"],
        [],
        "neither an evaluation, nor a run, nor a folder of runs",
    ),
    "a typo": (lambda a, b: [a, b], ["policy.chunk_sise"], "Did you mean 'policy.chunk_size'?"),
    "damaged": (lambda a, b: [a, damage(b)], [], "has 27 episodes for 30 starts"),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_wrong_turn_is_answered(case: str, copy: Copy) -> None:
    paths, factors, hint = WRONG[case]
    with pytest.raises(ActKitError) as refused:
        compare(paths(copy("a"), copy("b")), factors)
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.browser
def test_the_page_opens(copy: Copy, show: Open) -> None:
    rng = np.random.default_rng(0)
    for name, chance in (("short", 0.3), ("long", 0.9)):
        seeds(copy, name, [rng.random(NUM) < chance for _ in range(3)], policy__chunk_size=len(name))
    act("compare", "short", "long", "--factor", "policy.chunk_size", check=0)
    page = show((Path("comparison") / "compare.html").resolve())
    assert "better" in page.inner_text("body")

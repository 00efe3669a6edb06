"""Tests of comparisons, on the files of a real evaluation and by the command line."""

from __future__ import annotations

import operator
import shutil
from collections.abc import Callable
from dataclasses import replace
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
from act_kit.eval.results import Evaluation, summarize_all
from act_kit.reports.comparison import comparison_report, method_row
from act_kit.statistics import mcnemar
from tests.comparison.conftest import BARE, NUM, Copy, edit, episode, result, rewrite, seeds
from tests.conftest import Open, act
from tests.eval.untrained import untrained_policy


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


def test_names_are_neither_formulas_nor_wider_than_the_figure(copy: Copy) -> None:
    copy("x$^$")
    copy(long := "<i>" + 60 * "wide")
    page = comparison_report(compare([Path("x$^$"), Path(long)])).write(Path("compare.html")).read_text("utf-8")
    assert ">x$^$</text>" in page
    assert f">…{long[-47:]}</text>" in page
    assert "<i>wide" not in page


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


@pytest.mark.browser
def test_page_opens(copy: Copy, show: Open) -> None:
    rng = np.random.default_rng(0)
    for name, chance in (("short", 0.3), ("long", 0.9)):
        seeds(copy, name, [rng.random(NUM) < chance for _ in range(3)], policy__chunk_size=len(name))
    act("compare", "short", "long", "--vary", "policy.chunk_size", check=0)
    page = show((Path("comparison") / "compare.html").resolve())
    assert "better" in page.inner_text("body")

"""Tests of requirements on evaluations, success by distance, and the sweep over chunking settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from act_kit.config.evaluation import EvalConfig
from act_kit.errors import ConfigError
from act_kit.eval.distance_to_demos import divide
from act_kit.eval.evaluate import evaluate_all
from act_kit.eval.files import write_sweep
from act_kit.eval.init_state_sets import init_state_sets_from
from act_kit.eval.requirements import QUANTITIES, Requirement
from act_kit.eval.results import Evaluation, summarize
from act_kit.eval.sweep import describe_chunking, other_settings, sweep
from act_kit.overrides import compose
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.reports.evaluation import rate_headline, write_results
from act_kit.rollouts.rollout import RolloutPool
from act_kit.statistics import MacroAverageRate, Rate
from tests.conftest import Open, act
from tests.eval.test_evaluate import evaluation_of

CONFIG = compose(EvalConfig, ["episodes=3", "baseline_episodes=0", "demonstrated_episodes=0"])


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("success>=0.8", True),
        ("success > 0.8", False),
        ("success_lower>=0.8", False),
        ("success_upper<=0.95", True),
        ("final_distance<0.03", True),
        ("crashes<=0", True),
        ("success_at_end<8e-1", False),
    ],
)
def test_requirement_compares_the_quantity_with_the_limit(text: str, passed: bool) -> None:
    evaluation = evaluation_of("reach-v3", 8, 10)
    requirement = Requirement.parse(text)
    verdict, line = requirement.check(evaluation)
    assert verdict is passed
    assert line.startswith(f"{'PASS' if passed else 'FAIL'} reach-v3: {requirement.quantity} = ")
    assert f"{requirement.limit:g}" in line


def test_a_line_does_not_contradict_its_result_by_rounding() -> None:
    evaluation = evaluation_of("reach-v3", 8, 10)
    lower = evaluation.success.interval[0]
    assert f"{lower:.4g}" == "0.4902"
    requirement = Requirement.parse("success_lower>=0.4902")
    passed, line = requirement.check(evaluation)
    assert passed is (lower >= 0.4902)
    assert line.endswith(f"success_lower = {lower!r}, required >= 0.4902")


def test_the_headline_of_a_page_does_not_round_a_failure_away() -> None:
    assert rate_headline("success", Rate(249, 250)).value == "99.6 %"
    assert rate_headline("success", MacroAverageRate((Rate(9999, 10000),))).value == "99.99 %"
    assert rate_headline("success", Rate(8, 10)).value == "80 %"


def test_every_quantity_equals_that_of_the_summary() -> None:
    evaluation = evaluation_of("reach-v3", 8, 10)
    summary = summarize(evaluation)
    for name, measure in QUANTITIES.items():
        prefix, _, end = name.rpartition("_")
        match name:
            case "success" | "success_at_end":
                expected = summary["success_once" if name == "success" else name]["value"]
            case "min_distance" | "final_distance":
                expected = summary["distance"][prefix]
            case "crashes":
                expected = len(summary["crashes"])
            case _ if end in ("lower", "upper"):
                rate = summary[{"success": "success_once"}.get(prefix, prefix)]
                expected = rate[{"lower": "low", "upper": "high"}[end]]
            case _:
                expected = summary[name]
        assert measure(evaluation) == expected, name


def test_invalid_requirements_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'sucess_lower' is not a quantity .* Did you mean 'success_lower'"):
        Requirement.parse("sucess_lower>=0.8")
    for text in ("success", "success=0.8", "success>=high", "success>=0.8<1"):
        with pytest.raises(ConfigError, match="is not a requirement"):
            Requirement.parse(text)
    for text in ("success_lower>=80", "success<-0.1", "clip_fraction<=1.5", "success>=nan"):
        with pytest.raises(ConfigError, match="is between 0 and 1"):
            Requirement.parse(text)
    with pytest.raises(ConfigError, match="final_distance is finite"):
        Requirement.parse("final_distance<inf")


@pytest.mark.e2e
def test_unmet_requirement_exits_with_3(tiny_run: Path, tmp_path: Path) -> None:
    few = ("eval", tiny_run, "episodes=2", "baseline_episodes=0", "demonstrated_episodes=0", "--workers", 1)
    failed = act(*few, "--out", tmp_path / "a", "--require", "success>1", "--require", "crashes<=0", check=3)
    assert "FAIL reach-v3: success = 0, required > 1" in failed.stderr
    assert "PASS reach-v3: crashes = 0" in failed.stdout
    act(*few, "--out", tmp_path / "b", "--require", "success<=1", "--init-states", "ood", check=0)
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["init_state_set"]["kind"] == "ood"
    for wrong, message in ((("--require", "succes>1"), "Did you mean 'success'"),):
        done = act(*few, "--out", tmp_path / "c", *wrong, check=2)
        assert message in done.stderr
        assert not (tmp_path / "c").exists(), "refused before the evaluation"


def test_bins_have_equally_many_episodes() -> None:
    rng = np.random.default_rng(0)
    distances = rng.permutation(np.linspace(0, 1, 100))
    bins = divide(distances.tolist(), (distances < 0.4).tolist())
    assert [each.rate for each in bins] == [Rate(20, 20), Rate(20, 20), Rate(0, 20), Rate(0, 20), Rate(0, 20)]
    assert [each.low for each in bins[1:]] > [each.high for each in bins[:-1]]
    assert len(divide(distances[:30].tolist(), [True] * 30)) == 3
    (single,) = divide([0.0] * 50, [True] * 49 + [False])
    assert (single.low, single.high, single.rate) == (0.0, 0.0, Rate(49, 50)), (
        "demonstrated initial states: all distances are 0"
    )


def test_sweep_runs_every_other_setting_from_the_same_initial_states(tiny_policy: Policy, tmp_path: Path) -> None:
    names = [describe_chunking(policy.chunking) for policy in other_settings(tiny_policy)]
    assert names == ["1 action a query", "2 actions a query", "8 actions a query", "every step, ensembled"]
    ensembling = tiny_policy.with_chunking(temporal_ensemble=True)
    assert [describe_chunking(policy.chunking) for policy in other_settings(ensembling)][-1] == "8 actions a query"
    odd = tiny_policy.with_chunking(n_action_steps=3)
    assert "4 actions a query" in [describe_chunking(policy.chunking) for policy in other_settings(odd)]
    init_state_sets = init_state_sets_from("test", tiny_policy.metadata, CONFIG)
    with RolloutPool(1) as roll:
        evaluations = evaluate_all(tiny_policy, init_state_sets, CONFIG, roll=roll)
        ((own, *rows),) = sweep(tiny_policy, evaluations, roll=roll)
        expected = roll(PolicyAgent(tiny_policy.with_chunking(n_action_steps=1)), init_state_sets[0].init_states)
    assert (own.chunking, own.rate, own.p) == ("4 actions a query", evaluations[0].success, None)
    assert [row.chunking for row in rows] == names
    assert rows[0].rate.successes == sum(outcome.success_once for outcome in expected)
    write_sweep([own, *rows], tmp_path / "sweep.json")
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert written["warning"].startswith("Not a result")
    assert [row["chunking"] for row in written["rows"]] == [own.chunking, *names]


def test_sweep_counts_gained_and_lost_initial_states(tiny_policy: Policy) -> None:
    evaluation = evaluation_of("reach-v3", 8, 20)
    better = evaluation_of("reach-v3", 15, 20)

    def roll(agent: object, init_states: object, **options: object) -> list[object]:
        return list(better.outcomes)

    ((_, row, *_),) = sweep(tiny_policy, [evaluation], roll=roll)  # type: ignore[arg-type]
    assert (row.gained, row.lost, row.rate) == (7, 0, Rate(15, 20))
    assert row.p == pytest.approx(2 * 0.5**7)
    ((_, same, *_),) = sweep(tiny_policy, [better], roll=roll)  # type: ignore[arg-type]
    assert (same.gained, same.lost, same.p) == (0, 0, 1.0)


def test_lattice_evaluation_is_drawn_as_cells(tiny_policy: Policy) -> None:
    from act_kit.reports.figures import success_figures

    config = replace(CONFIG, episodes=9)
    (init_state_set,) = init_state_sets_from("grid", tiny_policy.metadata, config)
    with RolloutPool(1) as roll:
        evaluation: Evaluation = evaluate_all(tiny_policy, [init_state_set], config, roll=roll)[0]
    (figure,) = success_figures(evaluation)
    (axes,) = figure.axes
    assert len(axes.patches) == 9, "one cell per episode"


@pytest.mark.browser
@pytest.mark.parametrize(("successes", "num"), [(0, 1), (1, 1), (0, 100), (1, 100), (99, 100), (100, 100)])
def test_bar_width_is_the_fraction(successes: int, num: int, tmp_path: Path, show: Open) -> None:
    """The bar and its track have different colors, so that full and empty bars are recognizable."""
    page = show(write_results(evaluation_of("reach-v3", successes, num), tmp_path))
    widths, colors = page.evaluate(
        """() => {
            const bar = [...document.querySelectorAll(".bar")].at(-1);
            const both = [bar, bar.parentElement];
            return [
                both.map(element => element.getBoundingClientRect().width),
                both.map(element => getComputedStyle(element).backgroundColor),
            ];
        }"""
    )
    assert widths[1] > 100
    assert widths[0] / widths[1] == pytest.approx(successes / num, abs=0.002)
    assert colors == ["rgb(0, 114, 178)", "rgb(244, 246, 248)"]

"""Protocols: the episodes are those of the projects' own loops, and whatever was changed is named."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import metaworld
import numpy as np
import pytest

import act_kit
from act_kit.comparison.compare import compare
from act_kit.config.evaluation import EvalConfig, ProtocolConfig
from act_kit.errors import ConfigError
from act_kit.eval.evaluate import episode_rules
from act_kit.eval.files import read_evaluation, read_evaluations
from act_kit.eval.init_state_sets import InitialStateSet, make_init_state_set
from act_kit.eval.protocols import compose_evaluation, protocol_names
from act_kit.eval.results import summarize_all
from act_kit.reports.overview import overview_report, overview_title
from act_kit.reports.video import _physics
from act_kit.rollouts.agents import DelayedAgent, ExpertAgent, RandomAgent, delayed
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import RolloutPool
from act_kit.sim.initial_states import InitialState, InitialStateDistribution, benchmark_goals
from act_kit.sim.simulator import ENGINES
from act_kit.sim.tasks import benchmark_tasks

FEW: dict[str, Any] = {"workers": 1, "overrides": ["baseline_episodes=2"]}


def make_env(init_state: InitialState) -> Any:
    """Return Meta-World's own environment, in which the initial state is set as its task."""
    env_class: Any = metaworld.env_dict.ALL_V3_ENVIRONMENTS[init_state.task]
    env = env_class()
    values = {"rand_vec": init_state.array, "env_cls": env_class, "partially_observable": False}
    env.set_task(metaworld.types.Task(env_name=init_state.task, data=pickle.dumps(values)))
    return env


def run(name: str, task: str, num: int = 3, **options: Any) -> list[Episode]:
    init_states = InitialStateDistribution(task).sample(num, seed=0, stream="evaluate")
    with RolloutPool(1, **options) as roll:
        return roll(ExpertAgent(), init_states, rules=episode_rules(compose_evaluation([f"protocol={name}"]).protocol))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["rlinf", "evo1", "lerobot"])
def test_episodes_are_those_of_metaworlds_environment_stepped_as_the_project_does(name: str, engine: str) -> None:
    rules = compose_evaluation([f"protocol={name}"]).protocol
    expert = ExpertAgent()
    (outcome,) = run(name, "push-v3", 1, engine=engine)
    env = make_env(outcome.init_state)
    state, _ = env.reset()
    for _ in range(rules.settle_steps):
        state, *_ = env.step(np.zeros(4, dtype=np.float32))
    expert.begin(0, outcome.init_state, 0)
    for t in range(rules.horizon):
        assert np.array_equal(state, outcome.states[t])
        action = np.clip(expert.plan(state[None], np.zeros(1, dtype=int), None)[0, 0], -1, 1).astype(np.float32)
        state, _, _, truncated, info = env.step(action)
        assert bool(info["success"]) == outcome.success[t]
        assert not truncated
        if rules.ends_at_success and info["success"]:
            break
    assert len(outcome) == t + 1
    assert np.array_equal(state, outcome.last_state)
    assert outcome.success_once
    assert (len(outcome) == rules.horizon) is not rules.ends_at_success


def test_rlinfs_episodes_have_100_steps_after_16_zero_actions() -> None:
    outcomes = run("rlinf", "disassemble-v3", 2)
    assert {(len(outcome), outcome.settle_steps) for outcome in outcomes} == {(100, 16)}
    assert not any(outcome.success_once for outcome in outcomes), "the expert needs more steps"
    assert all(outcome.success_once for outcome in run("metaworld", "disassemble-v3", 2))


def test_an_episode_ends_with_its_first_success_within_a_chunk() -> None:
    class Chunks(ExpertAgent):
        def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
            return np.repeat(super().plan(states, rows, images), 7, axis=1)

    init_states = InitialStateDistribution("reach-v3").sample(3, seed=0, stream="evaluate")
    rules = episode_rules(ProtocolConfig(ends_at_success=True))
    with RolloutPool(1) as roll:
        ended = roll(Chunks(), init_states, rules=rules)
        full = roll(Chunks(), init_states)
    for a, b in zip(ended, full, strict=True):
        assert len(a) - 1 == a.success_step == b.success_step
        assert a.success_at_end
        assert np.array_equal(a.states, b.states[: len(a) + 1])


def test_videos_begin_after_the_settle_steps() -> None:
    (outcome,) = run("rlinf", "push-v3", 1)
    with RolloutPool(1) as roll:
        (unsettled,) = roll(ExpertAgent(), [outcome.init_state])
    assert not np.array_equal(_physics(outcome, 1)[0], _physics(unsettled, 1)[0])
    assert len(_physics(outcome, 1)) == 101


# -- initial states ----------------------------------------------------------------------------------------------------


def test_mt50_is_what_metaworlds_environments_reset_to() -> None:
    """The sum is that of ``metaworld.MT50(seed=4042)`` of Meta-World 3.1.1, which takes minutes."""
    goals = benchmark_goals(benchmark_tasks("MT50"), 4042)
    digest = hashlib.sha256()
    for name in benchmark_tasks("MT50"):
        digest.update(np.array(goals[name]).tobytes())
    assert digest.hexdigest() == GOALS_OF_MT50
    drawn = make_init_state_set("reach-v3", "mt50", 12, 7, [])
    env = gymnasium.make("Meta-World/MT1", env_name="reach-v3", seed=7, disable_env_checker=True)
    own: Any = env.unwrapped
    goals = benchmark_goals(["reach-v3"], 7)
    for init_state in InitialStateDistribution("reach-v3", "mt50").sample(12, seed=7, stream="evaluate"):
        env.reset(seed=1)  # Meta-World ignores the seed
        index = [np.array_equal(goal, own._last_rand_vec) for goal in goals["reach-v3"]].index(True)
        expected = benchmark_goals(benchmark_tasks("MT50"), 7)["reach-v3"][index]
        assert init_state.rand_vec == tuple(expected)
    assert drawn.follows_distribution


GOALS_OF_MT50 = "9bc7ebb456917a1850e5997b48b23450909bd7de5a76e7183398336aa762fd25"


@pytest.mark.parametrize("task", ["push-v3", "door-close-v3"])
def test_lerobots_initial_states_are_those_of_its_environment(task: str) -> None:
    init_states = InitialStateDistribution(task, "lerobot").sample(3, seed=1000, stream="evaluate")
    env = make_env(init_states[0])
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    for i, init_state in enumerate(init_states):
        env.seed(1000 + i)
        env.reset(seed=1000 + i)
        assert init_state.rand_vec == tuple(env._last_rand_vec)


def test_two_of_evo1s_ten_goals_come_twice() -> None:
    config = compose_evaluation(["protocol=evo1"])
    for task in ("reach-v3", "push-v3"):
        assert make_init_state_set(task, "mt50", config.episodes, config.seed, []).num_distinct == 8


def test_sets_of_metaworlds_goals_keep_their_kind(tmp_path: Path) -> None:
    for kind in ("mt1", "mt50", "lerobot"):
        drawn = make_init_state_set("push-v3", kind, 10, 3, [])
        drawn.save(tmp_path / "init_states.json")
        assert InitialStateSet.load(tmp_path / "init_states.json") == drawn


# -- options -----------------------------------------------------------------------------------------------------------


def test_the_default_is_metaworlds_protocol() -> None:
    assert protocol_names() == ["evo1", "lerobot", "metaworld", "rlinf"]
    for override in ("protocol=metaworld", "protocol.name=metaworld"):
        assert compose_evaluation([override]) == EvalConfig()


def test_given_options_win_over_the_protocol() -> None:
    config = compose_evaluation(["protocol.horizon=300"], {"protocol.name": "evo1", "episodes": 4, "seed": None})
    assert (config.protocol.horizon, config.protocol.settle_steps, config.episodes, config.seed) == (300, 1, 4, 4042)
    assert (config.served.cameras, config.served.size_px) == (("corner2",), 448)
    assert compose_evaluation(["protocol.mean=tasks", "protocol=evo1"]).protocol.mean == "tasks"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("horizn: 3", "there is no key 'horizn'. Did you mean 'horizon'?"),
        ("horizon: long", "protocol.horizon='long': expected an integer."),
        ("horizon: 600", "protocol.horizon=600: expected 1 to 500."),
        ("horizon: 490\nsettle_steps: 20", "protocol.horizon=490 with protocol.settle_steps=20: expected at most 500"),
        ("horizon: 3\nepisodes: 5\nhorizon: 4", "the key 'horizon' is repeated."),
        ("served:\n  size_px: 64\n  size_px: 65", "the key 'served.size_px' is repeated."),
        ("served: corner2", "served='corner2': expected a group of options."),
        ("served:\n  camera: [corner2]", "There is no option 'served.camera'. Did you mean 'served.cameras'?"),
        ("name: mine", "there is no key 'name'."),
        ("mean: median", "protocol.mean=median: choose from: tasks, groups."),
        ("ends_at_success: 1", "protocol.ends_at_success=1: expected True or False."),
        ("- horizon", "expected lines of the form key: value."),
        ("", "expected lines of the form key: value."),
        ("a: &a [1]\nb: *a", "has a YAML alias"),
        ("a: [", "is not YAML"),
        ("? [horizon]\n: 3", "is not YAML"),
    ],
)
def test_a_malformed_protocol_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        compose_evaluation([], {"protocol.name": str(path)})
    assert message in str(error.value)
    assert str(error.value).startswith(f"The protocol {path}: ")
    assert "\n" not in str(error.value)


def test_an_unknown_protocol_is_refused_with_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"'evo2' is not a protocol; choose from: evo1, .*Did you mean 'evo1'"):
        compose_evaluation([], {"protocol.name": "evo2"})


# -- evaluations -------------------------------------------------------------------------------------------------------


def test_reports_name_the_protocol_and_what_was_changed(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("horizon: 60\nsettle_steps: 2\nepisodes: 5\nends_at_success: true\n", encoding="utf-8")
    folder = tmp_path / "out"
    few: dict[str, Any] = {**FEW, "overrides": ["baseline_episodes=0", "delay=1"]}
    evaluation = act_kit.evaluate(ExpertAgent(), "reach-v3", out=folder, protocol=str(mine), episodes=4, **few)
    rules = "60 steps, after 2 zero actions, ends at the first success, answers delayed by 1 step"
    line = f"{mine}, changed (episodes 5 → 4): {rules}"
    assert (folder / "report.html").read_text(encoding="utf-8").count(line) == 2
    read = read_evaluation(folder)
    assert read.protocol == ProtocolConfig(name=str(mine), horizon=60, settle_steps=2, ends_at_success=True)
    assert (read.delay, read.provenance["horizon"], read.success) == (1, 60, evaluation.success)
    assert read.provenance["protocol"]["changed"] == {"episodes": [5, 4]}
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert (card["protocol"], card["delay"]) == (read.provenance["protocol"], 1)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    summary["protocol"]["horizon"] = "60"
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    with pytest.raises(act_kit.ActKitError, match="expected an integer"):
        read_evaluation(folder)


def test_baselines_follow_the_protocol() -> None:
    slow = act_kit.evaluate(ExpertAgent(), "disassemble-v3", protocol="rlinf", episodes=2, **FEW)
    assert slow.baselines["expert"].successes == 0
    assert slow.success == slow.baselines["expert"]


def test_compare_holds_the_protocol_and_the_delay_equal(tmp_path: Path) -> None:
    few: dict[str, Any] = {"episodes": 1, "workers": 1, "overrides": ["baseline_episodes=0"]}
    folders: dict[str, Path] = {}
    evaluated: dict[str, dict[str, Any]] = {
        "plain": {},
        "rlinf": {"protocol": "rlinf"},
        "lerobot": {"protocol": "lerobot"},
        "late": {"delay": 3},
    }
    for name, options in evaluated.items():
        folders[name] = tmp_path / name
        act_kit.evaluate(ExpertAgent(), "reach-v3", out=folders[name], **few, **options)
    summary = json.loads((folders["plain"] / "summary.json").read_text(encoding="utf-8"))
    del summary["protocol"], summary["delay"]
    (folders["plain"] / "summary.json").write_text(json.dumps(summary), encoding="utf-8")

    def differences(name: str) -> set[str]:
        return {change.key for change in compare([folders["plain"], folders[name]]).pairs[0].confounds}

    assert differences("rlinf") == {"config", "eval.horizon", "eval.protocol.settle_steps"}
    assert differences("lerobot") == {"config", "eval.init_states", "eval.protocol.ends_at_success"}
    assert differences("late") == {"config", "eval.delay"}


# -- delay -------------------------------------------------------------------------------------------------------------


def test_an_answer_is_executed_a_delay_after_its_observation() -> None:
    """With chunks of 16 random actions: 5 zeros, then the same actions, in the same order."""
    init_states = InitialStateDistribution("reach-v3").sample(2, seed=0, stream="evaluate")
    with RolloutPool(1) as roll:
        prompt = roll(RandomAgent(), init_states)
        late = roll(DelayedAgent(RandomAgent(), 5), init_states)
        very_late = roll(DelayedAgent(RandomAgent(), 40), init_states)
    for a, b, c in zip(prompt, late, very_late, strict=True):
        assert not b.executed_action[:5].any()
        assert not c.executed_action[:40].any()
        assert np.array_equal(b.executed_action[5:], a.executed_action[:-5])
        assert np.array_equal(c.executed_action[40:], a.executed_action[:-40])
        assert np.array_equal(b.query_steps, a.query_steps)
    agent = RandomAgent()
    assert delayed(agent, 0) is agent


def test_the_experts_success_falls_with_the_delay() -> None:
    options: dict[str, Any] = {"protocol": "lerobot", "episodes": 4, "workers": 1, "overrides": ["baseline_episodes=1"]}
    at_once = act_kit.evaluate(ExpertAgent(), "push-v3", **options)
    late = act_kit.evaluate(ExpertAgent(), "push-v3", delay=40, **options)
    assert at_once.success.value == late.baselines["expert"].value == 1
    assert late.success.value < 0.5


def test_n_action_steps_of_a_protocol_are_those_of_a_run(tiny_run: Path, tmp_path: Path) -> None:
    short = ["protocol.horizon=5", "protocol.settle_steps=1", "protocol.ends_at_success=true"]
    options: dict[str, Any] = {"episodes": 2, "workers": 1, "out": tmp_path / "out", "overwrite": True}
    options["overrides"] = [*short, "protocol.n_action_steps=2", "protocol.init_states=ood", "baseline_episodes=0"]
    evaluation = act_kit.evaluate(tiny_run, **options)
    assert [outcome.query_steps.tolist() for outcome in evaluation.outcomes] == [[0, 2, 4], [0, 2, 4]]
    assert evaluation.init_state_set.kind == "ood"
    assert evaluation.provenance["protocol"]["changed"] == {
        "horizon": [500, 5],
        "settle_steps": [0, 1],
        "ends_at_success": [False, True],
        "init_states": ["test", "ood"],
        "n_action_steps": [0, 2],
        "episodes": [100, 2],
    }
    card = json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8"))
    assert card["latency"]["num_asked"] == 1
    assert 0 < card["latency"]["median_s"] <= card["latency"]["percentile_95_s"]
    again = act_kit.evaluate(tiny_run, n_action_steps=3, **options)
    assert [outcome.query_steps.tolist() for outcome in again.outcomes] == [[0, 3], [0, 3]]
    assert again.provenance["protocol"]["n_action_steps"] == 3


def test_the_mean_of_difficulties_weighs_groups_equally(tmp_path: Path) -> None:
    config = compose_evaluation(["protocol=evo1", "protocol.horizon=60", "baseline_episodes=1", "episodes=2"])
    sets = [make_init_state_set(task, "mt50", 2, 0, []) for task in ("reach-v3", "door-close-v3", "disassemble-v3")]
    evaluations = act_kit.evaluate_tasks(ExpertAgent(), sets, config, workers=1, out=tmp_path / "out")
    rates = [evaluation.success.value for evaluation in evaluations]
    means = summarize_all(evaluations)["means"]
    assert means["groups"]["success_once"]["value"] == pytest.approx(np.mean([np.mean(rates[:2]), rates[2]]))
    assert means["all"]["success_once"]["value"] == pytest.approx(np.mean(rates))
    assert rates[0] != rates[2], "otherwise the two means are equal"
    assert "mean of 2 difficulties, 3 tasks" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    read = read_evaluations(tmp_path / "out")
    assert overview_title(read).endswith("%], mean of the difficulties")
    assert "Protocol: evo1, changed (horizon 400 → 60; episodes 10 → 2" in overview_report(read).notes[0]

"""``act eval MODULE:NAME``: Python objects by name, and the evaluations of agents that are not runs."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import act_kit
from act_kit.api.agents import folder_name, import_agent, kind_of_agent
from act_kit.comparison.compare import compare
from act_kit.doctor.diagnose import examine_target
from act_kit.errors import CheckpointError, ConfigError
from act_kit.eval.evaluate import FunctionAgent
from act_kit.eval.files import read_evaluations
from act_kit.eval.init_state_sets import make_init_state_set
from act_kit.rollouts.agents import ExpertAgent, ZeroActionAgent
from tests.conftest import act
from tests.serving.servers import Expert, openpi, serving

MODULE = """
import numpy as np
from act_kit.rollouts.agents import ExpertAgent, ZeroActionAgent

def function(states):
    return np.zeros((len(states), 4))

def factory(noise=0.0):
    return ZeroActionAgent()

def factory_of_a_function():
    return function

class Holder:
    agent = ZeroActionAgent()

class Callable:
    def __call__(self, states):
        return np.zeros((len(states), 2, 4))

expert = ExpertAgent()
number = 3

def fails():
    return 1 / 0
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, with a name of its own: a module is imported once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    name = f"policy_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    return name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("function", FunctionAgent),
        ("factory", ZeroActionAgent),
        ("factory_of_a_function", FunctionAgent),
        ("Holder.agent", ZeroActionAgent),
        ("Callable", FunctionAgent),
        ("expert", ExpertAgent),
        ("ExpertAgent", ExpertAgent),
    ],
)
def test_what_a_name_may_be(module: str, name: str, kind: type) -> None:
    agent = import_agent(f"{module}:{name}")
    assert type(agent) is kind
    assert agent.provenance
    assert (agent.provenance["kind"], agent.provenance["name"]) == ("python", f"{module}:{name}")
    assert len(agent.provenance["source_sha256"]) == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("functoin", r"has no 'functoin'. Did you mean 'function'\?"),
        ("number", "is a int: expected an Agent, a function"),
        ("fails", r"calling fails\(\) failed at .*policy_.*\.py, line \d+: ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_name_may_not_be(module: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        import_agent(f"{module}:{name}")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_package", "line 1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("def f(:", "line 1: SyntaxError"),
        ("\nraise ValueError('weights are missing')", "line 2: ValueError: weights are missing"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(module: str, code: str, message: str) -> None:
    Path(f"{module}_broken.py").write_text(code, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as error:
        import_agent(f"{module}_broken:act")
    assert "\n" not in str(error.value)


def test_kinds_and_names_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    kinds = {what: kind_of_agent(what) for what in ("ws://a:1", "wss://a:1", "a.b:c.d", "a:b", "runs/a:b", "runs/a")}
    assert list(kinds.values()) == ["server", "server", "python", "run", "run", "run"]
    assert folder_name("ws://localhost:8000/?token=x", ["push-v3"]) == "localhost-8000-push-v3"
    assert folder_name("my.policy:act", ["push-v3", "reach-v3"]) == "my.policy-act-2-tasks"


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "episodes.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_an_agent_and_a_server_are_evaluated_alike(module: str) -> None:
    """The expert by its name and behind a server: the same rows; its records say what was evaluated."""
    few: dict[str, Any] = {"episodes": 3, "overrides": ["baseline_episodes=1"], "workers": 1}
    act_kit.evaluate(f"{module}:expert", "reach-v3", out="named", **few)
    with serving(openpi(Expert().infer, {"robot": "sawyer"})) as address:
        act_kit.evaluate(address, "reach-v3", out="served", **few)
    assert rows(Path("served")) == rows(Path("named"))
    summary = json.loads(Path("served/summary.json").read_text(encoding="utf-8"))
    assert summary["agent"]["metadata"] == {"robot": "sawyer"}
    (evaluation,) = read_evaluations(Path("served"))
    assert evaluation.provenance["agent"] == summary["agent"]
    card = json.loads(Path("served/card.json").read_text(encoding="utf-8"))
    assert (card["policy"], card["actions_per_query"]) == (summary["agent"], 1)
    assert (card["latency"]["num_queries"], card["latency"]["num_asked"]) == (3 * 500, 3)
    assert 0 < card["latency"]["median_s"] <= card["latency"]["percentile_95_s"]
    assert json.loads(Path("named/card.json").read_text(encoding="utf-8"))["latency"] is None
    assert f"<h1>{address}, reach-v3: success" in Path("served/report.html").read_text(encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"evaluates {address}, which is not a run"):
        examine_target(Path("served"), num_workers=1)
    same = compare([Path("named"), Path("served")], ["agent"])
    assert [pair.verdict for pair in same.pairs] == ["SAME EVALUATION"]
    assert [change.key for change in same.pairs[0].changes] == ["agent.name"]


def test_the_card_counts_the_actions_of_an_episode_with_one_query(module: str) -> None:
    overrides = ["baseline_episodes=0", "protocol.horizon=2"]
    act_kit.evaluate(f"{module}:Callable", "reach-v3", out="short", episodes=1, overrides=overrides, workers=1)
    assert json.loads(Path("short/card.json").read_text(encoding="utf-8"))["actions_per_query"] == 2


@pytest.mark.parametrize(
    "options",
    [
        {"n_action_steps": 2},
        {"temporal_ensemble": True},
        {"sweep_chunking": True},
        {"overrides": ["protocol.n_action_steps=5"]},
    ],
)
def test_an_agent_that_chooses_its_actions_takes_no_options_of_chunking(module: str, options: dict[str, Any]) -> None:
    for agent in (f"{module}:expert", ZeroActionAgent()):
        with pytest.raises(ConfigError, match="chooses its actions itself"):
            act_kit.evaluate(agent, "reach-v3", episodes=1, **options)


def test_initial_states_of_another_task_than_the_given_one_are_refused(module: str) -> None:
    make_init_state_set("reach-v3", "test", 1, 0, []).save(Path("reach.json"))
    with pytest.raises(ConfigError, match=r"The task is push-v3; the initial states in reach.json are of reach-v3"):
        act_kit.evaluate(f"{module}:expert", "push-v3", init_states="reach.json")


def test_agents_of_different_names_are_compared(module: str) -> None:
    few: dict[str, Any] = {"episodes": 8, "overrides": ["baseline_episodes=0"], "workers": 1}
    act_kit.evaluate(f"{module}:expert", "reach-v3", out="expert", **few)
    act_kit.evaluate(f"{module}:function", "reach-v3", out="function", **few)
    paths = [Path("function"), Path("expert")]
    assert compare(paths).pairs[0].verdict == "CONFOUNDED"
    (pair,) = compare(paths, ["agent"]).pairs
    assert pair.verdict == "better"


@pytest.mark.e2e
def test_the_command_evaluates_several_tasks(module: str) -> None:
    command = ("eval", f"{module}:ExpertAgent", "--task", "reach-v3,push-v3", "--task", "door-open-v3")
    act(*command, "--episodes", 2, "baseline_episodes=1", check=0)
    folder = Path("evaluations") / f"{module}-ExpertAgent-3-tasks"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"reach-v3", "push-v3", "door-open-v3"}
    assert [each.success.value for each in read_evaluations(folder)] == [1, 1, 1]
    again = act(*command, "--episodes", 2, "--workers", 1, "--out", "again", "baseline_episodes=1", check=0)
    assert again.stderr == ""
    for task in ("reach-v3", "push-v3", "door-open-v3"):
        assert rows(folder / task) == rows(Path("again") / task)


@pytest.mark.e2e
def test_the_expert_behind_a_server_is_judged_as_in_process_on_all_tasks(module: str) -> None:
    few = ("--task", "MT50", "--episodes", 3, "baseline_episodes=0")
    act("eval", f"{module}:ExpertAgent", *few, "--out", "named", check=0, timeout=1800)
    with serving(openpi(Expert().infer)) as address:
        # push and push-back have the same sentence
        act("eval", address, *few, "served.prompt=task", "--out", "served", check=0, timeout=1800)
    folders = sorted(path.parent for path in Path("named").glob("*/episodes.csv"))
    assert len(folders) == 50
    for folder in folders:
        assert rows(folder) == rows(Path("served") / folder.name)

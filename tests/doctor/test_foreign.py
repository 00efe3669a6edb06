"""The doctor names the fault of a foreign policy first, and has nothing to say of a healthy one.

``python -m benchmarks.foreign_faults`` prints the rows that the sweep records.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import act_kit
from act_kit.config.evaluation import ServedConfig
from act_kit.doctor.agreement import explain, measure_effect, sign_flip_p
from act_kit.doctor.diagnose import examine_foreign, examine_target
from act_kit.doctor.finding import Finding
from act_kit.errors import ActKitError, ArrayError, CheckpointError, ConfigError
from act_kit.eval.evaluate import FunctionAgent
from act_kit.parallel import LocalExecutor
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import Agent, ExpertAgent
from act_kit.serving.client import ServedAgent
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import CameraViews, Gl, RenderSettings, render_episode
from tests.conftest import act
from tests.doctor.foreign_policies import (
    BAD,
    FAULTS,
    HEALTHY,
    MAY_SUCCEED,
    NEEDS_GRIPPER,
    NEEDS_OBJECT,
    PAIRS,
    Raising,
    Wrapped,
    expert_path,
)
from tests.serving.servers import Expert, Observation, openpi, serving, serving_policy, vla_eval

Record = Callable[[str, object], None]

TASKS = ("reach-v3", "push-v3", "pick-place-v3", "button-press-topdown-v3", "door-open-v3", "peg-insert-side-v3")
WITHOUT_GRIPPER = ("reach-v3", "button-press-topdown-v3", "door-open-v3")
WARNS = ("sampling expert",)

FAST_FAULTS = (
    *("gripper turned", "actions x 0.1", "x and y exchanged", "object hidden", "rows reversed"),
    *("chunks reversed", "late by an answer", "state kept", "sampling"),
    *("gripper first", "first observation", "sometimes NaN"),
)


def examine(agent: Agent, task: str) -> list[Finding]:
    return examine_foreign(agent, "the policy", task, num_workers=1)


def faults(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.result.message for finding in findings if finding.result.is_fault}


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.result.status for finding in findings}


def slow(values: object, name: str, is_fast: bool) -> object:
    return pytest.param(*values, id=name, marks=() if is_fast else pytest.mark.e2e)  # type: ignore[misc]


def healthy_cases() -> list[object]:
    cases: list[object] = []
    for name, (_, tasks) in HEALTHY.items():
        for task in tasks or TASKS:
            is_fast = (name, task) == ("expert", "push-v3") or name == "proportional controller"
            cases.append(slow((name, task), f"{name}-{task}", is_fast))
    return cases


@pytest.mark.parametrize(("name", "task"), healthy_cases())
def test_a_healthy_policy_has_no_fault(name: str, task: str, record_property: Record) -> None:
    findings = examine(HEALTHY[name][0](), task)
    found = faults(findings)
    record_property("row", [name, task, ", ".join(found) or "nothing", ""])
    assert list(found) == (["not deterministic"] if name in WARNS else [])
    assert statuses(findings)["low success rate"] == "RULED OUT"


def bad_cases() -> list[object]:
    return [slow((name, task), f"{name}-{task}", False) for name in BAD for task in TASKS]


@pytest.mark.parametrize(("name", "task"), bad_cases())
def test_a_bad_policy_is_not_accused_of_another_fault(name: str, task: str, record_property: Record) -> None:
    found = faults(examine(BAD[name](), task))
    record_property("row", [name, task, ", ".join(found), ""])
    assert set(found) <= {"low success rate", "dead input", "not deterministic"}
    assert "low success rate" in found or name in MAY_SUCCEED


def faulty_cases() -> list[object]:
    cases: list[object] = []
    for name in FAULTS:
        for task in TASKS:
            if name in NEEDS_GRIPPER and task in WITHOUT_GRIPPER:
                continue
            if name in NEEDS_OBJECT and task == "reach-v3":
                continue
            cases.append(slow((name, task), f"{name}-{task}", name in FAST_FAULTS and task == "push-v3"))
    return cases


@pytest.mark.parametrize(("name", "task"), faulty_cases())
def test_a_fault_is_named_first(name: str, task: str, record_property: Record) -> None:
    make, expected = FAULTS[name]
    first = examine(make(), task)[0]
    record_property("row", [name, task, first.name, f"{first.result.status}, {first.result.severity}"])
    assert (first.name, first.result.is_fault) == (expected, True), first.result.message
    assert first.result.fix
    assert first.how_to_verify


def pair_cases() -> list[object]:
    fast = ("exchanged, in meters", "chunks reversed, in meters", "zeros first, gripper turned")
    return [slow((name,), name, name in fast) for name in PAIRS]


@pytest.mark.parametrize("name", pair_cases())
def test_one_of_two_faults_is_named_first(name: str, record_property: Record) -> None:
    make, names = PAIRS[name]
    findings = examine(make(), "push-v3")
    first, confirmed = findings[0], {finding.name for finding in findings if finding.is_fatal}
    record_property("row", [name, "push-v3", first.name, f"{first.result.status}, {first.result.severity}"])
    assert first.name in names, first.result.message
    assert first.result.is_fault
    assert confirmed <= names


def test_errors_of_a_policy_in_the_middle_are_found() -> None:
    findings = examine(Raising(ExpertAgent(), 60), "push-v3")
    assert (findings[0].name, findings[0].is_fatal) == ("the policy crashes", True)
    assert "RuntimeError: out of memory" in findings[0].result.message


@pytest.mark.parametrize("task", WITHOUT_GRIPPER)
@pytest.mark.e2e
def test_a_turned_gripper_is_untested_where_it_does_not_matter(task: str) -> None:
    findings = examine(FAULTS["gripper turned"][0](), task)
    assert statuses(findings)["gripper turned"] == "UNTESTED"
    assert faults(findings) == {}


# -- servers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [openpi, pytest.param(vla_eval, marks=pytest.mark.e2e)])
def test_the_expert_behind_a_server_has_no_fault(handler: Callable[[object], object]) -> None:
    with serving(handler(Expert().infer)) as address, ServedAgent(address) as agent:  # type: ignore[arg-type]
        assert faults(examine(agent, "reach-v3")) == {}


@pytest.mark.e2e
@pytest.mark.parametrize("chunking", [{"n_action_steps": 2}, {"temporal_ensemble": True}])
def test_a_run_behind_a_server_has_no_fault_of_its_adapter(tiny_policy: Policy, chunking: dict[str, Any]) -> None:
    """The policy has hardly been trained, so only its success may be low."""
    with serving_policy(tiny_policy.with_chunking(**chunking)) as address, ServedAgent(address) as agent:
        assert set(faults(examine(agent, "reach-v3"))) <= {"low success rate", "dead input"}


class Shared:
    """A server's policy that keeps its last action, whoever asks."""

    def __init__(self) -> None:
        self._expert, self._last = Expert(), np.zeros((1, 4))

    def infer(self, observation: Observation) -> np.ndarray:
        self._last = 0.5 * self._last + 0.5 * self._expert.infer(observation)
        return self._last


@pytest.mark.e2e
def test_a_server_that_shares_its_state_is_found() -> None:
    with serving(openpi(Shared().infer)) as address, ServedAgent(address) as agent:
        first = examine(agent, "pick-place-v3")[0]
    assert first.name in ("state shared between episodes", "rows mixed up between environments")
    assert first.is_fatal


@pytest.mark.e2e
def test_a_server_that_ignores_its_prompt_is_found() -> None:
    expert = Expert()

    def infer(observation: Observation) -> np.ndarray:
        return expert.infer({**observation, "prompt": "reach-v3"})

    with serving(openpi(infer)) as address, ServedAgent(address) as agent:
        first = examine(agent, "pick-place-v3")[0]
    assert first.name == "dead input"
    assert "prompt" in first.result.message


def test_a_policy_that_does_not_answer_with_actions_is_refused() -> None:
    missing: dict[str, np.ndarray] = {}
    with pytest.raises(ArrayError, match="NaN or infinity"):
        examine(FunctionAgent(lambda states: np.full((len(states), 4), np.nan)), "reach-v3")
    with pytest.raises(ConfigError, match=r"the policy: It fails at .*test_foreign.py, line \d+: KeyError"):
        examine(FunctionAgent(lambda states: missing["actions"]), "reach-v3")


# -- images ------------------------------------------------------------------------------------------------------------

VIEWS = CameraViews(cameras=("corner2",), settings=RenderSettings(height_px=32, width_px=32))


class ImageExpert(Agent):
    """A policy that recognizes on the expert's path where it is, from the image alone; else it stays where it is."""

    views = VIEWS

    def __init__(self, executor: LocalExecutor) -> None:
        self._executor = executor
        self._known: dict[InitialState, np.ndarray] = {}
        self._rows: dict[int, InitialState] = {}

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        self._rows[row] = init_state
        if init_state not in self._known:
            physics = expert_path(init_state)[2]
            job = (VIEWS.settings, VIEWS.cameras, init_state, physics)
            (frames,) = self._executor.map(render_episode, [job])
            self._known[init_state] = frames.images[:, 0].astype(np.float32)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        assert images is not None
        actions: list[np.ndarray] = []
        for image, row in zip(images, rows.tolist(), strict=True):
            init_state = self._rows[row]
            differences = np.abs(self._known[init_state] - image[0]).mean(axis=(1, 2, 3))
            is_known = differences.min() < 2  # of 255
            actions.append(is_known * expert_path(init_state)[1][int(differences.argmin())])
        return np.array(actions)[:, None]


class Flipped(Wrapped):
    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        assert images is not None
        return super().plan(states, rows, images[..., ::-1, :, :])


class OtherCamera(Wrapped):
    """A policy that is shown another camera than the one that it knows."""

    def __init__(self, agent: Agent, camera: str) -> None:
        super().__init__(agent)
        self.views = CameraViews(cameras=(camera,), settings=VIEWS.settings)


@pytest.mark.gl
@pytest.mark.e2e
def test_the_wrong_image_is_found(gl: Gl) -> None:
    with LocalExecutor(1, gl.environment) as executor:
        healthy = ImageExpert(executor)
        assert faults(examine(healthy, "reach-v3")) == {}
        first = examine(Flipped(healthy), "reach-v3")[0]
        assert (first.name, "flipped upside down" in first.result.message) == ("wrong image", True), first
        first = examine(OtherCamera(healthy, "topview"), "reach-v3")[0]
        assert (first.name, "the camera corner2" in first.result.message) == ("wrong image", True), first


# -- the command -------------------------------------------------------------------------------------------------------

MODULE = """
from act_kit.rollouts.agents import ExpertAgent

class Turned(ExpertAgent):
    def plan(self, states, rows, images):
        return super().plan(states, rows, images) * [1, 1, 1, -1]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    name = f"foreign_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    return name


@pytest.mark.e2e
def test_the_command_names_the_fault_and_writes_it(module: str) -> None:
    result = act("doctor", f"{module}:Turned", "--task", "push-v3", "--out", "doctor.json", check=2)
    assert f"Fix: negate the 4th number of the actions of {module}:Turned" in result.stdout
    (findings,) = json.loads(Path("doctor.json").read_text(encoding="utf-8")).values()
    assert findings[0]["name"] == "gripper turned"


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("my:act", {}, "does not say which task it is for: expected --task"),
        ("my:act", {"task": "push-v3", "n_action_steps": 2}, "--n-action-steps: my:act chooses its actions itself"),
        ("runs/push", {"task": "push-v3"}, "--task: runs/push is not a foreign policy"),
        (None, {"overrides": ["served.state_dim=4"]}, "Options: this machine is not a foreign policy"),
        ("no_such_module:act", {"task": "push-v3"}, "No module named 'no_such_module'"),
        ("no_such_module:act", {"task": "psh-v3"}, "Did you mean 'push-v3'"),
    ],
)
def test_what_is_refused(target: str | None, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ActKitError, match=message):
        act_kit.diagnose(target, **arguments)  # type: ignore[arg-type]


def test_an_evaluation_of_a_foreign_policy_names_the_command(tmp_path: Path) -> None:
    with serving(openpi(Expert().infer)) as address:
        shown = ["served.state_dim=39", "served.prompt=task", "baseline_episodes=0"]
        act_kit.evaluate(address, "reach-v3", out=tmp_path, episodes=1, overrides=shown, n_action_steps=1, workers=1)
    command = f"act doctor {address} --task reach-v3 --n-action-steps 1 served.prompt=task"
    with pytest.raises(CheckpointError, match=f"Fix: {command}$"):
        examine_target(tmp_path, num_workers=1)
    assert ServedConfig().prompt == "sentence"


# -- statistics --------------------------------------------------------------------------------------------------------


def test_sign_flips_are_exact() -> None:
    assert sign_flip_p(np.ones(10)) == 2**-10
    assert sign_flip_p(np.zeros(10)) == 1
    assert sign_flip_p(-np.ones(10)) == 1


def test_an_effect_is_shown_by_permutation_and_noise_alone_is_none() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((8, 1, 4))
    num_shown = 0
    for _ in range(100):
        answers = base + 0.1 * rng.standard_normal((8, 6, 4))
        num_shown += measure_effect(answers, (0, 0, 1, 1, 2, 2)).is_shown
    assert num_shown <= 3  # 0.5 of 100 expected
    shifted = base + 0.1 * rng.standard_normal((8, 4, 4)) + np.array([0, 0, 1, 1])[:, None]
    assert measure_effect(shifted, (0, 0, 1, 1)).is_shown
    assert measure_effect(np.repeat(base, 4, axis=1), (0, 0, 1, 1)).is_absent


def test_a_change_explains_only_if_the_actions_then_agree() -> None:
    rng = np.random.default_rng(0)
    expert = rng.uniform(-1, 1, (16, 10, 4))
    turned = explain(-expert, expert, expert, (3,), num_tried=47)
    assert turned.is_exact
    random = rng.uniform(-1, 1, (16, 10, 4))
    assert not explain(random, -random, expert, (3,), num_tried=1).is_much_better
    noisy = expert + 0.1 * rng.standard_normal(expert.shape)
    assert not explain(noisy, -noisy, expert, (0, 1, 2), num_tried=1).is_much_better


def test_the_reference_solves_every_episode() -> None:
    assert faults(examine(ExpertAgent(), "door-open-v3")) == {}

"""Saving, restoring and copying a simulator: what follows is what followed, to the bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from act_kit.errors import InitialStateError
from act_kit.parallel import LocalExecutor
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.simulator import Simulator, SimulatorState
from act_kit.sim.tasks import TASKS
from act_kit.sim.vector import VectorSimulator

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)
COPIES: list[Callable[[Simulator], Simulator]] = [copy.copy, copy.deepcopy, lambda sim: pickle.loads(pickle.dumps(sim))]


def go_on(simulator: Simulator) -> list[np.ndarray]:
    """Step on; return everything that comes of it."""
    step_batch = simulator.step_chunk(ACTIONS, rewards=True)
    assert step_batch.reward is not None
    return [step_batch.state, step_batch.success, step_batch.distance, step_batch.reward, simulator.physics()]


def restored(task: str, moment: SimulatorState) -> list[np.ndarray]:
    simulator = Simulator(task)
    simulator.restore(moment)
    return go_on(simulator)


def assert_same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def under_way(task: str, num_steps: int, engine: str = "fast") -> Simulator:
    """Return a simulator in an episode of the expert's."""
    simulator, expert = Simulator(task, engine), ScriptedExpert(task)
    state = simulator.reset(InitialStateDistribution(task).sample(1, seed=5, stream="collect")[0])
    for _ in range(num_steps):
        state = simulator.step_chunk(expert.act(state)[None]).state[-1]
    return simulator


@pytest.mark.parametrize("task", TASKS)
def test_a_restored_simulator_goes_on_as_it_did(task: str) -> None:
    (other,) = InitialStateDistribution(task).sample(1, seed=6, stream="collect")
    for num_steps in (0, 25):
        simulator = under_way(task, num_steps)
        moment = simulator.save()
        followed = go_on(simulator)
        assert np.array_equal(simulator.restore(moment), moment.state)
        assert (simulator.num_steps, simulator.distance) == (num_steps, moment.distance)
        assert_same(go_on(simulator), followed)
        simulator.reset(other)
        simulator.restore(pickle.loads(pickle.dumps(moment)))
        assert_same(go_on(simulator), followed)


@pytest.mark.parametrize("task", ["drawer-open-v3", "bin-picking-v3"])
def test_each_engine_goes_on_from_the_others_state(task: str) -> None:
    for engine, other in (("fast", "reference"), ("reference", "fast")):
        simulator, its = under_way(task, 10, engine), Simulator(task, other)
        moment = simulator.save()
        its.restore(moment)
        followed = go_on(simulator)
        assert_same(go_on(its), followed)
        simulator.restore(moment)
        assert_same(go_on(simulator), followed)


def test_another_process_goes_on() -> None:
    simulator = under_way("door-lock-v3", 10)
    with LocalExecutor(1, {"ANYTHING": ""}) as executor:
        (followed,) = executor.map(restored, [("door-lock-v3", simulator.save())])
    assert_same(followed, go_on(simulator))


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("copy_of", COPIES)
def test_a_copy_is_a_simulator_of_its_own(engine: str, copy_of: Callable[[Simulator], Simulator]) -> None:
    simulator = under_way("drawer-open-v3", 10, engine)
    twin, bystander = copy_of(simulator), copy_of(simulator)
    followed = go_on(simulator)
    bystander.reset(InitialStateDistribution("drawer-open-v3").sample(1, seed=6, stream="collect")[0])
    assert twin.steps_left == 490
    assert_same(go_on(twin), followed)
    assert copy_of(Simulator("reach-v3", engine)).init_state is None


def test_an_engine_may_be_copied_too() -> None:
    engine = under_way("drawer-open-v3", 10).engine
    twin = copy.copy(engine)
    assert np.array_equal(engine.step(ACTIONS, rewards=False).state, twin.step(ACTIONS, rewards=False).state)


def test_processes_cannot_be_copied() -> None:
    with VectorSimulator(0) as rows:
        for copy_of in COPIES:
            with pytest.raises(TypeError, match=r"VectorSimulator cannot be copied .* simulator.save\(\)"):
                copy_of(rows)  # type: ignore[arg-type]


def test_what_cannot_be_restored_is_named() -> None:
    simulator = Simulator("reach-v3")
    with pytest.raises(InitialStateError, match=r"no episode yet. Fix: simulator.reset\(start\)"):
        simulator.save()
    with pytest.raises(InitialStateError, match="no episode yet"):
        simulator.step_chunk(ACTIONS)
    with pytest.raises(InitialStateError, match=r"restores what simulator.save\(\) returned, not ndarray"):
        simulator.restore(np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(InitialStateError, match="a start of push-v3; reach-v3 was expected"):
        simulator.restore(under_way("push-v3", 0).save())

"""Saving, restoring and copying a simulator: the episode continues bit-exactly."""

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


def continue_episode(simulator: Simulator) -> list[np.ndarray]:
    """Step ``simulator``; return all results."""
    step_batch = simulator.step_chunk(ACTIONS, rewards=True)
    assert step_batch.reward is not None
    return [step_batch.state, step_batch.success, step_batch.distance, step_batch.reward, simulator.physics()]


def restore_and_continue(task: str, saved: SimulatorState) -> list[np.ndarray]:
    simulator = Simulator(task)
    simulator.restore(saved)
    return continue_episode(simulator)


def assert_same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def mid_episode(task: str, num_steps: int, engine: str = "fast") -> Simulator:
    """Return a simulator after ``num_steps`` steps of the expert."""
    simulator, expert = Simulator(task, engine), ScriptedExpert(task)
    state = simulator.reset(InitialStateDistribution(task).sample(1, seed=5, stream="collect")[0])
    for _ in range(num_steps):
        state = simulator.step_chunk(expert.act(state)[None]).state[-1]
    return simulator


@pytest.mark.parametrize("task", TASKS)
def test_a_restored_simulator_continues_bit_exactly(task: str) -> None:
    (other,) = InitialStateDistribution(task).sample(1, seed=6, stream="collect")
    for num_steps in (0, 25):
        simulator = mid_episode(task, num_steps)
        saved = simulator.save()
        expected = continue_episode(simulator)
        assert np.array_equal(simulator.restore(saved), saved.state)
        assert (simulator.num_steps, simulator.distance) == (num_steps, saved.distance)
        assert_same(continue_episode(simulator), expected)
        simulator.reset(other)
        simulator.restore(pickle.loads(pickle.dumps(saved)))
        assert_same(continue_episode(simulator), expected)


@pytest.mark.parametrize("task", ["drawer-open-v3", "bin-picking-v3"])
def test_each_engine_continues_from_a_state_of_the_other(task: str) -> None:
    for engine, other in (("fast", "reference"), ("reference", "fast")):
        simulator, other_simulator = mid_episode(task, 10, engine), Simulator(task, other)
        saved = simulator.save()
        other_simulator.restore(saved)
        expected = continue_episode(simulator)
        assert_same(continue_episode(other_simulator), expected)
        simulator.restore(saved)
        assert_same(continue_episode(simulator), expected)


def test_another_process_continues_the_episode() -> None:
    simulator = mid_episode("door-lock-v3", 10)
    with LocalExecutor(1, {"ANYTHING": ""}) as executor:
        (expected,) = executor.map(restore_and_continue, [("door-lock-v3", simulator.save())])
    assert_same(expected, continue_episode(simulator))


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("copy_of", COPIES)
def test_a_copy_is_independent(engine: str, copy_of: Callable[[Simulator], Simulator]) -> None:
    simulator = mid_episode("drawer-open-v3", 10, engine)
    twin, other_copy = copy_of(simulator), copy_of(simulator)
    expected = continue_episode(simulator)
    other_copy.reset(InitialStateDistribution("drawer-open-v3").sample(1, seed=6, stream="collect")[0])
    assert twin.steps_left == 490
    assert_same(continue_episode(twin), expected)
    assert copy_of(Simulator("reach-v3", engine)).init_state is None


def test_engines_can_be_copied() -> None:
    engine = mid_episode("drawer-open-v3", 10).engine
    twin = copy.copy(engine)
    assert np.array_equal(engine.step(ACTIONS, rewards=False).state, twin.step(ACTIONS, rewards=False).state)


def test_vector_simulators_cannot_be_copied() -> None:
    with VectorSimulator(0) as rows:
        for copy_of in COPIES:
            with pytest.raises(TypeError, match=r"VectorSimulator cannot be copied .* simulator.save\(\)"):
                copy_of(rows)  # type: ignore[arg-type]


def test_errors_name_states_that_cannot_be_restored() -> None:
    simulator = Simulator("reach-v3")
    with pytest.raises(InitialStateError, match=r"no episode yet. Fix: simulator.reset\(init_state\)"):
        simulator.save()
    with pytest.raises(InitialStateError, match="no episode yet"):
        simulator.step_chunk(ACTIONS)
    with pytest.raises(InitialStateError, match=r"cannot restore ndarray: expected the result of simulator.save\(\)"):
        simulator.restore(np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(InitialStateError, match="is of push-v3: expected an initial state of reach-v3"):
        simulator.restore(mid_episode("push-v3", 0).save())

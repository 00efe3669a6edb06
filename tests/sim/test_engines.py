"""The fast engine is bit-exact with Meta-World. ``benchmarks/sameness.py`` prints the rows of the slow test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from act_kit.errors import ConfigError
from act_kit.sim.distance import norms
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.observation import OBJECT_POSES, quaternion
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import TASKS
from tests.sim.engine_comparison import compare_task


@pytest.mark.parametrize("task", TASKS)
def test_all_numbers_are_bit_exact_with_metaworld(task: str) -> None:
    tally = compare_task(task, num_init_states=2, num_steps=40, num_more_episodes=2)
    assert tally.num_steps == 240
    assert tally.differences == []


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_long_rollouts_are_bit_exact_with_metaworld(task: str, record_property: Callable[[str, object], None]) -> None:
    tally = compare_task(task, num_init_states=6, num_steps=150, num_more_episodes=300)
    record_property("row", [task, tally.num_steps, "; ".join(tally.differences[:3]) or "none"])
    assert tally.differences == []


def test_a_difference_in_the_last_bit_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Simulator.step_chunk

    def change_last_bit(self: Simulator, actions: np.ndarray, *, rewards: bool = False) -> object:
        step_batch = original(self, actions, rewards=rewards)
        if type(self.engine).__name__ == "FastEngine":
            step_batch.state[-1:, 4] = np.nextafter(step_batch.state[-1:, 4], 1)
        return step_batch

    monkeypatch.setattr(Simulator, "step_chunk", change_last_bit)
    tally = compare_task("reach-v3", num_init_states=1, num_steps=10, num_more_episodes=0)
    assert "state at step 0" in tally.differences[0]


def test_simulators_that_share_a_model_do_not_interfere() -> None:
    """The two initial states place the door differently in the shared model."""
    init_states = InitialStateDistribution("door-open-v3").sample(2, seed=0, stream="collect")
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)
    alone = []
    for init_state in init_states:
        simulator = Simulator("door-open-v3")
        simulator.reset(init_state)
        alone.append(np.concatenate([simulator.step_chunk(actions).state, simulator.state[None]]))
        del simulator
    together = [Simulator("door-open-v3") for _ in init_states]
    assert together[0].engine.model is together[1].engine.model
    for simulator, init_state in zip(together, init_states, strict=True):
        simulator.reset(init_state)
    for begin in (0, 10):
        for simulator, expected in zip(together, alone, strict=True):
            state = simulator.step_chunk(actions[begin : begin + 10]).state
            assert np.array_equal(state, expected[begin : begin + 10])


def test_quaternions_agree_with_scipy() -> None:
    matrices = Rotation.random(500, rng=0).as_matrix()
    quaternions = np.array([quaternion(matrix.ravel().tolist()) for matrix in matrices])
    assert np.abs(quaternions - Rotation.from_matrix(matrices).as_quat()).max() < 1e-15


def test_norms_are_bit_exact_with_numpy() -> None:
    vectors = np.random.default_rng(0).normal(size=(1000, 7))[:, 2:5]
    assert np.array_equal(norms(vectors), [np.linalg.norm(vector) for vector in vectors])


def test_object_poses_contain_every_task() -> None:
    assert OBJECT_POSES.keys() == TASKS.keys()


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'reference'"):
        Simulator("reach-v3", engine="refrence")

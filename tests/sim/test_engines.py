"""The fast engine is Meta-World to the bit. ``benchmarks/sameness.py`` compares much more."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from act_kit.errors import ConfigError
from act_kit.sim.distance import norms
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.observation import THINGS, quaternion
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import TASKS
from benchmarks.sameness import compare_task


@pytest.mark.parametrize("task", TASKS)
def test_every_number_is_metaworlds(task: str) -> None:
    tally = compare_task(task, num_init_states=2, num_steps=40, num_more_episodes=2)
    assert tally.num_steps == 240
    assert tally.differences == []


def test_a_difference_in_the_last_bit_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Simulator.step_chunk

    def off_by_a_bit(self: Simulator, actions: np.ndarray, *, rewards: bool = False) -> object:
        step_batch = original(self, actions, rewards=rewards)
        if type(self.engine).__name__ == "FastEngine":
            step_batch.state[-1:, 4] = np.nextafter(step_batch.state[-1:, 4], 1)
        return step_batch

    monkeypatch.setattr(Simulator, "step_chunk", off_by_a_bit)
    tally = compare_task("reach-v3", num_init_states=1, num_steps=10, num_more_episodes=0)
    assert "state at step 0" in tally.differences[0]


def test_simulators_that_share_a_model_do_not_feel_each_other() -> None:
    """The door of the one stands where the other's does not, in the model that both use."""
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
        for simulator, wanted in zip(together, alone, strict=True):
            state = simulator.step_chunk(actions[begin : begin + 10]).state
            assert np.array_equal(state, wanted[begin : begin + 10])


def test_rotations_become_scipys_quaternions() -> None:
    matrices = Rotation.random(500, rng=0).as_matrix()
    ours = np.array([quaternion(matrix.ravel().tolist()) for matrix in matrices])
    assert np.abs(ours - Rotation.from_matrix(matrices).as_quat()).max() < 1e-15


def test_norms_are_numpys_to_the_bit() -> None:
    vectors = np.random.default_rng(0).normal(size=(1000, 7))[:, 2:5]
    assert np.array_equal(norms(vectors), [np.linalg.norm(vector) for vector in vectors])


def test_every_task_says_where_its_objects_are() -> None:
    assert THINGS.keys() == TASKS.keys()


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'reference'"):
        Simulator("reach-v3", engine="refrence")

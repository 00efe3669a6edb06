"""The simulator is bit-exact with Meta-World and resets to the given initial state."""

from __future__ import annotations

import metaworld
import numpy as np
import pytest

from act_kit.errors import InitialStateError
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import HORIZON

UNCLEAN_RESETS = ["drawer-open-v3", "window-close-v3", "basketball-v3", "box-close-v3"]
"""Tasks in which Meta-World's own resets depend on earlier episodes, or alias their state."""


def rollout(simulator: Simulator, init_state: InitialState, num_steps: int) -> np.ndarray:
    expert = ScriptedExpert(init_state.task)
    states = [simulator.reset(init_state)]
    for _ in range(num_steps):
        states.append(simulator.step_chunk(expert.act(states[-1])[None]).state[-1])
    return np.array(states)


@pytest.mark.parametrize("task", UNCLEAN_RESETS)
def test_an_episode_does_not_depend_on_earlier_episodes(task: str) -> None:
    first, other = InitialStateDistribution(task).sample(2, seed=1, stream="collect")
    used = Simulator(task)
    rollout(used, other, 60)
    assert np.array_equal(rollout(used, first, 40), rollout(Simulator(task), first, 40))


@pytest.mark.parametrize("task", ["pick-place-v3", *UNCLEAN_RESETS])
def test_simulator_is_bit_exact_with_metaworld(task: str) -> None:
    """Step Meta-World as in its documentation, from one of its own tasks."""
    benchmark = metaworld.MT1(task, seed=5)
    env = benchmark.train_classes[task]()
    env.set_task(benchmark.train_tasks[0])
    assert env._last_rand_vec is not None
    init_state = InitialState.of(task, env._last_rand_vec)
    state, _ = env.reset()
    simulator = Simulator(task)
    assert np.array_equal(simulator.reset(init_state), state)
    actions = np.random.default_rng(0).uniform(-1, 1, (30, 4)).astype(np.float32)
    step_batch = simulator.step_chunk(actions, rewards=True)
    assert step_batch.reward is not None
    for t, action in enumerate(actions):
        state, reward, _, _, info = env.step(action)
        assert np.array_equal(step_batch.state[t], state)
        assert step_batch.reward[t] == reward
        assert step_batch.success[t] == bool(info["success"])


def test_goal_is_visible_and_actions_are_clipped() -> None:
    (init_state,) = InitialStateDistribution("reach-v3").sample(1, seed=0, stream="collect")
    simulator = Simulator("reach-v3")
    assert np.array_equal(simulator.reset(init_state)[36:], init_state.rand_vec[3:])
    wild = simulator.step_chunk(np.full((5, 4), 25.0))
    simulator.reset(init_state)
    assert np.array_equal(simulator.step_chunk(np.ones((5, 4))).state, wild.state)
    assert np.array_equal(wild.state[-1, 36:], init_state.rand_vec[3:])


def test_results_do_not_depend_on_chunk_lengths_and_end_at_the_horizon() -> None:
    (init_state,) = InitialStateDistribution("reach-v3").sample(1, seed=0, stream="collect")
    actions = np.random.default_rng(0).uniform(-1, 1, (HORIZON + 7, 4)).astype(np.float32)
    simulator = Simulator("reach-v3")
    simulator.reset(init_state)
    whole = simulator.step_chunk(actions)
    assert len(whole) == HORIZON
    assert simulator.steps_left == 0
    assert len(simulator.step_chunk(actions)) == 0
    simulator.reset(init_state)
    parts = np.concatenate([simulator.step_chunk(chunk).state for chunk in np.array_split(actions, 41)])
    assert np.array_equal(parts, whole.state)


def test_an_initial_state_whose_reset_would_hang_is_refused() -> None:
    with pytest.raises(InitialStateError, match="resample forever"):
        Simulator("reach-v3").reset(InitialState("reach-v3", (0.0, 0.8, 0.02, 0.0, 0.8, 0.1)))
    with pytest.raises(InitialStateError, match="6 finite numbers"):
        Simulator("reach-v3").reset(InitialState("reach-v3", (0.0, 0.8, float("nan"), 0.0, 0.8, 0.1)))


@pytest.mark.parametrize("task", ["door-open-v3", "door-close-v3", "pick-place-v3"])
def test_the_expert_does_not_modify_its_input(task: str) -> None:
    (init_state,) = InitialStateDistribution(task).sample(1, seed=0, stream="collect")
    state = Simulator(task).reset(init_state)
    before = state.copy()
    ScriptedExpert(task).act(state)
    assert np.array_equal(state, before)

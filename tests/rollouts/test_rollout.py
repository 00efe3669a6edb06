"""Rollouts: the result of an episode depends only on its initial state and its agent."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ArrayError
from act_kit.parallel import LocalExecutor
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import ActionChunks, Agent, ExpertAgent, RandomAgent, ZeroActionAgent
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import (
    Progress,
    RolloutPlan,
    RolloutPool,
    _EpisodeQueue,
    choose_num_envs,
    make_rollout_function,
    rollout,
)
from act_kit.sim.engine import StepBatch
from act_kit.sim.fast import FastEngine
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.render import CameraViews, Gl, Renderer, RenderSettings, render_episode
from act_kit.sim.simulator import Simulator
from act_kit.sim.vector import VectorSimulator
from tests.eval.untrained import untrained_policy

INIT_STATES = InitialStateDistribution("reach-v3").sample(5, seed=0, stream="evaluate")
PUSHES = InitialStateDistribution("push-v3").sample(3, seed=0, stream="evaluate")


def same(a: list[Episode], b: list[Episode]) -> bool:
    return all(
        x.init_state == y.init_state
        and np.array_equal(x.executed_action, y.executed_action)
        and np.array_equal(x.distances, y.distances)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.e2e
@pytest.mark.parametrize("temporal_ensemble", [False, True])
def test_results_do_not_depend_on_the_number_of_processes_or_environments(
    tiny_policy: Policy, temporal_ensemble: bool
) -> None:
    policy = tiny_policy.with_chunking(temporal_ensemble=temporal_ensemble)
    results = []
    for num_envs, num_workers in ((5, 0), (2, 0), (4, 2)):
        with VectorSimulator(num_workers) as simulators:
            results.append(rollout(simulators, PolicyAgent(policy), INIT_STATES, num_envs=num_envs))
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    assert [outcome.init_state for outcome in results[0]] == INIT_STATES


def test_a_rollout_equals_a_policy_loop_with_one_simulator(tiny_policy: Policy) -> None:
    with VectorSimulator(0) as simulators:
        outcome = rollout(simulators, PolicyAgent(tiny_policy), INIT_STATES)[1]
    simulator = Simulator("reach-v3")
    state = simulator.reset(INIT_STATES[1])
    tiny_policy.reset()
    for t in range(40):
        action = tiny_policy.act(state)
        assert np.array_equal(action, outcome.executed_action[t])
        step_batch = simulator.step_chunk(action[None])
        state = step_batch.state[-1]
        assert step_batch.distance[-1] == outcome.distances[t + 1]
    assert outcome.query_steps[:4].tolist() == [0, 4, 8, 12]


def test_episodes_run_to_the_horizon_or_to_the_first_success() -> None:
    with VectorSimulator(0) as simulators:
        full = rollout(simulators, ExpertAgent(), INIT_STATES[:3])
        short = rollout(simulators, ExpertAgent(), INIT_STATES[:3], steps_after_success=0)
    for a, b in zip(full, short, strict=True):
        assert len(a) == 500
        assert len(a.distances) == 501
        assert a.success_step == b.success_step == len(b) - 1
        assert b.success_at_end


@pytest.mark.parametrize(("num_workers", "num_envs"), [(0, 0), (0, 2), (2, 3)])
def test_initial_states_of_several_tasks_in_one_rollout(num_workers: int, num_envs: int) -> None:
    with VectorSimulator(0) as simulators:
        reaches_alone = rollout(simulators, ExpertAgent(), INIT_STATES, steps_after_success=0)
        pushes_alone = rollout(simulators, ExpertAgent(), PUSHES, steps_after_success=0)
    mixed = [INIT_STATES[0], PUSHES[0], *INIT_STATES[1:], *PUSHES[1:]]
    with VectorSimulator(num_workers) as simulators:
        outcomes = rollout(simulators, ExpertAgent(), mixed, num_envs=num_envs, steps_after_success=0)
    assert [outcome.init_state for outcome in outcomes] == mixed
    assert all(outcome.success_once for outcome in outcomes), "each episode uses the expert of its task"
    assert same([outcomes[0], *outcomes[2:6]], reaches_alone)
    assert same([outcomes[1], *outcomes[6:]], pushes_alone)


def test_a_process_gets_consecutive_episodes_and_then_episodes_of_other_processes() -> None:
    pending = _EpisodeQueue(8, 2)
    assert [pending.take(worker) for worker in (0, 1, 0, 1, 0, 0)] == [0, 4, 1, 5, 2, 3]
    assert [pending.take(worker) for worker in (0, 1, 0, 1)] == [7, 6, None, None]


def test_baselines_act_as_defined_and_random_actions_depend_on_the_initial_state() -> None:
    with VectorSimulator(0) as simulators:
        zero = rollout(simulators, ZeroActionAgent(), INIT_STATES[:1])[0]
        one = rollout(simulators, RandomAgent(), INIT_STATES[:3])
        other = rollout(simulators, RandomAgent(), INIT_STATES[2:3])
    assert not zero.executed_action.any()
    assert same(one[2:], other)
    assert not np.array_equal(one[0].executed_action, one[1].executed_action)
    assert 0.4 < np.abs(one[0].executed_action).mean() < 0.6


def test_clipped_numbers_are_counted() -> None:
    class OutOfRangeAgent(ZeroActionAgent):
        def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
            return np.tile(np.array([3.0, 0.5, -2.0, 0.0], dtype=np.float32), (len(states), 16, 1))

    with VectorSimulator(0) as simulators:
        outcome = rollout(simulators, OutOfRangeAgent(), INIT_STATES[:1])[0]
    assert outcome.clip_fraction == 0.5
    assert np.abs(outcome.executed_action).max() == 1


def test_a_crashed_episode_fails_with_an_error_message(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = FastEngine.step, itertools.count()

    def step(engine: FastEngine, actions: np.ndarray, *, rewards: bool, physics: bool) -> StepBatch:
        if next(calls) == 70:
            raise RuntimeError("unstable")
        return original(engine, actions, rewards=rewards, physics=physics)

    monkeypatch.setattr(FastEngine, "step", step)
    with VectorSimulator(0) as simulators:
        outcome = rollout(simulators, ExpertAgent(), INIT_STATES[:1])[0]
    assert outcome.success.any(), "the crash must come after a success"
    assert outcome.crash == "RuntimeError: unstable"
    assert not outcome.success_once
    assert outcome.success_step is None


INVALID_PLANS = {
    "another width": (np.zeros((2, 16, 2)), r"of shape \(2, 16, 2\): expected \(2, N, 4\)"),
    "one row for two": (np.zeros((1, 16, 4)), r"expected \(2, N, 4\)"),
    "one action, not a chunk": (np.zeros((2, 4)), r"expected \(2, N, 4\)"),
    "not a number": (np.stack([np.zeros((16, 4)), np.full((16, 4), np.nan)]), "NaN or infinity in row 1"),
    "None": (None, "of type object: expected real numbers"),
    "no actions": (np.zeros((2, 0, 4)), "planned no actions"),
    "booleans": (np.zeros((2, 16, 4), dtype=bool), "of type bool"),
}


@pytest.mark.parametrize("plan", INVALID_PLANS.values(), ids=INVALID_PLANS)
def test_invalid_plans_are_refused(plan: tuple[np.ndarray, str]) -> None:
    class InvalidAgent(ZeroActionAgent):
        def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
            return plan[0]

    with VectorSimulator(0) as simulators, pytest.raises(ArrayError, match=f"InvalidAgent.*{plan[1]}"):
        rollout(simulators, InvalidAgent(), INIT_STATES[:2])


INVALID_LABELS = {
    "another shape": (np.zeros((2, 4)), r"of shape \(2, 4\): expected \(2, 1, 4\)"),
    "not a number": (np.full((2, 1, 4), np.nan), "NaN or infinity"),
    "out of range": (np.full((2, 1, 4), 2.0), r"expected \[-1, 1\]. Fix: np.clip"),
}


@pytest.mark.parametrize("labels", INVALID_LABELS.values(), ids=INVALID_LABELS)
def test_invalid_labels_are_refused(labels: tuple[np.ndarray, str]) -> None:
    class InvalidAgent(ZeroActionAgent):
        def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> ActionChunks:  # type: ignore[override]
            return ActionChunks(actions=np.zeros((2, 1, 4)), labels=labels[0])

    with VectorSimulator(0) as simulators, pytest.raises(ArrayError, match=f"InvalidAgent.*{labels[1]}"):
        rollout(simulators, InvalidAgent(), INIT_STATES[:2])


def test_an_agent_can_label_other_actions_than_it_executes_and_end_an_episode() -> None:
    class ThreeStepAgent(Agent):
        source = "three steps"

        def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
            self.attempts = {**getattr(self, "attempts", {}), row: attempt}
            self.num_steps = {**getattr(self, "num_steps", {}), row: 0}

        def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> ActionChunks:
            ends = np.array([self.num_steps[row] == 3 for row in rows.tolist()])
            self.num_steps = {row: num + 1 for row, num in self.num_steps.items()}
            labels = np.full((len(rows), 1, 4), 0.5)
            return ActionChunks(actions=np.full((len(rows), 1, 4), -2.0), labels=labels, ends=ends)

    agent = ThreeStepAgent()
    with VectorSimulator(0) as simulators:
        episodes = rollout(simulators, agent, INIT_STATES, num_envs=2, first_attempt=7, rewards=True, physics=True)
    assert [episode.attempt for episode in episodes] == [7, 8, 9, 10, 11]
    assert set(agent.attempts.values()) == {10, 11}
    simulator = Simulator("reach-v3")
    for episode, init_state in zip(episodes, INIT_STATES, strict=True):
        assert episode.is_complete
        assert (len(episode), episode.source, episode.clip_fraction) == (3, "three steps", 1.0)
        assert episode.query_steps.tolist() == [0, 1, 2]
        assert (episode.action == 0.5).all()
        assert (episode.executed_action == -1).all()
        assert {values.dtype for values in (episode.action, episode.executed_action)} == {np.dtype(np.float32)}
        states = [simulator.reset(init_state)]
        for t in range(3):
            assert np.array_equal(episode.physics[t], simulator.physics())
            step_batch = simulator.step_chunk(-np.ones((1, 4)), rewards=True)
            states.append(step_batch.state[0])
            assert episode.reward is not None
            assert step_batch.reward is not None
            assert episode.reward[t] == step_batch.reward[0]
        assert np.array_equal(episode.states, states)
        assert repr(episode).startswith("Episode(reach-v3, 'three steps', attempt=")
        assert "physics=float64(3, " in repr(episode)


def test_two_simultaneous_evaluations_of_a_policy_are_independent(tiny_policy: Policy) -> None:
    policy = tiny_policy.with_chunking(temporal_ensemble=True)
    agents = [PolicyAgent(policy), PolicyAgent(policy)]
    with VectorSimulator(0) as simulators:
        (alone,) = rollout(simulators, agents[0], INIT_STATES[:1])

    def run(agent: PolicyAgent) -> Episode:
        with VectorSimulator(0) as simulators:
            return rollout(simulators, agent, INIT_STATES[:1])[0]

    with ThreadPoolExecutor(2) as pool:
        assert same(list(pool.map(run, agents)), [alone, alone])


class ImageRecordingAgent(ZeroActionAgent):
    """Agent with constant actions, 16 at a time, that stores its images."""

    views = CameraViews(cameras=("corner4", "gripperPOV"), settings=RenderSettings(height_px=16, width_px=16))

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        assert images is not None
        self.images.append(images)
        return np.full((len(states), 16, 4), 0.3, dtype=np.float32)


class ImageAgent(ZeroActionAgent):
    """Agent whose actions depend on the images, so that any difference in the images changes the result."""

    views = CameraViews(cameras=("corner4",), settings=RenderSettings(height_px=16, width_px=16))

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        assert images is not None
        actions = images.reshape(len(images), 4, -1).mean(axis=2) / 128 - 1
        return np.repeat(actions[:, None], 50, axis=1).astype(np.float32)


@pytest.mark.gl
def test_images_are_rendered_only_for_queries_and_show_their_states(gl: Gl) -> None:
    agent = ImageRecordingAgent()
    with VectorSimulator(1, views=agent.views) as simulators:
        (outcome,) = rollout(simulators, agent, INIT_STATES[:1])
    images = np.concatenate(agent.images)
    assert images.shape == (32, 2, 16, 16, 3), "500 steps, 16 at a time"
    assert outcome.query_steps.tolist() == list(range(0, 500, 16))
    simulator = Simulator("reach-v3")
    simulator.reset(INIT_STATES[0])
    physics = [simulator.physics()]
    for begin in range(0, 16 * 31, 16):
        simulator.step_chunk(outcome.executed_action[begin : begin + 16])
        physics.append(simulator.physics())
    with LocalExecutor(1, gl.environment) as executor:
        job = (agent.views.settings, agent.views.cameras, INIT_STATES[0], np.array(physics))
        (frames,) = executor.map(render_episode, [job])
    assert np.array_equal(images, frames.images)


@pytest.mark.e2e
@pytest.mark.gl
def test_images_do_not_depend_on_the_executor(gl: Gl) -> None:
    init_states = [*INIT_STATES[:2], *PUSHES[:2]]
    with RolloutPool(1) as pool:
        alone = [pool(ImageAgent(), [init_state])[0] for init_state in init_states]
    with RolloutPool(2) as pool:
        assert same(pool(ImageAgent(), init_states), alone)
        assert same(pool(ZeroActionAgent(), init_states), pool(ZeroActionAgent(), init_states))
        assert set(pool._simulators) == {ImageAgent.views, None}, "separate processes with and without rendering"
    with LocalExecutor(1, gl.environment) as executor:
        assert same(make_rollout_function(executor, "fast")(ImageAgent(), init_states), alone)


def run_image_policy(policy: Policy, init_states: list[InitialState]) -> list[np.ndarray]:
    """Step simulators with an image policy of several tasks, in this process; return the first actions."""
    assert policy.views is not None
    renderer, episodes = Renderer(policy.views.settings), []
    for init_state in init_states:
        simulator, task_policy, actions = Simulator(init_state.task), policy.for_task(init_state.task), []
        state = simulator.reset(init_state)
        for _ in range(20):
            image = renderer.draw(simulator, simulator.physics(), policy.views.cameras)
            actions.append(task_policy.act(state, image))
            state = simulator.step_chunk(actions[-1][None]).state[-1]
        episodes.append(np.stack(actions))
    return episodes


@pytest.mark.e2e
@pytest.mark.gl
def test_a_policy_gets_the_task_and_the_images_of_each_row(
    gl: Gl, reach_store: EpisodeStore, push_store: EpisodeStore
) -> None:
    policy = untrained_policy([reach_store, push_store], gl.renderer).with_chunking(n_action_steps=8)
    init_states = [INIT_STATES[0], PUSHES[0], PUSHES[1]]
    with RolloutPool(1, num_envs=2) as pool:
        outcomes = pool(PolicyAgent(policy), init_states)
    with LocalExecutor(1, gl.environment) as executor:
        (expected,) = executor.map(run_image_policy, [(policy, init_states)])
    for outcome, actions in zip(outcomes, expected, strict=True):
        assert np.array_equal(outcome.executed_action[:20], actions)


def test_the_plan_depends_on_the_episodes_and_the_measured_times(tiny_policy: Policy) -> None:
    assert choose_num_envs(20, 2) == 20
    assert choose_num_envs(100, 2) == 100
    assert choose_num_envs(1000, 2) == 126, "eight waves of equal size"
    assert choose_num_envs(3, 16) == 3
    plans: list[RolloutPlan] = []
    with VectorSimulator(2) as simulators:
        rollout(simulators, PolicyAgent(tiny_policy), INIT_STATES, on_plan=plans.append)
    (plan,) = plans
    assert plan.num_envs == 5
    assert re.fullmatch(
        r"5 environments in 2 processes, [12] groups? each: a chunk took [\d.]+ ms to plan and [\d.]+ ms to execute",
        plan.reason,
    )


class CountingExpert(ExpertAgent):
    """Expert that counts its plans, and those of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.num_plans = 0
        self.num_by_row: Counter[int] = Counter()

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        self.num_plans += 1
        self.num_by_row.update(rows.tolist())
        return super().plan(states, rows, images)


def test_a_row_that_begins_a_new_episode_is_planned_for_together_with_the_others() -> None:
    init_states = InitialStateDistribution("reach-v3").sample(40, seed=0, stream="evaluate")
    agent = CountingExpert()
    with VectorSimulator(0) as simulators:
        episodes = rollout(simulators, agent, init_states, num_envs=8, steps_after_success=0)
    assert len({len(episode) for episode in episodes}) > 8, "the episodes end at different steps"
    num_resets = len(init_states) - 8
    assert agent.num_plans <= max(agent.num_by_row.values()) + num_resets


def test_progress_includes_fractions_of_running_episodes() -> None:
    reports: list[Progress] = []
    with VectorSimulator(0) as simulators:
        rollout(simulators, ExpertAgent(), INIT_STATES[:2], on_progress=reports.append)
    num_episodes = [progress.num_episodes for progress in reports]
    assert num_episodes == sorted(num_episodes)
    assert num_episodes[100] == pytest.approx(0.4)
    assert (num_episodes[-1], reports[-1].num_succeeded) == (2, 2)
    assert reports[300].num_succeeded == 2, "a success counts before its episode ends"

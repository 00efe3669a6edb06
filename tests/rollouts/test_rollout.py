"""Rollouts: an outcome belongs to its start and its actor, to nothing else."""

from __future__ import annotations

import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ArrayError
from act_kit.parallel import LocalExecutor
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import ExpertAgent, PolicyAgent, RandomAgent, ZeroActionAgent
from act_kit.rollouts.rollout import (
    Outcome,
    Progress,
    RolloutPlan,
    RolloutPool,
    _Waiting,
    choose_num_envs,
    roll_with,
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


def same(a: list[Outcome], b: list[Outcome]) -> bool:
    return all(
        x.init_state == y.init_state and np.array_equal(x.actions, y.actions) and np.array_equal(x.distance, y.distance)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.e2e
@pytest.mark.parametrize("temporal_ensemble", [False, True])
def test_neither_processes_nor_batch_change_an_outcome(tiny_policy: Policy, temporal_ensemble: bool) -> None:
    policy = tiny_policy.with_chunking(temporal_ensemble=temporal_ensemble)
    results = []
    for num_envs, num_workers in ((5, 0), (2, 0), (4, 2)):
        with VectorSimulator(num_workers) as simulators:
            results.append(rollout(simulators, PolicyAgent(policy), INIT_STATES, num_envs=num_envs))
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    assert [outcome.init_state for outcome in results[0]] == INIT_STATES


def test_it_is_the_policy_stepping_one_simulator(tiny_policy: Policy) -> None:
    with VectorSimulator(0) as simulators:
        outcome = rollout(simulators, PolicyAgent(tiny_policy), INIT_STATES)[1]
    simulator = Simulator("reach-v3")
    state = simulator.reset(INIT_STATES[1])
    tiny_policy.reset()
    for t in range(40):
        action = tiny_policy.act(state)
        assert np.array_equal(action, outcome.actions[t])
        step_batch = simulator.step_chunk(action[None])
        state = step_batch.state[-1]
        assert step_batch.distance[-1] == outcome.distance[t + 1]
    assert outcome.query_steps[:4].tolist() == [0, 4, 8, 12]


def test_episodes_run_to_the_horizon_or_to_the_first_success() -> None:
    with VectorSimulator(0) as simulators:
        full = rollout(simulators, ExpertAgent(), INIT_STATES[:3])
        short = rollout(simulators, ExpertAgent(), INIT_STATES[:3], stop_at_success=True)
    for a, b in zip(full, short, strict=True):
        assert len(a) == 500
        assert len(a.distance) == 501
        assert a.success_step == b.success_step == len(b) - 1
        assert b.success_at_end


@pytest.mark.parametrize(("num_workers", "num_envs"), [(0, 0), (0, 2), (2, 3)])
def test_starts_of_several_tasks_in_one_rollout(num_workers: int, num_envs: int) -> None:
    with VectorSimulator(0) as simulators:
        alone = [
            rollout(simulators, ExpertAgent(), init_states, stop_at_success=True)
            for init_states in (INIT_STATES, PUSHES)
        ]
    mixed = [INIT_STATES[0], PUSHES[0], *INIT_STATES[1:], *PUSHES[1:]]
    with VectorSimulator(num_workers) as simulators:
        outcomes = rollout(simulators, ExpertAgent(), mixed, num_envs=num_envs, stop_at_success=True)
    assert [outcome.init_state for outcome in outcomes] == mixed
    assert all(outcome.success_once for outcome in outcomes), "each by the expert of its task"
    assert same([outcomes[0], *outcomes[2:6]], alone[0])
    assert same([outcomes[1], *outcomes[6:]], alone[1])


def test_a_process_is_given_neighbours_and_helps_out_at_the_end() -> None:
    waiting = _Waiting(8, 2)
    assert [waiting.take(worker) for worker in (0, 1, 0, 1, 0, 0)] == [0, 4, 1, 5, 2, 3]
    assert [waiting.take(0), waiting.take(1), waiting.take(0), waiting.take(1)] == [7, 6, None, None]


def test_controls_do_what_they_say_and_random_belongs_to_the_start() -> None:
    with VectorSimulator(0) as simulators:
        nothing = rollout(simulators, ZeroActionAgent(), INIT_STATES[:1])[0]
        one = rollout(simulators, RandomAgent(), INIT_STATES[:3])
        other = rollout(simulators, RandomAgent(), INIT_STATES[2:3])
    assert not nothing.actions.any()
    assert same(one[2:], other)
    assert not np.array_equal(one[0].actions, one[1].actions)
    assert 0.4 < np.abs(one[0].actions).mean() < 0.6


def test_clipped_numbers_are_counted() -> None:
    class Wild(ZeroActionAgent):
        def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
            return np.tile(np.array([3.0, 0.5, -2.0, 0.0], dtype=np.float32), (len(states), 16, 1))

    with VectorSimulator(0) as simulators:
        outcome = rollout(simulators, Wild(), INIT_STATES[:1])[0]
    assert outcome.clip_fraction == 0.5
    assert np.abs(outcome.actions).max() == 1


def test_a_crashed_episode_has_failed_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = FastEngine.step, itertools.count()

    def step(engine: FastEngine, actions: np.ndarray, *, rewards: bool) -> StepBatch:
        if next(calls) == 70:
            raise RuntimeError("unstable")
        return original(engine, actions, rewards=rewards)

    monkeypatch.setattr(FastEngine, "step", step)
    with VectorSimulator(0) as simulators:
        outcome = rollout(simulators, ExpertAgent(), INIT_STATES[:1])[0]
    assert outcome.success.any(), "it had succeeded before: the test would show nothing"
    assert outcome.crash == "RuntimeError: unstable"
    assert not outcome.success_once
    assert outcome.success_step is None


NO_PLANS = {
    "another width": (np.zeros((2, 16, 2)), r"of shape \(2, 16, 2\): expected \(2, N, 4\)"),
    "one row for two": (np.zeros((1, 16, 4)), r"expected \(2, N, 4\)"),
    "one action, not a chunk": (np.zeros((2, 4)), r"expected \(2, N, 4\)"),
    "not a number": (np.stack([np.zeros((16, 4)), np.full((16, 4), np.nan)]), "NaN or infinity in row 1"),
    "nothing": (None, "of type object: expected real numbers"),
    "no actions": (np.zeros((2, 0, 4)), "planned no action"),
    "booleans": (np.zeros((2, 16, 4), dtype=bool), "of type bool"),
}


@pytest.mark.parametrize("plan", NO_PLANS.values(), ids=NO_PLANS)
def test_what_is_no_plan_is_refused(plan: tuple[np.ndarray, str]) -> None:
    class Wrong(ZeroActionAgent):
        def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
            return plan[0]

    with VectorSimulator(0) as simulators, pytest.raises(ArrayError, match=f"Wrong.*{plan[1]}"):
        rollout(simulators, Wrong(), INIT_STATES[:2])


def test_two_evaluations_of_a_policy_do_not_mix(tiny_policy: Policy) -> None:
    policy = tiny_policy.with_chunking(temporal_ensemble=True)
    agents = [PolicyAgent(policy), PolicyAgent(policy)]
    with VectorSimulator(0) as simulators:
        (alone,) = rollout(simulators, agents[0], INIT_STATES[:1])

    def run(agent: PolicyAgent) -> Outcome:
        with VectorSimulator(0) as simulators:
            return rollout(simulators, agent, INIT_STATES[:1])[0]

    with ThreadPoolExecutor(2) as pool:
        assert same(list(pool.map(run, agents)), [alone, alone])


class Onlooker(ZeroActionAgent):
    """Pushes on, 16 actions at a time, and keeps the pictures it is shown."""

    views = CameraViews(cameras=("corner4", "gripperPOV"), settings=RenderSettings(height_px=16, width_px=16))

    def __init__(self) -> None:
        self.shown: list[np.ndarray] = []

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        assert images is not None
        self.shown.append(images)
        return np.full((len(states), 16, 4), 0.3, dtype=np.float32)


class Beholder(ZeroActionAgent):
    """Moves as the pictures say: where they differ in a bit, so does the outcome."""

    views = CameraViews(cameras=("corner4",), settings=RenderSettings(height_px=16, width_px=16))

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        assert images is not None
        seen = images.reshape(len(images), 4, -1).mean(axis=2) / 128 - 1
        return np.repeat(seen[:, None], 50, axis=1).astype(np.float32)


@pytest.mark.gl
def test_frames_are_drawn_for_queries_only_and_show_what_the_state_says(gl: Gl) -> None:
    onlooker = Onlooker()
    with VectorSimulator(1, views=onlooker.views) as simulators:
        (outcome,) = rollout(simulators, onlooker, INIT_STATES[:1])
    images = np.concatenate(onlooker.shown)
    assert images.shape == (32, 2, 16, 16, 3), "500 steps, 16 at a time"
    assert outcome.query_steps.tolist() == list(range(0, 500, 16))
    simulator = Simulator("reach-v3")
    simulator.reset(INIT_STATES[0])
    physics = [simulator.physics()]
    for begin in range(0, 16 * 31, 16):
        simulator.step_chunk(outcome.actions[begin : begin + 16])
        physics.append(simulator.physics())
    with LocalExecutor(1, gl.environment) as executor:
        job = (onlooker.views.settings, onlooker.views.cameras, INIT_STATES[0], np.array(physics))
        (drawn,) = executor.map(render_episode, [job])
    assert np.array_equal(images, drawn.images)


@pytest.mark.e2e
@pytest.mark.gl
def test_who_looks_sees_the_same_wherever_it_is_rolled_out(gl: Gl) -> None:
    init_states = [*INIT_STATES[:2], *PUSHES[:2]]
    with RolloutPool(1) as roll:
        alone = [roll(Beholder(), [init_state])[0] for init_state in init_states]
    with RolloutPool(2) as roll:
        assert same(roll(Beholder(), init_states), alone)
        assert same(roll(ZeroActionAgent(), init_states), roll(ZeroActionAgent(), init_states))
        assert set(roll._simulators) == {Beholder.views, None}, "one set of processes draws, one does not"
    with LocalExecutor(1, gl.environment) as executor:
        assert same(roll_with(executor, "fast")(Beholder(), init_states), alone)


def drawn_and_acted_by_hand(policy: Policy, init_states: list[InitialState]) -> list[np.ndarray]:
    """Step simulators through a policy of several tasks that looks, in this worker process: the first actions."""
    assert policy.views is not None
    renderer, done = Renderer(policy.views.settings), []
    for init_state in init_states:
        simulator, alone, actions = Simulator(init_state.task), policy.for_task(init_state.task), []
        state = simulator.reset(init_state)
        for _ in range(20):
            image = renderer.draw(simulator, simulator.physics(), policy.views.cameras)
            actions.append(alone.act(state, image))
            state = simulator.step_chunk(actions[-1][None]).state[-1]
        done.append(np.stack(actions))
    return done


@pytest.mark.e2e
@pytest.mark.gl
def test_a_policy_is_told_each_rows_task_and_shown_its_pictures(
    gl: Gl, reach_store: EpisodeStore, push_store: EpisodeStore
) -> None:
    policy = untrained_policy([reach_store, push_store], gl.renderer).with_chunking(n_action_steps=8)
    init_states = [INIT_STATES[0], PUSHES[0], PUSHES[1]]
    with RolloutPool(1, num_envs=2) as roll:
        outcomes = roll(PolicyAgent(policy), init_states)
    with LocalExecutor(1, gl.environment) as executor:
        (by_hand,) = executor.map(drawn_and_acted_by_hand, [(policy, init_states)])
    for outcome, actions in zip(outcomes, by_hand, strict=True):
        assert np.array_equal(outcome.actions[:20], actions)


def test_sizes_follow_the_episodes_and_what_was_measured(tiny_policy: Policy) -> None:
    assert choose_num_envs(20, 2) == 20
    assert choose_num_envs(100, 2) == 100
    assert choose_num_envs(1000, 2) == 126, "eight waves of the same size"
    assert choose_num_envs(3, 16) == 3
    told: list[RolloutPlan] = []
    with VectorSimulator(2) as simulators:
        rollout(simulators, PolicyAgent(tiny_policy), INIT_STATES, on_plan=told.append)
    (plan,) = told
    assert plan.num_envs == 5
    assert re.fullmatch(
        r"5 environments in 2 processes, [12] groups? each: a chunk took [\d.]+ ms to plan and [\d.]+ ms to carry out",
        plan.reason,
    )


def test_progress_counts_the_parts_of_episodes_under_way() -> None:
    told: list[Progress] = []
    with VectorSimulator(0) as simulators:
        rollout(simulators, ExpertAgent(), INIT_STATES[:2], on_progress=told.append)
    assert [progress.num_episodes for progress in told] == sorted(progress.num_episodes for progress in told)
    assert told[100].num_episodes == pytest.approx(0.4)
    assert (told[-1].num_episodes, told[-1].num_succeeded) == (2, 2)
    assert told[300].num_succeeded == 2, "told as soon as it happens"

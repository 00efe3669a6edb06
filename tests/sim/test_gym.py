"""The Gymnasium environments: Gymnasium's own checks, Meta-World's numbers to the bit, and SyncVectorEnv's behavior."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.evaluation import evaluation
from metaworld.types import Task as Goal

from act_kit.errors import ActKitError, ArrayError, ConfigError, InitialStateError, RenderError, TaskError
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.gym import MetaWorldEnv
from act_kit.sim.gym_vector import MetaWorldVectorEnv
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.render import Gl
from act_kit.sim.tasks import TASKS, benchmark_tasks
from tests.conftest import ONE_THREAD

SOME_TASKS = ("push-v3", "door-open-v3", "stick-push-v3")
"""A pushed object, a body that the initial state moves, and a success rule that needs contact forces."""

MODES = [mode.value for mode in AutoresetMode]


def sample(task: str, num: int = 1) -> list[InitialState]:
    return InitialStateDistribution(task).sample(num, seed=11, stream="validate")


def make_goal(init_state: InitialState, *, partially_observable: bool = False) -> Goal:
    """Return Meta-World's form of an initial state."""
    data = {
        "rand_vec": init_state.array,
        "env_cls": ALL_V3_ENVIRONMENTS[init_state.task],
        "partially_observable": partially_observable,
    }
    return Goal(env_name=init_state.task, data=pickle.dumps(data))


def compare_with_official(task: str, *, num_steps: int, is_expert: bool, partially_observable: bool = False) -> None:
    (init_state,) = sample(task)
    official = ALL_V3_ENVIRONMENTS[task]()
    official.set_task(make_goal(init_state, partially_observable=partially_observable))
    env = gymnasium.make(f"act_kit/{task}", partially_observable=partially_observable)
    expected, _ = official.reset()
    state, info = env.reset(options={"initial_state": init_state})
    assert info == {"initial_state": init_state}
    assert (state.dtype, state.tobytes()) == (expected.dtype, expected.tobytes())
    rng, expert = np.random.default_rng(0), ScriptedExpert(task)
    for t in range(num_steps):
        action = expert.act(state) if is_expert else rng.uniform(-1, 1, 4).astype(np.float32)
        expected, expected_reward, _, expected_truncated, expected_info = official.step(action)
        state, reward, terminated, truncated, info = env.step(action)
        assert state.tobytes() == expected.tobytes(), t
        assert (reward, info) == (expected_reward, expected_info), t
        assert (terminated, truncated) == (False, expected_truncated), t
    assert truncated == (num_steps == 500)


@pytest.mark.parametrize("is_expert", [True, False], ids=["expert", "random"])
@pytest.mark.parametrize("task", SOME_TASKS)
def test_every_number_is_that_of_metaworlds_environment(task: str, is_expert: bool) -> None:
    compare_with_official(task, num_steps=500, is_expert=is_expert)


@pytest.mark.e2e
@pytest.mark.parametrize("is_expert", [True, False], ids=["expert", "random"])
@pytest.mark.parametrize("task", TASKS)
def test_every_number_of_every_task_is_that_of_metaworlds_environment(task: str, is_expert: bool) -> None:
    compare_with_official(task, num_steps=500, is_expert=is_expert)


@pytest.mark.parametrize("task", SOME_TASKS)
def test_a_hidden_goal_is_hidden_as_in_metaworld(task: str) -> None:
    compare_with_official(task, num_steps=30, is_expert=False, partially_observable=True)


@pytest.mark.parametrize("task", SOME_TASKS)
def test_gymnasiums_checks_pass_without_a_warning(task: str) -> None:
    check_env(gymnasium.make(f"act_kit/{task}").unwrapped, skip_render_check=True)


@pytest.mark.gl
def test_gymnasiums_checks_of_frames_pass_without_a_warning(gl: Gl) -> None:
    env = gymnasium.make("act_kit/reach-v3", render_mode="rgb_array", width=48, height=32)
    check_env(env.unwrapped)
    env.close()


@pytest.mark.e2e
@pytest.mark.parametrize("task", TASKS)
def test_the_observation_space_contains_every_observation(task: str) -> None:
    env = gymnasium.make(f"act_kit/{task}")
    env.action_space.seed(0)
    assert env.reset(seed=0)[0] in env.observation_space
    for _ in range(500):
        assert env.step(env.action_space.sample())[0] in env.observation_space


@pytest.fixture
def expert_env() -> MetaWorldEnv:
    return MetaWorldEnv("reach-v3", terminate_on_success=True)


def test_an_episode_terminates_at_success_only_if_asked(expert_env: MetaWorldEnv) -> None:
    expert = ScriptedExpert("reach-v3")
    state, _ = expert_env.reset(seed=0)
    terminated = False
    while not terminated:
        state, _, terminated, truncated, info = expert_env.step(expert.act(state))
        assert not truncated
        assert terminated == (info["success"] == 1.0)


def test_initial_states_come_from_the_box_and_follow_the_seed() -> None:
    env = MetaWorldEnv("push-v3")
    task = TASKS["push-v3"]
    drawn = [env.reset(seed=5 if i == 0 else None)[1]["initial_state"] for i in range(20)]
    assert len(set(drawn)) == 20
    for init_state in drawn:
        assert (init_state.array >= task.low).all()
        assert (init_state.array <= task.high).all()
        assert not task.is_resampled(init_state.array)
    again = MetaWorldEnv("push-v3")
    assert [again.reset(seed=5 if i == 0 else None)[1]["initial_state"] for i in range(20)] == drawn
    assert env.reset(seed=6)[1]["initial_state"] != drawn[0]


def expert_actions(observations: np.ndarray) -> np.ndarray:
    """Return the actions of reach-v3's expert; the last row's move away from the goal, so that it never succeeds."""
    expert = ScriptedExpert("reach-v3")
    actions = np.array([expert.act(state) for state in observations])
    actions[-1] *= -1
    return actions


def roll(envs: Any, mode: str) -> Iterator[tuple[Any, ...]]:
    """Yield all that 130 steps of a vector environment return."""
    observations, infos = envs.reset(seed=3)
    yield observations, infos
    for _ in range(130):
        result = envs.step(expert_actions(observations))
        yield result
        observations, _, terminations, truncations, _ = result
        mask = terminations | truncations
        if mode == "Disabled" and mask.any():
            observations, infos = envs.reset(options={"reset_mask": mask})
            yield observations, infos


@pytest.mark.parametrize("mode", MODES)
def test_a_vector_environment_is_a_sync_vector_env(mode: str) -> None:
    """Episodes end at success, or by truncation, at different steps in different rows."""
    options: dict[str, Any] = {"num_envs": 3, "terminate_on_success": True, "max_episode_steps": 60}
    ours: Any = gymnasium.make_vec("act_kit/reach-v3", autoreset_mode=mode, **options)
    assert isinstance(ours, MetaWorldVectorEnv)
    theirs: Any = gymnasium.make_vec(
        "act_kit/reach-v3", vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **options
    )
    assert ours.metadata == theirs.metadata
    for space in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(ours, space) == getattr(theirs, space)
    num_ended = np.zeros(2, dtype=int)
    for mine, its in zip(roll(ours, mode), roll(theirs, mode), strict=True):
        if len(mine) == 5 and "final_info" in mine[4]:
            statistics = mine[4]["final_info"].pop("episode")  # Meta-World's environments have it
            assert np.array_equal(statistics["_l"], mine[4]["final_info"].pop("_episode"))
            assert np.array_equal(statistics["l"] > 0, statistics["_l"])
        assert data_equivalence(mine, its, exact=True)
        assert mine[0] in ours.observation_space
        if len(mine) == 5:
            num_ended += mine[2].sum(), mine[3].sum()
    assert (num_ended >= 2).all()
    assert ours.np_random_seed == theirs.np_random_seed


def test_worker_processes_change_nothing() -> None:
    with_workers = gymnasium.make_vec("act_kit/reach-v3", num_envs=3, num_workers=2, max_episode_steps=60)
    alone = gymnasium.make_vec("act_kit/reach-v3", num_envs=3, max_episode_steps=60)
    for mine, its in zip(roll(with_workers, "NextStep"), roll(alone, "NextStep"), strict=True):
        assert data_equivalence(mine, its, exact=True)
    with_workers.close()


def test_a_benchmark_has_a_row_for_each_task() -> None:
    envs = gymnasium.make_vec("act_kit/MT10", use_one_hot=True)
    assert isinstance(envs, MetaWorldVectorEnv)
    assert envs.tasks == benchmark_tasks("MT10")
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observations, infos = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert np.array_equal(observations[:, 39:], np.eye(10))
    assert [init_state.task for init_state in infos["initial_state"]] == list(envs.tasks)
    assert MetaWorldVectorEnv("MT10", 20).tasks == 2 * envs.tasks
    assert len(MetaWorldVectorEnv("MT25").tasks) == 25
    assert len(MetaWorldVectorEnv("MT50").tasks) == 50


def test_hidden_goals_are_hidden_in_every_row() -> None:
    envs = MetaWorldVectorEnv("push-v3", 2, partially_observable=True, use_one_hot=True)
    visible, _ = MetaWorldVectorEnv("push-v3", 2).reset(seed=0)
    observations, _ = envs.reset(seed=0)
    assert np.array_equal(observations[:, :36], visible[:, :36])
    assert (observations[:, 36:] == [0.0, 0.0, 0.0, 1.0]).all()


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting to float32")
def test_mt10_is_metaworlds_mt10() -> None:
    """Meta-World's vector environment rounds observations with a one-hot vector to float32, except its last ones."""
    theirs: Any = gymnasium.make_vec("Meta-World/MT10", vector_strategy="sync", use_one_hot=True, seed=1)
    ours = gymnasium.make_vec("act_kit/MT10", num_envs=10, use_one_hot=True)
    theirs.call("toggle_sample_tasks_on_reset", False)
    init_states = [sample(task)[0] for task in benchmark_tasks("MT10")]
    for env, init_state in zip(theirs.envs, init_states, strict=True):
        env.unwrapped.set_task(make_goal(init_state))
    expected, _ = theirs.reset()
    observations, _ = ours.reset(options={"initial_state": init_states})
    assert np.array_equal(observations.astype(np.float32), expected)
    ours.action_space.seed(0)
    for _ in range(500):
        actions = ours.action_space.sample()
        theirs_step, ours_step = theirs.step(actions), ours.step(actions)
        for expected, mine in zip(theirs_step[1:4], ours_step[1:4], strict=True):
            assert np.array_equal(mine, expected)
        if not mine.any():  # at the end each begins an episode from an initial state of its own
            assert np.array_equal(ours_step[0].astype(np.float32), theirs_step[0])
            assert np.array_equal(ours_step[4]["success"], theirs_step[4]["success"])
    assert mine.all()
    for key in ("success", "unscaled_reward", "obj_to_target"):
        assert np.array_equal(ours_step[4]["final_info"][key], theirs_step[4]["final_info"][key])
    for key in ("r", "l"):
        mine_of_key, theirs_of_key = (step[4]["final_info"]["episode"][key] for step in (ours_step, theirs_step))
        assert np.allclose(mine_of_key, theirs_of_key, rtol=1e-6)
    assert all(map(np.array_equal, ours_step[4]["final_obs"], theirs_step[4]["final_obs"]))


class Experts:
    """Scripted experts with the methods of Meta-World's evaluation."""

    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        return expert_actions(observations)

    def reset(self, env_mask: np.ndarray) -> None:
        assert env_mask.dtype == bool


def test_metaworlds_own_evaluation_accepts_a_vector_environment() -> None:
    """The last row moves away from the goal and fails."""
    envs: Any = gymnasium.make_vec("act_kit/reach-v3", num_envs=2, autoreset_mode="SameStep", max_episode_steps=60)
    envs.reset(seed=0)
    success, mean_return, success_by_task, returns = evaluation(Experts(), envs, num_episodes=3)
    assert set(success_by_task) == set(returns) == {"reach-v3"}
    assert 0 < success < 1
    assert len(returns["reach-v3"]) == 3
    assert min(returns["reach-v3"]) > 0
    assert mean_return == pytest.approx(np.mean(returns["reach-v3"]))
    assert envs.get_attr("terminate_on_success") == (False, False)


def test_a_vector_environment_takes_an_initial_state_for_each_row() -> None:
    envs = MetaWorldVectorEnv("push-v3", 2)
    first, second = sample("push-v3", 2)
    states, infos = envs.reset(options={"initial_state": [first, second]})
    assert infos["initial_state"].tolist() == [first, second]
    both, _ = envs.reset(options={"initial_state": second})
    assert np.array_equal(both, states[[1, 1]])
    mask = np.array([True, False])
    mixed, infos = envs.reset(options={"initial_state": [first, None], "reset_mask": mask})
    assert np.array_equal(mixed, states)
    assert infos["_initial_state"].tolist() == [True, False]


def test_every_task_and_benchmark_is_registered() -> None:
    registered = {spec.id for spec in gymnasium.registry.values() if spec.namespace == "act_kit"}
    assert registered == {f"act_kit/{name}" for name in (*TASKS, "MT10", "MT25", "MT50")}
    for name in registered:
        json.loads(gymnasium.spec(name).to_json())


def test_an_id_that_names_the_module_needs_no_import() -> None:
    code = "import gymnasium; print(gymnasium.make('act_kit.sim.gym:act_kit/push-v3').reset(seed=0)[0].shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ONE_THREAD, check=False)
    assert (done.stdout.strip(), done.stderr) == ("(39,)", "")


def draw(env: MetaWorldEnv) -> np.ndarray:
    frame = env.render()
    assert frame is not None
    return frame


@pytest.mark.gl
def test_frames_show_the_current_step(gl: Gl) -> None:
    env = MetaWorldEnv("push-v3", render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0)
    before = draw(env)
    assert before.shape == (48, 64, 3)
    assert before.dtype == np.uint8
    for _ in range(20):
        state, *_ = env.step(np.array([1, 1, 1, -1], dtype=np.float32))
    after = draw(env)
    assert not np.array_equal(after, before)
    assert np.array_equal(state, env.simulator.state)
    env.close()
    assert np.array_equal(draw(env), after)  # a new process draws it
    env.close()


@pytest.mark.gl
def test_the_frames_of_a_vector_environment_are_those_of_its_rows(gl: Gl) -> None:
    options: dict[str, Any] = {"render_mode": "rgb_array", "width": 64, "height": 48}
    envs, env = MetaWorldVectorEnv("push-v3", 2, num_workers=1, **options), MetaWorldEnv("push-v3", **options)
    envs.reset(seed=0)
    envs.step(np.ones((2, 4)))
    frames = envs.render()
    assert frames is not None
    for row, frame in enumerate(frames):
        env.reset(seed=row)
        env.step(np.ones(4))
        assert np.array_equal(frame, draw(env))
    envs.close()
    env.close()


def test_without_a_render_mode_there_is_no_frame() -> None:
    env = MetaWorldEnv("push-v3")
    env.reset()
    with pytest.warns(UserWarning, match='render_mode="rgb_array"'):
        assert env.render() is None


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3, np.float32), r"action of shape \(3,\): expected \(4,\)"),
        (np.zeros((1, 4), np.float32), r"action of shape \(1, 4\): expected \(4,\)"),
        (np.full(4, np.nan), "NaN or infinity"),
        (["left", "up", "up", "close"], "action"),
    ],
)
def test_a_malformed_action_is_refused_and_changes_nothing(action: Any, message: str) -> None:
    env = MetaWorldEnv("push-v3")
    env.reset(seed=0)
    with pytest.raises(ArrayError, match=message):
        env.step(action)
    assert env.simulator.num_steps == 0


def test_actions_are_clipped_as_in_the_simulator() -> None:
    first, second = MetaWorldEnv("push-v3"), MetaWorldEnv("push-v3")
    first.reset(seed=0)
    second.reset(seed=0)
    assert data_equivalence(first.step(np.full(4, 7.0)), second.step(np.ones(4, np.float32)), exact=True)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_interrupted_step_does_not_shift_the_next_results(num_workers: int) -> None:
    """As after Ctrl-C in a notebook, while the simulators work."""
    envs = MetaWorldVectorEnv("push-v3", 2, num_workers=num_workers)
    try:
        expected, _ = envs.reset(seed=0)
        actions = np.ones((2, 4), dtype=np.float32)
        envs._simulators.execute({row: actions[row : row + 1] for row in range(2)}, rewards=True)
        assert np.array_equal(envs.reset(seed=0)[0], expected)
        stepped = envs.step(actions)[0]
    finally:
        envs.close()
    other = MetaWorldVectorEnv("push-v3", 2)
    other.reset(seed=0)
    assert np.array_equal(stepped, other.step(actions)[0])


def test_an_episode_must_run_to_be_stepped() -> None:
    env = MetaWorldEnv("push-v3")
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(4))
    with pytest.raises(ResetNeeded):
        env.render()
    env.reset()
    for _ in range(500):
        *_, truncated, _ = env.step(np.zeros(4))
    assert truncated
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(4))
    envs = MetaWorldVectorEnv("push-v3", 2, max_episode_steps=1, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded):
        envs.step(np.zeros((2, 4)))
    envs.reset()
    envs.step(np.zeros((2, 4)))
    with pytest.raises(ResetNeeded, match="reset_mask"):
        envs.step(np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"init_state": None}, ConfigError, "Did you mean 'initial_state'"),
        ({"initial_state": np.zeros(6)}, InitialStateError, "expected an InitialState"),
        ({"initial_state": sample("reach-v3")[0]}, InitialStateError, "expected an initial state of push-v3"),
    ],
)
def test_a_wrong_option_of_reset_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MetaWorldEnv("push-v3").reset(options=options)
    if not isinstance(options.get("initial_state"), np.ndarray):
        with pytest.raises(error, match=message):
            MetaWorldVectorEnv("push-v3", 2).reset(options=options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task": "pusj-v3"}, TaskError, "Did you mean 'push-v3'"),
        ({"task": "MT10", "num_envs": 8}, ConfigError, "multiple of its 10 tasks"),
        ({"max_episode_steps": 501}, ConfigError, "expected 1 to 500"),
        ({"autoreset_mode": "same"}, ConfigError, "choose from: NextStep, SameStep, Disabled"),
        ({"num_workers": -1}, ConfigError, "expected at least 0"),
        ({"render_mode": "human"}, ConfigError, "choose from: rgb_array"),
        ({"camera_name": "corner5"}, RenderError, "Did you mean"),
        ({"width": 8}, RenderError, "expected 16 to 1024 px"),
    ],
)
def test_a_wrong_option_is_refused(arguments: dict[str, Any], error: type[ActKitError], message: str) -> None:
    with pytest.raises(error, match=message):
        MetaWorldVectorEnv(**{"task": "push-v3", **arguments})


def test_wrong_arguments_of_a_vector_environment_are_refused() -> None:
    envs = MetaWorldVectorEnv("push-v3", 2)
    with pytest.raises(ArrayError, match="one for each of 2 rows"):
        envs.reset(seed=[1])
    with pytest.raises(ArrayError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.array([0, 1])})
    envs.reset()
    with pytest.raises(ArrayError, match=r"actions of shape \(4,\): expected \(2, 4\)"):
        envs.step(np.zeros(4))


@pytest.mark.e2e
@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_stable_baselines3_learns_unchanged(algorithm: str) -> None:
    baselines = pytest.importorskip("stable_baselines3")
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(gymnasium.make("act_kit/reach-v3"))
    sizes = {"PPO": {"n_steps": 128}, "SAC": {"learning_starts": 100}}[algorithm]
    model = getattr(baselines, algorithm)("MlpPolicy", "act_kit/reach-v3", seed=0, **sizes)
    model.learn(600)
    assert model.num_timesteps >= 600
    assert len(model.ep_info_buffer) == 1  # of 500 steps
    assert model.ep_info_buffer[0]["l"] == 500

"""Meta-World as Gymnasium environments on the fast engine; importing this module registers them.

``act_kit/push-v3`` and the other 49 tasks are for ``gymnasium.make`` and ``gymnasium.make_vec``; ``act_kit/MT10``,
``act_kit/MT25`` and ``act_kit/MT50`` are for ``make_vec``. Gymnasium 1.0 removed entry points of plugins, so a script
imports this module, or names it in the id: ``gymnasium.make("act_kit.sim.gym:act_kit/push-v3")``.

Observation, reward, ``info`` and success equal those of Meta-World's own environment bit by bit. Options have
Meta-World's names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode

from act_kit.arrays import as_array
from act_kit.errors import ConfigError, did_you_mean
from act_kit.sim.engine import INFO_KEYS, clip_actions
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.render import RenderSettings, check_cameras, find_gl, render_episode
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import ACTION_DIM, CONTROL_HZ, HORIZON, STATE_DIM, TASKS
from act_kit.workers import Pool, environment, worker_error

BENCHMARKS = ("MT10", "MT25", "MT50")

BOUND_M = 1000.0
"""Bound of object and goal positions, meters: finite, as Gymnasium's checker wants; even in free fall, no object moves
by more than 200 m in an episode."""

METADATA = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}

RenderMode = Literal["rgb_array"]


def make_observation_space(num_one_hot: int = 0) -> Box:
    """Return the space of observations, float64 (39 + num_one_hot,), which is the same for all tasks.

    Meta-World's own space depends on the task, is infinite for objects, and does not contain a visible goal.
    """
    high = np.full(STATE_DIM, BOUND_M)
    low = -high
    for hand in (0, 18):  # hand and gripper of this step and of the last, in the range to which Meta-World clips them
        low[hand : hand + 4] = (-0.525, 0.348, -0.0525, -1.0)
        high[hand : hand + 4] = (0.525, 1.025, 0.7, 1.0)
    low, high = np.append(low, np.zeros(num_one_hot)), np.append(high, np.ones(num_one_hot))
    return Box(low, high, dtype=np.float64)


def hide_goals(states: np.ndarray) -> np.ndarray:
    """Set the goals of states (…, 39) to zero, in place."""
    states[..., -3:] = 0.0
    return states


def sample_initial_state(task: str, generator: np.random.Generator) -> InitialState:
    """Sample an initial state from the benchmark's box; its seed has 63 random bits, so it recurs in no dataset."""
    seed = int(generator.integers(2**63))
    return InitialStateDistribution(task).sample(1, seed=seed, stream="collect")[0]


def check_options(options: Mapping[str, Any] | None, *known: str) -> Mapping[str, Any]:
    """Return the options of a reset, or raise :class:`ConfigError` if one does not exist."""
    for name in options or {}:
        if name not in known:
            raise ConfigError(
                f"'{name}' is not an option of reset; choose from: {', '.join(known)}.{did_you_mean(name, known)}"
            )
    return options or {}


class FrameRenderer:
    """Renderer of frames for people, in a process of its own, which starts with the first frame.

    Args:
        render_mode: ``rgb_array``, or None for no frames.
        camera_name: A camera of Meta-World.
        width, height: Size of a frame, pixels.
    """

    def __init__(self, render_mode: RenderMode | None, camera_name: str, width: int, height: int) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"render_mode={render_mode!r}: choose from: rgb_array, None.")
        check_cameras([camera_name])
        self._is_enabled = render_mode is not None
        self._cameras = (camera_name,)
        self._settings = RenderSettings(height_px=height, width_px=width)
        self._pool: Pool | None = None

    def draw(self, init_states: Sequence[InitialState], physics: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """Return a frame, uint8 (H, W, 3), of each physics state (P,); None, with a warning, without a render mode.

        Raises:
            RenderError: No OpenGL library works.
            WorkerError: The process died.
        """
        if not self._is_enabled:
            gymnasium.logger.warn('render() without a render mode. Fix: make(…, render_mode="rgb_array")')
            return None
        gl = find_gl()
        if self._pool is None:
            self._pool = Pool(1)
        try:
            with environment(gl.environment):  # the process starts with the first job and inherits it
                jobs = []
                for init_state, row in zip(init_states, physics, strict=True):
                    job = self._pool.submit(render_episode, self._settings, self._cameras, init_state, row[None])
                    jobs.append(job)
            return [job.result().images[0, 0] for job in jobs]
        except BrokenProcessPool as error:
            raise worker_error("rendering", self._pool.workers) from error

    def close(self) -> None:
        """End the process; the next frame starts another."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


class MetaWorldEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One Meta-World task.

    ``reset`` samples an initial state from the benchmark's box with ``np_random``, or takes
    ``options={"initial_state": InitialState}``; its info contains ``initial_state``. ``step`` clips actions to [-1, 1];
    its info is Meta-World's. An episode is truncated after 500 steps.

    Attributes:
        simulator: The simulator, to save and restore its state.
    """

    metadata: dict[str, Any] = METADATA
    action_space: Box
    observation_space: Box

    def __init__(
        self,
        task: str,
        *,
        partially_observable: bool = False,
        terminate_on_success: bool = False,
        render_mode: RenderMode | None = None,
        camera_name: str = "corner4",
        width: int = 480,
        height: int = 480,
    ) -> None:
        """Make an environment.

        Args:
            task: Meta-World's name of the task.
            partially_observable: Hide the goal: the last three numbers of the observation are zero.
            terminate_on_success: End the episode at the first success.
            render_mode: ``rgb_array`` for frames, or None.
            camera_name: Camera of the frames.
            width, height: Size of a frame, pixels.

        Raises:
            TaskError: The task does not exist.
            ConfigError: The render mode does not exist.
            RenderError: The camera does not exist, or the size is out of range.
        """
        self.simulator = Simulator(task)
        self.partially_observable = partially_observable
        self.terminate_on_success = terminate_on_success
        self.render_mode = render_mode
        self._renderer = FrameRenderer(render_mode, camera_name, width, height)
        self.action_space = Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self.observation_space = make_observation_space()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; return the observation, float64 (39,), and ``{"initial_state": …}``.

        Raises:
            ConfigError: An option does not exist.
            InitialStateError: The initial state is of another task, or the task cannot be reset to it.
        """
        super().reset(seed=seed)
        init_state = check_options(options, "initial_state").get("initial_state")
        if init_state is None:
            init_state = sample_initial_state(self.simulator.task.name, self.np_random)
        return self._observe(self.simulator.reset(init_state)), {"initial_state": init_state}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Execute an action (4,); return observation, reward, terminated, truncated and Meta-World's info.

        Raises:
            ArrayError: The action is not four finite numbers.
            ResetNeeded: No episode has begun, or it was truncated.
        """
        simulator = self.simulator
        if simulator.init_state is None or not simulator.steps_left:
            raise ResetNeeded("No episode is running. Fix: call reset before step.")
        actions = clip_actions(as_array(action, "action", (ACTION_DIM,)))[None]
        step_batch = simulator.execute(actions, rewards=True)
        assert step_batch.reward is not None
        assert step_batch.info is not None
        info = dict(zip(INFO_KEYS, step_batch.info[0].tolist(), strict=True))
        terminated = self.terminate_on_success and bool(step_batch.success[0])
        truncated = not simulator.steps_left
        return self._observe(step_batch.state[0]), float(step_batch.reward[0]), terminated, truncated, info

    def _observe(self, state: np.ndarray) -> np.ndarray:
        observation = state.copy()
        return hide_goals(observation) if self.partially_observable else observation

    def render(self) -> np.ndarray | None:
        """Return a frame, uint8 (H, W, 3)."""
        if self.simulator.init_state is None:
            raise ResetNeeded("No episode is running. Fix: call reset before render.")
        frames = self._renderer.draw([self.simulator.init_state], [self.simulator.physics()])
        return None if frames is None else frames[0]

    def close(self) -> None:
        """End the rendering process, if there is one."""
        self._renderer.close()


def _register() -> None:
    single, vector = "act_kit.sim.gym:MetaWorldEnv", "act_kit.sim.gym_vector:MetaWorldVectorEnv"
    for task in TASKS:
        gymnasium.register(
            id=f"act_kit/{task}",
            entry_point=single,
            vector_entry_point=vector,
            max_episode_steps=HORIZON,
            kwargs={"task": task},
        )
    for benchmark in BENCHMARKS:
        gymnasium.register(
            id=f"act_kit/{benchmark}",
            vector_entry_point=vector,
            max_episode_steps=HORIZON,
            kwargs={"task": benchmark, "autoreset_mode": AutoresetMode.SAME_STEP.value},  # Meta-World's default
        )


_register()

"""Many Meta-World environments as one vector environment of Gymnasium, on a vector simulator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from act_kit.arrays import as_array, as_mask, name_rows
from act_kit.errors import ArrayError, ConfigError, InitialStateError
from act_kit.sim.engine import INFO_KEYS, clip_actions
from act_kit.sim.gym import (
    BENCHMARKS,
    METADATA,
    FrameRenderer,
    RenderMode,
    check_options,
    hide_goals,
    make_observation_space,
    sample_initial_state,
)
from act_kit.sim.initial_states import InitialState
from act_kit.sim.tasks import ACTION_DIM, HORIZON, STATE_DIM, benchmark_tasks, get_task
from act_kit.sim.vector import StepResult, VectorSimulator


class MetaWorldVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many environments of one task, or one of each task of a benchmark, on a vector simulator.

    With the same seeds, it returns what Gymnasium's ``SyncVectorEnv`` of :class:`MetaWorldEnv` returns, in every
    autoreset mode; with ``SameStep``, ``final_info`` also has the return and the length of each ended episode, which
    ``metaworld.evaluation.evaluation`` reads. The options of ``reset`` are ``initial_state``, one for all rows or a
    sequence of one (or None) for each, and Gymnasium's ``reset_mask``.

    Attributes:
        tasks: Task of each row.
    """

    metadata: dict[str, Any]

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        *,
        max_episode_steps: int = HORIZON,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        num_workers: int = 0,
        use_one_hot: bool = False,
        partially_observable: bool = False,
        terminate_on_success: bool = False,
        render_mode: RenderMode | None = None,
        camera_name: str = "corner4",
        width: int = 480,
        height: int = 480,
    ) -> None:
        """Make the environments.

        Args:
            task: Meta-World's name of the task; or MT10, MT25 or MT50.
            num_envs: Number of rows. A benchmark has one row for each task, or a multiple; 1 = one for each task.
            max_episode_steps: Number of steps after which an episode is truncated, at most 500.
            autoreset_mode: Gymnasium's mode, for example ``"SameStep"``.
            num_workers: Number of processes that simulate; 0 = simulate in this process.
            use_one_hot: Append the one-hot vector of the task to the observation.
            partially_observable, terminate_on_success, render_mode, camera_name, width, height: See
                :class:`MetaWorldEnv`.

        Raises:
            TaskError: The task does not exist.
            ConfigError: An option is out of range.
            RenderError: The camera does not exist, or the size is out of range.
        """
        names = benchmark_tasks(task) if task in BENCHMARKS else (get_task(task).name,)
        self.num_envs = len(names) if num_envs == 1 else num_envs
        if self.num_envs < 1 or self.num_envs % len(names):
            raise ConfigError(f"num_envs={num_envs} of {task}: expected a multiple of its {len(names)} tasks.")
        if not 1 <= max_episode_steps <= HORIZON:
            raise ConfigError(f"max_episode_steps={max_episode_steps}: expected 1 to {HORIZON}.")
        if num_workers < 0:
            raise ConfigError(f"num_workers={num_workers}: expected at least 0, for this process.")
        try:
            self._autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError as error:
            modes = ", ".join(mode.value for mode in AutoresetMode)
            raise ConfigError(f"autoreset_mode={autoreset_mode!r}: choose from: {modes}.") from error
        self.tasks = names * (self.num_envs // len(names))
        self.metadata = {**METADATA, "autoreset_mode": self._autoreset_mode}
        self.render_mode = render_mode
        self.partially_observable = partially_observable
        self.terminate_on_success = terminate_on_success
        self._max_episode_steps = max_episode_steps
        self._renderer = FrameRenderer(render_mode, camera_name, width, height)
        num_one_hot = len(names) if use_one_hot else 0
        self._one_hot = np.tile(np.eye(len(names))[:, :num_one_hot], (self.num_envs // len(names), 1))
        self.single_action_space = Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self.single_observation_space = make_observation_space(num_one_hot)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._generators: list[tuple[np.random.Generator, int]] = [seeding.np_random() for _ in self.tasks]
        self._init_states: dict[int, InitialState] = {}
        self._states = np.empty((self.num_envs, STATE_DIM))
        self._num_steps = np.zeros(self.num_envs, dtype=np.int64)
        self._returns = np.zeros(self.num_envs)
        self._has_ended = np.zeros(self.num_envs, dtype=bool)
        self._simulators = VectorSimulator(num_workers)

    @property  # type: ignore[misc]  # read-only, and one for each row, as in SyncVectorEnv
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Random generator of each row."""
        return tuple(generator for generator, _ in self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """Seed of each row."""
        return tuple(seed for _, seed in self._generators)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of each row, as ``SyncVectorEnv``; ``task_name`` is the name of Meta-World's class."""
        if name == "task_name":
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # takes 1 s, like every other import of Meta-World

            return tuple(ALL_V3_ENVIRONMENTS[task].__name__ for task in self.tasks)
        return (getattr(self, name),) * self.num_envs

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method that all rows share, and return its result for each row."""
        return (getattr(self, name)(*args, **kwargs),) * self.num_envs

    def toggle_terminate_on_success(self, on: bool) -> None:
        """End episodes at their first success, or do not; Meta-World's evaluation does."""
        self.terminate_on_success = on

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes; return the observations, float64 (N, D), and the initial states as an object array.

        Raises:
            ConfigError: An option does not exist.
            ArrayError: There is not one seed or initial state for each row, or the mask is not bool (N,).
            InitialStateError: A task cannot be reset to its initial state.
        """
        given = check_options(options, "initial_state", "reset_mask")
        is_reset = np.ones(self.num_envs, dtype=bool)
        if "reset_mask" in given:
            is_reset = as_mask(given["reset_mask"], "reset_mask", self.num_envs)
        rows = np.flatnonzero(is_reset).tolist()
        init_states = given.get("initial_state")
        if init_states is None or isinstance(init_states, InitialState):
            init_states = [init_states] * self.num_envs
        if seed is None or isinstance(seed, int | np.integer):
            seeds: list[int | None] = [None if seed is None else int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = list(seed)
        for what, values in (("seed", seeds), ("initial_state", init_states)):
            if len(values) != self.num_envs:
                raise ArrayError(f"{what} has {len(values)} entries: expected one for each of {self.num_envs} rows.")
        for row in rows:
            if seeds[row] is not None:
                self._generators[row] = seeding.np_random(seeds[row])
        while self._simulators.receive():
            pass  # results of a step that was interrupted or failed
        infos = self._begin(rows, init_states)
        self._take(self._receive(rows))
        return self._observe(), infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Execute actions (N, 4); return observations, rewards, terminations, truncations and infos.

        Raises:
            ArrayError: The actions are not finite numbers of this shape.
            ResetNeeded: A row has no episode, or an ended one and autoreset is disabled.
            RuntimeError: A simulation failed.
        """
        clipped = clip_actions(as_array(actions, "actions", (self.num_envs, ACTION_DIM)))
        is_reset = np.zeros(self.num_envs, dtype=bool)
        if self._autoreset_mode is AutoresetMode.NEXT_STEP:
            is_reset = self._has_ended.copy()
        elif self._has_ended.any():  # only if autoreset is disabled
            raise ResetNeeded(
                f"The episode has ended in {name_rows(np.flatnonzero(self._has_ended))}. Fix: "
                'reset(options={"reset_mask": terminations | truncations})'
            )
        if len(self._init_states) < self.num_envs:
            raise ResetNeeded("No episode is running. Fix: call reset before step.")
        infos = self._begin(np.flatnonzero(is_reset).tolist())
        stepped = np.flatnonzero(~is_reset).tolist()
        self._simulators.execute({row: clipped[row : row + 1] for row in stepped}, rewards=True)
        results = self._receive(range(self.num_envs))
        self._take(results)
        self._num_steps[stepped] += 1
        rewards, info = np.zeros(self.num_envs), np.zeros((self.num_envs, len(INFO_KEYS)))
        for row in stepped:
            step_batch = results[row].step_batch
            assert step_batch is not None
            assert step_batch.reward is not None
            assert step_batch.info is not None
            rewards[row], info[row] = step_batch.reward[0], step_batch.info[0]
        self._returns += rewards
        terminations = (info[:, 0] == 1.0) & self.terminate_on_success
        truncations = (self._num_steps >= self._max_episode_steps) & ~is_reset
        self._has_ended = terminations | truncations
        has_info = ~is_reset
        if self._autoreset_mode is AutoresetMode.SAME_STEP and self._has_ended.any():
            infos |= self._reset_ended(info)
            has_info &= ~infos["_final_info"]
        infos |= _info_arrays(info, has_info)
        return self._observe(), rewards, terminations, truncations, infos

    def _reset_ended(self, info: np.ndarray) -> dict[str, Any]:
        """Reset the rows whose episode has ended; return their last observations and infos, as Gymnasium does."""
        ended = self._has_ended.copy()  # the reset clears it
        final_obs = np.full(self.num_envs, None, dtype=object)
        rows = np.flatnonzero(ended).tolist()
        observations = self._observe()
        for row in rows:
            final_obs[row] = observations[row].copy()
        final_info = _info_arrays(info, ended) | self._episode_statistics(ended)
        infos = self._begin(rows)
        self._take(self._receive(rows))
        masks = {"_final_obs": ended, "_final_info": ended.copy()}
        return {**infos, "final_obs": final_obs, "final_info": final_info, **masks}

    def _episode_statistics(self, ended: np.ndarray) -> dict[str, Any]:
        """Return return and length of the ended episodes, as Gymnasium's ``RecordEpisodeStatistics`` of each row."""
        values = {"r": np.where(ended, self._returns, 0.0), "l": np.where(ended, self._num_steps, 0)}
        masks = {f"_{key}": ended.copy() for key in values}
        return {"episode": {**values, **masks}, "_episode": ended.copy()}

    def _begin(self, rows: Sequence[int], given: Sequence[InitialState | None] | None = None) -> dict[str, Any]:
        """Send the rows to given or sampled initial states; return these as infos."""
        if not rows:
            return {}
        init_states: dict[int, InitialState] = {}
        shown = np.full(self.num_envs, None, dtype=object)
        for row in rows:
            init_state = given[row] if given else None
            if init_state is None:
                init_state = sample_initial_state(self.tasks[row], self._generators[row][0])
            if not isinstance(init_state, InitialState):
                raise InitialStateError(f"initial_state of row {row}: expected an InitialState, not {init_state!r}.")
            init_state.check_is_of(self.tasks[row])
            init_states[row] = shown[row] = init_state
        self._simulators.reset(init_states)
        self._init_states.update(init_states)
        self._num_steps[list(rows)] = 0
        self._returns[list(rows)] = 0.0
        self._has_ended[list(rows)] = False
        return {"initial_state": shown, "_initial_state": np.isin(np.arange(self.num_envs), rows)}

    def _receive(self, rows: Iterable[int]) -> dict[int, StepResult]:
        """Wait for the results of all ``rows``."""
        results: dict[int, StepResult] = {}
        missing = set(rows)
        while missing:
            for row, result in self._simulators.receive().items():
                if not isinstance(result, StepResult):
                    raise RuntimeError(f"The simulation of row {row}, {self.tasks[row]}, failed: {result.message}")
                results[row] = result
                missing.discard(row)
        return results

    def _take(self, results: Mapping[int, StepResult]) -> None:
        for row, result in results.items():
            self._states[row] = result.state

    def _observe(self) -> np.ndarray:
        observations = np.concatenate([self._states, self._one_hot], axis=1)
        if self.partially_observable:
            hide_goals(observations[:, :STATE_DIM])
        return observations

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return a frame, uint8 (H, W, 3), of each row."""
        if len(self._init_states) < self.num_envs:
            raise ResetNeeded("No episode is running. Fix: call reset before render.")
        rows = range(self.num_envs)
        self._simulators.request_physics(rows)
        results = self._receive(rows)
        physics = []
        for row in rows:
            state = results[row].physics
            assert state is not None
            physics.append(state)
        frames = self._renderer.draw([self._init_states[row] for row in rows], physics)
        return None if frames is None else tuple(frames)

    def close_extras(self, **kwargs: Any) -> None:
        """End the processes that simulate and render."""
        self._simulators.close()
        self._renderer.close()


def _info_arrays(info: np.ndarray, has_info: np.ndarray) -> dict[str, Any]:
    """Return infos (N, 7) as Gymnasium's vector environments do: an array and a mask for each key."""
    infos: dict[str, Any] = {}
    if has_info.any():
        for key, values in zip(INFO_KEYS, info.T, strict=True):
            infos[key] = np.where(has_info, values, 0.0)
            infos[f"_{key}"] = has_info.copy()
    return infos

"""Calibration of a monitor on episodes of its policy, and its judgment on others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from act_kit.config.evaluation import MonitorConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import CheckpointError, ConfigError, DatasetError
from act_kit.eval.evaluate import ProgressFunction, roll_sets
from act_kit.eval.init_state_sets import Kind, check_disjoint, make_init_state_set
from act_kit.eval.results import success_rate
from act_kit.finetuning.run import CONFIG as FINETUNE_CONFIG
from act_kit.finetuning.run import load_run as load_finetuned
from act_kit.monitoring.monitor import Monitor, features
from act_kit.monitoring.result import MonitoredEpisode, MonitorResult
from act_kit.policies.policy import Policy
from act_kit.policies.storage import find_checkpoint
from act_kit.rollouts.agents import Agent
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.recorder import EpisodeRules
from act_kit.rollouts.rollout import RolloutFunction
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.statistics import conformal_threshold, fewest_conformal_scores
from act_kit.training.run import config_of, load_run

RULES = EpisodeRules(ends_at_success=True)
"""Episodes end with the first success: what happens afterwards needs no monitor."""


def choose_task(policy: Policy, task: str | None) -> str:
    """Return the task to monitor, by default the only one of the policy.

    Raises:
        ConfigError: The policy has several, or was not trained on ``task``.
    """
    names = ", ".join(policy.tasks)
    if task is None and len(policy.tasks) > 1:
        raise ConfigError(f"The policy has several tasks: {names}. Fix: --task {policy.tasks[0]}")
    if task is not None and task not in policy.tasks:
        raise ConfigError(f"The policy was trained on {names}, not on {task}. Fix: --task {policy.tasks[0]}")
    return task or policy.tasks[0]


def demonstrated_states(policy: Policy, task: str) -> list[np.ndarray]:
    """Load the states, (T, 39), of each successful demonstration of a task that a policy was trained on.

    Raises:
        CheckpointError: The checkpoint is not in a run, whose configuration names the datasets.
        DatasetError: A dataset is missing, differs from the one that the policy was trained on, or has no successes.
    """
    found: list[np.ndarray] = []
    for path in _datasets(policy):
        store = EpisodeStore.open(path)
        if store.content_fingerprint not in policy.metadata.fingerprints:
            raise DatasetError(f"{path} has changed since the policy was trained on it. Fix: train again.")
        if store.info.task == task:
            episodes = store.steps_by_episode("state")
            found += [episodes[i] for i in np.flatnonzero(store.success_steps >= 0)]
    if not found:
        raise DatasetError(f"No demonstration of {task} succeeded: there are no states to compare with.")
    return found


def _datasets(policy: Policy) -> list[Path]:
    """Return the paths of a policy's datasets; a fine-tuned policy has those of its base."""
    checkpoint = policy.folder
    while checkpoint and (checkpoint.parents[1] / FINETUNE_CONFIG).exists():
        checkpoint = find_checkpoint(load_finetuned(checkpoint.parents[1])[0]).resolve()
    if checkpoint is None or config_of(checkpoint) is None:
        raise CheckpointError(f"{checkpoint} is not in a run, so its datasets are unknown. Fix: act monitor RUN")
    return load_run(checkpoint.parents[1])[1]


def make_monitor(task: str, demonstrated: Sequence[np.ndarray]) -> Monitor:
    """Return a monitor without a threshold, given the states, (T, 39), of each demonstration of a task."""
    return Monitor(task, np.concatenate(list(map(features, demonstrated))))


def calibrate(monitor: Monitor, episodes: Sequence[Episode], alpha: float) -> int:
    """Set the threshold so that at most a fraction ``alpha`` of successful episodes raises an alarm.

    Returns:
        The number of steps that successful episodes exceed as rarely.

    Raises:
        ConfigError: Too few episodes succeeded for such an ``alpha``.
    """
    succeeded = [episode for episode in episodes if episode.success_once]
    needed = fewest_conformal_scores(alpha)
    if len(succeeded) < needed:
        fixes = "more --episodes or a larger --alpha" if succeeded else "act doctor RUN: the policy never succeeds"
        raise ConfigError(
            f"The policy succeeded in {len(succeeded)} of {len(episodes)} episodes: a false-alarm rate of at most "
            f"{alpha:g} needs {needed} successful ones to calibrate. Fix: {fixes}"
        )
    largest_N = np.array([monitor.distances(episode.state).max() for episode in succeeded])
    monitor.threshold = conformal_threshold(largest_N, alpha)
    return int(conformal_threshold(np.array(list(map(len, succeeded))), alpha))


def measure_monitor(
    policy: Policy,
    agent: Agent,
    task: str,
    config: MonitorConfig,
    *,
    roll: RolloutFunction,
    on_progress: ProgressFunction = lambda agent_name, progress, num_episodes: None,
) -> tuple[Monitor, MonitorResult]:
    """Calibrate a monitor of ``agent``, which runs ``policy``, and judge it by other episodes.

    Raises:
        ActKitError: The demonstrations are unknown, or too few episodes succeed; see :func:`demonstrated_states`
            and :func:`calibrate`.
    """
    monitor = make_monitor(task, demonstrated_states(policy, task))
    known = policy.metadata.init_states_of(task)
    judged_set = make_init_state_set(task, cast(Kind, config.init_states), config.episodes, config.seed, known)
    check_disjoint(judged_set, known)
    init_states = InitialStateDistribution(task).sample(config.episodes, seed=config.seed, stream="monitor")
    (calibrating,) = roll_sets(roll, "calibrate", agent, [init_states], on_progress, rules=RULES)
    time_limit = calibrate(monitor, calibrating, config.alpha)
    (judged,) = roll_sets(roll, "judge", agent, [judged_set.init_states], on_progress, rules=RULES)
    result = MonitorResult(
        task=task,
        config=config,
        calibration=success_rate(calibrating),
        threshold=monitor.threshold,
        time_limit=time_limit,
        episodes=watch(monitor, judged),
        provenance={
            "checkpoint": str(policy.folder),
            "weights": policy.weights_hash,
            "datasets": policy.metadata.fingerprints,
            "init_state_set": judged_set.hash,
        },
    )
    return monitor, result


def watch(monitor: Monitor, episodes: Sequence[Episode]) -> list[MonitoredEpisode]:
    """Return what a monitor says in recorded episodes; those that crashed before the first step are left out."""
    watched: list[MonitoredEpisode] = []
    for episode in filter(len, episodes):
        distances = monitor.distances(episode.state)
        alarm_step = monitor.alarm_step(distances)
        watched.append(MonitoredEpisode(distances=distances, success=episode.success_once, alarm_step=alarm_step))
    return watched

"""Collection of demonstrations: successful episodes are kept (all of them with a policy), every attempt is recorded.

An attempt depends only on its number, and attempts are stored in order. So one process and many write the same bytes,
uninterrupted or after any number of interruptions.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from act_kit.collection.demonstrators import make_demonstrator
from act_kit.collection.replay import replayed_init_states
from act_kit.config.collection import CollectConfig
from act_kit.datasets.schema import DatasetInfo
from act_kit.datasets.store import EpisodeStore, set_attributes
from act_kit.errors import DatasetError
from act_kit.files import next_free_path, quoted
from act_kit.outputs import finish_output
from act_kit.parallel import Executor
from act_kit.rollouts.agents import Agent
from act_kit.rollouts.episode import AttemptRecord, Episode
from act_kit.rollouts.rollout import rollout
from act_kit.sim.initial_states import InitialState, InitialStateDistribution, Stream
from act_kit.sim.tasks import CONTROL_HZ, HORIZON
from act_kit.sim.threads import cache_per_thread
from act_kit.sim.vector import VectorSimulator
from act_kit.versions import git_commit, versions

COMMIT_EVERY = 50
"""Attempts between two commits: a kill loses at most as many, and a commit takes about 50 ms."""

_MAX_FAILED_ATTEMPTS = 20
"""Attempts without a success after which a collection stops with an error."""


def _make_agent_and_simulators(config: CollectConfig, parent: str) -> tuple[Agent, VectorSimulator]:
    """Make an agent and a simulator.

    ``parent``, a fingerprint, is part of the cache's key: another policy may have been at the same path before.
    """
    return make_demonstrator(config), VectorSimulator(0, engine=config.sim.engine)


_agent_and_simulators = cache_per_thread(_make_agent_and_simulators, 1)
"""Agent and simulator of this thread; making them takes longer than an episode."""


def run_attempt(config: CollectConfig, parent: str, index: int, init_state: InitialState) -> Episode:
    """Run attempt number ``index`` in this process."""
    agent, simulators = _agent_and_simulators(config, parent)
    (episode,) = rollout(
        simulators,
        agent,
        [init_state],
        first_attempt=index,
        steps_after_success=config.steps_after_success,
        rewards=config.rewards,
        physics=True,
    )
    if episode.crash is not None:
        raise RuntimeError(f"The simulation of attempt {index} failed: {episode.crash}")
    return episode


def _init_states(config: CollectConfig) -> list[InitialState]:
    """Return the initial states of all attempts, also of those that may not be needed."""
    # The number of attempts is bounded: where nearly all fail, something is wrong.
    is_exact = config.init_distribution == "grid" or config.keeps_failures
    num = config.n if is_exact else 4 * config.n + _MAX_FAILED_ATTEMPTS
    if config.demonstrator == "replay":
        return replayed_init_states(config, num)
    stream: Stream = "correct" if config.demonstrator == "policy" else "collect"
    num_drawn = min(config.num_init_states or num, num)
    drawn = InitialStateDistribution(config.task, config.init_distribution).sample(
        num_drawn, seed=config.seed, stream=stream
    )
    return [drawn[index % num_drawn] for index in range(num)]


def make_dataset_info(config: CollectConfig, parent: dict[str, Any] | None) -> DatasetInfo:
    """Return the attributes of the dataset that ``config`` describes; ``parent`` is that of its demonstrator."""
    init_distribution = config.init_distribution
    if config.demonstrator == "replay":
        init_distribution = "near dataset" if config.replay.init_perturbation else "dataset"
    return DatasetInfo(
        task=config.task,
        num_wanted=config.n,
        seed=config.seed,
        init_distribution=init_distribution,
        demonstrator=config.demonstrator,
        noise=config.action_noise,
        steps_after_success=config.steps_after_success,
        command=config.command,
        versions=versions(),
        git_commit=git_commit(),
        horizon=HORIZON,
        control_hz=CONTROL_HZ,
        parents=[parent] if parent else [],
    )


def collect(
    config: CollectConfig,
    path: Path,
    *,
    executor: Executor,
    resume: bool = False,
    on_progress: Callable[[int, int], None] = lambda num_kept, num_attempts: None,
) -> EpisodeStore:
    """Collect the dataset that ``config`` describes into ``path``, or resume it, and return it finished.

    With ``resume``, a dataset that does not exist is collected from the beginning.

    An interruption (Ctrl-C, or an exception, also of ``on_progress``) stores all attempts so far; a kill loses those
    since the last commit. In both cases ``resume=True`` completes the dataset to the bytes of an uninterrupted run,
    also with a larger ``config.n`` if its first episodes are the existing ones.

    ``on_progress`` is called after every attempt, with the numbers of kept episodes and of attempts.

    Raises:
        DatasetError: The success rate of the demonstrator is too low, or the dataset to resume has other options.
    """
    info = make_dataset_info(config, make_demonstrator(config).parent)
    store = _resume(config, info, path) if resume and path.exists() else None
    parent = str(info.parents[0]["fingerprint"]) if info.parents else ""
    num_attempts = len(store.attempts()) if store else 0
    num_kept = store.num_episodes if store else 0
    noise_flags = "--noise or --init-perturbation" if config.demonstrator == "replay" else "--noise"
    episodes: list[Episode] = []
    attempts: list[AttemptRecord] = []

    def commit() -> None:
        if store and attempts:
            store.append(episodes, attempts)
            episodes.clear()
            attempts.clear()

    init_states = enumerate(_init_states(config)[num_attempts:], start=num_attempts)
    jobs = ((config, parent, index, init_state) for index, init_state in init_states)
    with closing(executor.map(run_attempt, jobs)) as results:
        try:
            while num_kept < config.n:
                episode = next(results, None)
                if episode is None:
                    break
                if store is None:
                    store = EpisodeStore.create(path, info, episode)
                kept = config.keeps_failures or episode.success_once
                attempts.append(AttemptRecord(init_state=episode.init_state, num_steps=len(episode), kept=kept))
                num_attempts += 1
                if kept:
                    episodes.append(episode)
                    num_kept += 1
                on_progress(num_kept, num_attempts)
                if num_attempts >= _MAX_FAILED_ATTEMPTS and not num_kept:
                    raise DatasetError(
                        f"The {config.demonstrator} demonstrator failed all of its first {num_attempts} attempts at "
                        f"{config.task} (initial-state distribution '{info.init_distribution}', noise {info.noise}). "
                        f"Fix: another --seed, or less {noise_flags}"
                    )
                if len(attempts) >= COMMIT_EVERY:
                    commit()
        finally:
            commit()
    assert store is not None, "a collection makes at least one attempt"
    if num_kept < config.n and config.init_distribution != "grid":
        raise DatasetError(
            f"Only {num_kept} of {num_attempts} attempts at {config.task} succeeded: expected {config.n}. Their "
            f"episodes are in {path}. Fix: less {noise_flags}, or a smaller --n"
        )
    store.finish()
    finish_output(path)
    return store


def _resume(config: CollectConfig, info: DatasetInfo, path: Path) -> EpisodeStore:
    store = reopen(config, info, path)
    if store.info.num_wanted == config.n:
        return store
    recorded = [attempt.init_state for attempt in store.attempts()]
    mixes_by_n = config.demonstrator == "policy" and config.dagger.expert_first != config.dagger.expert_last
    return extend(store, info, depends_on_n=mixes_by_n or _init_states(config)[: len(recorded)] != recorded)


def reopen(config: CollectConfig, info: DatasetInfo, path: Path) -> EpisodeStore:
    """Open the dataset to resume, and drop what a killed process left uncommitted.

    Raises:
        DatasetError: The dataset is damaged, was not collected, or was collected with other options than ``config``,
            except ``n``, from another source, or with other versions.
    """
    store = EpisodeStore.open(path, writable=True)
    recorded = store.info
    if recorded.command.split()[:2] != ["act", "collect"]:
        raise DatasetError(
            f"{path} was not collected, but made by: {recorded.command}. Fix: collect into another --out, and merge "
            "both with act data merge"
        )
    was, now = _options_of(recorded.command), _options_of(info.command)
    if was != now:
        differences: list[str] = []
        for key in dict.fromkeys([*was, *now]):
            old, new = was.get(key, "not given"), now.get(key, "not given")
            if old != new:
                differences.append(f"{key} was {old}, now {new}")
        raise DatasetError(
            f"{path} was collected with other options: {'; '.join(differences)}. Resume with: {recorded.command} "
            f"--out {quoted(path)} --resume"
        )
    if recorded.parents != info.parents:
        raise DatasetError(
            f"{info.parents[0]['path']} has changed since {path} was collected with it: the episodes would be "
            f"inconsistent. Fix: collect the dataset again: {store.reproduce_command}"
        )
    if recorded.versions != info.versions:
        raise DatasetError(
            f"{path} was collected with {recorded.versions}, but {info.versions} is installed: the episodes would be "
            f"inconsistent. Fix: install those versions, or collect the dataset again: {store.reproduce_command}"
        )
    store.check_content()  # a new fingerprint would hide damage
    store.recover()
    return store


def extend(store: EpisodeStore, info: DatasetInfo, *, depends_on_n: bool) -> EpisodeStore:
    """Reopen a dataset for the larger number of episodes in ``info``.

    ``depends_on_n`` is True if the existing episodes would be others with that number.

    Raises:
        DatasetError: The dataset has that many episodes already, or the episodes depend on their number.
    """
    num, wanted = store.num_episodes, info.num_wanted
    if num >= wanted:
        raise DatasetError(
            f"{store.path} already holds {num} episodes: expected fewer than {wanted}. Fix: a larger --n, or select "
            f"some of them: act data filter {quoted(store.path)} --where 'episode < {wanted}' --out "
            f"{quoted(next_free_path(store.path))}"
        )
    if depends_on_n:
        raise DatasetError(
            f"{store.path} was collected with --n {store.info.num_wanted}, and its episodes depend on it: with --n "
            f"{wanted} they would differ. Fix: collect into another --out, with another --seed, and merge both with "
            "act data merge"
        )
    set_attributes(store.group, {"num_wanted": wanted, "command": info.command, "fingerprint": None})
    return EpisodeStore.open(store.path, writable=True)


def _options_of(command: str) -> dict[str, str]:
    """Return the options of a collection's command except --n, by flag or key."""
    words = iter(shlex.split(command)[2:])
    options: dict[str, str] = {}
    for word in words:
        key, is_override, value = word.partition("=")
        options[key] = value if is_override else next(words, "")
    options.pop("--n", None)
    return options

"""Collecting demonstrations: attempts from the starts of a law, successes kept, every attempt on record.

An attempt depends on its number and nothing else, and attempts are stored in their order. So the same bytes come from
one process and from many, in one go or after any number of interruptions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from act_kit.collection.demonstrators import DEMONSTRATORS, Demonstrator
from act_kit.collection.recorder import Recorder
from act_kit.config import CollectConfig
from act_kit.datasets.episode import Attempt, Episode
from act_kit.datasets.store import DatasetInfo, EpisodeStore
from act_kit.errors import DatasetError
from act_kit.executors import Executor
from act_kit.sim.simulator import Simulator
from act_kit.sim.starts import Start, StartLaw
from act_kit.sim.tasks import CONTROL_HZ, HORIZON
from act_kit.versions import git_commit, versions

COMMIT_EVERY = 50
"""Attempts between two commits: what a kill can cost, against about 50 ms for each commit."""

_HOPELESS = 20
"""Attempts without one success after which a collection gives up."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a collection stands: told after every attempt."""

    num_kept: int
    num_attempts: int


def collect_episode(
    simulator: Simulator,
    demonstrator: Demonstrator,
    start: Start,
    *,
    attempt: int = 0,
    seed: int = 0,
    noise: float = 0.0,
    steps_after_success: int = 10,
    rewards: bool = False,
) -> Episode:
    """Demonstrate from ``start`` until some steps after the first success, or to the horizon.

    With ``noise`` (a standard deviation, in units of the action), the executed action is disturbed and the clean one is
    the label, so that the data show how to recover (DART, Laskey et al. 2017).
    """
    rng = np.random.default_rng([seed, attempt])
    recorder = Recorder(simulator, steps_after_success=steps_after_success, rewards=rewards)
    recorder.begin(start)
    while recorder.steps_left:
        action = demonstrator.act(recorder.state)
        disturbance = noise * rng.standard_normal(4) if noise else 0.0
        recorder.step(action, np.clip(action + disturbance, -1.0, 1.0).astype(np.float32))
    return recorder.episode(attempt=attempt, source=demonstrator.source)


@functools.lru_cache(maxsize=1)
def _stage(task: str, demonstrator: str, engine: str) -> tuple[Simulator, Demonstrator]:
    """Return this process's simulator and demonstrator; building them takes longer than an episode."""
    return Simulator(task, engine), DEMONSTRATORS[demonstrator](task)


def attempt(config: CollectConfig, index: int, start: Start) -> Episode:
    """Make attempt number ``index``, in whatever process this is."""
    simulator, demonstrator = _stage(config.task, config.demonstrator, config.sim.engine)
    return collect_episode(
        simulator, demonstrator, start,
        attempt=index, seed=config.seed, noise=config.noise, steps_after_success=config.steps_after_success,
        rewards=config.rewards,
    )  # fmt: skip


def _attempts(config: CollectConfig, first: int, executor: Executor) -> Generator[Episode]:
    """Yield the attempts from number ``first`` on, in order."""
    # Where nearly every attempt fails there is something to mend, not to wait for.
    num = config.n if config.start_law == "grid" else 4 * config.n + _HOPELESS
    num_drawn = min(config.distinct_starts or num, num)
    starts = StartLaw(config.task, config.start_law).sample(num_drawn, seed=config.seed, stream="collect")
    return executor.map(attempt, [(config, index, starts[index % num_drawn]) for index in range(first, num)])


def describe(config: CollectConfig) -> DatasetInfo:
    """Return the attributes of the dataset that ``config`` asks for."""
    return DatasetInfo(
        task=config.task,
        num_wanted=config.n,
        seed=config.seed,
        start_law=config.start_law,
        demonstrator=config.demonstrator,
        noise=config.noise,
        steps_after_success=config.steps_after_success,
        command=config.command,
        versions=versions(),
        git_commit=git_commit(),
        horizon=HORIZON,
        control_hz=CONTROL_HZ,
    )


def collect(
    config: CollectConfig,
    path: Path,
    *,
    executor: Executor,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> EpisodeStore:
    """Collect the dataset that ``config`` describes into ``path``, or go on with it, and return it finished.

    Interrupted (Ctrl-C, an exception, also one of ``on_progress``), it stores what it has before it lets go; killed, it
    loses the attempts since the last commit. Either way ``resume=True`` completes it to the bytes of an uninterrupted
    run.

    Raises:
        DatasetError: The demonstrator hardly ever succeeds, or the dataset to resume was begun otherwise.
    """
    store = _reopen(config, path) if resume else None
    num_attempts = store.recover() if store else 0
    num_kept = store.num_episodes if store else 0
    episodes: list[Episode] = []
    attempts: list[Attempt] = []

    def commit() -> None:
        if store and attempts:
            store.append(episodes, attempts)
            episodes.clear()
            attempts.clear()

    with closing(_attempts(config, num_attempts, executor)) as outcomes:
        try:
            while num_kept < config.n:
                episode = next(outcomes, None)
                if episode is None:
                    break
                if store is None:
                    store = EpisodeStore.create(path, describe(config), episode)
                kept = episode.success_step >= 0
                attempts.append(Attempt(start=episode.start, num_steps=len(episode), kept=kept))
                num_attempts += 1
                if kept:
                    episodes.append(episode)
                    num_kept += 1
                on_progress(Progress(num_kept=num_kept, num_attempts=num_attempts))
                if num_attempts >= _HOPELESS and not num_kept:
                    raise DatasetError(
                        f"The {config.demonstrator} demonstrator failed all of its first {num_attempts} attempts at "
                        f"{config.task} (start law '{config.start_law}', noise {config.noise}). "
                        "Try another --seed, or less --noise."
                    )
                if len(attempts) >= COMMIT_EVERY:
                    commit()
        finally:
            commit()
    assert store is not None, "a collection makes at least one attempt"
    if num_kept < config.n and config.start_law != "grid":
        raise DatasetError(
            f"Only {num_kept} of {num_attempts} attempts at {config.task} succeeded, {config.n} "
            f"were asked for; what there is, is in {path}. Try less --noise."
        )
    store.finish()
    return store


def _reopen(config: CollectConfig, path: Path) -> EpisodeStore:
    store = EpisodeStore.open(path, writable=True)
    begun, asked = store.info, describe(config)
    if begun.command != asked.command:
        raise DatasetError(f"{path} was begun otherwise. To go on with it: {begun.command} --out {path} --resume")
    if begun.versions != asked.versions:
        raise DatasetError(
            f"{path} was begun with {begun.versions}, here is {asked.versions}: its bytes would not fit together. "
            f"Install those versions, or collect it anew: {begun.command} --out {path} --overwrite"
        )
    return store

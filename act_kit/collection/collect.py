"""Collecting demonstrations: attempts from given starts, successes kept (of a policy all), every attempt on record.

An attempt depends on its number and nothing else, and attempts are stored in their order. So the same bytes come from
one process and from many, in one go or after any number of interruptions.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.collection.demonstrators import Demonstrator, make_demonstrator
from act_kit.collection.recorder import Recorder
from act_kit.collection.replay import replayed_init_states
from act_kit.config import CollectConfig
from act_kit.datasets.store import DatasetInfo, EpisodeStore
from act_kit.errors import DatasetError
from act_kit.files import finish_output, quoted
from act_kit.parallel import Executor
from act_kit.rollouts.episode import Attempt, Episode
from act_kit.sim.initial_states import InitialState, InitialStateDistribution, Stream
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import CONTROL_HZ, HORIZON
from act_kit.sim.threads import cache_per_thread
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
    init_state: InitialState,
    *,
    attempt: int = 0,
    seed: int = 0,
    noise: float = 0.0,
    steps_after_success: int = 10,
    rewards: bool = False,
) -> Episode:
    """Demonstrate from ``init_state`` until some steps after the first success, to the demonstrator's end or the horizon.

    With ``noise`` (a standard deviation, in units of the action), the executed action is disturbed and the clean one is
    the label, so that the data show how to recover (DART, Laskey et al. 2017).
    """
    rng = np.random.default_rng([seed, attempt])
    recorder = Recorder(simulator, steps_after_success=steps_after_success, rewards=rewards)
    recorder.begin(init_state)
    demonstrator.begin(init_state, attempt)
    while recorder.steps_left and (decision := demonstrator.act(recorder.state)) is not None:
        action, carried_out = decision
        disturbance = noise * rng.standard_normal(4) if noise else 0.0
        recorder.step(action, np.clip(carried_out + disturbance, -1.0, 1.0).astype(np.float32))
    return recorder.episode(attempt=attempt, source=demonstrator.source)


def _make_stage(config: CollectConfig, parent: str) -> tuple[Simulator, Demonstrator]:
    """Make a simulator and a demonstrator.

    ``parent``, a fingerprint, tells a policy from the one that lay at the same path before.
    """
    return Simulator(config.task, config.sim.engine), make_demonstrator(config)


_stage = cache_per_thread(_make_stage, 1)
"""This thread's; making them takes longer than an episode."""


def attempt(config: CollectConfig, parent: str, index: int, init_state: InitialState) -> Episode:
    """Make attempt number ``index``, in whatever process this is."""
    simulator, demonstrator = _stage(config, parent)
    return collect_episode(
        simulator, demonstrator, init_state,
        attempt=index, seed=config.seed, noise=config.noise, steps_after_success=config.steps_after_success,
        rewards=config.rewards,
    )  # fmt: skip


def _init_states(config: CollectConfig) -> list[InitialState]:
    """Return the starts of all attempts that may be made."""
    # Where nearly every attempt fails there is something to mend, not to wait for.
    is_all = config.init_distribution == "grid" or config.keeps_failures
    num = config.n if is_all else 4 * config.n + _HOPELESS
    if config.demonstrator == "replay":
        return replayed_init_states(config, num)
    stream: Stream = "correct" if config.demonstrator == "policy" else "collect"
    num_drawn = min(config.num_init_states or num, num)
    drawn = InitialStateDistribution(config.task, config.init_distribution).sample(
        num_drawn, seed=config.seed, stream=stream
    )
    return [drawn[index % num_drawn] for index in range(num)]


def _attempts(config: CollectConfig, parent: str, first: int, executor: Executor) -> Generator[Episode]:
    """Yield the attempts from number ``first`` on, in order."""
    init_states = _init_states(config)
    return executor.map(
        attempt, [(config, parent, index, init_states[index]) for index in range(first, len(init_states))]
    )


def _init_distribution(config: CollectConfig) -> str:
    if config.demonstrator == "replay":
        return "near dataset" if config.replay.init_perturbation else "dataset"
    return config.init_distribution


def describe(config: CollectConfig, parent: dict[str, Any] | None) -> DatasetInfo:
    """Return the attributes of the dataset that ``config`` asks for; ``parent`` is what its demonstrator is made of."""
    return DatasetInfo(
        task=config.task,
        num_wanted=config.n,
        seed=config.seed,
        init_distribution=_init_distribution(config),
        demonstrator=config.demonstrator,
        noise=config.noise,
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
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> EpisodeStore:
    """Collect the dataset that ``config`` describes into ``path``, or resume it, and return it finished.

    With ``resume``, what was not begun yet is begun.

    Interrupted (Ctrl-C, an exception, also one of ``on_progress``), it stores what it has before it lets go; killed, it
    loses the attempts since the last commit. Either way ``resume=True`` completes it to the bytes of an uninterrupted
    run, of more episodes too where they would begin with those that are there.

    Raises:
        DatasetError: The demonstrator hardly ever succeeds, or the dataset to resume was begun otherwise.
    """
    info = describe(config, make_demonstrator(config).parent)
    store = _reopen(config, info, path) if resume and path.exists() else None
    parent = str(info.parents[0]["fingerprint"]) if info.parents else ""
    num_attempts = store.recover() if store else 0
    num_kept = store.num_episodes if store else 0
    less = "--noise or --init-perturbation" if config.demonstrator == "replay" else "--noise"
    episodes: list[Episode] = []
    attempts: list[Attempt] = []

    def commit() -> None:
        if store and attempts:
            store.append(episodes, attempts)
            episodes.clear()
            attempts.clear()

    with closing(_attempts(config, parent, num_attempts, executor)) as outcomes:
        try:
            while num_kept < config.n:
                episode = next(outcomes, None)
                if episode is None:
                    break
                if store is None:
                    store = EpisodeStore.create(path, info, episode)
                kept = config.keeps_failures or episode.success_step >= 0
                attempts.append(Attempt(init_state=episode.init_state, num_steps=len(episode), kept=kept))
                num_attempts += 1
                if kept:
                    episodes.append(episode)
                    num_kept += 1
                on_progress(Progress(num_kept=num_kept, num_attempts=num_attempts))
                if num_attempts >= _HOPELESS and not num_kept:
                    raise DatasetError(
                        f"The {config.demonstrator} demonstrator failed all of its first {num_attempts} attempts at "
                        f"{config.task} (start law '{info.init_distribution}', noise {config.noise}). "
                        f"Try another --seed, or less {less}."
                    )
                if len(attempts) >= COMMIT_EVERY:
                    commit()
        finally:
            commit()
    assert store is not None, "a collection makes at least one attempt"
    if num_kept < config.n and config.init_distribution != "grid":
        raise DatasetError(
            f"Only {num_kept} of {num_attempts} attempts at {config.task} succeeded, {config.n} "
            f"were asked for; what there is, is in {path}. Try less {less}, or a smaller --n."
        )
    store.finish()
    finish_output(path)
    return store


def _reopen(config: CollectConfig, asked: DatasetInfo, path: Path) -> EpisodeStore:
    """Open the dataset that ``config`` began, or one of fewer episodes that is the beginning of it to the byte."""
    store = EpisodeStore.open(path, writable=True)
    begun = store.info
    again = f"{begun.command} --out {quoted(path)}"
    if _without_n(begun.command) != _without_n(asked.command):
        raise DatasetError(
            f"{path} was begun with other options: {_differences(begun.command, asked.command)}. Fix: resume with "
            f"those it was begun with: {again} --resume"
        )
    if begun.parents != asked.parents:
        raise DatasetError(
            f"{asked.parents[0]['path']} has changed since {path} was begun with it: its bytes would not fit together. "
            f"Fix: collect it again: {store.command_again}"
        )
    if begun.versions != asked.versions:
        raise DatasetError(
            f"{path} was begun with {begun.versions}, here is {asked.versions}: its bytes would not fit together. "
            f"Fix: install those versions, or collect it again: {store.command_again}"
        )
    if begun.num_wanted != config.n:
        _require_beginning(store, config)
        store.group.attrs.update({"num_wanted": config.n, "command": asked.command, "fingerprint": None})
        store = EpisodeStore.open(path, writable=True)
    return store


def _require_beginning(store: EpisodeStore, config: CollectConfig) -> None:
    """Refuse another number of episodes where the episodes that are there would not be its first ones.

    Raises:
        DatasetError: They would not be.
    """
    begun = store.info.num_wanted
    if store.num_episodes >= config.n:
        raise DatasetError(
            f"{store.path} holds {store.num_episodes} episodes already, not fewer than the {config.n} asked for. Fix: "
            f"a larger --n, or take some of them: act data filter --where 'episode < {config.n}'"
        )
    store.recover()
    depends = config.demonstrator == "policy" and config.dagger.expert_first != config.dagger.expert_last
    recorded = [attempt.init_state for attempt in store.attempts()]
    if depends or _init_states(config)[: len(recorded)] != recorded:
        raise DatasetError(
            f"{store.path} was begun with --n {begun}, on which its episodes depend here: with --n {config.n} they "
            "would be others. Fix: collect into another --out, with another --seed, and join them: act data merge"
        )


def _options_of(command: str) -> dict[str, str]:
    """Return the options of a collection's command, by flag or key."""
    words = shlex.split(command)[2:]
    found: dict[str, str] = {}
    while words:
        word = words.pop(0)
        key, is_override, value = word.partition("=")
        if word.startswith("--"):
            found[word] = words.pop(0) if words and not words[0].startswith("--") else ""
        elif is_override:
            found[key] = value
    return found


def _without_n(command: str) -> dict[str, str]:
    return {key: value for key, value in _options_of(command).items() if key != "--n"}


def _differences(begun: str, asked: str) -> str:
    was, wanted = _without_n(begun), _without_n(asked)
    keys = [key for key in {**was, **wanted} if was.get(key) != wanted.get(key)]
    return "; ".join(f"{key} was {was.get(key, 'not given')}, now {wanted.get(key, 'not given')}" for key in keys)

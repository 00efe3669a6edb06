"""``collect``: demonstrations from randomized initial states, written to a dataset."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act_kit import interrupts, options
from act_kit.api.progress import OnProgress, Progress, ignore, log
from act_kit.config.collection import CollectConfig
from act_kit.errors import ConfigError, install_hint
from act_kit.files import quoted, require_space
from act_kit.outputs import locked, prepare_output
from act_kit.overrides import compose
from act_kit.preflight import require_free, require_one_dataset, require_run, require_writable
from act_kit.processors import num_cpus
from act_kit.workers import end_if_importing

if TYPE_CHECKING:
    from act_kit.datasets.store import EpisodeStore
    from act_kit.parallel import Executor

_EPISODE_BYTES = 150 * 3000
"""Size of an episode of 150 uncompressed steps; compression reduces most to a fifth."""


def collect(
    task: str | None = None,
    n: int | None = None,
    *,
    overrides: Sequence[str] = (),
    config: CollectConfig | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    executor: str = "local",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = ignore,
    **flags: Any,
) -> EpisodeStore:
    """Collect demonstrations of one task into a dataset, as ``act collect`` does, and return it.

    Args:
        task, n: Options of :class:`CollectConfig`; None for the value of ``config``.
        overrides: Options as on the command line, such as ``rewards=true``.
        config: Options; by default :class:`CollectConfig`'s.
        out: Folder of the dataset; by default ``data/TASK``.
        workers: Simulation processes; 0 = one per processor. Never changes the result.
        executor: ``local``, or ``ray``, the cluster at RAY_ADDRESS.
        resume: Resume a stopped collection, or start a new one; ``n`` may be larger than before.
        overwrite: Replace the content of ``out``.
        on_progress: Receives the number of demonstrations after every attempt.
        flags: Options with a flag: ``seed``, ``init_distribution``, ``num_init_states``, ``demonstrator``, ``noise``,
            …; None for the value of ``config``.

    Raises:
        ActKitError: An option is invalid, ``out`` exists, or too many attempts fail.
    """
    end_if_importing()
    flags = options.by_key(CollectConfig, {"task": task, "n": n, **flags})
    config = compose(CollectConfig, overrides, flags, config)
    datasets = {Path(out) if out else Path("data") / config.task: config}
    (store,) = collect_datasets(
        datasets, workers=workers, executor=executor, resume=resume, overwrite=overwrite, on_progress=on_progress
    )
    return store


def check_collection(datasets: Mapping[Path, CollectConfig], *, resume: bool, overwrite: bool) -> None:
    """Refuse an unknown task, initial-state distribution or demonstrator, and an unusable source or output."""
    from act_kit.sim.initial_states import InitialStateDistribution

    for folder, config in datasets.items():
        InitialStateDistribution(config.task, config.init_distribution)
        if config.replay.dataset:
            require_one_dataset(Path(config.replay.dataset))
        if config.dagger.run:
            require_run(Path(config.dagger.run))
        if resume:
            require_writable(folder)
        else:
            require_free(folder, overwrite=overwrite, otherwise="The same command with --resume resumes it")
    from act_kit.collection.demonstrators import make_demonstrator
    from act_kit.sim.render import check_cameras

    for folder, config in datasets.items():
        if config.demonstrator == "teleop":
            check_cameras(config.teleop.cameras)
            if len(datasets) > 1:
                raise ConfigError(f"--demonstrator teleop takes one task at a time. Fix: --task {config.task}")
            continue
        parent = make_demonstrator(config).parent
        if parent and folder.resolve() == Path(parent["path"]).resolve():
            raise ConfigError(f"{parent['path']} is both source and output. Fix: choose another --out.")


def collect_datasets(
    datasets: Mapping[Path, CollectConfig],
    *,
    workers: int,
    executor: str,
    resume: bool,
    overwrite: bool,
    on_progress: OnProgress,
) -> Generator[EpisodeStore]:
    """Collect several datasets, which differ in their tasks, by the same processes; yield each when it is finished.

    ``datasets`` are the options by output folder. All are checked before the first is collected.
    """
    from act_kit.parallel import ExecutorConfig

    first_folder, first = next(iter(datasets.items()))
    executor_config = ExecutorConfig(executor=executor, num_workers=min(workers or num_cpus(), first.n))
    check_collection(datasets, resume=resume, overwrite=overwrite)
    with ExitStack() as stack:
        for folder in datasets:
            stack.enter_context(locked(folder))
            if not resume:
                prepare_output(folder, overwrite=overwrite, hint="--resume resumes it")
        tasks = f" of each of {len(datasets)} tasks" if len(datasets) > 1 else ""
        require_space(first_folder, len(datasets) * first.n * _EPISODE_BYTES, f"{first.n} demonstrations{tasks}")
        if first.num_init_states == 1 < first.n:
            log.warning(
                f"All {first.n} demonstrations share one initial state. A policy trained on them memorizes it and "
                "fails from every other; act train refuses them. Fix: --randomize"
            )
        running = None
        if first.demonstrator != "teleop":
            # A separate process with one thread: the number of threads must not change the result by a single bit.
            environment = {"OMP_NUM_THREADS": "1"} if first.demonstrator == "policy" else None
            running = stack.enter_context(executor_config.make_executor(environment))
        for folder, config in datasets.items():
            command = f"{config.command} --out {quoted(folder)} --resume"
            with interrupts.resume_command(command if len(datasets) == 1 else "the same command with --resume"):
                if running:
                    store = _collect(config, folder, executor=running, resume=resume, on_progress=on_progress)
                else:
                    store = _record(config, folder, resume=resume)
            yield store


def _record(config: CollectConfig, out: Path, *, resume: bool) -> EpisodeStore:
    """Record demonstrations by an operator."""
    try:
        from act_kit.collection.teleop.record import record
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--demonstrator teleop needs {error.name}, which is not installed. Fix: {install_hint('teleop')}"
        ) from error
    return record(config, out, resume=resume)


def _collect(
    config: CollectConfig, out: Path, *, executor: Executor, resume: bool, on_progress: OnProgress
) -> EpisodeStore:
    """Collect a dataset; Ctrl-C stops it between two attempts."""
    from act_kit.collection import collect as collecting
    from act_kit.statistics import percent

    with interrupts.deferred() as raise_if_interrupted:
        began: tuple[float, int] | None = None

        def show(num_kept: int, num_attempts: int) -> None:
            nonlocal began
            began = began or (time.monotonic(), num_kept)
            text = f"success {percent(num_kept / num_attempts)} % of {num_attempts}"
            seconds, num_new = time.monotonic() - began[0], num_kept - began[1]
            if seconds >= 1 and num_new > 0:
                text += f", {_rate(num_new / seconds)}"
            on_progress(Progress(stage=f"collect {config.task}", num_done=num_kept, num=config.n, text=text))
            raise_if_interrupted()

        return collecting.collect(config, out, executor=executor, resume=resume, on_progress=show)


def _rate(per_second: float) -> str:
    """Return a rate as text with two significant digits, such as ``3.2/s`` or ``12/min``."""
    if per_second >= 10:
        return f"{per_second:.0f}/s"
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.2g}/min"

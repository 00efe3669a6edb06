"""``act collect``: demonstrations from randomized initial states, written to a dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from act_kit import interrupts
from act_kit.cli.console import info, warn
from act_kit.cli.options import (
    DryRun,
    ExecutorName,
    Overrides,
    Overwrite,
    PrintConfig,
    Workers,
    count_workers,
    show_config,
)
from act_kit.cli.preflight import require_datasets, require_free, require_run, require_writable
from act_kit.config import CollectConfig
from act_kit.errors import ConfigError
from act_kit.files import quoted
from act_kit.overrides import compose

if TYPE_CHECKING:
    from act_kit.datasets.store import EpisodeStore

_STEP_BYTES = 3000
"""Size of an uncompressed step; compression reduces most to a fifth."""


def collect(
    context: typer.Context,
    overrides: Overrides = None,
    task: Annotated[
        str | None,
        typer.Option(help="Task, several tasks (a,b) or benchmark (MT10, MT50, …).", show_default="pick-place-v3"),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Demonstrations to keep.", show_default="50")] = None,
    randomize: Annotated[
        bool | None,
        typer.Option(
            "--randomize/--no-randomize",
            help="New initial state for each episode, or one for all.",
            show_default="randomize",
        ),
    ] = None,
    init_distribution: Annotated[
        str | None,
        typer.Option(help="Initial-state distribution: uniform, sobol, grid or mt1.", show_default="uniform"),
    ] = None,
    num_init_states: Annotated[
        int | None,
        typer.Option(help="Number of distinct initial states, used in turn.", show_default="one per episode"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the initial states and the noise.", show_default="0")
    ] = None,
    demonstrator: Annotated[
        str | None,
        typer.Option(
            help="scripted; teleop, by hand in a browser; policy, corrected by the scripted expert (DAgger); replay, "
            "the actions of a dataset.",
            show_default="scripted",
        ),
    ] = None,
    operator: Annotated[
        str | None, typer.Option(help="With teleop: name of the operator.", show_default="login name")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Run for --demonstrator policy, or dataset for --demonstrator replay.",
            show_default=False,
        ),
    ] = None,
    init_perturbation: Annotated[
        float | None,
        typer.Option(help="With replay: maximum shift of the initial states in meters.", show_default="0"),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="Standard deviation of the noise on the executed action (DART).", show_default="0"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the dataset; with several tasks, their parent folder.", show_default="data/TASK"),
    ] = None,
    workers: Workers = 0,
    executor: ExecutorName = "local",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume a stopped collection, or start a new one; --n may be larger than before."
        ),
    ] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
) -> None:
    """Collect successful demonstrations into a zarr dataset, by default each from a new random initial state.

    [dim]act collect --task pick-place-v3 --randomize --n 200[/]
    """
    from act_kit.files import require_space
    from act_kit.outputs import locked, prepare_output
    from act_kit.parallel import ExecutorConfig
    from act_kit.sim.tasks import expand_tasks

    flags = {
        "n": n,
        "seed": seed,
        "demonstrator": demonstrator,
        "noise": noise,
        "init_distribution": init_distribution,
        "num_init_states": _num_init_states(randomize, num_init_states),
        "replay.init_perturbation": init_perturbation,
        "teleop.operator": operator,
        **_source_option(demonstrator, source),
    }
    tasks = expand_tasks(task) if task else [None]
    first = compose("collect", CollectConfig, overrides or [], {"task": tasks[0], **flags})
    configs = [replace(first, task=name or first.task) for name in tasks]
    folders = {config.task: (out or Path("data")) / config.task for config in configs}
    if out and len(tasks) == 1:
        folders[first.task] = out
    executor_config = ExecutorConfig(executor=executor, num_workers=min(count_workers(workers), first.n))
    if print_config:
        show_config(first)
        return
    for config in configs:
        _check(config, folders[config.task], resume=resume, overwrite=overwrite)
    if dry_run:
        show_config(first, [f"would collect into {folder}" for folder in folders.values()])
        return
    from act_kit.cli.data_stages import run_collection, run_teleop
    from act_kit.collection.demonstrators import make_demonstrator

    for config in configs:
        if config.demonstrator == "teleop":
            from act_kit.sim.render import check_cameras

            check_cameras(config.teleop.cameras)
            if len(configs) > 1:
                raise ConfigError(f"--demonstrator teleop takes one task at a time. Fix: --task {config.task}")
            continue
        parent = make_demonstrator(config).parent
        if parent and folders[config.task].resolve() == Path(parent["path"]).resolve():
            raise ConfigError(f"{parent['path']} is both source and output. Fix: choose another --out.")
    for config in configs:
        context.with_resource(locked(folders[config.task]))
        if not resume:
            prepare_output(folders[config.task], overwrite=overwrite, hint="--resume resumes it")
    num_steps = 150 * sum(config.n for config in configs)
    content = f"{first.n} demonstrations" + (f" of each of {len(configs)} tasks" if len(configs) > 1 else "")
    require_space(folders[first.task], num_steps * _STEP_BYTES, content)
    if first.num_init_states == 1 < first.n:
        warn(
            f"All {first.n} demonstrations share one initial state. A policy trained on them memorizes it and fails "
            "from every other; act train refuses them. Fix: --randomize"
        )
    if first.demonstrator == "teleop":
        folder = folders[first.task]
        with interrupts.resume_command(_resume_command(first, folder)):
            _print_summary(first, run_teleop(first, folder, resume=resume), folder)
        _print_next_steps(folder)
        return
    # A separate process with one thread, because the number of threads must not change the result by a single bit.
    environment = {"OMP_NUM_THREADS": "1"} if first.demonstrator == "policy" else None
    with executor_config.make_executor(environment) as running:
        for config in configs:
            folder = folders[config.task]
            command = "the same command with --resume" if len(configs) > 1 else _resume_command(config, folder)
            with interrupts.resume_command(command):
                _print_summary(config, run_collection(config, folder, executor=running, resume=resume), folder)
    if len(configs) == 1:
        _print_next_steps(folders[first.task])


def _check(config: CollectConfig, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse an unknown task or initial-state distribution, a missing source, and an output that cannot be written."""
    from act_kit.sim.initial_states import InitialStateDistribution

    InitialStateDistribution(config.task, config.init_distribution)
    if config.replay.dataset:
        require_datasets([Path(config.replay.dataset)])
    if config.dagger.run:
        require_run(Path(config.dagger.run))
    if resume:
        require_writable(out)
    else:
        require_free(out, overwrite=overwrite, otherwise="The same command with --resume resumes it")


def _resume_command(config: CollectConfig, out: Path) -> str:
    return f"{config.command} --out {quoted(out)} --resume"


def _print_next_steps(out: Path) -> None:
    folder = quoted(out)
    info(f"Next: act report {folder} and act train --data {folder}")


def _print_summary(config: CollectConfig, store: EpisodeStore, out: Path) -> None:
    num_attempts = len(store.attempts())
    num_failed = num_attempts - int((store.success_steps >= 0).sum())
    info(
        f"{store.num_episodes} demonstrations, {store.num_steps} steps, {store.size_bytes() / 1e6:.1f} MB in {out} "
        f"({num_failed} of {num_attempts} attempts failed{', and are kept' if config.keeps_failures else ''})"
    )


def _source_option(demonstrator: str | None, path: str | None) -> dict[str, str | None]:
    """Return the configuration option that ``--source`` sets."""
    options = {"policy": "dagger.run", "replay": "replay.dataset"}
    if path is None:
        return {}
    if demonstrator not in options:
        raise ConfigError("--source requires --demonstrator policy or --demonstrator replay.")
    return {options[demonstrator]: path}


def _num_init_states(randomize: bool | None, num_init_states: int | None) -> int | None:
    """Resolve ``--no-randomize``, which means one initial state; None keeps the value of the configuration."""
    if randomize is None:
        return num_init_states
    if num_init_states not in (None, 0 if randomize else 1):
        flag = "--randomize" if randomize else "--no-randomize"
        raise ConfigError(
            f"{flag} and --num-init-states {num_init_states} contradict each other. Fix: leave one of them out."
        )
    return 0 if randomize else 1

"""``act collect``: demonstrations from randomised starts into a dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from act_kit import interrupts
from act_kit.cli.console import complain, say
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
"""Of an uncompressed step; compressed, most take a fifth."""


def collect(
    context: typer.Context,
    overrides: Overrides = None,
    task: Annotated[
        str | None,
        typer.Option(help="A task, several (a,b) or a benchmark (MT10, MT50, …).", show_default="pick-place-v3"),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Demonstrations to keep.", show_default="50")] = None,
    randomize: Annotated[
        bool | None,
        typer.Option(
            "--randomize/--no-randomize", help="New start each time, or one and the same.", show_default="randomize"
        ),
    ] = None,
    init_distribution: Annotated[
        str | None, typer.Option(help="uniform, sobol, grid or mt1.", show_default="uniform")
    ] = None,
    num_init_states: Annotated[
        int | None, typer.Option(help="Starts drawn, and then used over and over.", show_default="one each")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of starts and noise.", show_default="0")] = None,
    demonstrator: Annotated[
        str | None,
        typer.Option(
            help="scripted; teleop, by hand in a browser; policy, corrected by the scripted one (DAgger); replay, of a "
            "dataset's actions.",
            show_default="scripted",
        ),
    ] = None,
    operator: Annotated[
        str | None, typer.Option(help="With teleop: who demonstrates.", show_default="who is logged in")
    ] = None,
    made_from: Annotated[
        str | None,
        typer.Option("--source", help="Run of --demonstrator policy, dataset of replay.", show_default=False),
    ] = None,
    init_perturbation: Annotated[
        float | None, typer.Option(help="With replay: starts are moved by up to so many metres.", show_default="0")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="Std of noise on the executed action (DART).", show_default="0")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the dataset; of several, theirs.", show_default="data/TASK")
    ] = None,
    workers: Workers = 0,
    executor: ExecutorName = "local",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume a collection that was stopped, or begin it; --n may be more than before."
        ),
    ] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
) -> None:
    """Collect successful demonstrations into a zarr dataset, by default from a new random start each.

    [dim]act collect --task pick-place-v3 --randomize --n 200[/]
    """
    from act_kit.files import locked, prepare_output, require_space
    from act_kit.parallel import ExecutorConfig
    from act_kit.sim.tasks import expand_tasks

    flags = {
        "n": n, "seed": seed, "demonstrator": demonstrator, "noise": noise,
        "init_distribution": init_distribution, "num_init_states": _num_init_states(randomize, num_init_states),
        "replay.init_perturbation": init_perturbation, "teleop.operator": operator, **_made_from(demonstrator, made_from),
    }  # fmt: skip
    tasks = expand_tasks(task) if task else [None]
    first = compose("collect", CollectConfig, overrides or [], {"task": tasks[0], **flags})
    configs = [replace(first, task=name or first.task) for name in tasks]
    folders = {
        config.task: (out / config.task if len(tasks) > 1 else out) if out else Path("data") / config.task
        for config in configs
    }
    spread = ExecutorConfig(executor=executor, num_workers=min(count_workers(workers), first.n))
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
                raise ConfigError(f"By hand, one task at a time: --task {config.task}.")
            continue
        parent = make_demonstrator(config).parent
        if parent and folders[config.task].resolve() == Path(parent["path"]).resolve():
            raise ConfigError(f"{parent['path']} is what this is made from: name another folder with --out.")
    for config in configs:
        context.with_resource(locked(folders[config.task]))
        if not resume:
            prepare_output(folders[config.task], overwrite=overwrite, how_to_go_on="--resume goes on with it")
    num_steps = 150 * sum(config.n for config in configs)
    what = f"{first.n} demonstrations" + (f" of each of {len(configs)} tasks" if len(configs) > 1 else "")
    require_space(folders[first.task], num_steps * _STEP_BYTES, what)
    if first.num_init_states == 1 < first.n:
        complain(
            f"All {first.n} demonstrations will begin from one and the same start. A policy trained on them memorises "
            "it and fails from every other; act train will refuse them. Use --randomize."
        )
    if first.demonstrator == "teleop":
        with interrupts.resumed_by(_resume_command(first, folders[first.task])):
            _say_what_came(first, run_teleop(first, folders[first.task], resume=resume), folders[first.task])
        _say_what_next(folders[first.task])
        return
    # In a process of its own, whose threads can be told: bits must not depend on how many there are.
    with spread.make_executor({"OMP_NUM_THREADS": "1"} if first.demonstrator == "policy" else None) as running:
        for config in configs:
            folder = folders[config.task]
            again = "the same command with --resume" if len(configs) > 1 else _resume_command(config, folder)
            with interrupts.resumed_by(again):
                _say_what_came(config, run_collection(config, folder, executor=running, resume=resume), folder)
    if len(configs) == 1:
        _say_what_next(folders[first.task])


def _check(config: CollectConfig, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse an unknown task or law, sources that are missing, and an output that cannot be written."""
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


def _say_what_next(out: Path) -> None:
    folder = quoted(out)
    say(f"Next: act report {folder} and act train --data {folder}")


def _say_what_came(config: CollectConfig, store: EpisodeStore, out: Path) -> None:
    num_attempts = len(store.attempts())
    num_failed = num_attempts - int((store.success_steps >= 0).sum())
    say(
        f"{store.num_episodes} demonstrations, {store.num_steps} steps, {store.size_bytes() / 1e6:.1f} MB in {out} "
        f"({num_failed} of {num_attempts} attempts failed{', and are kept' if config.keeps_failures else ''})"
    )


def _made_from(demonstrator: str | None, path: str | None) -> dict[str, str | None]:
    """Return the option that ``--source`` stands for."""
    options = {"policy": "dagger.run", "replay": "replay.dataset"}
    if path is None:
        return {}
    if demonstrator not in options:
        raise ConfigError("--source belongs to --demonstrator policy or --demonstrator replay.")
    return {options[demonstrator]: path}


def _num_init_states(randomize: bool | None, num_init_states: int | None) -> int | None:
    """Resolve ``--no-randomize``, which is one start; None leaves it to the configuration."""
    if randomize is None:
        return num_init_states
    if num_init_states not in (None, 0 if randomize else 1):
        flag = "--randomize" if randomize else "--no-randomize"
        raise ConfigError(
            f"{flag} and --num-init-states {num_init_states} contradict each other: leave one of them out."
        )
    return 0 if randomize else 1

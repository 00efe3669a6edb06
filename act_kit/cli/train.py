"""``act train``: ACT on a dataset, with the best checkpoint chosen by success in the simulator."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from act_kit import interrupts
from act_kit.cli.console import complain, console
from act_kit.cli.options import Device, Overrides, Overwrite, Workers, choose_device, count_workers
from act_kit.errors import ConfigError
from act_kit.files import SEEDS


def train(
    overrides: Overrides = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A dataset, or a folder of several; may be given again: more of a task, or several tasks."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/DATA")] = None,
    steps: Annotated[int | None, typer.Option(help="Gradient steps.", show_default="of the preset, 3500")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, batches and validation split.", show_default="0")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Train and evaluate one run per training seed: how many, or which (0,3,7).", show_default=False
        ),
    ] = None,
    device: Device = "auto",
    workers: Workers = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped, to the same bits.")
    ] = False,
    overwrite: Overwrite = False,
    allow_degenerate: Annotated[
        bool, typer.Option("--allow-degenerate", help="Train on data whose diversity report says FAIL.")
    ] = False,
) -> None:
    """Train ACT on one dataset or on several tasks' at once; on the way the policy is tried in the simulator.

    Presets: [dim]policy=act_small[/] (default, states), [dim]policy=act_image_small[/] (64 px, no GPU needed),
    [dim]policy=act[/] and [dim]policy=act_image[/] (the paper's sizes). Any option after the flags:

    [dim]act train --data data/pick-place-v3 policy.chunk_size=16 trainer.lr=5e-4[/]

    Several processes: [dim]torchrun --nproc-per-node 2 --no-python act train …[/]; their number changes results by
    rounding at most.

    Several training seeds: [dim]--seeds 5[/] trains and evaluates OUT/seed-0, OUT/seed-1, … and tells their mean; it
    takes three to tell methods apart ([dim]act compare[/]).
    """
    from act_kit.cli import seeds as several
    from act_kit.cli.policy_stages import run_training
    from act_kit.datasets.store import EpisodeStore
    from act_kit.training.group import Group
    from act_kit.training.run import begin_run, reopen_run

    flags = {"trainer.steps": steps, "trainer.seed": seed}
    others = bool(overrides) or seeds is not None or any(v is not None for v in flags.values())
    out = _check_choices(data, out, resume=resume, others=others)
    device = choose_device(device)
    if seeds is not None or (resume and (out / SEEDS).exists()):
        if seeds is not None:
            numbers = several.parse_seeds(seeds, overrides or [], flags)
            folders = _usable(data or [], allow_degenerate=allow_degenerate)
            several.begin_seeds(out, folders, numbers, overrides or [], flags, overwrite=overwrite)
        raise typer.Exit(several.run_seeds(out, ["--device", device, "--workers", str(workers)]))
    group = Group.join(device)
    if group.is_first and not resume:
        folders = _usable(data or [], allow_degenerate=allow_degenerate)
        begin_run(out, folders, overrides or [], flags, overwrite=overwrite)
    group.wait()
    config, folders = reopen_run(out)
    stores = [EpisodeStore.open(folder) for folder in folders]
    with interrupts.resumed_by(f"act train --resume --out {shlex.quote(str(out))}"):
        try:
            run_training(
                config, stores, out, device=device, num_workers=count_workers(workers), group=group, resume=resume
            )
        finally:
            group.leave()
    if group.is_first:
        console.print(f"Next: [bold]act eval {out} --record-video[/]")


def _usable(data: list[Path], *, allow_degenerate: bool) -> list[Path]:
    """Return the datasets that are to be trained on, with their warnings told; see :func:`check_data`."""
    from act_kit.datasets.store import EpisodeStore, find_datasets
    from act_kit.training.run import check_data

    folders = find_datasets(data)
    for folder in folders:
        warning = check_data(EpisodeStore.open(folder), allow_degenerate=allow_degenerate)
        if warning:
            complain(warning)
    return folders


def _check_choices(data: list[Path] | None, out: Path | None, *, resume: bool, others: bool) -> Path:
    """Refuse flags that contradict each other; return the run's folder."""
    if resume:
        if data or others:
            raise ConfigError("--resume goes on with the run as it was begun: give --out alone, no other options.")
        if out is None:
            raise ConfigError("Which run? Give its folder: act train --resume --out RUN")
        return out
    if not data:
        raise ConfigError("Which data? act train --data DATASET (made by act collect)")
    if out is None and len(data) > 1:
        raise ConfigError("Several datasets: name the folder of the run with --out.")
    return out or Path("runs") / data[0].resolve().name

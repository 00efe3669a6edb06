"""``act train``: ACT on a dataset, with the best checkpoint chosen by success in the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.cli.console import complain, console, say
from act_kit.cli.options import Device, Overrides, Overwrite, Workers, choose_device, count_workers


def train(
    overrides: Overrides = None,
    data: Annotated[Path | None, typer.Option(help="The dataset to learn from.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/DATASET")] = None,
    steps: Annotated[int | None, typer.Option(help="Gradient steps.", show_default="of the preset, 3500")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, batches and validation split.", show_default="0")
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
    """Train ACT on a dataset; every few hundred steps the policy is tried in the simulator.

    Presets: [dim]policy=act_small[/] (default), [dim]policy=act[/] (the paper's sizes). Any option after the flags:

    [dim]act train --data data/pick-place-v3 policy.chunk_size=16 trainer.lr=5e-4[/]
    """
    from act_kit.cli.policy_stages import run_training
    from act_kit.datasets.store import EpisodeStore
    from act_kit.errors import ConfigError
    from act_kit.training.run import begin_run, check_data, reopen_run

    flags = {"trainer.steps": steps, "trainer.seed": seed}
    if resume:
        if overrides or data or any(value is not None for value in flags.values()):
            raise ConfigError("--resume goes on with the run as it was begun: give --out alone, no other options.")
        if out is None:
            raise ConfigError("Which run? Give its folder: act train --resume --out RUN")
        config, data = reopen_run(out)
        store = EpisodeStore.open(data)
    else:
        if data is None:
            raise ConfigError("Which data? act train --data DATASET (made by act collect)")
        out = out or Path("runs") / data.resolve().name
        store = EpisodeStore.open(data)
        warning = check_data(store, allow_degenerate=allow_degenerate)
        if warning:
            complain(warning)
        config = begin_run(out, data, overrides or [], flags, overwrite=overwrite)
    try:
        run_training(
            config, store, out, device=choose_device(device), num_workers=count_workers(workers), resume=resume
        )
    except KeyboardInterrupt:
        say(f"Stopped. To go on: act train --resume --out {out}")
        raise typer.Exit(130) from None
    console.print(f"Next: [bold]act eval {out} --record-video[/]")

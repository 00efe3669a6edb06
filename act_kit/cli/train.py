"""``act train``: ACT trained on datasets, with the best checkpoint selected by success rate in the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit import interrupts
from act_kit.api import train as training
from act_kit.api.device import check_device, choose_device
from act_kit.cli.console import info, shown_progress
from act_kit.cli.options import (
    Device,
    DryRun,
    Flags,
    Overrides,
    Overwrite,
    PrintConfig,
    Workers,
    show_config,
    with_flags,
)
from act_kit.config import TrainConfig
from act_kit.errors import ConfigError
from act_kit.files import SEEDS, quoted
from act_kit.overrides import compose


@with_flags(TrainConfig)
def train(
    flags: Flags,
    overrides: Overrides = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A dataset, or a folder of several, of one task or of several tasks; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/DATA")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Train and evaluate one run per training seed: a number of seeds, or a list (0,3,7)."),
    ] = None,
    device: Device = "auto",
    workers: Workers = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume a run bit-exactly, or start a new one; --steps may be larger, --data gives moved datasets.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_low_diversity: Annotated[
        bool, typer.Option("--allow-low-diversity", help="Train on data whose diversity verdict is FAIL.")
    ] = False,
) -> None:
    """Train ACT on the datasets of one or several tasks, and evaluate the policy in the simulator during training.

    Presets: policy=act_small (default, states), policy=act_image_small (64 px, no GPU needed), policy=act and
    policy=act_image (the paper's sizes). Configuration options follow the flags:

    \b
    act train --data data/pick-place-v3 policy.chunk_size=16 trainer.lr=5e-4

    Several processes: torchrun --nproc-per-node 2 --no-python act train …; their number changes results at most by
    rounding.

    Several training seeds: --seeds 5 trains and evaluates OUT/seed-0, OUT/seed-1, … and reports their mean; a
    comparison of methods takes at least three (act compare).
    """
    overrides, data = overrides or [], data or []
    for word in overrides:
        if "=" not in word and ("/" in word or Path(word).exists()):
            raise ConfigError(f"'{word}' is a path, not an option. Fix: act train --data {quoted(word)}")
    out = training.run_folder(data, out, resume=resume)
    if flags["init_from"]:
        flags["init_from"] = str(Path(flags["init_from"]).resolve())
    config = compose(TrainConfig, overrides, flags)
    if print_config:
        show_config(config)
        return
    check_device(device)
    has_run = training.check_training(config, data, out, resume=resume, overwrite=overwrite)
    if dry_run:
        show_config(config, [f"would {'resume' if has_run else 'train'} {out} on {', '.join(map(str, data))}"])
        return
    if seeds is not None or (has_run and (out / SEEDS).exists()):
        from act_kit.cli.seeds import prepare_seeds, run_seeds

        device = choose_device(device)
        with prepare_seeds(
            out,
            data,
            seeds,
            overrides,
            flags,
            has_runs=has_run,
            overwrite=overwrite,
            allow_low_diversity=allow_low_diversity,
        ):
            raise typer.Exit(run_seeds(out, ["--device", device, "--workers", str(workers)]))
    with shown_progress() as on_progress:
        training.train(
            data,
            out,
            steps=flags["trainer.steps"],
            seed=flags["trainer.seed"],
            init_from=flags["init_from"],
            overrides=overrides,
            device=device,
            workers=workers,
            resume=resume,
            overwrite=overwrite,
            allow_low_diversity=allow_low_diversity,
            on_progress=on_progress,
        )
    if interrupts.is_first_process():
        info(f"Next: act eval {quoted(out)} --record-video")

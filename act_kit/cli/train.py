"""``act train``: ACT trained on datasets, with the best checkpoint selected by success rate in the simulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from act_kit import interrupts
from act_kit.api.train import Training
from act_kit.cli import options
from act_kit.cli.console import info, shown_progress
from act_kit.config.training import TrainConfig
from act_kit.errors import ConfigError
from act_kit.files import SEEDS, quoted
from act_kit.overrides import compose


@options.with_flags(TrainConfig)
def train(
    *,
    flags: options.Flags,
    overrides: options.Overrides = None,
    data: list[Path] | None = None,
    out: Path | None = None,
    seeds: str | None = None,
    jobs: Annotated[
        int,
        typer.Option(
            min=0, help="Number of seeds that run side by side; 0 = at least one per processor, or one with a GPU."
        ),
    ] = 0,
    device: options.Device = "auto",
    workers: options.Workers = 0,
    resume: bool = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    print_config: options.PrintConfig = False,
    allow_low_diversity: bool = False,
) -> None:
    """Train ACT on the datasets of one or several tasks, and evaluate the policy in the simulator during training.

    Presets: policy=act_small (default, states), policy=act_image_small and policy=act_keypoints (images of 64 px, no
    GPU needed), policy=act and policy=act_image (the paper's sizes), policy=flow_small and policy=mip_small (other
    heads, states). Configuration options follow the flags:

    \b
    act train --data data/pick-place-v3 policy.chunk_size=16 trainer.lr=5e-4

    Several processes: torchrun --nproc-per-node 2 --no-python act train …; their number changes results at most by
    rounding.

    Several training seeds: --seeds 5 trains and evaluates OUT/seed-0, OUT/seed-1, … and reports their mean; a
    comparison of methods needs at least three (act compare).

    Args:
        data: A dataset, or a folder of several, of one task or of several tasks; repeatable.
        out: Folder of the run. [default: runs/DATA]
        seeds: Train and evaluate one run per training seed: a number of seeds, or a list (0,3,7).
        resume: Resume a run bit-exactly, or start a new one; --steps may be larger, --data gives moved datasets.
        allow_low_diversity: Train on data whose diversity verdict is FAIL.
    """
    overrides, data = overrides or [], data or []
    for word in overrides:
        if "=" not in word and ("/" in word or Path(word).exists()):
            raise ConfigError(f"'{word}' is a path, not an option. Fix: act train --data {quoted(word)}")
    if print_config:
        options.show_config(compose(TrainConfig, overrides, flags))
        return
    training = Training(
        data,
        out,
        overrides,
        flags,
        device=device,
        resume=resume,
        overwrite=overwrite,
        allow_low_diversity=allow_low_diversity,
    )
    has_seeds = seeds is not None or (training.has_run and (training.out / SEEDS).exists())
    if jobs and not has_seeds:
        raise ConfigError("--jobs: expected several training seeds. Fix: leave it out, or add --seeds 3")
    if dry_run:
        _show_plan(training, seeds)
    elif has_seeds:
        from act_kit.cli.seeds import train_seeds

        raise typer.Exit(train_seeds(training, seeds, jobs=jobs, workers=workers))
    else:
        with shown_progress() as on_progress:
            training.run(workers=workers, on_progress=on_progress)
        if interrupts.is_first_process():
            info(f"Next: act eval {quoted(training.out)} --record-video")


def _show_plan(training: Training, seeds: str | None) -> None:
    """Print the configuration and what would be trained; a run to resume has its own options and datasets."""
    config, datasets, verb = training.config, training.datasets, "train"
    runs = [training.out]
    if training.has_run:
        from act_kit.training.run import load_run

        verb = "resume"
        runs = sorted(training.out.glob("seed-*")) if (training.out / SEEDS).exists() else runs
        begun, folders = load_run(runs[0])
        steps = max(begun.trainer.steps, config.trainer.steps if "trainer.steps" in training.given else 0)
        config, datasets = replace(begun, trainer=replace(begun.trainer, steps=steps)), datasets or folders
    elif seeds is not None:
        from act_kit.cli.seeds import parse_seeds

        runs = [training.out / f"seed-{seed}" for seed in parse_seeds(seeds, training.given)]
    names = ", ".join(map(str, datasets))
    options.show_config(config, [f"would {verb} {run} on {names}" for run in runs])

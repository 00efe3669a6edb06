"""``act train``: ACT on a dataset, with the best checkpoint chosen by success in the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit import interrupts
from act_kit.cli.console import complain, say
from act_kit.cli.options import (
    Device,
    DryRun,
    Overrides,
    Overwrite,
    PrintConfig,
    Workers,
    check_device,
    choose_device,
    count_workers,
    show_config,
)
from act_kit.cli.preflight import require_datasets, require_file, require_free, require_run, require_writable
from act_kit.config import TrainConfig
from act_kit.errors import CheckpointError, ConfigError, DatasetError
from act_kit.files import SEEDS, finish_output, locked, quoted, read_json, require_apart, restore_output
from act_kit.overrides import compose


def train(
    context: typer.Context,
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
        bool,
        typer.Option(
            "--resume",
            help="Resume a run, to the same bits, or begin it; --steps may be more, --data where the data are now.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    init_from: Annotated[
        Path | None,
        typer.Option("--init-from", help="Run whose weights and normaliser to begin with.", show_default="random"),
    ] = None,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_low_diversity: Annotated[
        bool, typer.Option("--allow-low-diversity", help="Train on data whose diversity report says FAIL.")
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
    flags = {"trainer.steps": steps, "trainer.seed": seed, "init_from": init_from and str(init_from.resolve())}
    overrides, data = overrides or [], data or []
    out = _choose_out(overrides, data, out, resume=resume)
    datasets = require_datasets(data)
    config = compose("train", TrainConfig, overrides, flags)
    if print_config:
        show_config(config)
        return
    check_device(device)
    restore_output(out)
    is_begun = resume and ((out / "config.yaml").exists() or (out / SEEDS).exists())
    if not is_begun and interrupts.is_first_process():
        require_apart(out, datasets)
        _check_beginning(config, data, out, overwrite=overwrite or resume)
    require_writable(out)
    if dry_run:
        show_config(config, [f"would {'resume' if is_begun else 'train'} {out} on {', '.join(map(str, data))}"])
        return
    from act_kit.cli import seeds as several
    from act_kit.cli.policy_stages import run_training
    from act_kit.datasets.store import EpisodeStore, find_datasets
    from act_kit.training.distributed import ProcessGroup
    from act_kit.training.run import create_run, load_run, resume_run

    device = choose_device(device)
    if seeds is not None or (is_begun and (out / SEEDS).exists()):
        numbers = several.parse_seeds(seeds, overrides, flags) if seeds is not None else []
        context.with_resource(locked(out))
        if is_begun:
            if numbers and numbers != read_json(out / SEEDS):
                raise ConfigError(f"{out} was begun with other seeds than --seeds {seeds}. Fix: leave --seeds out.")
            for folder in sorted(out.glob("seed-*")):
                resume_run(folder, find_datasets(data), overrides, flags)
        else:
            folders = _usable(data, allow_low_diversity=allow_low_diversity)
            several.begin_seeds(out, folders, numbers, overrides, flags, overwrite=overwrite)
        with interrupts.resumed_by(f"act train --resume --out {quoted(out)}"):
            raise typer.Exit(several.run_seeds(out, ["--device", device, "--workers", str(workers)]))
    group = ProcessGroup.join(device)
    if group.is_first:
        context.with_resource(locked(out))
    if group.is_first and is_begun:
        resume_run(out, find_datasets(data), overrides, flags)
    elif group.is_first:
        folders = _usable(data, allow_low_diversity=allow_low_diversity)
        create_run(out, folders, overrides, flags, overwrite=overwrite)
    group.wait()
    config, folders = load_run(out)
    _check_there(folders, out)
    stores = [EpisodeStore.open(folder) for folder in folders]
    with interrupts.resumed_by(f"act train --resume --out {quoted(out)}"):
        try:
            run_training(
                config, stores, out, device=device, num_workers=count_workers(workers), group=group, resume=resume
            )
        finally:
            group.leave()
    if group.is_first:
        finish_output(out)
        say(f"Next: act eval {quoted(out)} --record-video")


def _usable(data: list[Path], *, allow_low_diversity: bool) -> list[Path]:
    """Return the datasets that are to be trained on, with their warnings told; see :func:`check_data`."""
    from act_kit.datasets.store import EpisodeStore, find_datasets
    from act_kit.training.run import check_data

    folders = find_datasets(data)
    for folder in folders:
        warning = check_data(EpisodeStore.open(folder), allow_low_diversity=allow_low_diversity)
        if warning:
            complain(warning)
    return folders


def _check_beginning(config: TrainConfig, data: list[Path], out: Path, *, overwrite: bool) -> None:
    """Refuse data, files and an output folder that a run cannot begin with."""
    if not data:
        raise CheckpointError(f"There is no run at {out} to resume. Begin one: act train --data DATASET")
    named = {
        "policy.backbone_weights": config.policy.backbone_weights,
        "policy.task_embeddings": config.policy.task_embeddings,
    }
    for key, value in named.items():
        if value:
            require_file(Path(value), key, ConfigError)
    if config.init_from:
        require_run(Path(config.init_from))
    folder = quoted(out)
    require_free(out, overwrite=overwrite, otherwise=f"act train --resume --out {folder} goes on with it")


def _check_there(folders: list[Path], out: Path) -> None:
    missing = [folder for folder in folders if not folder.exists()]
    if missing:
        raise DatasetError(
            f"{missing[0]}, which {out} is trained on, is not there. Fix, if it was moved: act train --resume --out "
            f"{quoted(out)} --data PATH"
        )


def _choose_out(overrides: list[str], data: list[Path], out: Path | None, *, resume: bool) -> Path:
    """Refuse words that are no options, and flags that contradict each other; return the run's folder."""
    for word in overrides:
        if "=" not in word and ("/" in word or Path(word).exists()):
            raise ConfigError(f"'{word}' is a path, not an option. Fix: act train --data {quoted(word)}")
    if not data and resume and out is None:
        raise ConfigError("Which run? Give its folder: act train --resume --out RUN")
    if not data and not resume:
        raise ConfigError("Which data? act train --data DATASET (made by act collect)")
    if out is None and len(data) > 1:
        raise ConfigError("Several datasets: name the folder of the run with --out.")
    return out or Path("runs") / data[0].resolve().name

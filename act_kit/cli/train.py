"""``act train``: ACT trained on datasets, with the best checkpoint selected by success rate in the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit import interrupts
from act_kit.cli.console import info, warn
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
from act_kit.files import SEEDS, quoted, read_json
from act_kit.outputs import finish_output, locked, require_no_overlap, restore_output
from act_kit.overrides import compose


def train(
    context: typer.Context,
    overrides: Overrides = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A dataset, or a folder of several, of one task or of several tasks; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/DATA")] = None,
    steps: Annotated[int | None, typer.Option(help="Gradient steps.", show_default="of the preset, 3500")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of weights, batches and validation split.", show_default="0")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Train and evaluate one run per training seed: a number of seeds, or a list (0,3,7).",
            show_default=False,
        ),
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
    init_from: Annotated[
        Path | None,
        typer.Option("--init-from", help="Run that initializes weights and normalizer.", show_default="random"),
    ] = None,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    allow_low_diversity: Annotated[
        bool, typer.Option("--allow-low-diversity", help="Train on data whose diversity verdict is FAIL.")
    ] = False,
) -> None:
    """Train ACT on the datasets of one or several tasks, and evaluate the policy in the simulator during training.

    Presets: [dim]policy=act_small[/] (default, states), [dim]policy=act_image_small[/] (64 px, no GPU needed),
    [dim]policy=act[/] and [dim]policy=act_image[/] (the paper's sizes). Configuration options follow the flags:

    [dim]act train --data data/pick-place-v3 policy.chunk_size=16 trainer.lr=5e-4[/]

    Several processes: [dim]torchrun --nproc-per-node 2 --no-python act train …[/]; their number changes results at
    most by rounding.

    Several training seeds: [dim]--seeds 5[/] trains and evaluates OUT/seed-0, OUT/seed-1, … and reports their mean; a
    comparison of methods takes at least three ([dim]act compare[/]).
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
    has_run = resume and ((out / "config.yaml").exists() or (out / SEEDS).exists())
    if not has_run and interrupts.is_first_process():
        require_no_overlap(out, datasets)
        _check_new_run(config, data, out, overwrite=overwrite or resume)
    require_writable(out)
    if dry_run:
        show_config(config, [f"would {'resume' if has_run else 'train'} {out} on {', '.join(map(str, data))}"])
        return
    from act_kit.cli import seeds as several
    from act_kit.cli.policy_stages import run_training
    from act_kit.datasets.store import EpisodeStore, find_datasets
    from act_kit.training.distributed import ProcessGroup
    from act_kit.training.run import create_run, load_run, resume_run

    device = choose_device(device)
    if seeds is not None or (has_run and (out / SEEDS).exists()):
        numbers = several.parse_seeds(seeds, overrides, flags) if seeds is not None else []
        context.with_resource(locked(out))
        if has_run:
            if numbers and numbers != read_json(out / SEEDS):
                raise ConfigError(f"{out} has other seeds than --seeds {seeds}. Fix: leave --seeds out.")
            for folder in sorted(out.glob("seed-*")):
                resume_run(folder, find_datasets(data), overrides, flags)
        else:
            folders = _check_datasets(data, allow_low_diversity=allow_low_diversity)
            several.create_seed_runs(out, folders, numbers, overrides, flags, overwrite=overwrite)
        with interrupts.resume_command(f"act train --resume --out {quoted(out)}"):
            raise typer.Exit(several.run_seeds(out, ["--device", device, "--workers", str(workers)]))
    group = ProcessGroup.join(device)
    if group.is_first:
        context.with_resource(locked(out))
    if group.is_first and has_run:
        resume_run(out, find_datasets(data), overrides, flags)
    elif group.is_first:
        folders = _check_datasets(data, allow_low_diversity=allow_low_diversity)
        create_run(out, folders, overrides, flags, overwrite=overwrite)
    group.wait()
    config, folders = load_run(out)
    _require_folders(folders, out)
    stores = [EpisodeStore.open(folder) for folder in folders]
    with interrupts.resume_command(f"act train --resume --out {quoted(out)}"):
        try:
            run_training(
                config, stores, out, device=device, num_workers=count_workers(workers), group=group, resume=resume
            )
        finally:
            group.leave()
    if group.is_first:
        finish_output(out)
        info(f"Next: act eval {quoted(out)} --record-video")


def _check_datasets(data: list[Path], *, allow_low_diversity: bool) -> list[Path]:
    """Return the training datasets and print their warnings; see :func:`check_data`."""
    from act_kit.datasets.store import EpisodeStore, find_datasets
    from act_kit.training.run import check_data

    folders = find_datasets(data)
    for folder in folders:
        warning = check_data(EpisodeStore.open(folder), allow_low_diversity=allow_low_diversity)
        if warning:
            warn(warning)
    return folders


def _check_new_run(config: TrainConfig, data: list[Path], out: Path, *, overwrite: bool) -> None:
    """Refuse data, files and an output folder that are unusable for a new run."""
    if not data:
        raise CheckpointError(f"There is no run at {out} to resume. Fix: act train --data DATASET")
    files = {
        "policy.backbone_weights": config.policy.backbone_weights,
        "policy.task_embeddings": config.policy.task_embeddings,
    }
    for key, value in files.items():
        if value:
            require_file(Path(value), key, ConfigError)
    if config.init_from:
        require_run(Path(config.init_from))
    folder = quoted(out)
    require_free(out, overwrite=overwrite, otherwise=f"act train --resume --out {folder} resumes it")


def _require_folders(folders: list[Path], out: Path) -> None:
    missing = [folder for folder in folders if not folder.exists()]
    if missing:
        raise DatasetError(
            f"{missing[0]}, a training dataset of {out}, does not exist. Fix, if it was moved: act train --resume "
            f"--out {quoted(out)} --data PATH"
        )


def _choose_out(overrides: list[str], data: list[Path], out: Path | None, *, resume: bool) -> Path:
    """Return the folder of the run; refuse arguments that are not options, and contradictory flags."""
    for word in overrides:
        if "=" not in word and ("/" in word or Path(word).exists()):
            raise ConfigError(f"'{word}' is a path, not an option. Fix: act train --data {quoted(word)}")
    if not data and resume and out is None:
        raise ConfigError("--resume needs the folder of a run. Fix: act train --resume --out RUN")
    if not data and not resume:
        raise ConfigError("act train needs a dataset. Fix: act train --data DATASET (made by act collect)")
    if out is None and len(data) > 1:
        raise ConfigError("Several datasets have no default output folder. Fix: add --out RUN")
    return out or Path("runs") / data[0].resolve().name

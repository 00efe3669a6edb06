"""``train``: a policy trained on datasets, with the best checkpoint selected by its success in the simulator."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from act_kit import interrupts
from act_kit.api.device import check_device, choose_device
from act_kit.api.progress import OnProgress, Progress, ignore, log
from act_kit.config import TrainConfig
from act_kit.errors import CheckpointError, ConfigError, DatasetError
from act_kit.files import SEEDS, quoted
from act_kit.outputs import finish_output, locked, require_no_overlap, restore_output
from act_kit.overrides import compose
from act_kit.preflight import require_datasets, require_file, require_free, require_run, require_writable
from act_kit.processors import num_cpus

if TYPE_CHECKING:
    from act_kit.datasets.store import EpisodeStore
    from act_kit.policies.policy import Policy
    from act_kit.training.distributed import ProcessGroup
    from act_kit.training.trainer import Trainer

Data = str | Path | Sequence[str | Path]
"""A dataset, a folder of several, or several of these."""


def train(
    data: Data = (),
    out: str | Path | None = None,
    *,
    steps: int | None = None,
    seed: int | None = None,
    init_from: str | Path | None = None,
    overrides: Sequence[str] = (),
    config: TrainConfig | None = None,
    device: str = "auto",
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    allow_low_diversity: bool = False,
    on_progress: OnProgress = ignore,
) -> Policy:
    """Train a policy, evaluate it in the simulator during training, and return the best checkpoint, as ``act train``.

    Args:
        data: Datasets, or folders of several, of one task or of several tasks.
        out: Folder of the run; by default ``runs/DATA``.
        steps, seed, init_from: Options of :class:`TrainConfig`; None for the value of ``config``.
        overrides: Further options as on the command line, such as ``policy=act_image`` or ``policy.chunk_size=8``.
        config: Options; by default those of the preset ``act_small``.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: Simulation processes; 0 = one per processor. Never changes the result.
        resume: Resume a run bit-exactly, or start a new one; ``steps`` may be larger, ``data`` gives moved datasets.
        overwrite: Replace the content of ``out``.
        allow_low_diversity: Train on data whose diversity verdict is FAIL.
        on_progress: Receives the gradient steps.

    Raises:
        ActKitError: An option is invalid, ``out`` exists, or the data cannot be trained on.
    """
    paths = _paths(data)
    out = run_folder(paths, out, resume=resume)
    flags = {
        "trainer.steps": steps,
        "trainer.seed": seed,
        "init_from": str(Path(init_from).resolve()) if init_from else None,
    }
    requested = compose(TrainConfig, overrides, flags, config)
    check_device(device)
    has_run = check_training(requested, paths, out, resume=resume, overwrite=overwrite)
    from act_kit.datasets.store import EpisodeStore, find_datasets
    from act_kit.training.distributed import ProcessGroup
    from act_kit.training.run import create_run, load_run, resume_run

    device = choose_device(device)
    group = ProcessGroup.join(device)
    with locked(out) if group.is_first else nullcontext():
        if group.is_first and has_run:
            resume_run(out, find_datasets(paths), overrides, flags, base=config)
        elif group.is_first:
            folders = check_diversity(paths, allow_low_diversity=allow_low_diversity)
            create_run(out, folders, overrides, flags, overwrite=overwrite, base=config)
        group.wait()
        run_config, folders = load_run(out)
        _require_folders(folders, out)
        stores = [EpisodeStore.open(folder) for folder in folders]
        with interrupts.resume_command(f"act train --resume --out {quoted(out)}"):
            try:
                policy = fit(
                    run_config,
                    stores,
                    out,
                    device=device,
                    num_workers=workers or num_cpus(),
                    group=group,
                    resume=resume,
                    on_progress=on_progress,
                )
            finally:
                group.leave()
        if group.is_first:
            finish_output(out)
    return policy


def _paths(data: Data) -> list[Path]:
    return [Path(data)] if isinstance(data, str | Path) else [Path(path) for path in data]


def run_folder(data: Sequence[Path], out: str | Path | None, *, resume: bool) -> Path:
    """Return the folder of the run, by default ``runs/DATA``.

    Raises:
        ConfigError: There are no data and no run to resume, or several datasets, which have no default folder.
    """
    if not data and resume and out is None:
        raise ConfigError("--resume needs the folder of a run. Fix: act train --resume --out RUN")
    if not data and not resume:
        raise ConfigError("act train needs a dataset. Fix: act train --data DATASET (made by act collect)")
    if out is None and len(data) > 1:
        raise ConfigError("Several datasets have no default output folder. Fix: add --out RUN")
    return Path(out) if out else Path("runs") / data[0].resolve().name


def check_training(config: TrainConfig, data: Sequence[Path], out: Path, *, resume: bool, overwrite: bool) -> bool:
    """Refuse data, files and an output folder that are unusable; return True if ``out`` is a run to resume."""
    datasets = require_datasets(data)
    restore_output(out)
    has_run = resume and ((out / "config.yaml").exists() or (out / SEEDS).exists())
    if not has_run and interrupts.is_first_process():
        require_no_overlap(out, datasets)
        if not data:
            raise CheckpointError(f"There is no run at {out} to resume. Fix: act train --data DATASET")
        for key in ("backbone_weights", "task_embeddings"):
            file = getattr(config.policy, key)
            if file:
                require_file(Path(file), f"policy.{key}", ConfigError)
        if config.init_from:
            require_run(Path(config.init_from))
        hint = f"act train --resume --out {quoted(out)} resumes it"
        require_free(out, overwrite=overwrite or resume, otherwise=hint)
    require_writable(out)
    return has_run


def check_diversity(data: Sequence[Path], *, allow_low_diversity: bool) -> list[Path]:
    """Return the training datasets, and log their warnings; see :func:`~act_kit.training.run.check_data`."""
    from act_kit.datasets.store import EpisodeStore, find_datasets
    from act_kit.training.run import check_data

    folders = find_datasets(data)
    for folder in folders:
        warning = check_data(EpisodeStore.open(folder), allow_low_diversity=allow_low_diversity)
        if warning:
            log.warning(warning)
    return folders


def _require_folders(folders: Sequence[Path], out: Path) -> None:
    for folder in folders:
        if not folder.exists():
            raise DatasetError(
                f"{folder}, a training dataset of {out}, does not exist. Fix, if it was moved: act train --resume "
                f"--out {quoted(out)} --data PATH"
            )


def fit(
    config: TrainConfig,
    stores: Sequence[EpisodeStore],
    run: Path,
    *,
    device: str,
    num_workers: int,
    group: ProcessGroup | None = None,
    resume: bool = False,
    on_progress: OnProgress = ignore,
) -> Policy:
    """Train in the existing folder ``run``, with evaluations in the simulator by the first process of ``group``."""
    from act_kit.api.rollouts import find_renderer, log_first_plan
    from act_kit.eval.selection import make_checkpoint_evaluator
    from act_kit.rollouts.rollout import RolloutPool
    from act_kit.sim.initial_states import InitialStateDistribution
    from act_kit.training.distributed import SINGLE_PROCESS
    from act_kit.training.trainer import Trainer

    group = group or SINGLE_PROCESS
    on_progress = on_progress if group.is_first else ignore
    init_states = []
    for task in dict.fromkeys(store.info.task for store in stores):
        distribution = InitialStateDistribution(task)
        init_states += distribution.sample(config.selection.episodes, seed=config.trainer.seed, stream="select")
    num_workers = min(num_workers, len(init_states))
    with RolloutPool(
        num_workers, engine=config.sim.engine, num_envs=config.rollout.num_envs, on_plan=log_first_plan()
    ) as roll:
        evaluator = make_checkpoint_evaluator(roll, init_states)
        trainer = Trainer(config, stores, run, evaluator=evaluator, device=device, group=group)
        if trainer.frames and config.selection.num_evaluations and group.is_first:
            find_renderer(trainer.frames.gl_renderer, num_workers)
        if resume:
            trainer.resume()
        level = logging.INFO if group.is_first else logging.DEBUG
        log.log(level, trainer.summary())
        log.log(level, trainer.dry_run())
        with interrupts.deferred() as raise_if_interrupted:
            is_slow = False

            def show(state: Trainer) -> None:
                nonlocal is_slow
                is_record = state.last_logged_step == state.step
                on_progress(
                    Progress(
                        stage="train",
                        num_done=state.step,
                        num=config.trainer.steps,
                        text=state.status(),
                        is_record=is_record,
                    )
                )
                if is_record:
                    was_slow, is_slow = is_slow, bool(state.slow_warning())
                    if is_slow and not was_slow:
                        log.warning(state.slow_warning())
                raise_if_interrupted()

            on_progress(Progress(stage="train", num_done=trainer.step, num=config.trainer.steps, is_record=False))
            policy = trainer.train(show)
    log.log(level, trainer.result_text())
    return policy

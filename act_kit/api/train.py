"""``train``: a policy trained on datasets, with the best checkpoint selected by its success in the simulator."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act_kit import interrupts, options, preflight
from act_kit.api.device import check_device, choose_device
from act_kit.api.progress import OnProgress, Progress, ignore, log
from act_kit.config.training import TrainConfig
from act_kit.errors import CheckpointError, ConfigError, DatasetError
from act_kit.files import SEEDS, quoted
from act_kit.outputs import finish_output, locked, require_no_overlap, restore_output
from act_kit.overrides import compose, given_options
from act_kit.processors import num_cpus
from act_kit.workers import end_if_importing

if TYPE_CHECKING:
    from act_kit.datasets.store import EpisodeStore
    from act_kit.policies.policy import Policy
    from act_kit.training.distributed import ProcessGroup
    from act_kit.training.trainer import Trainer


def train(
    data: str | Path | Sequence[str | Path] = (),
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    config: TrainConfig | None = None,
    device: str = "auto",
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    allow_low_diversity: bool = False,
    on_progress: OnProgress = ignore,
    **flags: Any,
) -> Policy:
    """Train a policy, evaluate it in the simulator during training, and return the best checkpoint, as ``act train``.

    Args:
        data: Datasets, or folders of several, of one task or of several tasks.
        out: Folder of the run; by default ``runs/DATA``.
        overrides: Options as on the command line, such as ``policy=act_image`` or ``policy.chunk_size=8``.
        config: Options; by default those of the preset ``act_small``.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: Simulation processes; 0 = one per processor. Never changes the result.
        resume: Resume a run bit-exactly, or start a new one; ``steps`` may be larger, ``data`` gives moved datasets.
        overwrite: Replace the content of ``out``.
        allow_low_diversity: Train on data whose diversity verdict is FAIL.
        on_progress: Receives the gradient steps.
        flags: Options with a flag: ``steps``, ``seed``, ``init_from``; None for the value of ``config``.

    Raises:
        ActKitError: An option is invalid, ``out`` exists, or the data cannot be trained on.
    """
    end_if_importing()
    training = Training(
        [Path(data)] if isinstance(data, str | Path) else list(map(Path, data)),
        Path(out) if out else None,
        overrides,
        options.by_key(TrainConfig, flags),
        config,
        device=device,
        resume=resume,
        overwrite=overwrite,
        allow_low_diversity=allow_low_diversity,
    )
    return training.run(workers=workers, on_progress=on_progress)


class Training:
    """A training whose options, inputs and output have been checked, as far as that takes no slow imports.

    Attributes:
        config: Options of a new run.
        given: Dotted keys of the options that were given, which a resumed run must have.
        datasets: Datasets of a new run, or moved datasets of the one at ``out``.
        out: Folder of the run.
        has_run: True if ``out`` holds a run to resume.
    """

    def __init__(
        self,
        data: list[Path],
        out: Path | None,
        overrides: Sequence[str],
        flags: Mapping[str, Any],
        base: TrainConfig | None = None,
        *,
        device: str,
        resume: bool,
        overwrite: bool,
        allow_low_diversity: bool,
    ) -> None:
        """Check everything; ``flags`` are values by dotted key, see :func:`train` for the other arguments.

        Raises:
            ActKitError: An option is invalid, or data, a file or the output folder are unusable.
        """
        if not data and resume and out is None:
            raise ConfigError("--resume needs the folder of a run. Fix: act train --resume --out RUN")
        if not data and not resume:
            raise ConfigError("act train needs a dataset. Fix: act train --data DATASET (made by act collect)")
        if out is None and len(data) > 1:
            raise ConfigError("Several datasets have no default output folder. Fix: add --out RUN")
        self.out = out or Path("runs") / data[0].resolve().name
        self.device, self.resume, self.overwrite = device, resume, overwrite
        self.allow_low_diversity = allow_low_diversity
        init_from = flags.get("init_from")
        flags = {**flags, "init_from": init_from and str(Path(init_from).resolve())}
        self.config = compose(TrainConfig, overrides, flags, base)
        self.given = list(options.declared(TrainConfig)) if base else given_options(overrides, flags)
        check_device(device)
        self.datasets = preflight.require_datasets(data)
        restore_output(self.out)
        self.has_run = resume and ((self.out / "config.yaml").exists() or (self.out / SEEDS).exists())
        if not self.has_run and interrupts.is_first_process():
            self._check_new()
        preflight.require_writable(self.out)

    def _check_new(self) -> None:
        """Check the output folder and the input files of a new run."""
        require_no_overlap(self.out, self.datasets)
        if not self.datasets:
            raise CheckpointError(f"There is no run at {self.out} to resume. Fix: act train --data DATASET")
        for key in ("backbone_weights", "task_embeddings"):
            file = getattr(self.config.policy, key)
            if file:
                preflight.require_file(Path(file), f"policy.{key}", ConfigError)
        if self.config.init_from:
            preflight.require_run(Path(self.config.init_from))
        overwrite, hint = self.overwrite or self.resume, f"{self.resume_command} resumes it"
        preflight.require_free(self.out, overwrite=overwrite, otherwise=hint)

    @property
    def resume_command(self) -> str:
        """Command that resumes the run."""
        return f"act train --resume --out {quoted(self.out)}"

    def check_diversity(self) -> None:
        """Refuse unsuitable datasets, and log warnings about others; see :func:`~act_kit.training.run.check_data`."""
        from act_kit.datasets.store import EpisodeStore
        from act_kit.training.run import check_data

        for folder in self.datasets:
            warning = check_data(EpisodeStore.open(folder), allow_low_diversity=self.allow_low_diversity)
            if warning:
                log.warning(warning)

    def run(self, *, workers: int, on_progress: OnProgress) -> Policy:
        """Create or load the run, and train it in this process, or in its part of the processes of ``torchrun``."""
        from act_kit.datasets.store import EpisodeStore
        from act_kit.training.distributed import ProcessGroup
        from act_kit.training.run import create_run, load_run, resume_run

        out, device = self.out, choose_device(self.device)
        group = ProcessGroup.join(device)
        with locked(out) if group.is_first else nullcontext():
            if group.is_first and self.has_run:
                resume_run(out, self.datasets, self.config, self.given)
            elif group.is_first:
                self.check_diversity()
                create_run(out, self.datasets, self.config, overwrite=self.overwrite)
            group.wait()
            config, folders = load_run(out)
            for folder in folders:
                if not folder.exists():
                    raise DatasetError(
                        f"{folder}, a training dataset of {out}, does not exist. Fix, if it was moved: "
                        f"{self.resume_command} --data PATH"
                    )
            stores = [EpisodeStore.open(folder) for folder in folders]
            with interrupts.resume_command(self.resume_command):
                try:
                    policy = self._fit(config, stores, device, workers or num_cpus(), group, on_progress)
                finally:
                    group.leave()
            if group.is_first:
                finish_output(out)
        return policy

    def _fit(
        self,
        config: TrainConfig,
        stores: Sequence[EpisodeStore],
        device: str,
        num_workers: int,
        group: ProcessGroup,
        on_progress: OnProgress,
    ) -> Policy:
        """Train, with rollouts in local processes for the selection, and return the best checkpoint.

        Ctrl-C stops it between two steps.
        """
        from act_kit.api.rollouts import find_renderer, log_first_plan
        from act_kit.datasets.store import tasks_of
        from act_kit.eval.selection import make_checkpoint_evaluator
        from act_kit.rollouts.rollout import RolloutPool
        from act_kit.sim.initial_states import sample_each
        from act_kit.training.trainer import Trainer

        show_progress = on_progress if group.is_first else ignore
        level = logging.INFO if group.is_first else logging.DEBUG
        engine, num_envs, num_steps = config.sim.engine, config.rollout.num_envs, config.trainer.steps
        tasks, seed = tasks_of(stores), config.trainer.seed
        num = config.selection.episodes_per_task(len(tasks))
        init_states = sample_each(tasks, num, seed=seed, stream="select")
        num_workers = min(num_workers, len(init_states))
        with RolloutPool(num_workers, engine=engine, num_envs=num_envs, on_plan=log_first_plan()) as roll:
            evaluator = make_checkpoint_evaluator(roll, init_states)
            trainer = Trainer(config, stores, self.out, evaluator=evaluator, device=device, group=group)
            if trainer.frames and config.selection.num_evaluations and group.is_first:
                find_renderer(trainer.frames.gl_renderer, num_workers)
            if self.resume:
                trainer.resume()
            log.log(level, trainer.summary())
            log.log(level, trainer.dry_run())
            with interrupts.deferred() as raise_if_interrupted:
                slow = ""

                def show(state: Trainer) -> None:
                    nonlocal slow
                    is_record, text = state.last_logged_step == state.step, state.status()
                    show_progress(
                        Progress(stage="train", num_done=state.step, num=num_steps, text=text, is_record=is_record)
                    )
                    if is_record:
                        before, slow = slow, state.slow_warning()
                        if slow and not before:
                            log.warning(slow)
                    raise_if_interrupted()

                show_progress(Progress(stage="train", num_done=trainer.step, num=num_steps, is_record=False))
                policy = trainer.train(show)
        log.log(level, trainer.result_text())
        return policy

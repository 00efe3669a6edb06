"""``finetune``: a trained policy, improved by reinforcement learning in the simulator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act_kit import interrupts, options, preflight
from act_kit.api.progress import OnProgress, Progress, ignore, log
from act_kit.config.finetuning import FinetuneConfig
from act_kit.errors import CheckpointError, ConfigError
from act_kit.files import quoted, sibling
from act_kit.finetuning.run import CONFIG, check_same, load_run, write_run
from act_kit.outputs import finish_output, locked, new_folder, require_no_overlap, restore_output
from act_kit.overrides import compose, given_options
from act_kit.parallel import ExecutorConfig
from act_kit.processors import num_cpus
from act_kit.workers import end_if_importing

if TYPE_CHECKING:
    from act_kit.policies.policy import Policy


def finetune(
    run: str | Path = "",
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    config: FinetuneConfig | None = None,
    workers: int = 0,
    executor: str = "local",
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = ignore,
    **flags: Any,
) -> Policy:
    """Improve a policy from its successes in the simulator, as ``act finetune``, and return the best checkpoint.

    A small network learns to correct the next actions of the policy, which is frozen (:mod:`act_kit.finetuning`). The
    result is an ordinary checkpoint. It is the base policy itself if no correction was better on the selection initial
    states, which are those of no evaluation.

    Args:
        run: A run, or a checkpoint of it; with ``resume`` it may be left out, or be the same policy in another place.
        out: Folder of the new run; by default ``RUN-finetuned``.
        overrides: Options as on the command line, such as ``ppo.sigma=0.05``.
        config: Options; by default :class:`~act_kit.config.finetuning.FinetuneConfig`'s.
        workers: Simulation processes; 0 = one per processor. Never changes the result of an iteration.
        executor: ``local``, or ``ray``, the cluster at RAY_ADDRESS, for the rollouts. Never changes a result either.
        resume: Continue the run at ``out``, or start a new one; ``minutes``, ``steps`` and ``patience`` may change.
        overwrite: Replace the content of ``out``.
        on_progress: Receives the progress within the budget.
        flags: Options with a flag: ``minutes``, ``steps``, ``seed``; None for the value of ``config``.

    Raises:
        ActKitError: There is no such policy, it cannot be fine-tuned, an option is invalid, or ``out`` exists.
    """
    end_if_importing()
    values = options.by_key(FinetuneConfig, flags)
    given = list(options.declared(FinetuneConfig)) if config else given_options(overrides, values)
    config = compose(FinetuneConfig, overrides, values, config)
    executor_config = ExecutorConfig(executor=executor, num_workers=workers or num_cpus())
    if not run and out is None:
        raise ConfigError("act finetune needs a policy. Fix: act finetune RUN (made by act train)")
    folder = Path(out) if out else _default_out(Path(run))
    restore_output(folder)
    command = f"act finetune --out {quoted(folder)} --resume"
    if not (resume and (folder / CONFIG).exists()):
        if not run:
            raise ConfigError(f"There is no fine-tuning at {folder} to resume. Fix: act finetune RUN --out {folder}")
        _check_new(Path(run), folder, config, overwrite=overwrite or resume, hint=f"{command} resumes it")
        with new_folder(folder, overwrite=overwrite, is_complete=False, hint=f"{command} resumes it") as fresh:
            write_run(fresh, Path(run).resolve(), config)
    with locked(folder), interrupts.resume_command(command):
        base, started = load_run(folder)
        if run:
            preflight.require_run(Path(run))
            base = Path(run).resolve()
        elif not base.exists():
            raise CheckpointError(
                f"{base}, the policy that {folder} was started with, does not exist. Fix, if it was moved: act "
                f"finetune RUN --out {quoted(folder)} --resume"
            )
        config = check_same(folder, started, config, given)
        policy = _run(base, config, folder, executor_config, on_progress)
        finish_output(folder)
    return policy


def _default_out(run: Path) -> Path:
    """Return the folder beside a run, also for one of its checkpoints."""
    if Path(os.path.abspath(run)).parent.name == "checkpoints":
        run = Path(os.path.normpath(run / "../.."))
    return sibling(run, "-finetuned")


def _check_new(run: Path, folder: Path, config: FinetuneConfig, *, overwrite: bool, hint: str) -> None:
    """Check the policy and the output folder of a new run, before anything is written or replaced."""
    preflight.require_run(run)
    require_no_overlap(folder, [run])
    preflight.require_free(folder, overwrite=overwrite, otherwise=hint)
    from act_kit.finetuning.actors import make_actor
    from act_kit.policies.policy import Policy

    make_actor(Policy.load(run), config)


def _run(
    base: Path, config: FinetuneConfig, folder: Path, executor_config: ExecutorConfig, on_progress: OnProgress
) -> Policy:
    """Fine-tune; Ctrl-C stops it between two iterations."""
    import torch

    from act_kit.api.rollouts import rollout_function
    from act_kit.finetuning.finetuner import Finetuner
    from act_kit.finetuning.noise import choose_noise
    from act_kit.policies.policy import Policy

    torch.set_num_threads(1)  # the simulators need the other processors
    policy = Policy.load(base)
    with rollout_function(policy, executor_config, config) as roll:
        if not config.ppo.sigma:
            log.info("Measuring how much noise the policy bears.")
            config, reason = choose_noise(policy, config, roll=roll)
            log.info(reason)
        finetuner = Finetuner(config, policy, folder, roll=roll)
        finetuner.resume()
        write_run(folder, base, config)
        with interrupts.deferred() as raise_if_interrupted:

            def show(state: Finetuner) -> None:
                on_progress(Progress(stage="finetune", num_done=100 * state.progress, num=100, text=state.status()))
                if state.iteration == 1:
                    log.info(state.plan())
                raise_if_interrupted()

            finetuned = finetuner.finetune(show)
    log.info(finetuner.result_text())
    return finetuned

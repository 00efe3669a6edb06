"""``act finetune``: a trained policy, improved by reinforcement learning in the simulator."""

from __future__ import annotations

from pathlib import Path

from act_kit.cli import options
from act_kit.cli.console import info, shown_progress
from act_kit.config.finetuning import FinetuneConfig
from act_kit.files import quoted
from act_kit.overrides import compose


@options.with_flags(FinetuneConfig)
def finetune(
    run: str = "",
    *,
    flags: options.Flags,
    overrides: options.Overrides = None,
    out: Path | None = None,
    workers: options.Workers = 0,
    executor: options.ExecutorName = "local",
    resume: bool = False,
    overwrite: options.Overwrite = False,
    print_config: options.PrintConfig = False,
) -> None:
    """Improve a policy from its successes in the simulator: a small network learns to correct its actions.

    The result is an ordinary checkpoint, for act eval, act compare, act serve and act export.

    \b
    act finetune runs/soccer-v3 --minutes 15

    Args:
        run: A run, or a checkpoint of it; with --resume it may be left out.
        out: Folder of the new run. [default: RUN-finetuned]
        resume: Continue a run, or start a new one; --minutes, --steps and patience may change.
    """
    if print_config:
        options.show_config(compose(FinetuneConfig, overrides or [], flags))
        return
    from act_kit.api.finetune import finetune as finetune_run

    with shown_progress() as on_progress:
        policy = finetune_run(
            run,
            out,
            overrides=overrides or [],
            workers=workers,
            executor=executor,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            **flags,
        )
    assert policy.folder is not None
    folder = quoted(policy.folder.parents[1])
    info(f"Next: act eval {folder}")

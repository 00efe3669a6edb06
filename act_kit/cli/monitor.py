"""``act monitor``: an alarm for a policy that is lost while it acts."""

from __future__ import annotations

from pathlib import Path

from act_kit.cli import options
from act_kit.cli.console import info, shown_progress
from act_kit.config.evaluation import MonitorConfig
from act_kit.overrides import compose


@options.with_flags(MonitorConfig)
def monitor(
    run: Path,
    *,
    flags: options.Flags,
    overrides: options.Overrides = None,
    task: str | None = None,
    out: Path | None = None,
    device: options.Device = "auto",
    workers: options.Workers = 0,
    overwrite: options.Overwrite = False,
    print_config: options.PrintConfig = False,
) -> None:
    """Make an alarm for a policy that is lost while it acts, and measure its false alarms and what it detects.

    The alarm is raised where a state is far from the demonstrated ones. The threshold is calibrated by successful
    episodes of the policy (split conformal prediction), and judged by others: false alarms, failures detected, and the
    area under the ROC curve by step.

    \b
    act monitor runs/soccer-v3
    act monitor runs/soccer-v3 --init-states ood --out runs/soccer-v3/monitor-ood

    Args:
        run: A run, or a checkpoint of it.
        task: Task of a policy of several.
        out: Folder of the monitor and its page. [default: RUN/monitor, or RUN/monitor-TASK with --task]
    """
    config = compose(MonitorConfig, overrides or [], flags)
    if print_config:
        options.show_config(config)
        return
    from act_kit.api.monitor import monitor as make_monitor

    folder = out or run / ("monitor" if task is None else f"monitor-{task}")
    with shown_progress() as on_progress:
        result = make_monitor(
            run,
            task,
            out=folder,
            config=config,
            device=device,
            workers=workers,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    from act_kit.reports.monitor import monitor_report

    monitor_report(result).print()
    info(f"Page: {folder / 'report.html'}")

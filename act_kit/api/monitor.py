"""``monitor``: an alarm for a policy that is lost while it acts, calibrated and judged."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act_kit import options
from act_kit.api.progress import OnProgress, Progress, ignore
from act_kit.config.evaluation import MonitorConfig
from act_kit.outputs import locked, new_folder
from act_kit.overrides import compose
from act_kit.preflight import require_free, require_run
from act_kit.processors import num_cpus
from act_kit.workers import end_if_importing

if TYPE_CHECKING:
    from act_kit.monitoring.result import MonitorResult
    from act_kit.policies.policy import Policy
    from act_kit.rollouts import rollout

HINT = "It holds a monitor"


def monitor(
    run: str | Path | Policy,
    task: str | None = None,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    config: MonitorConfig | None = None,
    device: str = "auto",
    workers: int = 0,
    overwrite: bool = False,
    on_progress: OnProgress = ignore,
    **flags: Any,
) -> MonitorResult:
    """Calibrate a monitor of a policy by its own successful episodes, and judge it by others, as ``act monitor`` does.

    Args:
        run: A run, a checkpoint of it, or its loaded policy.
        task: Task; None for the only task of the policy.
        out: Folder of the monitor, which :meth:`act_kit.Monitor.load` reads, and of its page; None to write nothing.
        overrides: Options as on the command line, such as ``alpha=0.1``.
        config: Options; by default :class:`~act_kit.config.evaluation.MonitorConfig`'s.
        device: ``auto``, ``cpu`` or ``cuda``, for a policy that is loaded.
        workers: Simulation processes; 0 = one per processor. Never changes the result.
        overwrite: Replace the content of ``out``.
        on_progress: Receives the episodes of the calibration and of the judgment.
        flags: Options with a flag: ``episodes``, ``alpha``, ``seed``, ``init_states``; None for the value of
            ``config``.

    Raises:
        ActKitError: There is no such policy or task, its demonstrations are missing, ``out`` exists, or too few
            episodes succeed for ``alpha``.
    """
    end_if_importing()
    config = compose(MonitorConfig, overrides, options.by_key(MonitorConfig, flags), config)
    if isinstance(run, str | Path):
        require_run(Path(run))
    if out is not None:
        require_free(Path(out), overwrite=overwrite, otherwise=HINT)
    from act_kit.api.device import choose_device
    from act_kit.api.rollouts import rollout_function
    from act_kit.monitoring.measure import choose_task, measure_monitor
    from act_kit.monitoring.monitor import FILE
    from act_kit.parallel import ExecutorConfig
    from act_kit.policies.agent import PolicyAgent
    from act_kit.policies.policy import Policy
    from act_kit.reports.monitor import monitor_report

    num_workers = min(workers or num_cpus(), config.episodes)

    def show(name: str, progress: rollout.Progress, num: int) -> None:
        text = f"success {progress.num_succeeded}"
        on_progress(Progress(stage=name, num_done=progress.num_episodes, num=num, text=text))

    with locked(Path(out)) if out is not None else nullcontext():  # before minutes of rollouts, not after
        policy = run if isinstance(run, Policy) else Policy.load(run, device=choose_device(device))
        task = choose_task(policy, task)
        executor_config = ExecutorConfig(executor="local", num_workers=num_workers)
        with rollout_function(policy, executor_config, config) as roll:
            measured, result = measure_monitor(policy, PolicyAgent(policy), task, config, roll=roll, on_progress=show)
        if out is not None:
            with new_folder(Path(out), overwrite=overwrite, hint=HINT) as fresh:
                measured.save(fresh / FILE)
                monitor_report(result).write(fresh / "report.html", fresh / "monitor.json")
    return result

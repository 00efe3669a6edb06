"""``act eval``: a policy in the simulator, with baselines."""

from __future__ import annotations

from pathlib import Path

import typer

from act_kit.api.device import check_device, choose_device
from act_kit.cli import options
from act_kit.cli.console import info, shown_progress, warn
from act_kit.config import EvalConfig
from act_kit.overrides import compose
from act_kit.parallel import ExecutorConfig
from act_kit.preflight import require_free, require_run
from act_kit.processors import num_cpus

REQUIREMENT_FAILED = 3
"""Exit code if a ``--require`` is not met; that of an error is 2."""


@options.with_flags(EvalConfig)
def evaluate(
    run: Path,
    *,
    flags: options.Flags,
    overrides: options.Overrides = None,
    init_states: str = "test",
    n_action_steps: int | None = None,
    temporal_ensemble: bool | None = None,
    sweep_chunking: bool = False,
    require: list[str] | None = None,
    record_video: bool = False,
    out: Path | None = None,
    device: options.Device = "auto",
    workers: options.Workers = 0,
    executor: options.ExecutorName = "local",
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    print_config: options.PrintConfig = False,
) -> None:
    """Evaluate a policy: success rate with interval, distances, baselines on the same initial states, page with maps.

    A policy of several tasks is evaluated on each, and the means are reported.

    \b
    act eval runs/pick-place-v3 --episodes 100 --record-video

    Args:
        run: A run, or a checkpoint of it.
        init_states: test, train, grid, ood (outside the reset box), or an init_states.json.
        n_action_steps: Actions executed of each predicted chunk. [default: as trained]
        temporal_ensemble: Query the policy at every step and average the overlapping chunks. [default: as trained]
        sweep_chunking: Also evaluate other chunking settings on the same initial states.
        require: Exit with code 3 unless every task meets it, for example "success_lower>=0.8"; repeatable.
        record_video: Write videos (mp4) of episodes, failures first.
        out: Folder of the results. [default: RUN/eval-INIT_STATES]
    """
    require_run(run)
    config = compose(EvalConfig, overrides or [], flags)
    if print_config:
        options.show_config(config)
        return
    check_device(device)
    ExecutorConfig(executor=executor, num_workers=1)  # refuses an unknown name
    kind = init_states
    if init_states not in ("test", "train", "grid", "ood"):
        from act_kit.eval.init_state_sets import InitialStateSet  # imports PyTorch, which a refusal must not

        kind = InitialStateSet.load(Path(init_states)).kind
    folder = out or run / f"eval-{kind}"
    require_free(folder, overwrite=overwrite, otherwise="It holds an evaluation")
    if dry_run:
        num_workers = workers or num_cpus()
        plan = f"would evaluate {run} on {init_states} initial states into {folder}, with {num_workers} processes"
        options.show_config(config, [plan])
        return
    import torch

    from act_kit.api.evaluate import choose_init_states, evaluate_tasks
    from act_kit.eval.requirements import Requirement
    from act_kit.policies.policy import Policy
    from act_kit.reports.evaluation import evaluation_report
    from act_kit.reports.overview import overview_report

    # A second thread of the policy would take a processor from the simulators. (Never call this in a process that also
    # trains: after this call, even if it is reverted, training takes a sixth longer.)
    torch.set_num_threads(1)
    requirements = [Requirement.parse(text) for text in require or []]
    policy = Policy.load(run, device=choose_device(device)).with_chunking(
        n_action_steps=n_action_steps, temporal_ensemble=temporal_ensemble
    )
    info(f"{policy.num_tensors} of {policy.num_tensors} tensors loaded, self-test reproduced: {policy}")
    sets = choose_init_states(policy, None, init_states, config)
    folder = out or run / f"eval-{sets[0].kind}"
    with shown_progress() as on_progress:
        evaluations = evaluate_tasks(
            policy,
            sets,
            config,
            sweep_chunking=sweep_chunking,
            record_video=record_video,
            out=folder,
            workers=workers,
            executor=executor,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    report = evaluation_report(evaluations[0]) if len(evaluations) == 1 else overview_report(evaluations)
    report.print()
    info(f"Page: {folder / 'report.html'}")
    is_met = True
    for requirement in requirements:
        for evaluation in evaluations:
            passed, line = requirement.check(evaluation)
            (info if passed else warn)(line)
            is_met = is_met and passed
    if not is_met:
        raise typer.Exit(REQUIREMENT_FAILED)

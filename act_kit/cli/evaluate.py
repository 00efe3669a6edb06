"""``act eval``: a policy in the simulator, with baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.cli.console import console, info, warn
from act_kit.cli.options import (
    Device,
    DryRun,
    ExecutorName,
    Overrides,
    Overwrite,
    PrintConfig,
    Workers,
    check_device,
    choose_device,
    count_workers,
    show_config,
)
from act_kit.cli.preflight import require_free, require_run
from act_kit.config import EvalConfig
from act_kit.errors import DatasetError, did_you_mean
from act_kit.files import read_json
from act_kit.overrides import compose
from act_kit.parallel import ExecutorConfig

INIT_STATES = ("test", "train", "grid", "ood")
"""Values of ``--init-states`` other than a file."""

REQUIREMENT_FAILED = 3
"""Exit code if a ``--require`` is not met; that of an error is 2."""


def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run, or a checkpoint of it.", show_default=False)],
    overrides: Overrides = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes of each task.", show_default="100")] = None,
    init_states: Annotated[
        str, typer.Option(help="test, train, grid, ood (outside the reset box), or an init_states.json.")
    ] = "test",
    seed: Annotated[int | None, typer.Option(help="Seed of the initial states.", show_default="0")] = None,
    n_action_steps: Annotated[
        int | None, typer.Option(help="Actions executed of each predicted chunk.", show_default="as trained")
    ] = None,
    temporal_ensemble: Annotated[
        bool | None,
        typer.Option(
            "--temporal-ensemble/--no-temporal-ensemble",
            help="Query the policy at every step and average the overlapping chunks.",
            show_default="as trained",
        ),
    ] = None,
    sweep_chunking: Annotated[
        bool,
        typer.Option("--sweep-chunking", help="Also evaluate other chunking settings on the same initial states."),
    ] = False,
    require: Annotated[
        list[str] | None,
        typer.Option(
            help='Exit with code 3 unless every task meets it, for example "success_lower>=0.8"; repeatable.',
            show_default=False,
        ),
    ] = None,
    record_video: Annotated[
        bool, typer.Option("--record-video", help="Write videos (mp4) of episodes, failures first.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results.", show_default="RUN/eval-INIT_STATES")
    ] = None,
    device: Device = "auto",
    workers: Workers = 0,
    executor: ExecutorName = "local",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
) -> None:
    """Evaluate a policy: success rate with interval, distances, baselines on the same initial states, page with maps.

    A policy of several tasks is evaluated on each, and the means are reported.

    [dim]act eval runs/pick-place-v3 --episodes 100 --record-video[/]
    """
    require_run(run)
    config = compose("eval", EvalConfig, overrides or [], {"episodes": episodes, "seed": seed})
    if print_config:
        show_config(config)
        return
    check_device(device)
    executor_config = ExecutorConfig(executor=executor, num_workers=count_workers(workers))
    folder = out or run / f"eval-{_kind_of(init_states)}"
    require_free(folder, overwrite=overwrite, otherwise="It holds an evaluation")
    if dry_run:
        plan = f"would evaluate {run} on {init_states} initial states into {folder}"
        show_config(config, [f"{plan}, with {executor_config.num_workers} processes"])
        return
    import torch

    from act_kit.cli.policy_stages import run_evaluation
    from act_kit.eval.init_state_sets import init_state_sets_from
    from act_kit.eval.requirements import Requirement
    from act_kit.outputs import check_output, locked
    from act_kit.policies.policy import Policy
    from act_kit.reports.evaluation import terminal_table
    from act_kit.reports.overview import overview_table
    from act_kit.training.run import record_evaluation

    # A second thread of the policy would take a processor from the simulators. (Never call this in a process that also
    # trains: after this call, even if it is reverted, training takes a sixth longer.)
    torch.set_num_threads(1)
    requirements = [Requirement.parse(text) for text in require or []]
    policy = Policy.load(run, device=choose_device(device)).with_chunking(
        n_action_steps=n_action_steps, temporal_ensemble=temporal_ensemble
    )
    info(f"{policy.num_tensors} of {policy.num_tensors} tensors loaded, self-test reproduced: {policy}")
    init_state_sets = init_state_sets_from(init_states, policy.metadata, config)
    if init_state_sets[0].kind == "file":
        warn(
            f"The initial states in {init_states} differ from those of --init-states test, grid or ood: this "
            "evaluation has the kind 'file' and does not estimate the success rate on test initial states."
        )
    out = out or run / f"eval-{init_state_sets[0].kind}"
    context.with_resource(locked(out))
    check_output(out, overwrite=overwrite, hint="It holds an evaluation")
    evaluations = run_evaluation(
        policy,
        init_state_sets,
        config,
        out,
        record_video=record_video,
        sweep_chunking=sweep_chunking,
        overwrite=overwrite,
        spread=executor_config,
    )
    if policy.folder:
        record_evaluation(policy.folder, out)
    console.print(terminal_table(evaluations[0]) if len(evaluations) == 1 else overview_table(evaluations))
    for evaluation in evaluations:
        if evaluation.interpretation:
            warn(f"{evaluation.init_state_set.task}: {evaluation.interpretation}")
    info(f"Page: {out / 'report.html'}")
    verdicts = [require.check(evaluation) for require in requirements for evaluation in evaluations]
    for passed, line in verdicts:
        (info if passed else warn)(line)
    if not all(passed for passed, _ in verdicts):
        raise typer.Exit(REQUIREMENT_FAILED)


def _kind_of(init_states: str) -> str:
    """Return the kind of initial states that ``--init-states`` selects.

    Raises:
        DatasetError: It is neither a kind nor a file of initial states.
    """
    if init_states in INIT_STATES:
        return init_states
    try:
        kind = read_json(Path(init_states))["kind"]
        return INIT_STATES[INIT_STATES.index(kind)]  # the text of a file must not become part of a path
    except FileNotFoundError as error:
        hint = did_you_mean(init_states, INIT_STATES)
        raise DatasetError(f"'{init_states}' is neither a file nor one of {', '.join(INIT_STATES)}.{hint}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{init_states} is not a set of initial states. Fix: use an init_states.json that act eval wrote."
        ) from error

"""``act eval``: a policy in the simulator, with its controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.cli.console import complain, console, say
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
"""What ``--init-states`` takes beside a file."""

GATE_FAILED = 3
"""Exit code. An error's is 2."""


def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run, or a checkpoint of it.", show_default=False)],
    overrides: Overrides = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes of each task.", show_default="100")] = None,
    init_states: Annotated[
        str, typer.Option(help="fresh, dataset, grid, ood (outside the reset box), or a init_states.json.")
    ] = "test",
    seed: Annotated[int | None, typer.Option(help="Of the starts.", show_default="0")] = None,
    n_action_steps: Annotated[
        int | None, typer.Option(help="Actions of a chunk carried out per query.", show_default="as trained")
    ] = None,
    temporal_ensemble: Annotated[
        bool | None,
        typer.Option(
            "--temporal-ensemble/--no-temporal-ensemble",
            help="Query every step and average.",
            show_default="as trained",
        ),
    ] = None,
    sweep_chunking: Annotated[
        bool, typer.Option("--sweep-chunking", help="Carry out chunks in other ways too, on the same starts.")
    ] = False,
    require: Annotated[
        list[str] | None,
        typer.Option(
            help='Exit with 3 unless, say, "success_lower>=0.8" of every task; repeatable.', show_default=False
        ),
    ] = None,
    record_video: Annotated[
        bool, typer.Option("--record-video", help="Write mp4s of episodes, failures first.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the results.", show_default="RUN/eval-STARTS")] = None,
    device: Device = "auto",
    workers: Workers = 0,
    executor: ExecutorName = "local",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
) -> None:
    """Evaluate a policy: success with its interval, distances, controls on the same starts, a page with maps.

    Of a policy of several tasks: of each, with their means.

    [dim]act eval runs/pick-place-v3 --episodes 100 --record-video[/]
    """
    require_run(run)
    config = compose("eval", EvalConfig, overrides or [], {"episodes": episodes, "seed": seed})
    if print_config:
        show_config(config)
        return
    check_device(device)
    spread = ExecutorConfig(executor=executor, num_workers=count_workers(workers))
    place = out or run / f"eval-{_kind_of(init_states)}"
    require_free(place, overwrite=overwrite, otherwise="It holds an evaluation")
    if dry_run:
        show_config(
            config, [f"would evaluate {run} on {init_states} starts into {place}, with {spread.num_workers} processes"]
        )
        return
    import torch

    from act_kit.cli.policy_stages import run_evaluation
    from act_kit.eval.init_state_sets import init_state_sets_from
    from act_kit.eval.requirements import Requirement
    from act_kit.files import check_output, locked
    from act_kit.policies.policy import Policy
    from act_kit.reports.evaluation import terminal_table
    from act_kit.reports.overview import overview_table
    from act_kit.training.run import note_evaluation

    # A second thread of the policy would take a processor from those who simulate. (Not in a process that also trains:
    # once this has been called, however it is set again, training takes a sixth longer.)
    torch.set_num_threads(1)
    requirements = [Requirement.parse(text) for text in require or []]
    policy = Policy.load(run, device=choose_device(device)).with_chunking(
        n_action_steps=n_action_steps, temporal_ensemble=temporal_ensemble
    )
    say(f"{policy.num_tensors} of {policy.num_tensors} tensors loaded, self-test reproduced: {policy}")
    init_state_sets = init_state_sets_from(init_states, policy.contract, config)
    if init_state_sets[0].kind == "file":
        complain(
            f"The initial states in {init_states} are not drawn as --init-states test, grid or ood draws them: this evaluation "
            "is called 'file', and says nothing about fresh ones."
        )
    out = out or run / f"eval-{init_state_sets[0].kind}"
    context.with_resource(locked(out))
    check_output(out, overwrite=overwrite, how_to_go_on="It holds an evaluation")
    evaluations = run_evaluation(
        policy,
        init_state_sets,
        config,
        out,
        record_video=record_video,
        sweep_chunking=sweep_chunking,
        overwrite=overwrite,
        spread=spread,
    )
    if policy.folder:
        note_evaluation(policy.folder, out)
    console.print(terminal_table(evaluations[0]) if len(evaluations) == 1 else overview_table(evaluations))
    for evaluation in evaluations:
        if evaluation.interpretation:
            complain(f"{evaluation.init_state_set.task}: {evaluation.interpretation}")
    say(f"Page: {out / 'report.html'}")
    verdicts = [require.check(evaluation) for require in requirements for evaluation in evaluations]
    for passed, line in verdicts:
        (say if passed else complain)(line)
    if not all(passed for passed, _ in verdicts):
        raise typer.Exit(GATE_FAILED)


def _kind_of(init_states: str) -> str:
    """Return the kind of starts that ``--init-states`` asks for.

    Raises:
        DatasetError: It is neither a kind nor a file of starts.
    """
    if init_states in INIT_STATES:
        return init_states
    try:
        kind = read_json(Path(init_states))["kind"]
        return INIT_STATES[INIT_STATES.index(kind)]  # no path is made of a file's text
    except FileNotFoundError as error:
        raise DatasetError(
            f"'{init_states}' is neither a file nor one of {', '.join(INIT_STATES)}.{did_you_mean(init_states, INIT_STATES)}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{init_states} is not an evaluation set. Fix: use a init_states.json that act eval wrote."
        ) from error

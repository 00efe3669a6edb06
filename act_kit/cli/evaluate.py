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
from act_kit.errors import ConfigError, DatasetError, did_you_mean
from act_kit.executors import Spread
from act_kit.files import read_json
from act_kit.overrides import compose

STARTS = ("fresh", "dataset", "grid", "ood")
"""What ``--starts`` takes beside a file."""

QUICK, PAPER = 30, 500
"""Episodes: a look, and what a paper reports; 100 are in between."""

GATE_FAILED = 3
"""Exit code. An error's is 2."""


def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A run, or a checkpoint of it.", show_default=False)],
    overrides: Overrides = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes of each task.", show_default="100")] = None,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK} episodes of each task.")] = False,
    paper: Annotated[bool, typer.Option("--paper", help=f"{PAPER} episodes of each task.")] = False,
    starts: Annotated[
        str, typer.Option(help="fresh, dataset, grid, ood (outside the reset box), or a starts.json.")
    ] = "fresh",
    seed: Annotated[int | None, typer.Option(help="Of the starts.", show_default="0")] = None,
    execute: Annotated[
        int | None, typer.Option(help="Actions of a chunk carried out per query.", show_default="as trained")
    ] = None,
    ensemble: Annotated[
        bool | None,
        typer.Option("--ensemble/--no-ensemble", help="Query every step and average.", show_default="as trained"),
    ] = None,
    sweep_execution: Annotated[
        bool, typer.Option("--sweep-execution", help="Carry out chunks in other ways too, on the same starts.")
    ] = False,
    gate: Annotated[
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
    if (episodes is not None) + quick + paper > 1:
        raise ConfigError("--episodes, --quick and --paper all say how many episodes: give one of them.")
    require_run(run)
    num = QUICK if quick else PAPER if paper else episodes
    config = compose("eval", EvalConfig, overrides or [], {"episodes": num, "seed": seed})
    if print_config:
        show_config(config)
        return
    check_device(device)
    spread = Spread(executor=executor, num_workers=count_workers(workers))
    place = out or run / f"eval-{_kind_of(starts)}"
    require_free(place, overwrite=overwrite, otherwise="It holds an evaluation")
    if dry_run:
        show_config(
            config, [f"would evaluate {run} on {starts} starts into {place}, with {spread.num_workers} processes"]
        )
        return
    import torch

    from act_kit.cli.policy_stages import run_evaluation
    from act_kit.eval.evalset import evalsets_from
    from act_kit.eval.gates import Gate
    from act_kit.eval.overview import overview_table
    from act_kit.eval.report import terminal_table
    from act_kit.files import check_output, locked
    from act_kit.policy.policy import Policy
    from act_kit.training.run import note_evaluation

    # A second thread of the policy would take a processor from those who simulate. (Not in a process that also trains:
    # once this has been called, however it is set again, training takes a sixth longer.)
    torch.set_num_threads(1)
    gates = [Gate.parse(text) for text in gate or []]
    policy = Policy.load(run, device=choose_device(device)).with_execution(execute=execute, ensemble=ensemble)
    say(f"{policy.num_tensors} of {policy.num_tensors} tensors loaded, probe reproduced: {policy}")
    evalsets = evalsets_from(starts, policy.contract, config)
    if evalsets[0].kind == "file":
        complain(
            f"The initial states in {starts} are not drawn as --starts fresh, grid or ood draws them: this evaluation "
            "is called 'file', and says nothing about fresh ones."
        )
    out = out or run / f"eval-{evalsets[0].kind}"
    context.with_resource(locked(out))
    check_output(out, overwrite=overwrite, how_to_go_on="It holds an evaluation")
    evaluations = run_evaluation(
        policy,
        evalsets,
        config,
        out,
        record_video=record_video,
        sweep_execution=sweep_execution,
        overwrite=overwrite,
        spread=spread,
    )
    if policy.folder:
        note_evaluation(policy.folder, out)
    console.print(terminal_table(evaluations[0]) if len(evaluations) == 1 else overview_table(evaluations))
    for evaluation in evaluations:
        if evaluation.reading:
            complain(f"{evaluation.evalset.task}: {evaluation.reading}")
    say(f"Page: {out / 'report.html'}")
    verdicts = [gate.judge(evaluation) for gate in gates for evaluation in evaluations]
    for passed, line in verdicts:
        (say if passed else complain)(line)
    if not all(passed for passed, _ in verdicts):
        raise typer.Exit(GATE_FAILED)


def _kind_of(starts: str) -> str:
    """Return the kind of starts that ``--starts`` asks for.

    Raises:
        DatasetError: It is neither a kind nor a file of starts.
    """
    if starts in STARTS:
        return starts
    try:
        kind = read_json(Path(starts))["kind"]
        return STARTS[STARTS.index(kind)]  # no path is made of a file's text
    except FileNotFoundError as error:
        raise DatasetError(
            f"'{starts}' is neither a file nor one of {', '.join(STARTS)}.{did_you_mean(starts, STARTS)}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{starts} is not an evaluation set. Fix: use a starts.json that act eval wrote.") from error

"""``act eval``: a policy in the simulator, with baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from act_kit.api.agents import choose_action_steps, folder_name, kind_of_agent, refuse_chunking
from act_kit.api.device import check_device
from act_kit.cli import options
from act_kit.cli.console import info, shown_progress, warn
from act_kit.config.evaluation import INIT_STATES, EvalConfig
from act_kit.errors import ConfigError
from act_kit.eval.protocols import compose_evaluation
from act_kit.parallel import ExecutorConfig
from act_kit.preflight import require_free, require_run
from act_kit.processors import num_cpus

if TYPE_CHECKING:
    from act_kit.eval.requirements import Requirement

REQUIREMENT_FAILED = 3
"""Exit code if a ``--require`` is not met; that of an error is 2."""


@options.with_flags(EvalConfig)
def evaluate(
    policy: str,
    *,
    flags: options.Flags,
    overrides: options.Overrides = None,
    task: list[str] | None = None,
    n_action_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Actions executed of each predicted chunk.",
            show_default="as trained; of a server, all",
        ),
    ] = None,
    temporal_ensemble: bool | None = None,
    sweep_chunking: bool = False,
    require: list[str] | None = None,
    record_video: bool = False,
    out: Path | None = None,
    device: options.Device = "auto",
    token: options.Token = "",
    workers: options.Workers = 0,
    executor: options.ExecutorName = "local",
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    print_config: options.PrintConfig = False,
) -> None:
    """Evaluate a policy: success rate with interval, distances, baselines from the same initial states, page with maps.

    A policy of several tasks is evaluated on each, and the means are reported. Policies that are not runs of act_kit
    need --task: a Python function or agent, MODULE:NAME; a policy server, ws://HOST:PORT; a pretrained LeRobot policy,
    lerobot:FOLDER.

    \b
    act eval runs/pick-place-v3 --episodes 100 --record-video
    act eval my_policy:act --task push-v3
    act eval ws://localhost:8000 --task push-v3
    act eval lerobot:outputs/train/act/checkpoints/last/pretrained_model --task push-v3

    Args:
        policy: A run, or a checkpoint of it; MODULE:NAME; ws://HOST:PORT; or lerobot:FOLDER.
        task: Task of a policy that is not a run, or MT10 or MT50; repeatable.
        temporal_ensemble: Query the policy at every step and average the overlapping chunks. [default: as trained]
        sweep_chunking: Also evaluate other chunking settings on the same initial states.
        require: Exit with code 3 unless every task meets it, for example "success_lower>=0.8"; repeatable.
        record_video: Write videos (mp4) of episodes, failures first.
        out: Folder of the results. [default: RUN/eval-INIT_STATES or RUN/eval-PROTOCOL, or evaluations/POLICY-TASK]
    """
    kind = kind_of_agent(policy)
    if kind == "run":
        require_run(Path(policy))
    config = compose_evaluation(overrides or [], flags)
    init_states = config.protocol.init_states
    if print_config:
        options.show_config(config)
        return
    check_device(device)
    ExecutorConfig(executor=executor, num_workers=1)  # refuses an unknown name
    set_kind, set_task = init_states, ""
    if init_states not in INIT_STATES:
        from act_kit.eval.init_state_sets import InitialStateSet  # imports PyTorch, which a refusal must not

        given_set = InitialStateSet.load(Path(init_states))
        set_kind, set_task = given_set.kind, given_set.task
    tasks: list[str] = []
    if kind == "run":
        _refuse(task, "--task", "a run is evaluated on the tasks that it was trained on")
        folder = out or Path(policy) / f"eval-{_label(config, set_kind)}"
    else:
        refuse_chunking(
            policy,
            kind,
            n_action_steps=choose_action_steps(n_action_steps, config),
            temporal_ensemble=temporal_ensemble,
            sweep_chunking=sweep_chunking,
        )
        _refuse(set_kind == "train", "--init-states train", f"{policy} names no demonstrations")
        tasks = _choose_tasks(task or [], policy, set_task)
        suffix = f"-{_label(config, set_kind)}".removesuffix("-test")
        folder = out or Path("evaluations") / f"{folder_name(policy, tasks)}{suffix}"
    require_free(folder, overwrite=overwrite, otherwise="It holds an evaluation")
    requirements = _parse_requirements(require or [])
    if dry_run:
        num_workers = workers or num_cpus()
        plan = f"would evaluate {policy} on {init_states} initial states into {folder}, with {num_workers} processes"
        options.show_config(config, [plan])
        return
    import torch

    from act_kit.api.evaluate import choose_init_states, evaluate_tasks, open_agent
    from act_kit.reports.evaluation import evaluation_report
    from act_kit.reports.overview import overview_report

    # A second thread of the policy would take a processor from the simulators. (Never call this in a process that also
    # trains: after this call, even if it is reverted, training takes a sixth longer.)
    torch.set_num_threads(1)
    opened = open_agent(
        policy,
        config,
        n_action_steps=n_action_steps,
        temporal_ensemble=temporal_ensemble,
        device=device,
        token=token,
    )
    with opened as agent, shown_progress() as on_progress:
        chosen = [] if tasks else choose_init_states(agent, None, config)
        for name in tasks:
            chosen += choose_init_states(agent, name, config)
        folder = out or (Path(policy) / f"eval-{_label(config, chosen[0].kind)}" if kind == "run" else folder)
        evaluations = evaluate_tasks(
            agent,
            chosen,
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


def _parse_requirements(texts: Sequence[str]) -> list[Requirement]:
    """Parse the values of ``--require``; the import, which is slow, is for those who give any."""
    if not texts:
        return []
    from act_kit.eval.requirements import Requirement

    return list(map(Requirement.parse, texts))


def _label(config: EvalConfig, kind: str) -> str:
    """Return the last part of the folder's name: the kind of initial states, or another protocol than Meta-World's."""
    return kind if config.protocol.name == "metaworld" else Path(config.protocol.name).stem


def _refuse(given: object, name: str, reason: str) -> None:
    if given:
        raise ConfigError(f"{name}: {reason}. Fix: leave it out.")


def _choose_tasks(given: Sequence[str], policy: str, task_of_set: str) -> list[str]:
    """Return the tasks of ``--task``, or that of a file of initial states.

    Raises:
        ConfigError: There is none, or the file is of another task.
        TaskError: There is no such task.
    """
    from act_kit.sim.tasks import expand_tasks

    tasks = expand_tasks(",".join(given)) if given else [task_of_set]
    if not tasks[0]:
        raise ConfigError(f"{policy} does not say which task it is for: expected --task. Fix: --task push-v3")
    if task_of_set and tasks != [task_of_set]:
        raise ConfigError(f"--task {', '.join(tasks)}: the initial states are of {task_of_set}. Fix: leave --task out.")
    return tasks

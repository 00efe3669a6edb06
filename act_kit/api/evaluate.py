"""``evaluate``: a policy or any other agent in the simulator, with baselines, videos and pages."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from act_kit import options
from act_kit.api.agents import (
    choose_action_steps,
    connect,
    import_agent,
    kind_of_agent,
    load_lerobot,
    refuse_chunking,
)
from act_kit.api.device import choose_device
from act_kit.api.progress import OnProgress, Progress, ignore, log
from act_kit.api.rollouts import rollout_function
from act_kit.config.evaluation import INIT_STATES, EvalConfig
from act_kit.errors import ConfigError, RenderError
from act_kit.eval.card import make_card
from act_kit.eval.evaluate import ActionFunction, evaluate_all
from act_kit.eval.init_state_sets import InitialStateSet, Kind, init_state_sets_from, make_init_state_set
from act_kit.eval.protocols import compose_evaluation
from act_kit.eval.results import Evaluation
from act_kit.eval.sweep import SweepRow, sweep, sweep_table
from act_kit.files import write_json
from act_kit.metrics import log_evaluation
from act_kit.outputs import check_output, locked, new_folder
from act_kit.parallel import ExecutorConfig, LocalExecutor
from act_kit.policies.policy import Policy
from act_kit.processors import num_cpus
from act_kit.reports.evaluation import write_results
from act_kit.reports.overview import write_overview
from act_kit.reports.video import record, select_episodes, video_path
from act_kit.rollouts import rollout
from act_kit.rollouts.agents import Agent
from act_kit.rollouts.episode import Episode
from act_kit.sim.render import RenderSettings, find_gl
from act_kit.training.run import config_of, record_evaluation
from act_kit.workers import end_if_importing

_HINT = "It holds an evaluation"


def evaluate(
    agent: str | Path | Policy | Agent | ActionFunction,
    task: str | None = None,
    *,
    init_states: str | Path | None = None,
    n_action_steps: int | None = None,
    temporal_ensemble: bool | None = None,
    sweep_chunking: bool = False,
    record_video: bool = False,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    config: EvalConfig | None = None,
    device: str = "auto",
    workers: int = 0,
    executor: str = "local",
    overwrite: bool = False,
    on_progress: OnProgress = ignore,
    **flags: Any,
) -> Evaluation:
    """Evaluate a policy, an agent or a function on one task, and its baselines from the same initial states.

    Args:
        agent: A run or checkpoint, a loaded policy, an :class:`~act_kit.rollouts.agents.Agent`, a function from states
            (B, 39) to actions (B, 4) or action chunks (B, N, 4), ``MODULE:NAME`` of one of them, or the address of a
            policy server, ``ws://HOST:PORT``, or ``lerobot:FOLDER``, a pretrained LeRobot policy.
        task: The task; None for the only task of a policy.
        init_states: ``test``, ``train``, ``grid``, ``ood`` (outside the reset box), ``mt1``, ``mt50``, or an
            ``init_states.json``; None for those of the protocol, ``test`` by default.
        n_action_steps, temporal_ensemble: Chunking of the policy; None for the setting that it was trained with. Of a
            server or a LeRobot policy, only ``n_action_steps``; None for all actions that it sends, or its own number.
        sweep_chunking: Also evaluate other chunking settings on the same initial states.
        record_video: Write videos (mp4) of episodes, failures first; requires ``out``.
        out: Folder of the results; None to write nothing.
        overrides: Options as on the command line, such as ``num_videos=3``.
        config: Options; by default :class:`EvalConfig`'s.
        device: ``auto``, ``cpu`` or ``cuda``, for a policy that is loaded.
        workers: Simulation processes; 0 = one per processor. Never changes the result.
        executor: ``local``, or ``ray``, the cluster at RAY_ADDRESS.
        overwrite: Replace the content of ``out``.
        on_progress: Receives the episodes of the agent and of each baseline.
        flags: Options with a flag: ``protocol``, ``episodes``, ``seed``, ``delay``; None for the value of ``config``.

    Raises:
        ActKitError: There is no such policy, task or set of initial states, ``out`` exists, or no renderer works.
    """
    flags["init_states"] = init_states and str(init_states)
    config = compose_evaluation(overrides, options.by_key(EvalConfig, flags), config)
    chunking: Any = {
        "n_action_steps": choose_action_steps(n_action_steps, config),
        "temporal_ensemble": temporal_ensemble,
    }
    with ExitStack() as stack:
        if isinstance(agent, str | Path):
            refuse_chunking(str(agent), kind_of_agent(str(agent)), **chunking, sweep_chunking=sweep_chunking)
            agent = stack.enter_context(open_agent(str(agent), config, device=device, **chunking))
        elif isinstance(agent, Policy):
            agent = agent.with_chunking(**chunking)
        else:
            refuse_chunking("the agent", "python", **chunking, sweep_chunking=sweep_chunking)
        sets = choose_init_states(agent, task, config)
        if len(sets) > 1:
            names = ", ".join(each.task for each in sets)
            raise ConfigError(f"The policy has several tasks: {names}. Fix: name one as task=, or evaluate_tasks().")
        (evaluation,) = evaluate_tasks(
            agent,
            sets,
            config,
            sweep_chunking=sweep_chunking,
            record_video=record_video,
            out=out,
            workers=workers,
            executor=executor,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    return evaluation


@contextmanager
def open_agent(
    what: str,
    config: EvalConfig,
    *,
    n_action_steps: int | None = None,
    temporal_ensemble: bool | None = None,
    device: str = "auto",
    token: str = "",
) -> Generator[Policy | Agent]:
    """Yield what a name stands for: a loaded policy, the agent at ``MODULE:NAME``, of a server or of a LeRobot policy.

    ``n_action_steps`` is for all but Python agents, ``temporal_ensemble`` for a run, and ``token`` for a server.

    Raises:
        ActKitError: There is no such policy, object or server.
    """
    n_action_steps = choose_action_steps(n_action_steps, config)
    match kind_of_agent(what):
        case "server":
            with connect(what, config.served, n_action_steps=n_action_steps, token=token) as agent:
                log.info(f"Connected to {agent}")
                yield agent
        case "python":
            yield import_agent(what)
        case "lerobot":
            loaded = load_lerobot(what, config.served, n_action_steps=n_action_steps, device=choose_device(device))
            log.info(f"Loaded {loaded}")
            yield loaded
        case "run":
            policy = Policy.load(what, device=choose_device(device)).with_chunking(
                n_action_steps=n_action_steps, temporal_ensemble=temporal_ensemble
            )
            log.info(f"{policy.num_tensors} of {policy.num_tensors} tensors loaded, self-test reproduced: {policy}")
            yield policy


def evaluate_tasks(
    agent: Policy | Agent | ActionFunction,
    init_state_sets: Sequence[InitialStateSet],
    config: EvalConfig,
    *,
    sweep_chunking: bool = False,
    record_video: bool = False,
    out: str | Path | None = None,
    workers: int = 0,
    executor: str = "local",
    overwrite: bool = False,
    on_progress: OnProgress = ignore,
) -> list[Evaluation]:
    """Evaluate an agent on the initial states of one or several tasks; see :func:`evaluate`.

    With several tasks, ``out`` has a subfolder for each and a page with the means.
    """
    end_if_importing()
    executor_config = ExecutorConfig(executor=executor, num_workers=workers or num_cpus())
    if out is None and record_video:
        raise ConfigError("record_video=True needs a folder for the videos. Fix: out='FOLDER'")
    with ExitStack() as stack:
        if out:
            stack.enter_context(locked(Path(out)))
            check_output(Path(out), overwrite=overwrite, hint=_HINT)
        evaluations, sweeps = _roll_out(agent, init_state_sets, config, executor_config, sweep_chunking, on_progress)
        if out is None:
            return evaluations
        out = Path(out)
        names = [each.task for each in init_state_sets] if len(evaluations) > 1 else [""]
        with new_folder(out, overwrite=overwrite, hint=_HINT) as fresh:
            folders = list(map(fresh.joinpath, names))
            videos: list[dict[int, Path]] = [{} for _ in folders]
            if record_video:
                _record(evaluations, config, folders, videos, executor_config.num_workers)
            for evaluation, folder, videos_by_episode, rows in zip(evaluations, folders, videos, sweeps, strict=True):
                write_results(evaluation, folder, videos_by_episode, rows)
                write_json(folder / "card.json", make_card(evaluation, agent))
                if rows:
                    _log_sweep(evaluation.task, rows)
            if len(evaluations) > 1:
                write_overview(evaluations, fresh)
    evaluations = [replace(each, folder=out / name) for each, name in zip(evaluations, names, strict=True)]
    if isinstance(agent, Policy) and agent.folder:
        _record_in_run(agent.folder, out, evaluations)
    return evaluations


def _record_in_run(checkpoint: Path, out: Path, evaluations: Sequence[Evaluation]) -> None:
    """Record an evaluation in the run of a checkpoint, and log it to the run's Weights & Biases project, if any."""
    record_evaluation(checkpoint, out)
    train_config = config_of(checkpoint)
    if train_config and train_config["wandb_project"]:
        for evaluation in evaluations:
            log_evaluation(checkpoint.parents[1], train_config["wandb_project"], evaluation.folder)


def choose_init_states(
    agent: Policy | Agent | ActionFunction, task: str | None, config: EvalConfig
) -> list[InitialStateSet]:
    """Return the initial states of a task or, if it is None, of each task of a policy; see :func:`evaluate`."""
    choice = config.protocol.init_states
    is_file = choice not in INIT_STATES
    if isinstance(agent, Policy) and (task is None or is_file):
        sets = init_state_sets_from(choice, agent.metadata, config)
    elif is_file:
        sets = [InitialStateSet.load(Path(choice))]
    elif task is None:
        raise ConfigError(
            "An agent that is not a policy does not know its task. Fix: evaluate(agent, 'reach-v3'), --task reach-v3"
        )
    else:
        known = agent.metadata.init_states_of(task) if isinstance(agent, Policy) else []
        sets = [make_init_state_set(task, cast(Kind, choice), config.episodes, config.seed, known)]
    if is_file and task not in (None, sets[0].task):
        raise ConfigError(f"The task is {task}; the initial states in {choice} are of {sets[0].task}: name one task.")
    if sets[0].kind == "file":
        log.warning(
            f"The initial states in {choice} differ from those of --init-states test, grid or ood: this evaluation has "
            "the kind 'file' and does not estimate the success rate on test initial states."
        )
    return sets


def _roll_out(
    agent: Policy | Agent | ActionFunction,
    sets: Sequence[InitialStateSet],
    config: EvalConfig,
    executor_config: ExecutorConfig,
    sweep_chunking: bool,
    on_progress: OnProgress,
) -> tuple[list[Evaluation], list[list[SweepRow]]]:
    """Run all episodes; return the evaluations, and the rows of the sweep of each."""

    def show(name: str, progress: rollout.Progress, num: int) -> None:
        text = f"success {progress.num_succeeded}"
        on_progress(Progress(stage=name, num_done=progress.num_episodes, num=num, text=text))

    num_workers = min(executor_config.num_workers, sum(len(each.init_states) for each in sets))
    executor_config = replace(executor_config, num_workers=num_workers)
    with rollout_function(agent, executor_config, config) as roll:
        evaluations = evaluate_all(agent, sets, config, roll=roll, on_progress=show)
        rows: list[list[SweepRow]] = [[] for _ in evaluations]
        if sweep_chunking and isinstance(agent, Policy):
            rows = sweep(agent, evaluations, roll=roll, on_progress=show)
    return evaluations, rows


def _log_sweep(task: str, rows: Sequence[SweepRow]) -> None:
    console = Console()
    with console.capture() as capture:
        console.print(sweep_table(task, rows))
    log.info(capture.get().rstrip())


def _record(
    evaluations: Sequence[Evaluation],
    config: EvalConfig,
    folders: Sequence[Path],
    videos: Sequence[dict[int, Path]],
    num_workers: int,
) -> None:
    """Record videos, and add the path of each to ``videos`` by episode; log a warning if no renderer works."""
    try:
        gl = find_gl(num_workers)
    except RenderError as error:
        log.warning(f"No videos: {error}")
        return
    chosen = select_episodes([evaluation.outcomes for evaluation in evaluations], config.num_videos)
    episodes: dict[Path, Episode] = {}
    for evaluation, folder, indices, paths in zip(evaluations, folders, chosen, videos, strict=True):
        for i in indices:
            paths[i] = video_path(folder, i, evaluation.outcomes[i])
            episodes[paths[i]] = evaluation.outcomes[i]
    settings = RenderSettings(height_px=config.video_size_px, width_px=config.video_size_px)
    log.info(f"Recording {len(episodes)} videos with {gl}")
    with LocalExecutor(num_workers, gl.environment) as executor:
        record(executor, episodes, config.video_camera, settings, config.video_fps)

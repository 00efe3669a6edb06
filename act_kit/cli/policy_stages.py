"""The stages that train and evaluate a policy, each with a progress bar; shared by the verbs and the demo."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import TaskID

from act_kit import interrupts
from act_kit.cli.console import console, info, progress_bar, warn
from act_kit.config import EvalConfig, TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import RenderError
from act_kit.eval.evaluate import Evaluation, evaluate_all
from act_kit.eval.init_state_sets import InitialStateSet
from act_kit.eval.selection import make_checkpoint_evaluator
from act_kit.eval.sweep import SweepRow, sweep, sweep_table
from act_kit.metrics import log_evaluation
from act_kit.outputs import new_folder
from act_kit.parallel import ExecutorConfig, LocalExecutor
from act_kit.policies.policy import Policy
from act_kit.reports.evaluation import write_results
from act_kit.reports.overview import write_overview
from act_kit.reports.video import choose, record, video_path
from act_kit.rollouts.rollout import Outcome, Progress, RolloutFunction, RolloutPlan, RolloutPool, roll_with
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.render import Gl, RenderSettings, find_gl
from act_kit.training.distributed import SINGLE_PROCESS, ProcessGroup
from act_kit.training.run import config_of
from act_kit.training.trainer import Trainer


def run_training(
    config: TrainConfig,
    stores: Sequence[EpisodeStore],
    run: Path,
    *,
    device: str,
    num_workers: int,
    group: ProcessGroup = SINGLE_PROCESS,
    resume: bool = False,
) -> Policy:
    """Train a policy with evaluations in the simulator; only the first process of a group evaluates and prints."""
    init_states = []
    for task in dict.fromkeys(store.info.task for store in stores):
        distribution = InitialStateDistribution(task)
        init_states += distribution.sample(config.selection.episodes, seed=config.trainer.seed, stream="select")
    num_workers = min(num_workers, len(init_states))
    print_message = info if group.is_first else lambda message: None
    with RolloutPool(
        num_workers, engine=config.sim.engine, num_envs=config.rollout.num_envs, on_plan=_print_first_plan()
    ) as roll:
        trainer = Trainer(
            config, stores, run, selector=make_checkpoint_evaluator(roll, init_states), device=device, group=group
        )
        if trainer.frames and config.selection.num_evaluations and group.is_first:
            _find_renderer(trainer.frames.gl_renderer, num_workers)
        if resume:
            trainer.resume()
        print_message(trainer.summary())
        print_message(trainer.dry_run())
        bar = progress_bar("status", disable=not group.is_first)
        with bar, interrupts.deferred() as raise_if_interrupted:
            line = bar.add_task("train", total=config.trainer.steps, completed=trainer.step, status="")
            is_slow = False

            def show(state: Trainer) -> None:
                nonlocal is_slow
                is_record = state.logged_at == state.step
                bar.update(line, completed=state.step, status=state.status(), record=is_record)
                if is_record:
                    was_slow, is_slow = is_slow, bool(state.slowed())
                    if is_slow and not was_slow:
                        warn(state.slowed())
                raise_if_interrupted()

            policy = trainer.train(show)
    print_message(trainer.outcome())
    return policy


def run_evaluation(
    policy: Policy,
    init_state_sets: Sequence[InitialStateSet],
    config: EvalConfig,
    out: Path,
    *,
    record_video: bool,
    spread: ExecutorConfig,
    sweep_chunking: bool = False,
    overwrite: bool = False,
) -> list[Evaluation]:
    """Evaluate a policy and write the results to ``out``; with several tasks, to one subfolder per task.

    The folder is written atomically. ``sweep_chunking`` also evaluates other chunking settings; see
    :mod:`act_kit.eval.sweep`.
    """
    num_init_states = sum(len(init_state_set.init_states) for init_state_set in init_state_sets)
    with _roll(policy, num_init_states, config, spread) as roll, progress_bar("successes") as bar:
        lines: dict[str, TaskID] = {}

        def show(name: str, progress: Progress, num: int) -> None:
            if name not in lines:
                lines[name] = bar.add_task(name, total=num, successes="")
            text = f"success {progress.num_succeeded}"
            bar.update(lines[name], completed=progress.num_episodes, successes=text)

        evaluations = evaluate_all(policy, init_state_sets, config, roll=roll, on_progress=show)
        sweeps: list[list[SweepRow]] = [[] for _ in evaluations]
        if sweep_chunking:
            sweeps = sweep(policy, evaluations, roll=roll, on_progress=show)
    with new_folder(out, overwrite=overwrite, hint="It holds an evaluation") as fresh:
        folders = (
            [fresh / init_state_set.task for init_state_set in init_state_sets] if len(init_state_sets) > 1 else [fresh]
        )
        videos: list[dict[int, Path]] = [{} for _ in folders]
        if record_video:
            videos = _record(evaluations, config, folders, spread.num_workers)
        for evaluation, folder, evaluation_videos, rows in zip(evaluations, folders, videos, sweeps, strict=True):
            write_results(evaluation, policy, folder, evaluation_videos, rows)
            if rows:
                console.print(sweep_table(evaluation.init_state_set.task, rows))
        if len(evaluations) > 1:
            write_overview(evaluations, policy, fresh)
    train_config = config_of(policy.folder) if policy.folder else None
    if policy.folder and train_config and train_config["wandb_project"]:
        for init_state_set in init_state_sets:
            results = out / init_state_set.task if len(init_state_sets) > 1 else out
            log_evaluation(policy.folder.parents[1], train_config["wandb_project"], results)
    return evaluations


@contextmanager
def _roll(
    policy: Policy, num_init_states: int, config: EvalConfig, spread: ExecutorConfig
) -> Generator[RolloutFunction]:
    """Yield a function that runs rollouts in local processes, whose plan is printed, or on a cluster."""
    num_workers = min(spread.num_workers, num_init_states)
    gl = _find_renderer(policy.metadata.gl_renderer, num_workers) if policy.views else None
    if spread.executor != "local":
        with spread.make_executor(gl.environment if gl else None) as executor:
            yield roll_with(executor, config.sim.engine)
        return
    with RolloutPool(
        num_workers, engine=config.sim.engine, num_envs=config.rollout.num_envs, on_plan=_print_first_plan()
    ) as roll:
        yield roll


def _find_renderer(training_renderer: str, num_workers: int) -> Gl:
    """Find the OpenGL library that renders for a policy; warn if its training images have another renderer."""
    gl = find_gl(num_workers)
    if gl.renderer != training_renderer:
        warn(
            f"The training images were rendered by '{training_renderer}', this machine renders with '{gl.renderer}': "
            "the images differ slightly, and the success rate may differ too."
        )
    return gl


def _print_first_plan() -> Callable[[RolloutPlan], None]:
    """Return a function that prints how the first of several rollouts is distributed over processes."""
    plans: list[RolloutPlan] = []

    def print_first(plan: RolloutPlan) -> None:
        if not plans:
            info(plan.reason)
        plans.append(plan)

    return print_first


def _record(
    evaluations: Sequence[Evaluation], config: EvalConfig, folders: Sequence[Path], num_workers: int
) -> list[dict[int, Path]]:
    """Record videos, or print a warning in one line if no renderer works.

    Returns the path of each video of each evaluation, by episode.
    """
    try:
        gl = find_gl(num_workers)
    except RenderError as error:
        warn(f"No videos: {error}")
        return [{} for _ in folders]
    chosen = choose([evaluation.outcomes for evaluation in evaluations], config.num_videos)
    videos: dict[Path, Outcome] = {}
    paths: list[dict[int, Path]] = []
    for evaluation, folder, indices in zip(evaluations, folders, chosen, strict=True):
        paths.append({i: video_path(folder, i, evaluation.outcomes[i]) for i in indices})
        videos |= {path: evaluation.outcomes[i] for i, path in paths[-1].items()}
    settings = RenderSettings(height_px=config.video_size_px, width_px=config.video_size_px)
    info(f"Recording {len(videos)} videos with {gl}")
    with LocalExecutor(num_workers, gl.environment) as executor:
        record(executor, videos, config.video_camera, settings, config.video_fps)
    return paths

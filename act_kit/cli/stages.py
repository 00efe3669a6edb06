"""The stages of the pipeline with a progress bar each: what the verbs and the demo have in common."""

from __future__ import annotations

from pathlib import Path

from rich.progress import TaskID

from act_kit.cli.console import complain, progress_bar, say
from act_kit.collection.collect import Progress, collect
from act_kit.config import CollectConfig, EvalConfig, TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import RenderError
from act_kit.eval.evalset import EvalSet
from act_kit.eval.evaluate import Evaluation, evaluate
from act_kit.eval.report import write_results
from act_kit.eval.rollout import NUM_ROWS, Outcome
from act_kit.eval.selection import make_selector
from act_kit.eval.video import choose, record
from act_kit.policy.policy import Policy
from act_kit.sim.render import RenderSettings, find_gl, make_render_pool
from act_kit.sim.starts import StartLaw
from act_kit.sim.vector import VectorSimulator
from act_kit.training.trainer import Trainer


def run_collection(config: CollectConfig, out: Path, *, num_workers: int, resume: bool = False) -> EpisodeStore:
    """Collect a dataset."""
    with progress_bar("rates") as bar:
        line = bar.add_task(f"collect {config.task}", total=config.n, rates="")

        def show(progress: Progress) -> None:
            success = 100 * progress.num_kept / progress.num_attempts
            text = f"success {success:.0f} % of {progress.num_attempts}, {bar.tasks[line].speed or 0:.1f}/s"
            bar.update(line, completed=progress.num_kept, rates=text)

        return collect(config, out, num_workers=num_workers, resume=resume, on_progress=show)


def run_training(
    config: TrainConfig, store: EpisodeStore, run: Path, *, device: str, num_workers: int, resume: bool = False
) -> Policy:
    """Train a policy, trying it in the simulator on the way."""
    task = store.info.task
    starts = StartLaw(task).sample(config.selection.episodes, seed=config.trainer.seed, stream="select")
    with VectorSimulator(task, min(NUM_ROWS, len(starts)), num_workers) as simulators:
        trainer = Trainer(config, store, run, selector=make_selector(simulators, starts), device=device)
        if resume:
            trainer.resume()
        say(trainer.summary())
        with progress_bar("status") as bar:
            line = bar.add_task("train", total=config.trainer.steps, completed=trainer.step, status="")
            policy = trainer.train(lambda state: bar.update(line, completed=state.step, status=state.status()))
    say(trainer.outcome())
    return policy


def run_evaluation(
    policy: Policy, evalset: EvalSet, config: EvalConfig, out: Path, *, record_video: bool, num_workers: int
) -> Evaluation:
    """Evaluate a policy and write what came of it to ``out``."""
    with (
        VectorSimulator(evalset.task, min(NUM_ROWS, len(evalset.starts)), num_workers) as simulators,
        progress_bar("successes") as bar,
    ):
        lines: dict[str, tuple[TaskID, list[bool]]] = {}

        def show(who: str, outcome: Outcome, total: int) -> None:
            if who not in lines:
                lines[who] = bar.add_task(who, total=total, successes=""), []
            line, successes = lines[who]
            successes.append(outcome.success_once)
            bar.update(line, advance=1, successes=f"success {sum(successes)}/{len(successes)}")

        evaluation = evaluate(policy, evalset, config, simulators=simulators, on_episode=show)
    videos = _record(evaluation, config, out, num_workers) if record_video else {}
    write_results(evaluation, policy, out, videos)
    return evaluation


def _record(evaluation: Evaluation, config: EvalConfig, out: Path, num_workers: int) -> dict[int, Path]:
    """Record videos where that is possible; where it is not, say in one line what is missing."""
    try:
        backend, renderer = find_gl()
    except RenderError as error:
        complain(f"No videos: {error}")
        return {}
    chosen = choose(evaluation.outcomes, config.num_videos)
    settings = RenderSettings(camera=config.video_camera, size_px=config.video_size_px)
    say(f"Recording {len(chosen)} videos with {backend} on {renderer}")
    with make_render_pool(num_workers) as pool:
        return record(pool, evaluation.outcomes, chosen, settings, config.video_fps, out / "videos")

"""The stages that make and judge a policy, with a progress bar each: what the verbs and the demo have in common."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import TaskID

from act_kit.cli.console import complain, interrupts_deferred, progress_bar, say
from act_kit.config import EvalConfig, TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import RenderError
from act_kit.eval.evalset import EvalSet
from act_kit.eval.evaluate import Evaluation, evaluate
from act_kit.eval.report import write_results
from act_kit.eval.rollout import Progress, Roll, Sizes, roll_on, roll_with
from act_kit.eval.selection import make_selector
from act_kit.eval.video import choose, record
from act_kit.executors import LocalExecutor, Spread
from act_kit.policy.policy import Policy
from act_kit.sim.render import RenderSettings, find_gl
from act_kit.sim.starts import StartLaw
from act_kit.sim.vector import VectorSimulator
from act_kit.training.trainer import Trainer


def run_training(
    config: TrainConfig, store: EpisodeStore, run: Path, *, device: str, num_workers: int, resume: bool = False
) -> Policy:
    """Train a policy, trying it in the simulator on the way."""
    task = store.info.task
    starts = StartLaw(task).sample(config.selection.episodes, seed=config.trainer.seed, stream="select")
    with VectorSimulator(task, min(num_workers, len(starts)), engine=config.sim.engine) as simulators:
        selector = make_selector(roll_on(simulators, config.rollout.rows, _say_once()), starts)
        trainer = Trainer(config, store, run, selector=selector, device=device)
        if resume:
            trainer.resume()
        say(trainer.summary())
        with progress_bar("status") as bar, interrupts_deferred() as raise_if_interrupted:
            line = bar.add_task("train", total=config.trainer.steps, completed=trainer.step, status="")

            def show(state: Trainer) -> None:
                bar.update(line, completed=state.step, status=state.status())
                raise_if_interrupted()

            policy = trainer.train(show)
    say(trainer.outcome())
    return policy


def run_evaluation(
    policy: Policy, evalset: EvalSet, config: EvalConfig, out: Path, *, record_video: bool, spread: Spread
) -> Evaluation:
    """Evaluate a policy and write what came of it to ``out``."""
    with _roll(evalset, config, spread) as roll, progress_bar("successes") as bar:
        lines: dict[str, TaskID] = {}

        def show(who: str, progress: Progress, num: int) -> None:
            if who not in lines:
                lines[who] = bar.add_task(who, total=num, successes="")
            text = f"success {progress.num_succeeded}"
            bar.update(lines[who], completed=progress.num_episodes, successes=text)

        evaluation = evaluate(policy, evalset, config, roll=roll, on_progress=show)
    videos = _record(evaluation, config, out, spread.num_workers) if record_video else {}
    write_results(evaluation, policy, out, videos)
    return evaluation


@contextmanager
def _roll(evalset: EvalSet, config: EvalConfig, spread: Spread) -> Generator[Roll]:
    """Roll out on this machine's processes, saying how, or on a cluster."""
    if spread.executor != "local":
        with spread.make_executor() as executor:
            yield roll_with(executor, evalset.task, config.sim.engine)
        return
    num_workers = min(spread.num_workers, len(evalset.starts))
    with VectorSimulator(evalset.task, num_workers, engine=config.sim.engine) as simulators:
        yield roll_on(simulators, config.rollout.rows, _say_once())


def _say_once() -> Callable[[Sizes], None]:
    """Return what says how the first of several rollouts is spread."""
    said: list[Sizes] = []

    def say_first(sizes: Sizes) -> None:
        if not said:
            say(sizes.reason)
        said.append(sizes)

    return say_first


def _record(evaluation: Evaluation, config: EvalConfig, out: Path, num_workers: int) -> dict[int, Path]:
    """Record videos where that is possible; where it is not, say in one line what is missing."""
    try:
        gl = find_gl(num_workers)
    except RenderError as error:
        complain(f"No videos: {error}")
        return {}
    chosen = choose(evaluation.outcomes, config.num_videos)
    settings = RenderSettings(height_px=config.video_size_px, width_px=config.video_size_px)
    say(f"Recording {len(chosen)} videos with {gl}")
    with LocalExecutor(num_workers, gl.environment) as executor:
        return record(
            executor, evaluation.outcomes, chosen, config.video_camera, settings, config.video_fps, out / "videos"
        )

"""``act demo``: the whole pipeline on two datasets, in minutes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import act_kit
from act_kit.api.device import check_device
from act_kit.cli.children import Children, choose_jobs
from act_kit.cli.console import console, info, shown_progress, warn
from act_kit.cli.options import Device, Overwrite, Workers, command
from act_kit.preflight import require_free

_SIDES = {"one initial state": 1, "randomized initial states": 0}
"""Number of distinct initial states of each dataset; 0 = a new one for each episode."""


@command
def demo(
    *,
    task: str = "pick-place-v3",
    n: Annotated[int, typer.Option(min=1, help="Demonstrations in each dataset.")] = 50,
    steps: Annotated[int, typer.Option(min=0, help="Gradient steps of each training run; 0 = as act train.")] = 2000,
    episodes: Annotated[
        int, typer.Option(min=1, help="Test initial states from which both policies are evaluated.")
    ] = 100,
    out: Path = Path("demo"),
    device: Device = "auto",
    workers: Workers = 0,
    overwrite: Overwrite = False,
) -> None:
    """Show why diversity matters: ACT trained on demonstrations from one initial state, and from randomized ones.

    Collects both datasets, reports their diversity, trains on each, evaluates both on the same test initial states.

    Args:
        task: One of the 50 Meta-World tasks.
        out: Folder of the results.
    """
    from act_kit.sim.tasks import get_task

    get_task(task)
    check_device(device)
    hint = "It holds an earlier demo"
    require_free(out, overwrite=overwrite, otherwise=hint)
    from act_kit.files import write_json
    from act_kit.outputs import finish_output, locked, new_folder
    from act_kit.reports.demo import Side, write_demo

    start_time = time.monotonic()
    seed, config = _find_solvable_seed(task), act_kit.EvalConfig(num_videos=2)
    folders = {name: out / name.replace(" ", "-") for name in _SIDES}
    with locked(out):
        with new_folder(out, overwrite=overwrite, is_complete=False, hint=hint) as fresh:
            write_json(fresh / "demo.json", None)
        datasets = {}
        for name, folder in folders.items():
            console.rule(name, align="left")
            with shown_progress() as show:
                store = act_kit.collect(
                    task,
                    n,
                    seed=seed,
                    num_init_states=_SIDES[name],
                    out=folder / "data",
                    workers=workers,
                    on_progress=show,
                )
            diversity = act_kit.measure_diversity(store, out=folder / "data-report")
            assert isinstance(diversity, act_kit.DiversityReport), "the initial states are recorded"
            if diversity.level == "OK":
                info(diversity.verdict)
            datasets[name] = store, diversity
        _train(folders, steps, device, workers)
        sides: list[Side] = []
        for name, folder in folders.items():
            console.rule(f"evaluation: {name}", align="left")
            # Baselines depend on the initial states alone: those of the first policy are those of the second.
            config_of_policy = replace(config, baseline_episodes=0) if sides else config
            with shown_progress() as show:
                evaluation = act_kit.evaluate(
                    folder / "run",
                    episodes=episodes,
                    config=config_of_policy,
                    record_video=True,
                    out=folder / "eval",
                    device=device,
                    workers=workers,
                    on_progress=show,
                )
            store, diversity = datasets[name]
            sides.append(Side(name=name, folder=folder, store=store, diversity=diversity, evaluation=evaluation))
        report = write_demo(sides, out, config)
        finish_output(out)
    report.print()
    info(f"{time.monotonic() - start_time:.0f} s. Page: {out / 'report.html'}")


def _train(folders: Mapping[str, Path], steps: int, device: str, workers: int) -> None:
    """Train both policies in processes of their own, side by side on a CPU; exit if one fails."""
    from act_kit.api.device import choose_device

    jobs, share = choose_jobs(0, choose_device(device), len(folders))
    options = ["--steps", str(steps), "--device", device, "--workers", str(workers or share), "--allow-low-diversity"]
    options += ["selection.num_evaluations=2", "selection.episodes=10"]
    with Children(jobs) as children:
        if children.is_side_by_side:
            console.rule("training", align="left")

        def train(name: str) -> int:
            if not children.is_side_by_side:
                console.rule(f"training: {name}", align="left")
            paths = ["--data", str(folders[name] / "data"), "--out", str(folders[name] / "run")]
            return children.run(["train", *paths, *options], name)

        codes = children.map(train, folders)
    failed = [name for name, code in zip(folders, codes, strict=True) if code]
    if failed:
        warn(f"Training failed: {', '.join(failed)}; see above.")
        raise typer.Exit(1)


def _find_solvable_seed(task: str) -> int:
    """Return the first seed from whose initial state the expert succeeds; in some tasks it fails from a few."""
    from act_kit.rollouts.agents import ExpertAgent
    from act_kit.rollouts.rollout import RolloutPool
    from act_kit.sim.initial_states import InitialStateDistribution

    with RolloutPool(1) as roll:
        for seed in itertools.count():
            init_states = InitialStateDistribution(task).sample(1, seed=seed, stream="collect")
            if roll(ExpertAgent(), init_states, stop_at_success=True)[0].success_once:
                break
    return seed

"""``act demo``: the whole pipeline on two datasets, in minutes."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated

import typer

from act_kit.cli.console import console, info
from act_kit.cli.options import Device, Overwrite, Workers, check_device, choose_device, count_workers
from act_kit.cli.preflight import require_free

_SIDES = {"one initial state": 1, "randomized initial states": 0}
"""Number of distinct initial states of each dataset; 0 = a new one for each episode."""


def demo(
    context: typer.Context,
    task: Annotated[str, typer.Option(help="One of the 50 Meta-World tasks.")] = "pick-place-v3",
    n: Annotated[int, typer.Option("--n", help="Demonstrations in each dataset.")] = 50,
    steps: Annotated[int, typer.Option(help="Gradient steps of each training run.")] = 2000,
    episodes: Annotated[int, typer.Option(help="Test initial states on which both policies are evaluated.")] = 100,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("demo"),
    device: Device = "auto",
    workers: Workers = 0,
    overwrite: Overwrite = False,
) -> None:
    """Show why diversity matters: ACT trained on demonstrations from one initial state, and from randomized ones.

    Collects both datasets, reports their diversity, trains on each, evaluates both on the same test initial states.
    """
    from act_kit.sim.tasks import get_task

    get_task(task)
    check_device(device)
    require_free(out, overwrite=overwrite, otherwise="It holds an earlier demo")
    from act_kit.cli.data_stages import run_collection
    from act_kit.cli.policy_stages import run_evaluation, run_training
    from act_kit.config import CollectConfig, EvalConfig
    from act_kit.demo import Side, comparison_table, write_demo
    from act_kit.diversity.measure import measure_diversity
    from act_kit.eval.init_state_sets import make_init_state_set
    from act_kit.files import write_json
    from act_kit.outputs import finish_output, locked, new_folder
    from act_kit.overrides import compose
    from act_kit.parallel import ExecutorConfig
    from act_kit.reports.diversity import write_report
    from act_kit.training.run import create_run

    device = choose_device(device)
    executor_config = ExecutorConfig(executor="local", num_workers=count_workers(workers))
    train_flags = {"trainer.steps": steps, "selection.num_evaluations": 3, "selection.episodes": 10}
    eval_config = compose("eval", EvalConfig, flags={"episodes": episodes, "num_videos": 3})
    seed = _find_solvable_seed(task)
    init_state_set = make_init_state_set(task, "test", eval_config.episodes, eval_config.seed, [])
    context.with_resource(locked(out))
    hint = "It holds an earlier demo"
    with new_folder(out, overwrite=overwrite, is_complete=False, hint=hint) as fresh:
        write_json(fresh / "demo.json", None)
    start_time = time.monotonic()
    sides = []
    for name, num_init_states in _SIDES.items():
        console.rule(name, align="left")
        folder = out / name.replace(" ", "-")
        config = compose(
            "collect", CollectConfig, flags={"task": task, "n": n, "num_init_states": num_init_states, "seed": seed}
        )
        with executor_config.make_executor() as executor:
            store = run_collection(config, folder / "data", executor=executor)
        diversity = measure_diversity(store)
        write_report(store, diversity, folder / "data-report")
        info(diversity.verdict)
        train_config = create_run(folder / "run", [folder / "data"], [], train_flags, overwrite=False)
        policy = run_training(
            train_config, [store], folder / "run", device=device, num_workers=executor_config.num_workers
        )
        (evaluation,) = run_evaluation(
            policy, [init_state_set], eval_config, folder / "eval", record_video=True, spread=executor_config
        )
        sides.append(
            Side(name=name, folder=folder, store=store, diversity=diversity, policy=policy, evaluation=evaluation)
        )
    page = write_demo(sides, out)
    finish_output(out)
    console.print(comparison_table(sides))
    info(f"{time.monotonic() - start_time:.0f} s. Page: {page}")


def _find_solvable_seed(task: str) -> int:
    """Return the first seed from whose initial state the expert succeeds; in some tasks it fails from a few."""
    from act_kit.collection.collect import collect_episode
    from act_kit.collection.demonstrators import ExpertDemonstrator
    from act_kit.sim.initial_states import InitialStateDistribution
    from act_kit.sim.simulator import Simulator

    simulator, expert = Simulator(task), ExpertDemonstrator(task)
    for seed in itertools.count():
        init_state = InitialStateDistribution(task).sample(1, seed=seed, stream="collect")[0]
        if collect_episode(simulator, expert, init_state).success_step >= 0:
            break
    return seed

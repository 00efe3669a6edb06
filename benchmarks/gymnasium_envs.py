"""Steps per second of the Gymnasium environments beside Meta-World's own; on one processor, and with processes.

OMP_NUM_THREADS=1 python -m benchmarks.gymnasium_envs [TASK …]      five minutes; prints Markdown tables

Single: ``gymnasium.make`` of both, with RecordEpisodeStatistics, which Meta-World's always has; the scripted expert's
actions from one initial state. Vector: ``gymnasium.make_vec`` of both, random actions. The two are run in turn, and the
fastest run of each counts. The clock is the processor time of this process, so that the ratio holds on a busy machine
too; environments in processes of their own are compared by the wall clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import metaworld
import numpy as np
from gymnasium.wrappers import RecordEpisodeStatistics

import act_kit.sim.gym  # registers act_kit/…
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.tasks import TASKS

NUM_STEPS = 120
NUM_VECTOR_STEPS = 60
REPEATS = 5


def time_steps(
    reset: Callable[[], object],
    step: Callable[[Any], object],
    actions: np.ndarray,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Return the seconds of a step."""
    reset()
    began = clock()
    for action in actions:
        step(action)
    return (clock() - began) / len(actions)


def fastest(runs: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Return the least result of each, of ``REPEATS`` runs in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            times[name].append(run())
    return {name: min(spent) for name, spent in times.items()}


def make_official(init_state: InitialState) -> Any:
    """Make Meta-World's environment as ``gymnasium.make("Meta-World/MT1")`` does, fixed to an initial state."""
    env: Any = metaworld.make_mt_envs(init_state.task, seed=0)
    env.get_wrapper_attr("toggle_sample_tasks_on_reset")(False)
    env.get_wrapper_attr("_set_random_task")()
    env.unwrapped._last_rand_vec = init_state.array
    return env


def measure_single(task: str) -> dict[str, float]:
    """Return the seconds of a step of Meta-World's environment and of ours."""
    (init_state,) = InitialStateDistribution(task).sample(1, seed=3, stream="validate")
    ours = RecordEpisodeStatistics(gymnasium.make(f"act_kit/{task}"))
    official = make_official(init_state)
    reset = partial(ours.reset, options={"initial_state": init_state})
    expert, (state, _) = ScriptedExpert(task), reset()
    actions: list[np.ndarray] = []
    for _ in range(NUM_STEPS):
        actions.append(expert.act(state))
        state, *_ = ours.step(actions[-1])
    assert np.array_equal(official.reset()[0], reset()[0])
    return fastest(
        {
            "official": partial(time_steps, official.reset, official.step, np.array(actions)),
            "ours": partial(time_steps, reset, ours.step, np.array(actions)),
        }
    )


def measure_vector(makers: Sequence[Callable[[], Any]], clock: Callable[[], float]) -> float:
    """Return how many times as fast as the first vector environment the second one steps."""
    envs = [make() for make in makers]
    actions = np.random.default_rng(0).uniform(-1, 1, (NUM_VECTOR_STEPS, envs[0].num_envs, 4)).astype(np.float32)
    runs = {}
    for name, env in zip(("official", "ours"), envs, strict=True):
        runs[name] = partial(time_steps, partial(env.reset, seed=0), env.step, actions, clock)
    times = fastest(runs)
    for env in envs:
        env.close()
    return times["official"] / times["ours"]


def official_vector(task: str, num_envs: int, strategy: str) -> Any:
    """Make a vector environment of Meta-World's, sync or async."""
    if task in act_kit.sim.gym.BENCHMARKS:
        return gymnasium.make_vec(f"Meta-World/{task}", vector_strategy=strategy, seed=0)
    vectorizer = {"sync": gymnasium.vector.SyncVectorEnv, "async": gymnasium.vector.AsyncVectorEnv}[strategy]
    make: Sequence[Any] = [partial(metaworld.make_mt_envs, task, seed=i) for i in range(num_envs)]
    return vectorizer(make)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="all tasks if none is given")
    parser.add_argument("--workers", type=int, default=2, help="processes of our vector environment")
    args = parser.parse_args()
    warnings.simplefilter("ignore")

    print("| vector environment | rows | times SyncVectorEnv | with processes, times AsyncVectorEnv |")
    print("| --- | --- | --- | --- |", flush=True)
    for task, num_envs in (("reach-v3", 8), ("push-v3", 8), ("MT10", 10), ("MT50", 50)):
        official = partial(official_vector, task, num_envs)
        make = partial(gymnasium.make_vec, f"act_kit/{task}", num_envs)
        alone = measure_vector([partial(official, "sync"), make], time.process_time)
        parallel = "–"
        if num_envs <= 10:  # fifty processes take minutes to start
            makers = [partial(official, "async"), partial(make, num_workers=args.workers)]
            parallel = f"{measure_vector(makers, time.perf_counter):.2f}"
        print(f"| {task} | {num_envs} | {alone:.2f} | {parallel} |", flush=True)

    print("\n| task | Meta-World, µs | ours, µs | times Meta-World |\n| --- | --- | --- | --- |", flush=True)
    ratios = []
    for task in args.tasks or TASKS:
        times = measure_single(task)
        ratios.append(times["official"] / times["ours"])
        print(f"| {task} | {1e6 * times['official']:.0f} | {1e6 * times['ours']:.0f} | {ratios[-1]:.2f} |", flush=True)
    print(f"\nmedian {statistics.median(ratios):.2f}, least {min(ratios):.2f}, most {max(ratios):.2f}")


if __name__ == "__main__":  # processes are spawned, and import this file
    main()

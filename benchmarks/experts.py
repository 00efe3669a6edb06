"""Every task's expert: success over 20 new initial states, and the diversity report of 50 demonstrations.

python benchmarks/experts.py [TASK …]        about 8 minutes for all 50 on two cores; prints a Markdown table
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from act_kit.collection.collect import collect
from act_kit.collection.verify import replay
from act_kit.config.collection import CollectConfig
from act_kit.diversity.measure import measure_diversity
from act_kit.eval.results import success_rate
from act_kit.overrides import compose
from act_kit.parallel import LocalExecutor
from act_kit.processors import num_cpus
from act_kit.rollouts.agents import ExpertAgent
from act_kit.rollouts.rollout import RolloutFunction, RolloutPool
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.tasks import TASKS

NUM_INIT_STATES = 20
NUM_DEMONSTRATIONS = 50


def row(task: str, roll: RolloutFunction) -> str:
    """Measure one task and return its row."""
    init_states = InitialStateDistribution(task).sample(NUM_INIT_STATES, seed=0, stream="evaluate")
    outcomes = roll(ExpertAgent(), init_states, stop_at_success=True)
    steps = [outcome.success_step + 1 for outcome in outcomes if outcome.success_step is not None]
    with tempfile.TemporaryDirectory() as folder, LocalExecutor(num_cpus()) as executor:
        config = compose(CollectConfig, flags={"task": task, "n": NUM_DEMONSTRATIONS})
        store = collect(config, Path(folder) / "data", executor=executor)
        diversity = measure_diversity(store)
        exact = sum(result.first_difference is None for result in replay(store, executor=executor))
    cells = (
        task,
        TASKS[task].group,
        success_rate(outcomes),
        f"{np.mean(steps):.0f} (at most {max(steps)})",
        diversity.num_failed,
        f"{exact}/{NUM_DEMONSTRATIONS}",
        diversity.level,
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK")
    tasks = parser.parse_args().tasks or TASKS
    print("| task | group | expert | steps to success | failed attempts | replayed to the bit | diversity |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with RolloutPool(num_cpus()) as roll:
        for task in tasks:
            print(row(task, roll), flush=True)


if __name__ == "__main__":
    main()

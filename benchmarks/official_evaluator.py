"""Score a checkpoint with Meta-World's own evaluator, through the agent protocol that `Policy` satisfies.

python benchmarks/official_evaluator.py RUN [EPISODES]
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import gymnasium as gym
import metaworld
from metaworld.evaluation import evaluation

from act_kit import Policy
from act_kit.statistics import Rate

NUM_ENVS = 5


def main() -> None:
    """Print the benchmark's success rate of a run's best checkpoint, on each of its tasks."""
    policy = Policy.load(sys.argv[1])
    num_episodes = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    print(policy)
    for task in policy.tasks:
        # Meta-World draws its 50 goals, and which of them comes next, from each environment's seed.
        make: list[Any] = [partial(metaworld.make_mt_envs, task, seed=1000 + i) for i in range(NUM_ENVS)]
        envs = gym.vector.SyncVectorEnv(make, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
        success, mean_return, _, _ = evaluation(policy.for_task(task), envs, num_episodes=num_episodes)
        print(f"{task}: {Rate(round(success * num_episodes), num_episodes)}, mean return {mean_return:.0f}")


if __name__ == "__main__":
    main()

"""What a policy does where it fails and its expert would do something else.

    python -m benchmarks.disagreement RUN TASK
    python -m benchmarks.disagreement RUN TASK --seed 7 --episodes 20

Rolls the policy out from test initial states. Each failed episode is a row: for each number of the action, the fraction
of the second half of its steps in which the scripted expert, asked in the same state, differs by more than half of the
range of actions; and where the first object is then, relative to the hand (medians, millimeters). A policy that is
stuck at one decision of the expert has fractions near 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from act_kit import Policy
from act_kit.eval.init_state_sets import make_init_state_set
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.state_features import POINTS
from act_kit.rollouts.rollout import rollout
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.tasks import TASKS
from act_kit.sim.vector import VectorSimulator
from benchmarks.experiment import print_head, print_row

MUCH = 1.0
"""Half of the range of actions."""


def main() -> None:
    """Roll out, and print a row for each failed episode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("task", choices=list(TASKS), metavar="TASK")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=100)
    arguments = parser.parse_args()
    policy = Policy.load(arguments.run).for_task(arguments.task)
    test_set = make_init_state_set(arguments.task, "test", arguments.episodes, arguments.seed, ())
    with VectorSimulator(0) as simulators:
        episodes = rollout(simulators, PolicyAgent(policy), test_set.init_states)
    expert = ScriptedExpert(arguments.task)
    print_head(["episode", "x", "y", "z", "gripper", "object from hand, mm"])
    failed = [(number, episode) for number, episode in enumerate(episodes) if not episode.success.any()]
    for number, episode in failed:
        late = range(len(episode) // 2, len(episode))
        states_SD = episode.states[late]
        expert_SA = np.array([expert.act(state) for state in states_SD])
        differs_A = (np.abs(episode.action[late] - expert_SA) > MUCH).mean(axis=0)
        offset_3 = np.median(states_SD[:, POINTS["object 1"]] - states_SD[:, POINTS["hand"]], axis=0)
        offset = " ".join(f"{1000 * x:.1f}" for x in offset_3)
        print_row([str(number), *(f"{share:.2f}" for share in differs_A), offset])
    print(f"\n{len(failed)} of {len(episodes)} episodes fail")


if __name__ == "__main__":
    main()

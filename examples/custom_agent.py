"""Evaluate a plain Python function against the expert, zero and random actions, from the same initial states.

The function of this example moves the hand straight towards the goal. Run: python examples/custom_agent.py
"""

from __future__ import annotations

import argparse

import numpy as np

import act_kit


def go_to_goal(states: np.ndarray) -> np.ndarray:
    """Return the actions (B, 4) for states (B, 39): a proportional controller of the hand, with an open gripper."""
    hands, goals = states[:, :3], states[:, -3:]
    return np.column_stack([10 * (goals - hands), -np.ones(len(states))])  # clipped to [-1, 1] by the rollout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="reach-v3")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--workers", type=int, default=0, help="Simulation processes; 0 = one per processor.")
    args = parser.parse_args()

    print(act_kit.evaluate(go_to_goal, args.task, episodes=args.episodes, workers=args.workers))


if __name__ == "__main__":  # processes are spawned, and import this file
    main()

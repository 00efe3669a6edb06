"""Evaluate an agent written in plain Python against the baselines, from the same initial states.

The agent of this example moves the hand straight towards the goal. Run: python examples/custom_agent.py --episodes 50
"""

from __future__ import annotations

import argparse

import numpy as np

from act_kit import InitialState, RolloutPool, make_init_state_set
from act_kit.eval.failure_modes import failure_mode
from act_kit.eval.results import success_rate
from act_kit.rollouts.agents import Agent, ExpertAgent, RandomAgent, ZeroActionAgent
from act_kit.sim.render import CameraViews


class GoToGoal:
    """Proportional controller of the hand's position; the gripper stays open."""

    views: CameraViews | None = None  # this agent needs no images

    def begin(self, row: int, init_state: InitialState) -> None:
        """Begin an episode in environment ``row``; this agent has no state to reset."""

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Return the next actions (B, N, 4) for states (B, 39); here N = 1: plan again after every step."""
        hands, goals = states[:, :3], states[:, -3:]
        actions = np.zeros((len(states), 1, 4), dtype=np.float32)
        actions[:, 0, :3] = 10 * (goals - hands)  # clipped to [-1, 1] by the rollout
        actions[:, 0, 3] = -1
        return actions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="reach-v3")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2, help="Simulation processes.")
    args = parser.parse_args()

    init_states = make_init_state_set(args.task, "test", args.episodes, seed=0, demonstrated=[]).init_states
    agents: dict[str, Agent] = {"go to goal": GoToGoal(), "expert": ExpertAgent()}
    agents |= {"zero actions": ZeroActionAgent(), "random": RandomAgent()}
    with RolloutPool(args.workers) as roll:
        for name, agent in agents.items():
            outcomes = roll(agent, init_states, stop_at_success=True)
            modes = [mode for outcome in outcomes if (mode := failure_mode(outcome))]
            counts = {mode: modes.count(mode) for mode in dict.fromkeys(modes)}
            print(f"{name:12} success {success_rate(outcomes)}, failure modes {counts}")


if __name__ == "__main__":  # processes are spawned, and import this file
    main()

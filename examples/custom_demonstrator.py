"""Collect a dataset with a demonstrator of your own, and report its diversity.

The demonstrator of this example is the scripted expert at a reduced speed.
Run: python examples/custom_demonstrator.py --out /tmp/slow
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import act_kit
from act_kit.collection.demonstrators import DEMONSTRATORS
from act_kit.rollouts.agents import ExpertAgent


class SlowExpert(ExpertAgent):
    """Scripted expert whose hand moves at ``speed`` times its usual speed."""

    source = "slow expert"  # recorded with every episode

    def __init__(self, speed: float = 0.7) -> None:
        super().__init__()
        self._speed = np.array([speed, speed, speed, 1.0], dtype=np.float32)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Return the next actions (B, N, 4) for states (B, 39); they may depend only on the episode and its number."""
        return super().plan(states, rows, images) * self._speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="reach-v3")
    parser.add_argument("--demonstrations", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True, help="New folder.")
    args = parser.parse_args()

    DEMONSTRATORS["slow"] = lambda config: SlowExpert()
    # One worker is this process. Others would not know the demonstrator: they do not run main().
    store = act_kit.collect(args.task, args.demonstrations, demonstrator="slow", out=args.out, workers=1)
    lengths = store.episode_lengths
    print(f"{store.num_episodes} episodes of {set(store.sources)}, {lengths.min()} to {lengths.max()} steps.")
    print(act_kit.measure_diversity(store).verdict)


if __name__ == "__main__":
    main()

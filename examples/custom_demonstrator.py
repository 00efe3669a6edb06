"""Collect a dataset with a demonstrator of your own, and report its diversity.

The demonstrator of this example is the scripted expert at a reduced speed.
Run: python examples/custom_demonstrator.py --out /tmp/slow
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import act_kit
from act_kit.collection.demonstrators import DEMONSTRATORS
from act_kit.sim.expert import ScriptedExpert


class SlowExpert:
    """Scripted expert whose hand moves at ``speed`` times its usual speed."""

    source = "slow expert"  # recorded with every episode
    parent: dict[str, Any] | None = None  # not made from another dataset or run

    def __init__(self, task: str, speed: float = 0.7) -> None:
        self._expert = ScriptedExpert(task)
        self._speed = np.array([speed, speed, speed, 1.0], dtype=np.float32)

    def begin(self, init_state: act_kit.InitialState, attempt: int) -> None:
        """Begin an attempt; actions may depend only on its initial state, its states and its number."""

    def act(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the action to imitate and the action to execute, (4,) each in [-1, 1]."""
        action = np.clip(self._expert.act(state), -1, 1).astype(np.float32) * self._speed
        return action, action


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="reach-v3")
    parser.add_argument("--demonstrations", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True, help="New folder.")
    args = parser.parse_args()

    DEMONSTRATORS["slow"] = lambda config: SlowExpert(config.task)
    # One worker is this process. Others would not know the demonstrator: they do not run main().
    store = act_kit.collect(args.task, args.demonstrations, demonstrator="slow", out=args.out, workers=1)
    lengths = store.episode_lengths
    print(f"{store.num_episodes} episodes of {set(store.sources)}, {lengths.min()} to {lengths.max()} steps.")
    print(act_kit.measure_diversity(store).verdict)


if __name__ == "__main__":
    main()

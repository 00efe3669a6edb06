"""Collect demonstrations, train a policy on them, and evaluate it from held-out initial states.

Run: python examples/collect_train_evaluate.py --task reach-v3 --out /tmp/reach
"""

from __future__ import annotations

import argparse
from pathlib import Path

import act_kit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="reach-v3")
    parser.add_argument("--demonstrations", type=int, default=50)
    parser.add_argument("--steps", type=int, default=2000, help="Gradient steps.")
    parser.add_argument("--episodes", type=int, default=100, help="Episodes of the evaluation.")
    parser.add_argument("--workers", type=int, default=0, help="Simulation processes; 0 = one per processor.")
    parser.add_argument("--out", type=Path, required=True, help="New folder.")
    args = parser.parse_args()

    store = act_kit.collect(args.task, args.demonstrations, out=args.out / "data", workers=args.workers)
    print(act_kit.measure_diversity(store).verdict)
    selection = ["selection.num_evaluations=3", "selection.episodes=10"]
    policy = act_kit.train(store.path, args.out / "run", steps=args.steps, overrides=selection, workers=args.workers)
    print(act_kit.evaluate(policy, episodes=args.episodes, out=args.out / "eval", workers=args.workers))


if __name__ == "__main__":  # processes are spawned, and import this file
    main()

"""Compare two training methods, here two chunk sizes, over several training seeds.

Run: python examples/compare_methods.py --out /tmp/chunks
"""

from __future__ import annotations

import argparse
from pathlib import Path

import act_kit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="reach-v3")
    parser.add_argument("--demonstrations", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3, help="Training seeds of each method, at least three.")
    parser.add_argument("--steps", type=int, default=1000, help="Gradient steps.")
    parser.add_argument("--episodes", type=int, default=100, help="Episodes of each evaluation.")
    parser.add_argument("--workers", type=int, default=0, help="Simulation processes; 0 = one per processor.")
    parser.add_argument("--out", type=Path, required=True, help="New folder.")
    args = parser.parse_args()

    data = act_kit.collect(args.task, args.demonstrations, out=args.out / "data", workers=args.workers).path
    methods: dict[str, list[act_kit.Evaluation]] = {}
    for size in (8, 16):
        name, overrides = f"chunks of {size}", [f"policy.chunk_size={size}", "selection.num_evaluations=0"]
        methods[name] = []
        for seed in range(args.seeds):
            policy = act_kit.train(data, args.out / name / str(seed), steps=args.steps, seed=seed, overrides=overrides)
            methods[name].append(act_kit.evaluate(policy, episodes=args.episodes, workers=args.workers))
    print(act_kit.compare(methods, vary=["policy.chunk_size"], out=args.out / "comparison"))


if __name__ == "__main__":  # processes are spawned, and import this file
    main()

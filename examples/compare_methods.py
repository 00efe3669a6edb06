"""Compare two training methods, here two chunk sizes, over several training seeds, as act train and act compare do.

Run: python examples/compare_methods.py --out /tmp/chunks
"""

from __future__ import annotations

import argparse
from pathlib import Path

from act_kit import (
    CollectConfig,
    EvalConfig,
    LocalExecutor,
    RolloutPool,
    Trainer,
    collect,
    evaluate,
    make_init_state_set,
)
from act_kit.compare.compare import compare
from act_kit.reports.comparison import write_comparison
from act_kit.reports.evaluation import write_results
from act_kit.training.run import create_run

TASK = "reach-v3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demonstrations", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3, help="Training seeds of each method, at least three.")
    parser.add_argument("--steps", type=int, default=1000, help="Gradient steps.")
    parser.add_argument("--episodes", type=int, default=100, help="Episodes of each evaluation.")
    parser.add_argument("--workers", type=int, default=2, help="Simulation processes.")
    parser.add_argument("--out", type=Path, required=True, help="New folder.")
    args = parser.parse_args()

    with LocalExecutor(args.workers) as executor:
        config = CollectConfig(task=TASK, n=args.demonstrations)
        store = collect(config, args.out / "data", executor=executor)
    init_state_set = make_init_state_set(TASK, "test", args.episodes, seed=0, demonstrated=[])
    methods = [args.out / f"chunks-of-{size}" for size in (8, 16)]
    with RolloutPool(args.workers) as roll:
        for method, size in zip(methods, (8, 16), strict=True):
            for seed in range(args.seeds):
                run = method / f"seed-{seed}"
                flags = {"policy.chunk_size": size, "trainer.seed": seed, "trainer.steps": args.steps}
                train_config = create_run(run, [store.path], [], flags, overwrite=False)
                policy = Trainer(train_config, [store], run, selector=None).train()
                evaluation = evaluate(policy, init_state_set, EvalConfig(), roll=roll)
                write_results(evaluation, run / "eval-test")
                print(f"{run}: success {evaluation.success}")
    comparison = compare(methods, ["policy.chunk_size"])
    print(*comparison.notes, *(pair.sentence for pair in comparison.pairs), sep="\n")
    print(f"Page: {write_comparison(comparison, args.out / 'comparison')}")


if __name__ == "__main__":  # processes are spawned, and import this file
    main()

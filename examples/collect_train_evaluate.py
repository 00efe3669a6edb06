"""Collect demonstrations, train a policy on them, and evaluate it from held-out initial states.

Run: python examples/collect_train_evaluate.py --task reach-v3 --out /tmp/reach
"""

from __future__ import annotations

import argparse
from pathlib import Path

from act_kit import (
    CollectConfig,
    EvalConfig,
    InitialStateDistribution,
    LocalExecutor,
    RolloutPool,
    TrainConfig,
    Trainer,
    collect,
    compose,
    evaluate,
    make_init_state_set,
    measure_diversity,
)
from act_kit.eval.selection import make_checkpoint_evaluator
from act_kit.reports.evaluation import write_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="reach-v3")
    parser.add_argument("--demonstrations", type=int, default=50)
    parser.add_argument("--steps", type=int, default=2000, help="Gradient steps.")
    parser.add_argument("--episodes", type=int, default=100, help="Episodes of the evaluation.")
    parser.add_argument("--workers", type=int, default=2, help="Simulation processes.")
    parser.add_argument("--out", type=Path, required=True, help="New folder.")
    args = parser.parse_args()

    config = CollectConfig(task=args.task, n=args.demonstrations)
    with LocalExecutor(args.workers) as executor:
        store = collect(config, args.out / "data", executor=executor)
    print(measure_diversity(store).verdict)

    train_config = compose(TrainConfig, flags={"trainer.steps": args.steps, "selection.num_evaluations": 3})
    selection = InitialStateDistribution(args.task).sample(10, seed=0, stream="select")
    init_state_set = make_init_state_set(args.task, "test", args.episodes, seed=0, demonstrated=[])
    with RolloutPool(args.workers) as roll:
        selector = make_checkpoint_evaluator(roll, selection)
        trainer = Trainer(train_config, [store], args.out / "run", selector=selector)
        policy = trainer.train()
        print(trainer.outcome())
        evaluation = evaluate(policy, init_state_set, EvalConfig(), roll=roll)
    page = write_results(evaluation, args.out / "eval")
    print(f"Success {evaluation.success}, failure modes {evaluation.failures}. Page: {page}")


if __name__ == "__main__":  # processes are spawned, and import this file
    main()

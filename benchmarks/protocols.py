"""One policy, several numbers: the success of runs under every protocol.

python -m benchmarks.protocols RUN… [--tasks push-v3,reach-v3] [--episodes N]

Each run is evaluated on its tasks under each protocol, without baselines.
``--episodes`` replaces the number of episodes of every protocol.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import act_kit
from act_kit.api.evaluate import choose_init_states
from act_kit.eval.protocols import compose_evaluation, describe_protocol, protocol_names
from act_kit.eval.results import Evaluation, protocol_means
from act_kit.policies.policy import Policy


def evaluate(run: Path, protocol: str, tasks: Sequence[str], episodes: int | None) -> list[Evaluation]:
    """Evaluate a run on some of its tasks under a protocol."""
    config = compose_evaluation(
        ["baseline_episodes=0", "demonstrated_episodes=0"], {"protocol.name": protocol, "episodes": episodes}
    )
    policy = Policy.load(run).with_chunking(n_action_steps=config.protocol.n_action_steps or None)
    sets = [each for each in choose_init_states(policy, None, config) if each.task in tasks or not tasks]
    return act_kit.evaluate_tasks(policy, sets, config)


def success(evaluations: Sequence[Evaluation]) -> str:
    """Return the success of one task, or the mean that the protocol reports, with its interval."""
    return str(evaluations[0].success if len(evaluations) == 1 else protocol_means(evaluations)["success_once"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--tasks", default="", help="tasks, comma-separated; by default all of each run")
    parser.add_argument("--episodes", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| protocol | rules | episodes a task | {' | '.join(map(str, options.runs))} |")
    print(f"| --- | --- | --- |{' --- |' * len(options.runs)}")
    tasks = options.tasks.split(",") if options.tasks else []
    for protocol in ("metaworld", *(name for name in protocol_names() if name != "metaworld")):
        by_run = [evaluate(run, protocol, tasks, options.episodes) for run in options.runs]
        first = by_run[0][0]
        _, _, rules = describe_protocol(first.provenance).partition(": ")
        cells = " | ".join(map(success, by_run))
        print(f"| {protocol} | {rules} | {len(first.episodes)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

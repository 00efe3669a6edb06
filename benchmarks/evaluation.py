"""100 evaluation episodes of a state policy: ``act_kit`` against a loop over Meta-World's environment; same outcomes.

python benchmarks/evaluation.py RUN [NUM_EPISODES]     about 2 minutes for 100; RUN is what act train made of one task

The loop is what one writes without a toolkit: one environment, ``env.step``, the policy asked whenever its chunk is
used up. Both start from nothing: importing Meta-World and starting processes count. Each runs in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np

EPISODES = 100


def official(run: str, num_episodes: int) -> np.ndarray:
    """Return success by episode and step, bool (N, 500), of the loop."""
    from act_kit.policies.policy import Policy
    from act_kit.sim.engine import make_environment
    from act_kit.sim.initial_states import InitialStateDistribution

    policy = Policy.load(run)
    (task,) = policy.tasks
    env = make_environment(task)
    successes = np.zeros((num_episodes, 500), dtype=bool)
    for row, init_state in zip(
        successes, InitialStateDistribution(task).sample(num_episodes, seed=5, stream="evaluate"), strict=True
    ):
        env._last_rand_vec = init_state.array
        state, _ = env.reset()
        policy.reset()
        for t in range(500):
            state, _, _, _, info = env.step(policy.act(state))
            row[t] = bool(info["success"])
    return successes


def toolkit(run: str, num_episodes: int, engine: str = "fast") -> np.ndarray:
    """Return the same of the toolkit."""
    import torch

    from act_kit.policies.agent import PolicyAgent
    from act_kit.policies.policy import Policy
    from act_kit.processors import num_cpus
    from act_kit.rollouts.rollout import rollout
    from act_kit.sim.initial_states import InitialStateDistribution
    from act_kit.sim.vector import VectorSimulator

    def show(sizes: object) -> None:
        print(getattr(sizes, "reason", ""), file=sys.stderr)

    torch.set_num_threads(1)  # as act eval does
    policy = Policy.load(run)
    init_states = InitialStateDistribution(*policy.tasks).sample(num_episodes, seed=5, stream="evaluate")
    with VectorSimulator(num_cpus(), engine=engine) as simulators:
        outcomes = rollout(simulators, PolicyAgent(policy), init_states, on_plan=show)
    spent = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in simulators.seconds.items())
    print(f"processor time: {spent}", file=sys.stderr)
    return np.stack([outcome.success for outcome in outcomes])


_MEASURED: dict[str, Callable[[str, int], np.ndarray]] = {"official": official, "toolkit": toolkit}


def main() -> None:
    """Time each in a process of its own and compare what they saw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("num_episodes", nargs="?", type=int, default=EPISODES)
    parser.add_argument("--only", choices=list(_MEASURED), help=argparse.SUPPRESS)
    options = parser.parse_args()
    run, num = options.run, options.num_episodes
    if options.only:
        warnings.simplefilter("ignore")
        sys.stdout.buffer.write(_MEASURED[options.only](run, num).tobytes())
        return
    spent, saw = {}, {}
    command = [sys.executable, __file__, run, str(num)]
    for name in _MEASURED:
        began = time.perf_counter()
        done = subprocess.run([*command, "--only", name], stdout=subprocess.PIPE, check=True)
        spent[name] = time.perf_counter() - began
        saw[name] = np.frombuffer(done.stdout, dtype=bool).reshape(num, 500)
    same = int((saw["official"] == saw["toolkit"]).all(axis=1).sum())
    print(f"loop over Meta-World: {spent['official']:.1f} s; act_kit: {spent['toolkit']:.1f} s")
    print(f"{spent['official'] / spent['toolkit']:.1f} times as fast")
    print(f"{same} of {num} episodes the same at every step; {int(saw['toolkit'].any(axis=1).sum())} succeed")


if __name__ == "__main__":
    main()

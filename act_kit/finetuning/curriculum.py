"""Curriculum of fine-tuning: which initial states and tasks the episodes of an iteration begin from, and their horizon.

Shapes: N tasks, D dimensions of an initial state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from act_kit.config.finetuning import FinetuneConfig
from act_kit.rollouts.episode import Episode
from act_kit.sim.initial_states import InitialState, InitialStateDistribution, stack
from act_kit.sim.tasks import HORIZON, get_task


def choose_horizon(episodes: Sequence[Episode]) -> int:
    """Return twice the number of steps within which 90 % of a policy's successes came, of the slowest task.

    Successes are rarely later: the rest of a failed episode is simulated for nothing.
    """
    steps: dict[str, list[int]] = {}
    for episode in episodes:
        if episode.success_step is not None:
            steps.setdefault(episode.init_state.task, []).append(episode.success_step + 1)
    longest = max((float(np.quantile(of_task, 0.9)) for of_task in steps.values()), default=HORIZON)
    return min(HORIZON, round(2 * longest))


def core_fraction(config: FinetuneConfig, iteration: int) -> float:
    """Return the fraction of the initial states that an iteration, from 0, draws from; it grows evenly to 1."""
    return min(1.0, config.core_fraction + (1 - config.core_fraction) * iteration / config.widen_iterations)


def draw_from_core(
    task: str, num: int, fraction: float, demonstrated: Sequence[Sequence[float]], *, seed: int
) -> list[InitialState]:
    """Draw initial states of a task from the stream of fine-tuning, from the core outwards.

    Args:
        task: Meta-World task.
        num: Number of initial states.
        fraction: Fraction of all initial states in the core, those nearest to the center of the demonstrated ones; 1
            draws from all.
        demonstrated: ``rand_vec`` of the demonstrations, (…, D); without any, the center is that of the reset box.
        seed: Seed.
    """
    states = InitialStateDistribution(task).sample(round(num / fraction), seed=seed, stream="finetune")
    if len(states) <= num:
        return states
    spec = get_task(task)
    dims = spec.informative
    center_D = np.mean(demonstrated, axis=0) if len(demonstrated) else np.mean([spec.low, spec.high], axis=0)
    offsets = np.abs(stack(states) - center_D)[:, dims] / spec.width[dims]
    nearest = np.sort(np.argsort(offsets.max(axis=1), kind="stable")[:num])
    return [states[index] for index in nearest]


def allot(num: int, failure_rates_N: np.ndarray, focus: float) -> list[int]:
    """Divide ``num`` episodes among the tasks: ``focus`` of them in proportion to the failure rates, the rest alike."""
    shares_N = np.full(len(failure_rates_N), 1 / len(failure_rates_N))
    if failure_rates_N.sum() > 0:
        shares_N = (1 - focus) * shares_N + focus * failure_rates_N / failure_rates_N.sum()
    ends = np.round(np.cumsum(shares_N) * num).astype(int)
    numbers: list[int] = np.diff(ends, prepend=0).tolist()
    return numbers

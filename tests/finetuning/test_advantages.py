"""Returns and advantages over chunks equal those of an enumerated decision process."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from act_kit.finetuning.advantages import estimate_advantages, make_decisions

GAMMA = 0.9


def brute_force_return(query: int, query_steps: np.ndarray, success_step: int | None) -> float:
    """Return the discounted reward from a query on, step by step: 1 at the first success, and nothing after it."""
    if success_step is None:
        return 0.0
    return float(GAMMA ** (success_step - query_steps[query]))


@pytest.mark.parametrize("success_step", [None, 0, 1, 4, 5, 6, 9])
def test_returns_are_those_of_single_steps(success_step: int | None) -> None:
    queries = np.arange(0, 10 if success_step is None else success_step + 1, 3)
    num_steps = 10 if success_step is None else min(10, 3 * len(queries))  # a chunk is executed to its end
    decisions = make_decisions(queries, num_steps, success_step, gamma=GAMMA)
    _, returns = estimate_advantages(decisions, np.zeros(len(queries)), lam=1.0)
    for query in range(len(queries)):
        assert returns[query] == pytest.approx(brute_force_return(query, queries, success_step)), query


def test_actions_after_the_success_and_after_the_time_limit_do_not_count() -> None:
    assert make_decisions(np.array([0, 3, 6]), 9, 7, gamma=GAMMA).num_executed.tolist() == [3, 3, 2]
    assert make_decisions(np.array([0, 3, 6, 9]), 10, None, gamma=GAMMA).num_executed.tolist() == [3, 3, 3, 1]


def test_nothing_is_bootstrapped_at_the_time_limit() -> None:
    decisions = make_decisions(np.array([0, 3, 6]), 9, None, gamma=GAMMA)
    advantages, returns = estimate_advantages(decisions, np.array([0.5, 0.5, 0.5]), lam=0.0)
    assert returns[-1] == 0.0
    assert advantages[-1] == -0.5
    assert returns[0] == pytest.approx(0.5 * GAMMA**3)


def test_advantages_are_unbiased_for_any_lambda_if_the_values_are_right() -> None:
    """Enumerate a chain of three chunks of two steps, each of whose steps succeeds with probability p."""
    p, size, num = 0.3, 2, 3

    def value(query: int) -> float:
        return sum(p * (1 - p) ** step * GAMMA**step for step in range(size * (num - query)))

    values = np.array([value(query) for query in range(num)])
    expected = {lam: np.zeros(num) for lam in (0.0, 0.5, 1.0)}
    visited = np.zeros(num)
    for success_step in [*range(size * num), None]:
        probability = (1 - p) ** (size * num) if success_step is None else p * (1 - p) ** success_step
        queries = np.arange(0, size * num if success_step is None else success_step + 1, size)
        decisions = make_decisions(queries, size * len(queries), success_step, gamma=GAMMA)
        visited[: len(queries)] += probability
        for lam, total in expected.items():
            advantages, _ = estimate_advantages(decisions, values[: len(queries)], lam=lam)
            total[: len(queries)] += probability * advantages
    for lam, query in itertools.product(expected, range(num)):
        assert expected[lam][query] / visited[query] == pytest.approx(0.0, abs=1e-12), (lam, query)

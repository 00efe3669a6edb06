"""Sweep over the chunking of one checkpoint, on the same initial states.

It shows how much success depends on how chunks are executed. Its best row is not a result: the best of several settings
tried on the same initial states is biased upward. To use another setting, evaluate it again with another seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from rich.table import Table
from rich.text import Text

from act_kit.config import ChunkingConfig
from act_kit.eval.results import Evaluation
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.rollouts.rollout import Progress, RolloutFunction
from act_kit.statistics import Rate, mcnemar

WARNING = (
    "Not a result: the best of several settings tried on the same initial states is biased upward, and p is not "
    "corrected for the number of settings. To use another setting, evaluate it with another --seed."
)


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """Result of one chunking setting.

    Attributes:
        chunking: Description of the setting.
        rate: Rate of success at any step.
        gained: Number of initial states from which this setting succeeds and the evaluated one fails; None for the
            evaluated setting itself.
        lost: Number of initial states from which this setting fails and the evaluated one succeeds.
        p: P-value of the exact McNemar test between the two.
    """

    chunking: str
    rate: Rate
    gained: int | None = None
    lost: int | None = None
    p: float | None = None


def describe_chunking(chunking: ChunkingConfig) -> str:
    """Describe how chunks are executed."""
    if chunking.temporal_ensemble:
        return "every step, ensembled"
    return f"{chunking.n_action_steps} action{'s' if chunking.n_action_steps > 1 else ''} a query"


def other_settings(policy: Policy) -> list[Policy]:
    """Return the policy with each other setting of the sweep: 1, 2, 4, … actions a query, whole chunks, ensembling."""
    lengths = [2**i for i in range(policy.chunk_size.bit_length()) if 2**i < policy.chunk_size] + [policy.chunk_size]
    settings = [policy.with_chunking(n_action_steps=length, temporal_ensemble=False) for length in lengths]
    settings.append(policy.with_chunking(temporal_ensemble=True))
    own = describe_chunking(policy.chunking)
    return [setting for setting in settings if describe_chunking(setting.chunking) != own]


def sweep(
    policy: Policy,
    evaluations: Sequence[Evaluation],
    *,
    roll: RolloutFunction,
    on_progress: Callable[[str, Progress, int], None] = lambda setting_name, progress, num_episodes: None,
) -> list[list[SweepRow]]:
    """Run the other settings from the initial states of ``policy``'s evaluations.

    Returns:
        Rows of each evaluation; the evaluated setting comes first.
    """
    sizes = [len(evaluation.episodes) for evaluation in evaluations]
    init_states = list(chain.from_iterable(evaluation.init_state_set.init_states for evaluation in evaluations))
    own = [evaluation.successes for evaluation in evaluations]
    rows = [[SweepRow(chunking=describe_chunking(policy.chunking), rate=e.success)] for e in evaluations]
    for setting in other_settings(policy):
        name = describe_chunking(setting.chunking)

        def show(progress: Progress, name: str = name) -> None:
            on_progress(name, progress, len(init_states))

        outcomes = iter(roll(PolicyAgent(setting), init_states, stop_at_success=True, on_progress=show))
        for rows_of_set, size, own_success in zip(rows, sizes, own, strict=True):
            success = np.array([outcome.success_once for outcome in islice(outcomes, size)])
            gained, lost = int((success & ~own_success).sum()), int((own_success & ~success).sum())
            rate = Rate(int(success.sum()), size)
            rows_of_set.append(SweepRow(chunking=name, rate=rate, gained=gained, lost=lost, p=mcnemar(gained, lost)))
    return rows


def table_rows(rows: Sequence[SweepRow]) -> list[tuple[str, str, str, str, str]]:
    """Return setting, success, gained, lost and p as text."""
    texts: list[tuple[str, str, str, str, str]] = []
    for row in rows:
        comparison = ("as evaluated", "", "")
        if row.p is not None:
            comparison = (f"+{row.gained}", f"-{row.lost}", f"{row.p:.3g}")
        texts.append((row.chunking, str(row.rate), *comparison))
    return texts


COLUMNS = ("chunking", "success", "gained", "lost", "p")


def sweep_table(task: str, rows: Sequence[SweepRow]) -> Table:
    """Return a sweep as a table."""
    table = Table(*COLUMNS, title=f"{task}: chunking", title_justify="left", caption=WARNING)
    for row in table_rows(rows):
        table.add_row(*map(Text, row))
    return table

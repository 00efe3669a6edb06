"""One checkpoint carrying out its chunks in other ways, on the same starts.

It tells whether success hangs on how chunks are carried out. Its best row is not a result: of several settings tried
on the same starts the best looks better than it is. Whoever wants to use it evaluates it anew, with another seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from act_kit.config import ChunkingConfig
from act_kit.eval.evaluate import Evaluation
from act_kit.files import write_json
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import PolicyAgent
from act_kit.rollouts.rollout import Progress, RolloutFunction
from act_kit.statistics import Rate, mcnemar

WARNING = (
    "Not a result: the best of several settings tried on the same starts looks better than it is, and p is not "
    "corrected for how many were tried. To use another setting, evaluate it with another --seed."
)


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """What came of one way to carry out chunks.

    Attributes:
        execution: In words.
        rate: Success once.
        gained: Starts that it succeeds from and the setting that was evaluated does not; None for that setting itself.
        lost: The other way round.
        p: Exact McNemar test of the two against each other.
    """

    chunking: str
    rate: Rate
    gained: int | None = None
    lost: int | None = None
    p: float | None = None


def describe(chunking: ChunkingConfig) -> str:
    """Say in words how chunks are carried out."""
    if chunking.temporal_ensemble:
        return "every step, ensembled"
    return f"{chunking.n_action_steps} action{'s' if chunking.n_action_steps > 1 else ''} a query"


def others(policy: Policy) -> list[Policy]:
    """Return the policy with every other setting of the sweep: 1, 2, 4, … actions a query, whole chunks, ensembling."""
    lengths = [2**i for i in range(policy.chunk_size.bit_length()) if 2**i < policy.chunk_size] + [policy.chunk_size]
    settings = [policy.with_chunking(n_action_steps=length, temporal_ensemble=False) for length in lengths]
    settings.append(policy.with_chunking(temporal_ensemble=True))
    return [setting for setting in settings if describe(setting.chunking) != describe(policy.chunking)]


def sweep(
    policy: Policy,
    evaluations: Sequence[Evaluation],
    *,
    roll: RolloutFunction,
    on_progress: Callable[[str, Progress, int], None] = lambda who, progress, num: None,
) -> list[list[SweepRow]]:
    """Run the other settings from the starts of evaluations of ``policy``; return each one's rows, its own first."""
    sizes = [len(evaluation.episodes) for evaluation in evaluations]
    init_states = list(chain.from_iterable(evaluation.init_state_set.init_states for evaluation in evaluations))
    own = [np.array([outcome.success_once for outcome in evaluation.outcomes]) for evaluation in evaluations]
    rows = [[SweepRow(chunking=describe(policy.chunking), rate=e.success)] for e in evaluations]
    for setting in others(policy):
        name = describe(setting.chunking)

        def show(progress: Progress, name: str = name) -> None:
            on_progress(name, progress, len(init_states))

        outcomes = iter(roll(PolicyAgent(setting), init_states, stop_at_success=True, on_progress=show))
        for of_set, size, was in zip(rows, sizes, own, strict=True):
            is_now = np.array([outcome.success_once for outcome in islice(outcomes, size)])
            gained, lost = int((is_now & ~was).sum()), int((was & ~is_now).sum())
            rate = Rate(int(is_now.sum()), size)
            of_set.append(SweepRow(chunking=name, rate=rate, gained=gained, lost=lost, p=mcnemar(gained, lost)))
    return rows


def table_rows(rows: Sequence[SweepRow]) -> list[tuple[str, str, str, str, str]]:
    """Return setting, success, gained, lost and p as text."""
    return [
        (row.chunking, str(row.rate), *("as evaluated", "", ""))
        if row.p is None
        else (row.chunking, str(row.rate), f"+{row.gained}", f"-{row.lost}", f"{row.p:.3g}")
        for row in rows
    ]


COLUMNS = ("executing", "success", "gained", "lost", "p")


def sweep_table(task: str, rows: Sequence[SweepRow]) -> Table:
    """Return a sweep as a table."""
    table = Table(*COLUMNS, title=f"{task}: how chunks are carried out", title_justify="left", caption=WARNING)
    for row in table_rows(rows):
        table.add_row(*map(Text, row))
    return table


def write_sweep(rows: Sequence[SweepRow], path: Path) -> None:
    """Write the rows as JSON."""
    values: list[dict[str, Any]] = []
    for row in rows:
        low, high = row.rate.interval
        values.append(
            {
                "chunking": row.chunking,
                "success_once": {"successes": row.rate.successes, "num": row.rate.num, "low": low, "high": high},
                "gained": row.gained,
                "lost": row.lost,
                "mcnemar_p": row.p,
            }
        )
    write_json(path, {"warning": WARNING, "rows": values})

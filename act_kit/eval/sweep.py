"""Sweep over the chunking of one checkpoint, on the same initial states.

It shows how much success depends on how chunks are executed. Its best row is not a result: the best of several settings
tried on the same initial states is biased upward. To use another setting, evaluate it again with another seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from rich.text import Text

from act_kit.config.training import ChunkingConfig
from act_kit.eval.evaluate import ProgressFunction, episode_rules, roll_sets
from act_kit.eval.results import Evaluation, success_rate
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import delayed
from act_kit.rollouts.rollout import RolloutFunction
from act_kit.sim.initial_states import InitialState
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
    settings: list[Policy] = []
    length = 1
    while length < policy.chunk_size:
        settings.append(policy.with_chunking(n_action_steps=length, temporal_ensemble=False))
        length *= 2
    settings.append(policy.with_chunking(n_action_steps=policy.chunk_size, temporal_ensemble=False))
    settings.append(policy.with_chunking(temporal_ensemble=True))
    own = describe_chunking(policy.chunking)
    return [setting for setting in settings if describe_chunking(setting.chunking) != own]


def sweep(
    policy: Policy,
    evaluations: Sequence[Evaluation],
    *,
    roll: RolloutFunction,
    on_progress: ProgressFunction = lambda setting_name, progress, num_episodes: None,
) -> list[list[SweepRow]]:
    """Run the other settings from the initial states of ``policy``'s evaluations.

    Returns:
        Rows of each evaluation; the evaluated setting comes first.
    """
    init_states: list[Sequence[InitialState]] = []
    rows: list[list[SweepRow]] = []
    for evaluation in evaluations:
        init_states.append(evaluation.init_state_set.init_states)
        rows.append([SweepRow(chunking=describe_chunking(policy.chunking), rate=evaluation.success)])
    for setting in other_settings(policy):
        name = describe_chunking(setting.chunking)
        agent, rules = delayed(PolicyAgent(setting), evaluations[0].delay), episode_rules(evaluations[0].protocol)
        by_set = roll_sets(roll, name, agent, init_states, on_progress, rules=rules)
        for rows_of_set, evaluation, episodes in zip(rows, evaluations, by_set, strict=True):
            own, rate = evaluation.successes, success_rate(episodes)
            success = np.array([episode.success_once for episode in episodes])
            gained, lost = int((success & ~own).sum()), int((own & ~success).sum())
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

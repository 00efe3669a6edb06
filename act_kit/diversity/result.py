"""The diversity report of a dataset: its measurements and its verdict as a sentence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any

from act_kit.diversity.conflict import Conflict
from act_kit.diversity.faults import Soundness
from act_kit.diversity.integrity import Finding, Level, worst_level
from act_kit.diversity.power import POWER, VisibleHole
from act_kit.diversity.quality import Quality
from act_kit.diversity.sources import SourceShare


def percent(share: float) -> str:
    """Format a share as a percentage."""
    return f"{100 * share:.0f} %"


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One informative dimension of the initial state.

    Attributes:
        name: Name, such as ``object x``.
        range_fraction: Range of X / range of Y.
        std_ratio: Standard deviation of X / of Y.
        ks_p: Kolmogorov-Smirnov p-value, Holm-adjusted over the dimensions.
        shift: Wasserstein distance from Y / width of the reset interval.
    """

    name: str
    range_fraction: float
    std_ratio: float
    ks_p: float
    shift: float


@dataclass(frozen=True, kw_only=True)
class ScalingPoint:
    """A point of the curve of the nearest-demonstration distance over the number of demonstrations.

    Attributes:
        num: Number of demonstrations: a subset of the dataset, or all of it plus random ones.
        nearest: Mean distance from an initial state of Y to the nearest demonstration, in box widths.
        nearest_random: The same for ``num`` draws from the initial-state distribution.
    """

    num: int
    nearest: float
    nearest_random: float


@dataclass(frozen=True, kw_only=True)
class DatasetReport(ABC):
    """Measurements of a dataset, with a verdict: the worst of the findings.

    Attributes:
        task: Name of the task.
        num: Number of demonstrations, N.
        duplicate_trajectories: Share of episodes whose trajectory equals that of an earlier episode (bit-exact).
        soundness: Result of replaying the demonstrations and querying the expert.
        num_clipped, num_clipped_episodes: Number of actions that the import clipped to [-1, 1], and of episodes that
            have any; None for data whose actions it did not check.
        notes: Checks that were skipped, and why.
        findings: Problems.
        fix: The command that collects a dataset without these findings, or other advice.
    """

    task: str
    num: int
    duplicate_trajectories: float
    soundness: Soundness | None = None
    num_clipped: int | None = None
    num_clipped_episodes: int = 0
    notes: list[str]
    findings: list[Finding]
    fix: str

    @property
    @abstractmethod
    def healthy(self) -> str:
        """Verdict without a finding."""

    @property
    def level(self) -> Level:
        """Level of the worst finding."""
        return worst_level(self.findings)

    @property
    def verdict(self) -> str:
        """Verdict as a sentence, including the fix."""
        problems = " ".join(finding.text for finding in self.findings if finding.level == self.level)
        return f"{self.level}: {problems} Fix: {self.fix}" if problems else f"OK: {self.healthy}"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and the verdict for JSON."""
        return {"level": self.level, "verdict": self.verdict, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class DiversityReport(DatasetReport):
    """Coverage of the evaluated initial states Y by N demonstrated ones X, and the quality of the demonstrations.

    Trajectories are compared by their actions.

    Attributes:
        against: Description of Y.
        num_distinct: Number of initial states that differ by more than 1e-6 m in some dimension.
        num_apart: Number of initial states where near copies, within 0.5 % of the box in every dimension, count once.
        num_outside: Number of initial states outside the task's distribution; they cover nothing.
        num_shared: Number of initial states that are also in the evaluation set, if Y is one.
        duplicate_fraction: Share of initial states that repeat an earlier one.
        num_attempts, num_failed: Number of all and of failed attempts of the collection; failed ones leave holes.
        dimensions: One row per informative dimension.
        nearest_mean, nearest_p95, nearest_max: Distance from Y to the nearest of X, in box widths.
        nearest_ratio, nearest_p95_ratio, nearest_max_ratio: The same / those of N random draws; 1 is as good as
            random.
        beyond_p99: Share of Y farther from X than 99 % of Y are from N random draws.
        energy_distance, energy_p: Székely's two-sample statistic (of at most 200 of X) and its p-value.
        effective_rank, effective_rank_reference: Effective rank of the correlation matrix of X, and its mean over N
            random draws.
        correlation, correlated: Largest difference of two dimensions' correlation from that in Y, and their names.
        visible_holes: Smallest detectable hole of each kind; empty if there are too few demonstrations.
        scaling: Distance to the nearest demonstration over their number.
        sources: Share and coverage of each source.
        quality: Quality of the demonstrations of each source.
        num_validation, num_leaked: Number of validation episodes of ``act train``, and of those whose initial state, or
            states and actions, are also in a training episode.
        conflict: Two ways that the demonstrations go; None if they go one.
    """

    against: str
    num_distinct: int
    num_apart: int
    num_outside: int
    num_shared: int
    duplicate_fraction: float
    num_attempts: int
    num_failed: int
    dimensions: list[Dimension]
    nearest_mean: float
    nearest_p95: float
    nearest_max: float
    nearest_ratio: float
    nearest_p95_ratio: float
    nearest_max_ratio: float
    beyond_p99: float
    energy_distance: float
    energy_p: float
    effective_rank: float
    effective_rank_reference: float
    correlation: float
    correlated: tuple[str, str] | None
    visible_holes: list[VisibleHole] = field(default_factory=list)
    scaling: list[ScalingPoint] = field(default_factory=list)
    sources: list[SourceShare] = field(default_factory=list)
    quality: list[Quality] = field(default_factory=list)
    num_validation: int = 0
    num_leaked: int = 0
    conflict: Conflict | None = None

    def __repr__(self) -> str:
        return self.verdict

    @property
    def healthy(self) -> str:
        """Verdict without a finding."""
        return (
            f"{self.num} demonstrations from {self.num_distinct} distinct initial states cover {self.against} as well "
            f"as {self.num} random draws."
        )

    @property
    def could_see(self) -> str:
        """Smallest detectable holes, as a sentence."""
        sizes = []
        for hole in self.visible_holes:
            share = percent(hole.share) if hole.share else ""
            sizes.append(f"{share} {hole.where}" if share else f"no hole {hole.where} of any size")
        if not sizes:
            return ""
        return (
            f"With {self.num} demonstrations, holes of these shares of the box are detected with a probability of at "
            f"least {percent(POWER)}: {'; '.join(sizes)}. Smaller holes may exist."
        )

    @property
    def more(self) -> str:
        """Expected benefit of more demonstrations, as a sentence."""
        now = next((point.nearest for point in self.scaling if point.num >= self.num), 0.0)
        gains = []
        for point in self.scaling:
            if point.num > self.num and now:
                gain = percent(1 - point.nearest / now)
                gains.append(f"with {point.num - self.num} more random initial states, by {gain}")
        return f"The mean distance to the nearest demonstration would decrease: {'; '.join(gains)}." if gains else ""

"""What is measured of a dataset's starts, and the verdict in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from act_kit.diversity.integrity import Finding, Level, worst
from act_kit.diversity.power import POWER, VisibleHole
from act_kit.diversity.quality import Quality
from act_kit.diversity.soundness import Soundness
from act_kit.diversity.sources import SourceShare


def percent(share: float) -> str:
    """Return a share in words."""
    return f"{100 * share:.0f} %"


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One informative dimension of the start.

    Attributes:
        name: Such as ``object x``.
        range_fraction: Range of X / range of Y.
        std_ratio: Standard deviation of X / of Y.
        ks_p: Kolmogorov-Smirnov p-value, Holm-adjusted over the dimensions.
        shift: Wasserstein distance / width of the reset interval.
    """

    name: str
    range_fraction: float
    std_ratio: float
    ks_p: float
    shift: float


@dataclass(frozen=True, kw_only=True)
class ScalingPoint:
    """A point of the curve "what would more demonstrations buy".

    Attributes:
        num: Demonstrations: some of these, or all of them and random ones on top.
        nearest: Mean distance from a start of Y to the nearest of them, box widths.
        nearest_random: The same of ``num`` draws of the reset law.
    """

    num: int
    nearest: float
    nearest_random: float


@dataclass(frozen=True, kw_only=True)
class DiversityReport:
    """How well N demonstrated starts cover those of the evaluation, and how they were demonstrated.

    Attributes:
        task: Meta-World task.
        against: What Y is, in words.
        num: N.
        num_distinct: Starts that differ by more than 1e-6 m somewhere.
        num_apart: Starts without near copies: those within 0.5 % of the box of another, in every dimension, count once.
        num_outside: Starts that the reset law never gives; they count as covering nothing.
        num_shared: Starts that are also among the evaluation set's, if Y is one.
        duplicate_fraction: Of the starts, those that repeat an earlier one.
        duplicate_trajectories: Of the episodes, those whose actions repeat an earlier one's to the bit.
        num_attempts, num_failed: Attempts of the collection; failed ones leave holes.
        dimensions: One row per informative dimension.
        nearest_mean, nearest_p95, nearest_max: Distance from Y to the nearest of X, in box widths.
        nearest_ratio, nearest_p95_ratio, nearest_max_ratio: The same / those of N fresh draws; 1 is what random starts
            reach.
        beyond_p99: Of Y, those farther from X than 99 % are from N fresh draws.
        energy_distance, energy_p: Székely's two-sample statistic (of at most 200 of X), and its p-value.
        effective_rank, effective_rank_reference: Of the correlation matrix, of X and in the mean of N fresh draws.
        correlation, correlated: The largest difference of two dimensions' correlation from that in Y, and which two.
        visible_holes: The smallest holes that this many demonstrations show, by kind; none where too few are judged.
        growth: What more demonstrations would buy.
        sources: What each source demonstrated, and what that covers.
        quality: How it was demonstrated, by source.
        num_validation, num_leaked: Episodes that ``act train`` validates with, and those of them whose start, or
            states and actions, are also a training episode's.
        soundness: What replaying the demonstrations and asking the expert showed.
        notes: What was not judged, and why.
        findings: What is wrong.
        mend: The command that collects a dataset without these findings.
    """

    task: str
    against: str
    num: int
    num_distinct: int
    num_apart: int
    num_outside: int
    num_shared: int
    duplicate_fraction: float
    duplicate_trajectories: float
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
    soundness: Soundness | None = None
    notes: list[str]
    findings: list[Finding]
    fix: str

    @property
    def level(self) -> Level:
        """The worst finding's level."""
        return worst(self.findings)

    @property
    def verdict(self) -> str:
        """The verdict as a sentence, with what mends it."""
        if self.level == "OK":
            return (
                f"OK: {self.num} demonstrations from {self.num_distinct} distinct starts cover {self.against} as well "
                f"as {self.num} random draws do."
            )
        wrong = " ".join(finding.text for finding in self.findings if finding.level == self.level)
        return f"{self.level}: {wrong} Fix: {self.fix}"

    @property
    def could_see(self) -> str:
        """Which holes would have been seen, as a sentence."""
        sizes = [
            f"{percent(hole.share)} of it {hole.where}" if hole.share else f"no hole {hole.where}, whatever its size"
            for hole in self.visible_holes
        ]
        if not sizes:
            return ""
        return (
            f"Of the box, {self.num} demonstrations would show an empty part with a probability of at least "
            f"{percent(POWER)} from these sizes on: {'; '.join(sizes)}. Smaller holes may exist."
        )

    @property
    def more(self) -> str:
        """What more demonstrations would buy, as a sentence."""
        now = next((point.nearest for point in self.scaling if point.num >= self.num), 0.0)
        gains = [
            f"with {point.num - self.num} more random starts, {percent(1 - point.nearest / now)}"
            for point in self.scaling
            if point.num > self.num
        ]
        return f"A start would be nearer to a demonstration by: {'; '.join(gains)}." if gains and now else ""

    def to_dict(self) -> dict[str, Any]:
        """Return everything, the verdict included, for JSON."""
        return {"level": self.level, "verdict": self.verdict, **asdict(self)}

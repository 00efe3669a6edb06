"""What a monitor would have said in episodes whose end is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from act_kit.config.evaluation import MonitorConfig
from act_kit.options import to_dict
from act_kit.statistics import AreaUnderCurve, Difference, Rate, compare_rates

MIN_FAILURES = 5
"""Smallest number of failures, and of successes, of which an area under the curve or a detection rate is judged."""

_EVERY_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class MonitoredEpisode:
    """An episode that ends with its first success, or after all steps.

    Attributes:
        distances: Distance to the demonstrated states before each action, float64 (T,).
        success: True if it succeeded.
        alarm_step: Step of the first alarm, or None.
    """

    distances: np.ndarray
    success: bool
    alarm_step: int | None

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.distances)


@dataclass(frozen=True, kw_only=True)
class MonitorResult:
    """A calibrated monitor, judged by episodes that it was not calibrated with.

    Attributes:
        task: Meta-World task.
        config: Options.
        calibration: Success rate of the episodes of the calibration; the successes determine the thresholds.
        threshold: Distance above which a state raises the alarm.
        time_limit: Number of steps within which, by the same method, a success is to be expected: a limit that needs no
            monitor.
        episodes: Episodes that judge the monitor.
        provenance: The policy, its data and the hash of the initial states, plain values.
    """

    task: str
    config: MonitorConfig
    calibration: Rate
    threshold: float
    time_limit: int
    episodes: Sequence[MonitoredEpisode]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self.task}: {self.sentence}"

    @property
    def successes(self) -> list[MonitoredEpisode]:
        """Episodes that succeeded."""
        return [episode for episode in self.episodes if episode.success]

    @property
    def failures(self) -> list[MonitoredEpisode]:
        """Episodes that failed."""
        return [episode for episode in self.episodes if not episode.success]

    @property
    def false_alarms(self) -> Rate | None:
        """Rate of successful episodes with an alarm; None without successes."""
        return _alarm_rate(self.successes)

    @property
    def detections(self) -> Rate | None:
        """Rate of failed episodes with an alarm; None without failures."""
        return _alarm_rate(self.failures)

    @property
    def early_detections(self) -> Rate | None:
        """Rate of failed episodes with an alarm before the time limit; None without failures."""
        return _alarm_rate(self.failures, self.time_limit)

    @property
    def alarm_steps(self) -> list[int]:
        """Step of the alarm in each failed episode that has one."""
        return [episode.alarm_step for episode in self.failures if episode.alarm_step is not None]

    @property
    def lead_steps(self) -> list[int]:
        """Steps from the alarm to the end of each failed episode that has one."""
        return [episode.num_steps - episode.alarm_step for episode in self.failures if episode.alarm_step is not None]

    @property
    def can_judge_detection(self) -> bool:
        """True with enough failures and successes to judge the detection of failures."""
        return min(len(self.successes), len(self.failures)) >= MIN_FAILURES

    @cached_property
    def auc_by_step(self) -> dict[int, AreaUnderCurve]:
        """Area under the ROC curve by step: does the distance so far tell failures from later successes?

        The score is the largest distance up to the step, as for the alarm. Only episodes that have not ended yet count:
        otherwise, running on would reveal a failure. Steps with fewer than five of either kind are missing.
        """
        areas: dict[int, AreaUnderCurve] = {}
        for step in range(_EVERY_STEPS, max([0, *(each.num_steps for each in self.episodes)]), _EVERY_STEPS):
            failed, succeeded = _largest(self.failures, step), _largest(self.successes, step)
            if min(len(failed), len(succeeded)) >= MIN_FAILURES:
                areas[step] = AreaUnderCurve.of(failed, succeeded)
        return areas

    @property
    def difference(self) -> Difference | None:
        """Test of whether failures have an alarm before the time limit more often than successes; None if unjudged."""
        if not self.can_judge_detection or not self.false_alarms or not self.early_detections:
            return None
        return compare_rates(self.false_alarms, self.early_detections, level=0.05)

    @property
    def sentence(self) -> str:
        """The verdict in a sentence."""
        alarms = f"false alarms in {self.false_alarms or 'no'} of the successful episodes"
        num = len(self.failures)
        if self.difference is None:
            of = f"{num} failure{'s' if num != 1 else ''} and {len(self.successes)} successes"
            return f"{of} are too few to judge the detection of failures; {alarms}"
        early = f"alarm before step {self.time_limit} in {self.early_detections} of the failed episodes; {alarms}"
        if self.is_better_than_chance:
            return early
        return f"it is not shown that failures have an alarm before step {self.time_limit} more often: {early}"

    @property
    def is_better_than_chance(self) -> bool:
        """True if failures have an alarm before the time limit significantly more often than successes."""
        return self.difference is not None and self.difference.low > 0

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        episodes: list[dict[str, Any]] = []
        for each in self.episodes:
            largest = float(each.distances.max(initial=0))
            row = {"success": each.success, "num_steps": each.num_steps, "alarm_step": each.alarm_step}
            episodes.append({**row, "largest_distance": largest})
        rates: dict[str, Any] = {}
        for name in ("false_alarms", "detections", "early_detections"):
            rate: Rate | None = getattr(self, name)
            rates[name] = rate and rate.to_dict()
        areas: dict[str, Any] = {}
        for step, area in self.auc_by_step.items():
            areas[str(step)] = area.to_dict()
        return {
            "task": self.task,
            "verdict": self.sentence,
            "config": to_dict(self.config),
            "calibration": self.calibration.to_dict(),
            "threshold": self.threshold,
            "time_limit": self.time_limit,
            **rates,
            "median_alarm_step": float(np.median(self.alarm_steps)) if self.alarm_steps else None,
            "median_lead_steps": float(np.median(self.lead_steps)) if self.lead_steps else None,
            "auc_by_step": areas,
            "episodes": episodes,
            **self.provenance,
        }


def _alarm_rate(episodes: Sequence[MonitoredEpisode], before: int | None = None) -> Rate | None:
    """Return the rate of episodes with an alarm (before a step); None without episodes."""
    steps = [each.alarm_step for each in episodes if each.alarm_step is not None]
    num = len(steps) if before is None else sum(step < before for step in steps)
    return Rate(num, len(episodes)) if episodes else None


def _largest(episodes: Sequence[MonitoredEpisode], step: int) -> np.ndarray:
    """Return the largest distance up to a step of each episode that has not ended before it."""
    return np.array([each.distances[: step + 1].max() for each in episodes if each.num_steps > step])

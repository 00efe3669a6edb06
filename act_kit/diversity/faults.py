"""Faults of demonstrations, and the result of the checks that find them (:mod:`act_kit.diversity.soundness`)."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.integrity import Finding
from act_kit.files import next_free_path

LABEL_KINDS = (
    "actions off by some steps",
    "actions scaled",
    "actions with a wrong sign",
    "action axes swapped",
    "action axis is constant",
    "actions offset",
    "labels are noisy",
    "actions of another episode",
    "labels changed",
)
"""Faults that comparing the labels with the executed actions detects too if there is no noise."""

KINDS = (
    "episodes of another task",
    "rows out of order",
    "initial states changed",
    "states in another unit",
    "states rounded",
    "states off by some steps",
    "states changed",
    *LABEL_KINDS,
    "actions are not the expert's",
    "executed actions changed",
    "episodes truncated",
    "success marked falsely",
    "episodes do not replay",
    "physics changed",
)
"""All kinds of faults, causes before symptoms."""

EXPERT_KINDS = frozenset({"episodes of another task", "actions are not the expert's"})
"""Faults that only querying the expert detects."""

_MAX_EXCLUDED_FRACTION = 0.2
"""Largest share of faulty episodes that the fix removes; with more, it collects the dataset again."""
_MAX_EXCLUDED = 500
"""Largest number of episodes that the filter expression lists."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of some demonstrations.

    Attributes:
        kind: One of :data:`KINDS`.
        episodes: Indices of the faulty episodes.
        text: Description as a sentence.
        is_certain: True if nothing else explains the fault, such as different software versions.
    """

    kind: str
    episodes: list[int]
    text: str
    is_certain: bool


@dataclass(frozen=True, kw_only=True)
class Soundness:
    """Result of replaying demonstrations and querying the expert.

    Attributes:
        num: Number of demonstrations of the dataset.
        num_replayed, num_queried: Number of demonstrations that were replayed, and for which the expert was queried.
        num_compared: Number of the others whose labels were compared with the executed actions.
        num_states: Number of states of the checked demonstrations.
        not_replayed, not_queried: Why the others were not replayed, and why the expert was not queried.
        faults: Faults, causes first.
    """

    num: int
    num_replayed: int = 0
    num_queried: int = 0
    num_compared: int = 0
    num_states: int = 0
    not_replayed: str = ""
    not_queried: str = ""
    faults: list[Fault] = field(default_factory=list)

    @property
    def scope(self) -> str:
        """Extent of the checks, as a sentence."""
        replayed = f"{self.num_replayed} of {self.num} episodes were replayed"
        queried = f"the expert was queried on {self.num_queried} ({self.num_states} states)"
        return " ".join(filter(None, (f"{replayed}, {queried}.", self.not_replayed, self.not_queried)))

    def untested(self, kind: str) -> str:
        """Return why a fault of this kind could not be detected, or "" if it could."""
        if kind in LABEL_KINDS and self.num_compared:
            return ""
        if kind in EXPERT_KINDS.union(LABEL_KINDS):
            return "" if self.num_queried else self.not_queried or self.not_replayed
        return "" if self.num_replayed else self.not_replayed

    @property
    def num_checked(self) -> int:
        """Number of episodes that were replayed or for which the expert was queried."""
        return max(self.num_replayed, self.num_queried)

    @property
    def _faulty_episodes(self) -> list[int]:
        return sorted(set().union(*(fault.episodes for fault in self.faults)))

    @property
    def num_sound(self) -> int:
        """Number of checked episodes without a fault."""
        return self.num_checked - len(self._faulty_episodes)

    @property
    def labels_are_wrong(self) -> bool:
        """True if the recorded demonstrations are known to differ from what was demonstrated."""
        harmless = ("episodes do not replay", "physics changed")
        return any(fault.is_certain and fault.kind not in harmless for fault in self.faults)

    def fix_for(self, store: EpisodeStore) -> str:
        """Return the command that removes the faulty episodes if they are known and few, or collects all again."""
        faulty = self._faulty_episodes
        if self.num_checked < self.num or not 0 < len(faulty) <= min(_MAX_EXCLUDED_FRACTION * self.num, _MAX_EXCLUDED):
            return store.reproduce_command
        words = ["act", "data", "filter", str(store.path), "--where", f"episode not in {faulty}"]
        return shlex.join([*words, "--out", str(next_free_path(store.path))])

    def findings(self) -> list[Finding]:
        """Return the faults as findings of the diversity report."""
        findings = []
        for fault in self.faults:
            is_failure = fault.is_certain and fault.kind != "physics changed"
            findings.append(Finding(level="FAIL" if is_failure else "WARN", text=fault.text, about="demonstrations"))
        return findings

"""Soundness checks of demonstrations: replay them, query the expert, identify mistakes by their signature.

Three conditions must hold: replaying ``executed_action`` from the recorded initial state reproduces all recorded values
up to rounding; the scripted expert returns the recorded actions in the recorded states (where it demonstrated or
labeled); and success is recorded where the replay succeeds. If one does not hold, the faulty part is identified:

==================  ==================  ==============================================================================
replay reproduces   the expert's labels faulty part
the recorded states are those of
==================  ==================  ==============================================================================
yes                 neither             the labels
no                  the recorded states the initial state, or the executed actions (if the labels replay)
no                  the replayed states the recorded states
no                  neither             the actions (proven if the expert's actions replay)
==================  ==================  ==============================================================================
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.integrity import Finding
from act_kit.diversity.signatures import Signature, differing_rows, explain_actions, explain_states
from act_kit.errors import InitialStateError
from act_kit.files import next_free_path
from act_kit.rollouts.episode import Episode, is_dagger
from act_kit.rollouts.resimulation import RESIMULATED, ROUNDING, first_difference, resimulate
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import HORIZON, TASKS, get_task
from act_kit.versions import versions

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

_MAX_FULL_CHECK = 200
"""Largest number of episodes of which a report checks each one."""
_NUM_SAMPLED = 60
"""Number of evenly spaced episodes that are checked in a larger dataset."""
_NUM_PROBED = 6
"""Number of states that identify the expert of another task."""
_FAR_M = 1.0
"""Initial states farther than this outside their box are not simulated: the physics may become unstable."""
_NUM_KEY_STEPS = 8
"""Number of first steps that must agree in copies."""
_MAX_EXCLUDED_FRACTION = 0.2
"""Largest share of faulty episodes that the fix removes; with more, it collects the dataset again."""
_MAX_EXCLUDED = 500
"""Largest number of episodes that the filter expression lists."""
_ROUNDING_FRACTION = 0.02
"""Largest share of states in which rounding may change the expert's action."""


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
        num_replayed, num_asked: Number of demonstrations that were replayed, and for which the expert was queried.
        num_compared: Number of the others whose labels were compared with the executed actions.
        num_states: Number of states of the checked demonstrations.
        not_replayed, not_asked: Why the others were not replayed, and why the expert was not queried.
        faults: Faults, causes first.
    """

    num: int
    num_replayed: int
    num_asked: int
    num_compared: int = 0
    num_states: int
    not_replayed: str
    not_asked: str
    faults: list[Fault] = field(default_factory=list)

    @property
    def scope(self) -> str:
        """Extent of the checks, as a sentence."""
        replayed = f"{self.num_replayed} of {self.num} episodes were replayed"
        queried = f"the expert was queried on {self.num_asked}"
        reasons = "".join(f" {reason}" for reason in (self.not_replayed, self.not_asked) if reason)
        return f"{replayed}, {queried} ({self.num_states} states).{reasons}"

    def untested(self, kind: str) -> str:
        """Return why a fault of this kind could not be detected, or "" if it could."""
        if kind in EXPERT_KINDS.union(LABEL_KINDS):
            num = self.num_asked + (self.num_compared if kind in LABEL_KINDS else 0)
            return "" if num else self.not_asked or self.not_replayed
        return "" if self.num_replayed else self.not_replayed

    @property
    def num_checked(self) -> int:
        """Number of episodes that were replayed or for which the expert was queried."""
        return max(self.num_replayed, self.num_asked)

    @property
    def _faulty_episodes(self) -> set[int]:
        faulty: set[int] = set()
        for fault in self.faults:
            faulty.update(fault.episodes)
        return faulty

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
        faulty = sorted(self._faulty_episodes)
        if self.num_checked < self.num or not 0 < len(faulty) <= min(_MAX_EXCLUDED_FRACTION * self.num, _MAX_EXCLUDED):
            return store.reproduce_command
        words = ["act", "data", "filter", str(store.path), "--where", f"episode not in {faulty}"]
        return shlex.join([*words, "--out", str(next_free_path(store.path))])

    def findings(self) -> list[Finding]:
        """Return the faults as findings of the diversity report."""
        return [
            Finding(
                level="FAIL" if fault.is_certain and fault.kind != "physics changed" else "WARN",
                text=fault.text,
                about="demonstrations",
            )
            for fault in self.faults
        ]


def check_soundness(store: EpisodeStore, *, of_all: bool = False) -> Soundness:
    """Check every demonstration of a dataset; of a large one, an evenly spaced sample unless ``of_all`` is True."""
    num = store.num_episodes
    if not store.is_metaworld:
        reason = f"'{store.info.task}' is not a Meta-World task."
        return Soundness(num=num, num_replayed=0, num_asked=0, num_states=0, not_replayed=reason, not_asked="")
    chosen = np.arange(num)
    if num > _MAX_FULL_CHECK and not of_all:
        chosen = np.linspace(0, num - 1, _NUM_SAMPLED).round().astype(int)
    return _Checker(store).check(chosen.tolist())


@dataclass(kw_only=True)
class _EpisodeCheck:
    """Check results of one episode.

    Attributes:
        episode: The episode.
        expected: Expected labels, float32 (T, A), or None if they are unknown.
        owner: Description of the expected labels: the expert's actions or, without noise, the executed actions.
        replayed: Result of the replay, or None if there was none.
        agrees: For each replayed field, True if it agrees with the recorded one.
        labels_agree: False if the labels are known to differ from the expected ones.
        error: Fault, if it is already known.
    """

    episode: Episode
    expected: np.ndarray | None = None
    owner: str = "the expert's"
    replayed: Episode | None = None
    agrees: dict[str, bool] = field(default_factory=dict)
    labels_agree: bool = True
    error: Signature | None = None

    @property
    def lacks_success(self) -> bool:
        """True if the replay never succeeds, although only successes of this source are kept."""
        return (
            self.episode.source == "scripted" and self.replayed is not None and not self.replayed.steps["success"].any()
        )

    @property
    def is_sound(self) -> bool:
        return self.error is None and self.labels_agree and all(self.agrees.values()) and not self.lacks_success


class _Checker:
    """Checks the episodes of one dataset, then explains the faulty ones."""

    def __init__(self, store: EpisodeStore) -> None:
        self._store = store
        self._info = store.info
        self._expert = ScriptedExpert(store.info.task)
        self._simulator = Simulator(store.info.task)
        self._task = get_task(store.info.task)
        recorded, here = store.info.versions, versions()
        self._other_versions = [
            name for name in ("metaworld", "mujoco", "platform") if recorded.get(name) != here[name]
        ]
        self._checks: dict[int, _EpisodeCheck] = {}

    def check(self, chosen: Iterable[int]) -> Soundness:
        """Check the chosen episodes."""
        store = self._store
        self._episodes: list[Any] = list(store.iter_episodes()) if store.missing_fields else list(store.episodes())
        for index in chosen:
            if all(np.isfinite(values).all() for values in self._episodes[index].steps.values()):
                self._checks[index] = self._check_episode(self._episodes[index])
        checks = self._checks.values()
        num_asked = sum(_is_by_expert(check.episode.source) for check in checks)
        not_asked = ""
        if num_asked < len(checks):
            others = [source for source in dict.fromkeys(store.sources) if not _is_by_expert(source)]
            not_asked = f"The demonstrator ({', '.join(others)}) cannot be queried."
        return Soundness(
            num=store.num_episodes,
            num_replayed=sum(check.replayed is not None for check in checks),
            num_asked=num_asked,
            num_compared=sum(check.expected is not None for check in checks) - num_asked,
            num_states=sum(len(check.episode) for check in checks),
            not_replayed=f"Not replayed because not recorded: {', '.join(store.missing_fields)}."
            if store.missing_fields
            else "",
            not_asked=not_asked,
            faults=self._faults(),
        )

    # -- checking --------------------------------------------------------------------------------------------------

    def _check_episode(self, episode: Episode) -> _EpisodeCheck:
        check = _EpisodeCheck(episode=episode)
        state = episode.steps["state"]
        if episode.is_complete:
            self._replay(check, episode)
            if check.replayed and check.agrees["state"]:
                state = check.replayed.states[: len(state)]  # not rounded, unlike states imported from other formats
        if _is_by_expert(episode.source):
            check.expected = self._expert_actions(state)
        elif not self._info.noise and "executed_action" in episode.steps:
            check.expected, check.owner = episode.steps["executed_action"], "the executed ones"
        if check.expected is not None and len(check.expected) == len(episode):
            wrong = differing_rows(np.clip(episode.steps["action"], -1, 1), check.expected)
            is_rounded = check.replayed is None and _is_float32(state)
            check.labels_agree = wrong.sum() <= (_ROUNDING_FRACTION * len(wrong) if is_rounded else 0)
        return check

    def _replay(self, check: _EpisodeCheck, episode: Episode) -> None:
        if not np.isfinite(episode.init_state.array).all():
            check.error = Signature("initial states changed", "an initial state that is NaN or infinite")
            return
        init_state = episode.init_state.array
        if np.abs(init_state - np.clip(init_state, self._task.low, self._task.high)).max() > _FAR_M:
            check.error = Signature("initial states changed", "an initial state outside the distribution of the task")
            return
        try:
            check.replayed = resimulate(self._simulator, episode, episode.executed_action)
        except InitialStateError:
            check.error = Signature("initial states changed", "an initial state outside the distribution of the task")
            return
        if len(episode) > HORIZON:
            check.error = Signature("episodes do not replay", f"more steps than the {HORIZON} of the benchmark")
        for name in RESIMULATED:
            if name in episode.steps:
                check.agrees[name] = _equal(episode.steps[name][: len(check.replayed)], check.replayed.steps[name])

    def _expert_actions(self, states: np.ndarray) -> np.ndarray:
        return np.stack([self._expert.act(state) for state in states])

    def _reproduces_states(self, episode: Episode, actions: np.ndarray) -> bool:
        """Return True if ``actions`` lead from the recorded initial state to the recorded states."""
        replayed = resimulate(self._simulator, episode, actions)
        return len(replayed) == len(episode) and _equal(episode.state, replayed.state)

    # -- explaining ------------------------------------------------------------------------------------------------

    def _faults(self) -> list[Fault]:
        """Explain the faulty episodes and group those with the same fault."""
        found: dict[str, dict[int, str]] = {}
        for index, check in self._checks.items():
            if not check.is_sound:
                signature = self._explain(index, check)
                found.setdefault(signature.kind, {})[index] = signature.text
        return [self._fault(kind, found[kind]) for kind in KINDS if kind in found]  # check_numbers reports hidden goals

    def _fault(self, kind: str, texts: dict[int, str]) -> Fault:
        most_common = Counter(texts.values()).most_common(1)[0][0]
        episodes = list(texts)
        shown = ", ".join(map(str, episodes[:3])) + (", …" if len(episodes) > 3 else "")
        shown, has = (f"episode {shown}", "has") if len(episodes) == 1 else (f"episodes {shown}", "have")
        num = f"{len(episodes)} of {len(self._checks)} demonstrations"
        if len(self._checks) < self._store.num_episodes:
            num = f"{len(episodes)} of {len(self._checks)} checked demonstrations (of {self._store.num_episodes})"
        text = f"{num} ({shown}) {has} {most_common}"
        if self._other_versions:
            recorded, here = self._info.versions, versions()
            differences = [f"{name} {recorded.get(name)} (here {here[name]})" for name in self._other_versions]
            text += f"; this may be because it was recorded with {', '.join(differences)}"
        return Fault(kind=kind, episodes=episodes, text=text + ".", is_certain=not self._other_versions)

    def _explain(self, index: int, check: _EpisodeCheck) -> Signature:
        """Return the signature of a faulty episode; see the table of the module."""
        episode = check.episode
        other_task = None if check.labels_agree else self._find_task(check)
        if other_task:
            return Signature("episodes of another task", f"states and actions of {other_task}")
        if check.error:
            return check.error
        if check.replayed is None or not episode.is_complete or check.agrees["state"]:
            return self._explain_labels(index, check) if not check.labels_agree else self._explain_outcome(check)
        if self._other_versions:
            return _does_not_replay(check)
        if not _is_by_expert(episode.source):
            return self._explain_without_expert(index, check, episode)
        labels = np.clip(episode.action[: len(check.replayed)], -1, 1)
        fit_replay = not differing_rows(labels, self._expert_actions(check.replayed.state)).any()
        if fit_replay and (not check.labels_agree or self._find_init_state(index, episode) is None):
            return self._explain_states(index, check)
        return (
            self._explain_init_state(index, check, episode)
            if check.labels_agree
            else self._explain_labels(index, check)
        )

    def _explain_outcome(self, check: _EpisodeCheck) -> Signature:
        """Explain a fault of an episode whose actions reproduce the recorded states."""
        replayed = check.replayed
        assert replayed is not None
        if check.agrees["success"] and not check.lacks_success:
            if all(same for name, same in check.agrees.items() if name != "physics"):
                return Signature(
                    "physics changed",
                    "recorded physics that are not those of the replay: rendered images would be wrong",
                )
            return _does_not_replay(check)
        if replayed.steps["success"].any():
            return Signature("success marked falsely", "success marked at steps other than those of the replay")
        num_missing = self._steps_to_success(check)
        if num_missing is None:
            return Signature("success marked falsely", "no successful step in the replay")
        text = f"an end before success: no step of the replay succeeds, and the expert needs {num_missing} more steps"
        return Signature("episodes truncated", text)

    def _steps_to_success(self, check: _EpisodeCheck) -> int | None:
        """Return the number of steps the expert needs after the end of the episode, or None if it does not succeed."""
        episode = check.episode
        assert episode.is_complete
        state = resimulate(self._simulator, episode, episode.executed_action).last_state
        for step in range(self._simulator.steps_left):
            step_batch = self._simulator.step_chunk(self._expert.act(state)[None])
            state = step_batch.state[0]
            if step_batch.success[0]:
                return step + 1
        return None

    def _explain_labels(self, index: int, check: _EpisodeCheck) -> Signature:
        """Explain labels that differ from the expected ones in the recorded states."""
        episode, expected = check.episode, check.expected
        assert expected is not None
        labels = np.clip(episode.steps["action"], -1, 1)
        replays = check.replayed is not None and check.agrees["state"]
        if self._info.noise and replays and np.array_equal(labels, episode.steps["executed_action"]):
            return Signature("labels are noisy", "labels that are the executed, noisy actions, not the expert's")
        signature = explain_actions(labels, expected, check.owner)
        if signature:
            return signature
        copied = self._find_copied(index, episode.steps["action"])
        if copied is not None:
            return Signature("actions of another episode", f"the actions of another demonstration ({copied})")
        if episode.is_complete and not replays and not self._reproduces_states(episode, expected):
            return self._explain_inconsistent(index, check, episode)
        num = int(differing_rows(labels, expected).sum())
        kind = "actions are not the expert's" if _is_by_expert(episode.source) else "labels changed"
        text = f"actions that are not {check.owner} in {num} of {len(labels)} states"
        return Signature(kind, f"{text}; no scale, sign, axis, shift or noise explains them")

    def _explain_inconsistent(self, index: int, check: _EpisodeCheck, episode: Episode) -> Signature:
        """Explain an episode whose labels and replay both disagree, and whose labels have no signature."""
        assert check.replayed is not None
        if not self._resets_as_recorded(check, episode):
            return self._explain_init_state(index, check, episode)
        states = explain_states(episode.state[: len(check.replayed)], check.replayed.states)
        return states or Signature(
            "actions are not the expert's",
            "inconsistent states, actions and initial states: neither the replay nor the expert agrees with them",
        )

    def _explain_states(self, index: int, check: _EpisodeCheck) -> Signature:
        """Explain states that differ from the replay, although the replay agrees with the labels."""
        assert check.replayed is not None
        state = check.episode.steps["state"][: len(check.replayed)]
        signature = explain_states(state, check.replayed.states)
        if signature:
            return signature
        copied = self._find_copied(index, state, "state")
        if copied is not None:
            return Signature("states changed", f"the states of another demonstration ({copied})")
        first = first_difference(state, check.replayed.state)
        return Signature("states changed", f"states that their actions do not reproduce, from step {first} on")

    def _resets_as_recorded(self, check: _EpisodeCheck, episode: Episode) -> bool:
        assert check.replayed is not None
        return _equal(episode.state[:1], check.replayed.state[:1])

    def _explain_init_state(self, index: int, check: _EpisodeCheck, episode: Episode) -> Signature:
        """Explain states that agree with the labels, but not with the replay from the recorded initial state."""
        assert check.replayed is not None
        seams = np.flatnonzero((episode.state[1:, 18:36] != episode.state[:-1, :18]).any(axis=1))
        if not _is_float32(episode.state) and len(seams):
            return Signature(
                "rows out of order", f"steps that do not continue the previous step (first at step {seams[0] + 1})"
            )
        if not self._resets_as_recorded(check, episode):
            other = self._find_init_state(index, episode)
            if other is not None:
                return Signature("initial states changed", f"the initial state of another demonstration ({other})")
            off = float(np.abs(episode.state[0] - check.replayed.state[0]).max())
            text = f"a recorded initial state that does not lead to their first state (off by {off:.3g} m)"
            return Signature("initial states changed", text)
        return self._explain_executed_actions(check, episode)

    def _find_init_state(self, index: int, episode: Episode) -> int | None:
        """Return another episode whose recorded initial state leads to this one's first state."""
        for other, check in self._checks.items():
            if other != index and check.replayed and _equal(episode.state[:1], check.replayed.state[:1]):
                return other
        return None

    def _explain_executed_actions(self, check: _EpisodeCheck, episode: Episode) -> Signature:
        """Explain executed actions that do not reproduce the recorded states, although states and labels agree."""
        if np.array_equal(episode.action, episode.executed_action):
            return _does_not_replay(check)
        signature = explain_actions(episode.executed_action, episode.action, "the labels")
        if self._info.noise or is_dagger(episode.source) or not self._reproduces_states(episode, episode.action):
            signature = None
        text = (
            f"executed {signature.text}" if signature else "executed actions that do not reproduce the recorded states"
        )
        return Signature("executed actions changed", text)

    def _explain_without_expert(self, index: int, check: _EpisodeCheck, episode: Episode) -> Signature:
        """Explain a replay that differs if the demonstrator cannot be queried."""
        assert check.replayed is not None
        if not self._resets_as_recorded(check, episode):
            states = explain_states(episode.state[: len(check.replayed)], check.replayed.states)
            return states or self._explain_init_state(index, check, episode)
        states = explain_states(episode.state[: len(check.replayed)], check.replayed.states)
        if states and "noisy" not in states.text:
            return states
        return self._explain_executed_actions(check, episode)

    def _find_copied(self, index: int, values: np.ndarray, name: str = "action") -> int | None:
        """Return another episode whose recorded or expected ``name`` begins with these values."""
        for other, episode in enumerate(self._episodes):
            candidates = [episode.steps[name]]
            if name == "action" and other in self._checks:
                expected = self._checks[other].expected
                candidates += [] if expected is None else [expected]
            for candidate in candidates if other != index else ():
                num = min(len(values), len(candidate))
                same = num >= _NUM_KEY_STEPS and np.array_equal(values[:_NUM_KEY_STEPS], candidate[:_NUM_KEY_STEPS])
                if same and (values[:num] == candidate[:num]).all(axis=1).mean() > 0.9:
                    return other
        return None

    def _find_task(self, check: _EpisodeCheck) -> str | None:
        """Return another task whose expert returns the recorded actions in all states."""
        states, labels = check.episode.steps["state"], np.clip(check.episode.steps["action"], -1, 1)
        if check.expected is None or not _is_by_expert(check.episode.source):
            return None
        probe = np.flatnonzero(differing_rows(labels, check.expected))
        probe = probe[np.unique(np.linspace(0, len(probe) - 1, _NUM_PROBED).round().astype(int))]
        if len(probe) < _NUM_PROBED:
            return None
        for task in TASKS:
            if task == self._info.task or not _expert_agrees(task, states[probe], labels[probe]):
                continue
            if _expert_agrees(task, states, labels):
                return task
        return None


def _expert_agrees(task: str, states: np.ndarray, labels: np.ndarray) -> bool:
    """Return True if the expert of ``task`` returns these labels in these states."""
    expert = ScriptedExpert(task)
    return all(np.allclose(expert.act(state), label, atol=1e-5) for state, label in zip(states, labels, strict=True))


def _does_not_replay(check: _EpisodeCheck) -> Signature:
    """Return the signature of a replay that differs."""
    assert check.replayed is not None
    name = next(name for name, same in check.agrees.items() if not same)
    first = first_difference(check.episode.steps[name][: len(check.replayed)], check.replayed.steps[name])
    return Signature("episodes do not replay", f"a replay in which '{name}' differs from step {first} on")


def _equal(recorded: np.ndarray, replayed: np.ndarray) -> bool:
    """Return True if both are equal up to rounding, or to float32 precision if they were recorded as such."""
    if first_difference(recorded, replayed) is None:
        return True
    # Rounding errors before the conversion may lead to the neighboring float32.
    return _is_float32(recorded) and np.allclose(recorded, replayed, rtol=2**-23, atol=ROUNDING)


def _is_float32(values: np.ndarray) -> bool:
    return values.dtype == np.float64 and np.array_equal(values, values.astype(np.float32))


def _is_by_expert(source: str) -> bool:
    """Return True if the labels of a source are the scripted expert's."""
    return source == "scripted" or is_dagger(source)

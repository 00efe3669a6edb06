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

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from act_kit.arrays import evenly_spaced
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.faults import KINDS, Fault, Soundness
from act_kit.diversity.integrity import affected
from act_kit.diversity.signatures import Signature, differing_rows, explain_actions, explain_states
from act_kit.errors import InitialStateError
from act_kit.rollouts.episode import Episode, is_dagger
from act_kit.rollouts.resimulation import RESIMULATED, ROUNDING, first_difference, resimulate
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import ACTION_DIM, HORIZON, TASKS, get_task
from act_kit.versions import versions

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
_ROUNDING_FRACTION = 0.02
"""Largest share of states in which rounding may change the expert's action."""


def check_soundness(store: EpisodeStore, *, of_all: bool = False) -> Soundness:
    """Check every demonstration of a dataset; of a large one, an evenly spaced sample unless ``of_all`` is True."""
    num = store.num_episodes
    if not store.is_metaworld:
        return Soundness(num=num, not_replayed=f"'{store.info.task}' is not a Meta-World task.")
    is_sampled = num > _MAX_FULL_CHECK and not of_all
    return _Checker(store).check(evenly_spaced(num, _NUM_SAMPLED) if is_sampled else range(num))


_NO_REPLAY = Episode(action=np.empty((0, ACTION_DIM)))


@dataclass(kw_only=True)
class _EpisodeCheck:
    """Check results of one episode.

    Attributes:
        index: Number of the episode in the dataset.
        episode: The episode.
        expected: Expected labels, float32 (T, A), or None if they are unknown.
        owner: Description of the expected labels: the expert's actions or, without noise, the executed actions.
        replayed: Result of the replay, without steps if there was none.
        differing: Replayed fields that differ from the recorded ones.
        labels_agree: False if the labels are known to differ from the expected ones.
        error: Fault, if it is already known.
    """

    index: int
    episode: Episode
    expected: np.ndarray | None = None
    owner: str = "the expert's"
    replayed: Episode = _NO_REPLAY
    differing: list[str] = field(default_factory=list)
    labels_agree: bool = True
    error: Signature | None = None

    @property
    def labels(self) -> np.ndarray:
        """The recorded actions, clipped as the environment clips them."""
        return np.asarray(np.clip(self.episode.steps["action"], -1, 1))

    @property
    def lacks_success(self) -> bool:
        """True if the replay never succeeds, although only successes of this source are kept."""
        is_replayed = self.is_replayed and self.episode.source == "scripted"
        return is_replayed and not self.replayed.steps["success"].any()

    @property
    def is_replayed(self) -> bool:
        return len(self.replayed) > 0

    @property
    def resets_as_recorded(self) -> bool:
        """True if the recorded initial state leads to the recorded first state."""
        return _equal(self.episode.steps["state"][:1], self.replayed.state[:1])

    def explain_states(self) -> Signature | None:
        """Find the mistake that turned the replayed states into the recorded ones."""
        return explain_states(self.episode.steps["state"][: len(self.replayed)], self.replayed.states)

    @property
    def is_sound(self) -> bool:
        return self.error is None and self.labels_agree and not self.differing and not self.lacks_success


class _Checker:
    """Checks the episodes of one dataset, then explains the faulty ones."""

    def __init__(self, store: EpisodeStore) -> None:
        self._store = store
        self._info = store.info
        self._expert = ScriptedExpert(store.info.task)
        self._simulator = Simulator(store.info.task)
        self._episodes: Sequence[Episode] = list(store.iter_episodes()) if store.missing_fields else store.episodes()
        self._checks: dict[int, _EpisodeCheck] = {}
        recorded, here = store.info.versions, versions()
        self._other_versions = []
        for name in ("metaworld", "mujoco", "platform"):
            if recorded.get(name) != here[name]:
                self._other_versions.append(f"{name} {recorded.get(name)} (here {here[name]})")

    def check(self, chosen: Iterable[int]) -> Soundness:
        """Check the chosen episodes."""
        store = self._store
        for index in map(int, chosen):
            if all(np.isfinite(values).all() for values in self._episodes[index].steps.values()):
                self._checks[index] = self._check_episode(index)
        counts: Counter[str] = Counter()
        for check in self._checks.values():
            is_by_expert = _is_by_expert(check.episode.source)
            counts["num_replayed"] += check.is_replayed
            counts["num_queried"] += is_by_expert
            counts["num_compared"] += not is_by_expert and check.expected is not None
            counts["num_states"] += len(check.episode)
        missing = ", ".join(store.missing_fields)
        not_queried = ""
        if counts["num_queried"] < len(self._checks):
            others = dict.fromkeys(source for source in store.sources if not _is_by_expert(source))
            not_queried = f"The demonstrator ({', '.join(others)}) cannot be queried."
        return Soundness(
            num=store.num_episodes,
            **counts,
            not_replayed=f"Not replayed because not recorded: {missing}." if missing else "",
            not_queried=not_queried,
            faults=self._faults(),
        )

    # -- checking --------------------------------------------------------------------------------------------------

    def _check_episode(self, index: int) -> _EpisodeCheck:
        episode = self._episodes[index]
        check = _EpisodeCheck(index=index, episode=episode)
        state = episode.steps["state"]
        if episode.is_complete:
            self._replay(check, episode)
            if check.is_replayed and "state" not in check.differing:
                state = check.replayed.states[: len(state)]  # not rounded, unlike states imported from other formats
        if _is_by_expert(episode.source):
            check.expected = _expert_actions(self._expert, state)
        elif not self._info.noise and "executed_action" in episode.steps:
            check.expected, check.owner = episode.steps["executed_action"], "the executed ones"
        if check.expected is not None and len(check.expected) == len(episode):
            wrong = differing_rows(check.labels, check.expected)
            is_rounded = not check.is_replayed and _is_float32(state)
            check.labels_agree = wrong.sum() <= (_ROUNDING_FRACTION * len(wrong) if is_rounded else 0)
        return check

    def _replay(self, check: _EpisodeCheck, episode: Episode) -> None:
        task, init_state = get_task(self._info.task), episode.init_state.array
        outside = np.abs(init_state - np.clip(init_state, task.low, task.high)).max()
        try:
            if not outside <= _FAR_M:  # also if it is NaN
                raise InitialStateError("too far outside")
            check.replayed = resimulate(self._simulator, episode, episode.executed_action)
        except InitialStateError:
            where = "outside the distribution of the task" if np.isfinite(outside) else "that is NaN or infinite"
            check.error = Signature("initial states changed", f"an initial state {where}")
            return
        if len(episode) > HORIZON:
            check.error = Signature("episodes do not replay", f"more steps than the {HORIZON} of the benchmark")
        for name in RESIMULATED:
            recorded = episode.steps.get(name)
            if recorded is not None and not _equal(recorded[: len(check.replayed)], check.replayed.steps[name]):
                check.differing.append(name)

    def _reproduces_states(self, episode: Episode, actions: np.ndarray) -> bool:
        """Return True if ``actions`` lead from the recorded initial state to the recorded states."""
        replayed = resimulate(self._simulator, episode, actions)
        return len(replayed) == len(episode) and _equal(episode.state, replayed.state)

    # -- explaining ------------------------------------------------------------------------------------------------

    def _faults(self) -> list[Fault]:
        """Explain the faulty episodes and group those with the same fault."""
        texts: dict[str, dict[int, str]] = defaultdict(dict)
        for index, check in self._checks.items():
            if not check.is_sound:
                signature = self._explain(check)
                texts[signature.kind][index] = signature.text
        num, noun = self._store.num_episodes, "demonstrations"
        if len(self._checks) < num:
            noun = f"checked demonstrations (of {num})"
        others = ", ".join(self._other_versions)
        versions_text = f"; this may be because it was recorded with {others}" if others else ""
        faults = []
        for kind in KINDS:  # check_numbers reports hidden goals
            if kind in texts:
                episodes = list(texts[kind])
                most_common = Counter(texts[kind].values()).most_common(1)[0][0]
                subject = affected(episodes, len(self._checks), noun=noun, label="episode")
                text = f"{subject} {most_common}{versions_text}."
                faults.append(Fault(kind=kind, episodes=episodes, text=text, is_certain=not others))
        return faults

    def _explain(self, check: _EpisodeCheck) -> Signature:
        """Return the signature of a faulty episode; see the table of the module."""
        episode = check.episode
        other_task = None if check.labels_agree else self._find_task(check)
        if other_task:
            return Signature("episodes of another task", f"states and actions of {other_task}")
        if check.error:
            return check.error
        if not episode.is_complete or "state" not in check.differing:
            return self._explain_outcome(check) if check.labels_agree else self._explain_labels(check)
        if self._other_versions:
            return _does_not_replay(check)
        if not _is_by_expert(episode.source):
            return self._explain_without_expert(check, episode)
        expected = _expert_actions(self._expert, check.replayed.state)
        fit_replay = not differing_rows(check.labels[: len(check.replayed)], expected).any()
        if fit_replay and (not check.labels_agree or self._find_init_state(check) is None):
            return self._explain_states(check)
        return self._explain_init_state(check, episode) if check.labels_agree else self._explain_labels(check)

    def _explain_outcome(self, check: _EpisodeCheck) -> Signature:
        """Explain a fault of an episode whose actions reproduce the recorded states."""
        episode = check.episode
        assert episode.is_complete
        if "success" not in check.differing and not check.lacks_success:
            if check.differing == ["physics"]:
                text = "recorded physics that are not those of the replay: rendered images would be wrong"
                return Signature("physics changed", text)
            return _does_not_replay(check)
        if check.replayed.steps["success"].any():
            return Signature("success marked falsely", "success marked at steps other than those of the replay")
        state = resimulate(self._simulator, episode, episode.executed_action).last_state
        for num_missing in range(1, self._simulator.steps_left + 1):
            step_batch = self._simulator.step_chunk(self._expert.act(state)[None])
            state = step_batch.state[0]
            if step_batch.success[0]:
                text = "an end before success: no step of the replay succeeds, and the expert needs"
                return Signature("episodes truncated", f"{text} {num_missing} more steps")
        return Signature("success marked falsely", "no successful step in the replay")

    def _explain_labels(self, check: _EpisodeCheck) -> Signature:
        """Explain labels that differ from the expected ones in the recorded states."""
        episode, expected, labels = check.episode, check.expected, check.labels
        assert expected is not None
        replays = check.is_replayed and "state" not in check.differing
        if self._info.noise and replays and np.array_equal(labels, episode.steps["executed_action"]):
            return Signature("labels are noisy", "labels that are the executed, noisy actions, not the expert's")
        signature = explain_actions(labels, expected, check.owner)
        if signature:
            return signature
        copied = self._find_copied(check, episode.steps["action"], "action")
        if copied is not None:
            return Signature("actions of another episode", f"the actions of another demonstration ({copied})")
        if episode.is_complete and not replays and not self._reproduces_states(episode, expected):
            if not check.resets_as_recorded:
                return self._explain_init_state(check, episode)
            text = "inconsistent states, actions and initial states: neither the replay nor the expert agrees with them"
            return check.explain_states() or Signature("actions are not the expert's", text)
        num = int(differing_rows(labels, expected).sum())
        kind = "actions are not the expert's" if _is_by_expert(episode.source) else "labels changed"
        text = f"actions that are not {check.owner} in {num} of {len(labels)} states"
        return Signature(kind, f"{text}; no scale, sign, axis, shift or noise explains them")

    def _explain_states(self, check: _EpisodeCheck) -> Signature:
        """Explain states that differ from the replay, although the replay agrees with the labels."""
        signature = check.explain_states()
        if signature:
            return signature
        state = check.episode.steps["state"][: len(check.replayed)]
        copied = self._find_copied(check, state, "state")
        if copied is not None:
            return Signature("states changed", f"the states of another demonstration ({copied})")
        first = first_difference(state, check.replayed.state)
        return Signature("states changed", f"states that their actions do not reproduce, from step {first} on")

    def _explain_init_state(self, check: _EpisodeCheck, episode: Episode) -> Signature:
        """Explain states that agree with the labels, but not with the replay from the recorded initial state."""
        seams = np.flatnonzero((episode.state[1:, 18:36] != episode.state[:-1, :18]).any(axis=1))
        if not _is_float32(episode.state) and len(seams):
            text = f"steps that do not continue the previous step (first at step {seams[0] + 1})"
            return Signature("rows out of order", text)
        if check.resets_as_recorded:
            return self._explain_executed_actions(check, episode)
        other = self._find_init_state(check)
        if other is not None:
            return Signature("initial states changed", f"the initial state of another demonstration ({other})")
        off = np.abs(episode.state[0] - check.replayed.state[0]).max()
        text = f"a recorded initial state that does not lead to their first state (off by {off:.3g} m)"
        return Signature("initial states changed", text)

    def _explain_executed_actions(self, check: _EpisodeCheck, episode: Episode) -> Signature:
        """Explain executed actions that do not reproduce the recorded states, although states and labels agree."""
        if np.array_equal(episode.action, episode.executed_action):
            return _does_not_replay(check)
        signature = explain_actions(episode.executed_action, episode.action, "the labels")
        is_intended = self._info.noise or is_dagger(episode.source)
        if signature and not is_intended and self._reproduces_states(episode, episode.action):
            return Signature("executed actions changed", f"executed {signature.text}")
        return Signature("executed actions changed", "executed actions that do not reproduce the recorded states")

    def _explain_without_expert(self, check: _EpisodeCheck, episode: Episode) -> Signature:
        """Explain a replay that differs if the demonstrator cannot be queried."""
        states = check.explain_states()
        if not check.resets_as_recorded:
            return states or self._explain_init_state(check, episode)
        if states and "noisy" not in states.text:
            return states
        return self._explain_executed_actions(check, episode)

    def _find_init_state(self, check: _EpisodeCheck) -> int | None:
        """Return another episode whose recorded initial state leads to this one's first state."""
        state = check.episode.steps["state"][:1]
        for other in self._checks.values():
            if other is not check and other.is_replayed and _equal(state, other.replayed.state[:1]):
                return other.index
        return None

    def _find_copied(self, check: _EpisodeCheck, values: np.ndarray, name: str) -> int | None:
        """Return another episode whose recorded or expected ``name`` begins with these values."""
        for index, episode in enumerate(self._episodes):
            candidates = [episode.steps[name]]
            other = self._checks.get(index)
            if name == "action" and other and other.expected is not None:
                candidates.append(other.expected)
            for candidate in candidates if index != check.index else ():
                num = min(len(values), len(candidate))
                begins_equal = np.array_equal(values[:_NUM_KEY_STEPS], candidate[:_NUM_KEY_STEPS])
                if (
                    begins_equal
                    and num >= _NUM_KEY_STEPS
                    and np.mean((values[:num] == candidate[:num]).all(axis=1)) > 0.9
                ):
                    return index
        return None

    def _find_task(self, check: _EpisodeCheck) -> str | None:
        """Return another task whose expert returns the recorded actions in all states."""
        states, labels = check.episode.steps["state"], check.labels
        if check.expected is None or not _is_by_expert(check.episode.source):
            return None
        differing = np.flatnonzero(differing_rows(labels, check.expected))
        if len(differing) < _NUM_PROBED:
            return None
        probe = differing[evenly_spaced(len(differing), _NUM_PROBED)]
        for task in TASKS:
            expert = ScriptedExpert(task)
            is_likely = task != self._info.task and _agrees(expert, states[probe], labels[probe])
            if is_likely and _agrees(expert, states, labels):
                return task
        return None


def _expert_actions(expert: ScriptedExpert, states: np.ndarray) -> np.ndarray:
    return np.stack(list(map(expert.act, states)))


def _agrees(expert: ScriptedExpert, states: np.ndarray, labels: np.ndarray) -> bool:
    return np.allclose(_expert_actions(expert, states), labels, atol=1e-5)


def _does_not_replay(check: _EpisodeCheck) -> Signature:
    """Return the signature of a replay that differs."""
    name = check.differing[0]
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

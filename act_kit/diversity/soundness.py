"""Check that demonstrations are what they say: replay them, ask the expert again, name what is wrong by its signature.

Three things must agree: replaying ``executed_action`` from the recorded initial state leads to every recorded number
but for rounding; the scripted expert, shown the recorded states, acts as recorded (where it demonstrated or labelled);
and success is recorded where the replay succeeds. Where they do not, the one that is wrong is found out:

==================  ==================  ==============================================================================
replay leads to     the expert's        then wrong are
the recorded states labels are those of
==================  ==================  ==============================================================================
yes                 neither             the labels
no                  the recorded states the initial state, or the executed actions (if replaying the labels leads there)
no                  the replayed states the recorded states
no                  neither             the actions (proven if replaying the expert's own leads to the recorded states)
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
from act_kit.files import free_beside
from act_kit.rollouts.episode import Episode, Recording, is_corrected
from act_kit.rollouts.resimulation import ROUNDING, Resimulation, first_difference, resimulate
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import HORIZON, TASKS, get_task
from act_kit.versions import versions

KINDS = (
    "episodes of another task",
    "rows out of order",
    "initial states changed",
    "states in another unit",
    "states rounded",
    "states off by some steps",
    "states changed",
    "actions off by some steps",
    "actions scaled",
    "actions with a wrong sign",
    "action axes swapped",
    "action axis is constant",
    "actions offset",
    "labels are noisy",
    "actions of another episode",
    "labels changed",
    "actions are not the expert's",
    "executed actions changed",
    "episodes truncated",
    "success marked falsely",
    "episodes do not replay",
    "physics changed",
)
"""What may be wrong, causes before symptoms."""

NEED_EXPERT = frozenset({"episodes of another task", "actions are not the expert's"})
"""Those that only asking the expert shows ..."""
OF_LABELS = frozenset(
    {
        "actions off by some steps", "actions scaled", "actions with a wrong sign", "action axes swapped",
        "action axis is constant", "actions offset", "labels are noisy", "actions of another episode", "labels changed",
    }
)  # fmt: skip
"""... and those that comparing the labels with the executed actions shows too, if there was no noise."""

_ALL = 200
"""Episodes, up to which a report looks at each; of more it looks at ..."""
_SAMPLE = 60
"""... so many, evenly."""
_NUM_PROBED = 6
"""States that tell another task's expert."""
_FAR_M = 1.0
"""Initial states so far outside their box are not simulated: the physics may not survive them."""
_KEY_STEPS = 8
"""First steps by which copies are looked for."""
_FEW = 0.2
"""Share of the episodes that may be left out of a dataset, if they are faulty."""
_MOST_LISTED = 500
"""Of them, that an expression can list."""
_ROUNDED = 0.02
"""Share of states in which rounding them may change what the expert does."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something wrong with some demonstrations.

    Attributes:
        kind: One of :data:`KINDS`.
        episodes: Which.
        text: A sentence.
        is_certain: Whether nothing else explains it, such as other versions than here.
    """

    kind: str
    episodes: list[int]
    text: str
    is_certain: bool


@dataclass(frozen=True, kw_only=True)
class Soundness:
    """What replaying demonstrations and asking the expert showed.

    Attributes:
        num: Demonstrations of the dataset.
        num_replayed, num_asked: Of them, those that were replayed, and those whose labels the expert was asked about.
        num_compared: Of the others, those whose labels were compared with the executed actions.
        num_states: States of those that were looked at.
        not_replayed, not_asked: Why the others were not.
        faults: What is wrong, causes first.
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
        """What was looked at, in a sentence."""
        replayed = f"{self.num_replayed} of {self.num} episodes were replayed"
        asked = f"the expert was asked about {self.num_asked}"
        reasons = "".join(f" {reason}" for reason in (self.not_replayed, self.not_asked) if reason)
        return f"{replayed}, {asked} ({self.num_states} states).{reasons}"

    def untested(self, kind: str) -> str:
        """Say why a fault of this kind could not have been seen, or return ""."""
        if kind in NEED_EXPERT | OF_LABELS:
            num = self.num_asked + (self.num_compared if kind in OF_LABELS else 0)
            return "" if num else self.not_asked or self.not_replayed
        return "" if self.num_replayed else self.not_replayed

    @property
    def num_looked_at(self) -> int:
        """Episodes that were replayed, or that the expert was asked about."""
        return max(self.num_replayed, self.num_asked)

    @property
    def num_sound(self) -> int:
        """Of the episodes that were looked at, those without a fault."""
        faulty = {episode for fault in self.faults for episode in fault.episodes}
        return self.num_looked_at - len(faulty)

    @property
    def labels_are_wrong(self) -> bool:
        """Whether what a policy learns from these demonstrations is known not to be what was demonstrated."""
        harmless = ("episodes do not replay", "physics changed")
        return any(fault.is_certain and fault.kind not in harmless for fault in self.faults)

    def fix_for(self, store: EpisodeStore) -> str:
        """Return the command that leaves faulty episodes out, if these are known and few; else, makes all again."""
        faulty = sorted({episode for fault in self.faults for episode in fault.episodes})
        if self.num_looked_at < self.num or not 0 < len(faulty) <= min(_FEW * self.num, _MOST_LISTED):
            return store.command_again
        words = ["act", "data", "filter", str(store.path), "--where", f"episode not in {faulty}"]
        return shlex.join([*words, "--out", str(free_beside(store.path))])

    def findings(self) -> list[Finding]:
        """Return the faults as findings of the report."""
        return [
            Finding(
                level="FAIL" if fault.is_certain and fault.kind != "physics changed" else "WARN",
                text=fault.text,
                about="demonstrations",
            )
            for fault in self.faults
        ]


def check_soundness(store: EpisodeStore, *, of_all: bool = False) -> Soundness:
    """Check every demonstration of a dataset, or an even sample of a large one unless ``of_all``."""
    num = store.num_episodes
    if not store.is_of_metaworld:
        reason = f"'{store.info.task}' is not a task of Meta-World."
        return Soundness(num=num, num_replayed=0, num_asked=0, num_states=0, not_replayed=reason, not_asked="")
    chosen = np.arange(num)
    if num > _ALL and not of_all:
        chosen = np.linspace(0, num - 1, _SAMPLE).round().astype(int)
    return _Checker(store).check(chosen.tolist())


@dataclass(kw_only=True)
class _Look:
    """What was seen of one episode.

    Attributes:
        expected: The labels it should have, float32 (T, A), or None if that is not known ...
        whose: ... and whose these are: the expert's, or of others, without noise, the executed ones.
        replayed: What the replay led to; None if there was none.
        agrees: Of the fields that were replayed, whether they are as recorded.
        labels_agree: Whether the labels are as expected, as far as is known.
        error: What is wrong, if that is clear at once.
    """

    episode: Episode | Recording
    expected: np.ndarray | None = None
    whose: str = "the expert's"
    replayed: Resimulation | None = None
    agrees: dict[str, bool] = field(default_factory=dict)
    labels_agree: bool = True
    error: Signature | None = None

    @property
    def lacks_success(self) -> bool:
        """Whether the replay never succeeds, although only successes of this source are kept."""
        return (
            self.episode.source == "scripted" and self.replayed is not None and not self.replayed.steps["success"].any()
        )

    @property
    def is_sound(self) -> bool:
        return self.error is None and self.labels_agree and all(self.agrees.values()) and not self.lacks_success


class _Checker:
    """Looks at the episodes of one dataset, then explains those that are wrong."""

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
        self._looks: dict[int, _Look] = {}

    def check(self, chosen: Iterable[int]) -> Soundness:
        """Look at the chosen episodes."""
        store = self._store
        self._episodes: list[Any] = list(store.recordings()) if store.lacks else list(store.episodes())
        for index in chosen:
            if all(np.isfinite(values).all() for values in self._episodes[index].steps.values()):
                self._looks[index] = self._look(self._episodes[index])
        looks = self._looks.values()
        num_asked = sum(_is_askable(look.episode.source) for look in looks)
        not_asked = ""
        if num_asked < len(looks):
            others = [s for s in dict.fromkeys(store.sources) if not _is_askable(s)]
            not_asked = f"The demonstrator ({', '.join(others)}) cannot be asked again."
        return Soundness(
            num=store.num_episodes,
            num_replayed=sum(look.replayed is not None for look in looks),
            num_asked=num_asked,
            num_compared=sum(look.expected is not None for look in looks) - num_asked,
            num_states=sum(len(look.episode) for look in looks),
            not_replayed=f"Not recorded, so not replayed: {', '.join(store.lacks)}." if store.lacks else "",
            not_asked=not_asked,
            faults=self._faults(),
        )

    # -- looking ---------------------------------------------------------------------------------------------------

    def _look(self, episode: Episode | Recording) -> _Look:
        look = _Look(episode=episode)
        state = episode.steps["state"]
        if isinstance(episode, Episode):
            self._replay(look, episode)
            if look.replayed and look.agrees["state"]:
                state = look.replayed.state[: len(state)]  # not rounded, as those of other formats may be
        if _is_askable(episode.source):
            look.expected = self._ask(state)
        elif not self._info.noise and "executed_action" in episode.steps:
            look.expected, look.whose = episode.steps["executed_action"], "the executed ones"
        if look.expected is not None and len(look.expected) == len(episode):
            wrong = differing_rows(np.clip(episode.steps["action"], -1, 1), look.expected)
            is_rounded = look.replayed is None and _is_float32(state)
            look.labels_agree = wrong.sum() <= (_ROUNDED * len(wrong) if is_rounded else 0)
        return look

    def _replay(self, look: _Look, episode: Episode) -> None:
        if not np.isfinite(episode.init_state.array).all():
            look.error = Signature("initial states changed", "an initial state that is NaN or infinite")
            return
        beyond = np.abs(
            episode.init_state.array - np.clip(episode.init_state.array, self._task.low, self._task.high)
        ).max()
        if beyond > _FAR_M:
            look.error = Signature("initial states changed", "an initial state that the task never has")
            return
        try:
            look.replayed = resimulate(self._simulator, episode, episode.executed_action)
        except InitialStateError:
            look.error = Signature("initial states changed", "an initial state that the task never has")
            return
        if len(episode) > HORIZON:
            look.error = Signature("episodes do not replay", f"more steps than the {HORIZON} of the benchmark")
        for name in ("state", *look.replayed.steps):
            look.agrees[name] = _same(episode.steps[name][: len(look.replayed)], look.replayed.of(name))

    def _ask(self, states: np.ndarray) -> np.ndarray:
        return np.stack([self._expert.act(state) for state in states])

    def _leads_to(self, episode: Episode, actions: np.ndarray) -> bool:
        """Tell whether ``actions`` lead from the recorded initial state to the recorded states."""
        replayed = resimulate(self._simulator, episode, actions)
        return len(replayed) == len(episode) and _same(episode.state, replayed.of("state"))

    # -- explaining ------------------------------------------------------------------------------------------------

    def _faults(self) -> list[Fault]:
        """Explain the episodes that are wrong, and put together those with the same fault."""
        found: dict[str, dict[int, str]] = {}
        for index, look in self._looks.items():
            if not look.is_sound:
                signature = self._explain(index, look)
                found.setdefault(signature.kind, {})[index] = signature.text
        return [self._fault(kind, found[kind]) for kind in KINDS if kind in found]  # a hidden goal is said elsewhere

    def _fault(self, kind: str, texts: dict[int, str]) -> Fault:
        most_common = Counter(texts.values()).most_common(1)[0][0]
        episodes = list(texts)
        shown = ", ".join(map(str, episodes[:3])) + (", …" if len(episodes) > 3 else "")
        shown, has = (f"episode {shown}", "has") if len(episodes) == 1 else (f"episodes {shown}", "have")
        num = f"{len(episodes)} of {len(self._looks)} demonstrations"
        if len(self._looks) < self._store.num_episodes:
            num += f" that were looked at (of {self._store.num_episodes})"
        text = f"{num} ({shown}) {has} {most_common}"
        if self._other_versions:
            recorded, here = self._info.versions, versions()
            was = ", ".join(f"{name} {recorded.get(name)} (here {here[name]})" for name in self._other_versions)
            text += f"; but it was recorded with {was}, which may be why"
        return Fault(kind=kind, episodes=episodes, text=text + ".", is_certain=not self._other_versions)

    def _explain(self, index: int, look: _Look) -> Signature:
        """Name what is wrong with an episode; see the table at the top."""
        episode = look.episode
        other_task = None if look.labels_agree else self._find_task(look)
        if other_task:
            return Signature("episodes of another task", f"states and actions of {other_task}")
        if look.error:
            return look.error
        if look.replayed is None or not isinstance(episode, Episode) or look.agrees["state"]:
            return self._explain_labels(index, look) if not look.labels_agree else self._explain_outcome(look)
        if self._other_versions:
            return _does_not_replay(look)
        if not _is_askable(episode.source):
            return self._explain_unasked(index, look, episode)
        labels = np.clip(episode.action[: len(look.replayed)], -1, 1)
        fit_replay = not differing_rows(labels, self._ask(look.replayed.of("state"))).any()
        if fit_replay and (not look.labels_agree or self._find_init_state(index, episode) is None):
            return self._explain_states(index, look)
        return (
            self._explain_init_state(index, look, episode) if look.labels_agree else self._explain_labels(index, look)
        )

    def _explain_outcome(self, look: _Look) -> Signature:
        """Actions lead to the recorded states: what else is wrong?"""
        replayed = look.replayed
        assert replayed is not None
        if look.agrees["success"] and not look.lacks_success:
            if all(same for name, same in look.agrees.items() if name != "physics"):
                return Signature(
                    "physics changed", "recorded physics that are not those of the replay: images show them"
                )
            return _does_not_replay(look)
        if replayed.steps["success"].any():
            return Signature("success marked falsely", "success marked at other steps than the replay succeeds at")
        more = self._steps_to_success(look)
        if more is None:
            return Signature("success marked falsely", "no step that succeeds when it is replayed")
        text = f"an end before success: no step of the replay succeeds, the expert needs {more} more"
        return Signature("episodes truncated", text)

    def _steps_to_success(self, look: _Look) -> int | None:
        """Return how many steps the expert needs from where the episode ends, or None if it does not succeed."""
        episode = look.episode
        assert isinstance(episode, Episode)
        state = resimulate(self._simulator, episode, episode.executed_action).state[-1]
        for step in range(self._simulator.steps_left):
            step_batch = self._simulator.step_chunk(self._expert.act(state)[None])
            state = step_batch.state[0]
            if step_batch.success[0]:
                return step + 1
        return None

    def _explain_labels(self, index: int, look: _Look) -> Signature:
        """Explain labels that are not the expert's in the recorded states."""
        episode, expected = look.episode, look.expected
        assert expected is not None
        labels = np.clip(episode.steps["action"], -1, 1)
        replays = look.replayed is not None and look.agrees["state"]
        if self._info.noise and replays and np.array_equal(labels, episode.steps["executed_action"]):
            return Signature("labels are noisy", "labels that are the executed, noisy actions, not the expert's")
        signature = explain_actions(labels, expected, look.whose)
        if signature:
            return signature
        copied = self._find_copied(index, episode.steps["action"])
        if copied is not None:
            return Signature("actions of another episode", f"the actions of another demonstration ({copied})")
        if isinstance(episode, Episode) and not replays and not self._leads_to(episode, expected):
            return self._explain_rest(index, look, episode)
        num = int(differing_rows(labels, expected).sum())
        kind = "actions are not the expert's" if _is_askable(episode.source) else "labels changed"
        text = f"actions that are not {look.whose} in {num} of {len(labels)} states"
        return Signature(kind, f"{text}; no scale, sign, axis, shift or noise explains them")

    def _explain_rest(self, index: int, look: _Look, episode: Episode) -> Signature:
        """Explain an episode of which neither labels nor replay agree, and the labels have no signature."""
        assert look.replayed is not None
        if not self._resets_as_recorded(look, episode):
            return self._explain_init_state(index, look, episode)
        states = explain_states(episode.state[: len(look.replayed)], look.replayed.state)
        return states or Signature(
            "actions are not the expert's",
            "states, actions and initial states of which no two fit together: neither replay nor expert agrees",
        )

    def _explain_states(self, index: int, look: _Look) -> Signature:
        """Explain states that are not those of the replay, although the replay is what was demonstrated."""
        assert look.replayed is not None
        state = look.episode.steps["state"][: len(look.replayed)]
        signature = explain_states(state, look.replayed.state)
        if signature:
            return signature
        copied = self._find_copied(index, state, "state")
        if copied is not None:
            return Signature("states changed", f"the states of another demonstration ({copied})")
        first = first_difference(state, look.replayed.of("state"))
        return Signature("states changed", f"states that their actions do not lead to, from step {first} on")

    def _resets_as_recorded(self, look: _Look, episode: Episode) -> bool:
        assert look.replayed is not None
        return _same(episode.state[:1], look.replayed.state[:1])

    def _explain_init_state(self, index: int, look: _Look, episode: Episode) -> Signature:
        """Explain states that fit their labels, but not what is replayed from the recorded initial state."""
        assert look.replayed is not None
        seams = np.flatnonzero((episode.state[1:, 18:36] != episode.state[:-1, :18]).any(axis=1))
        if not _is_float32(episode.state) and len(seams):
            return Signature(
                "rows out of order", f"steps that do not follow from the step before (the first: step {seams[0] + 1})"
            )
        if not self._resets_as_recorded(look, episode):
            other = self._find_init_state(index, episode)
            if other is not None:
                return Signature("initial states changed", f"the initial state of another demonstration ({other})")
            off = float(np.abs(episode.state[0] - look.replayed.state[0]).max())
            text = f"a recorded initial state that does not lead to their first state (off by {off:.3g} m)"
            return Signature("initial states changed", text)
        return self._explain_executed(look, episode)

    def _find_init_state(self, index: int, episode: Episode) -> int | None:
        """Return another episode whose recorded initial state leads to this one's first state."""
        for other, seen in self._looks.items():
            if other != index and seen.replayed and _same(episode.state[:1], seen.replayed.state[:1]):
                return other
        return None

    def _explain_executed(self, look: _Look, episode: Episode) -> Signature:
        """Explain executed actions that do not lead to the recorded states, although states and labels agree."""
        if np.array_equal(episode.action, episode.executed_action):
            return _does_not_replay(look)
        signature = explain_actions(episode.executed_action, episode.action, "the labels")
        if self._info.noise or is_corrected(episode.source) or not self._leads_to(episode, episode.action):
            signature = None
        text = f"executed {signature.text}" if signature else "executed actions that do not lead to the recorded states"
        return Signature("executed actions changed", text)

    def _explain_unasked(self, index: int, look: _Look, episode: Episode) -> Signature:
        """Explain a replay that differs where nobody knows what the demonstrator would have done."""
        assert look.replayed is not None
        if not self._resets_as_recorded(look, episode):
            states = explain_states(episode.state[: len(look.replayed)], look.replayed.state)
            return states or self._explain_init_state(index, look, episode)
        states = explain_states(episode.state[: len(look.replayed)], look.replayed.state)
        if states and "noisy" not in states.text:
            return states
        return self._explain_executed(look, episode)

    def _find_copied(self, index: int, values: np.ndarray, name: str = "action") -> int | None:
        """Return the episode whose ``name`` begins with these values, or what the expert says it should be."""
        for other, episode in enumerate(self._episodes):
            candidates = [episode.steps[name]]
            if name == "action" and other in self._looks:
                expected = self._looks[other].expected
                candidates += [] if expected is None else [expected]
            for candidate in candidates if other != index else ():
                num = min(len(values), len(candidate))
                same = num >= _KEY_STEPS and np.array_equal(values[:_KEY_STEPS], candidate[:_KEY_STEPS])
                if same and (values[:num] == candidate[:num]).all(axis=1).mean() > 0.9:
                    return other
        return None

    def _find_task(self, look: _Look) -> str | None:
        """Return another task whose expert acts as recorded in every state that is probed."""
        states, labels = look.episode.steps["state"], np.clip(look.episode.steps["action"], -1, 1)
        if look.expected is None or not _is_askable(look.episode.source):
            return None
        probed = np.flatnonzero(differing_rows(labels, look.expected))
        probed = probed[np.unique(np.linspace(0, len(probed) - 1, _NUM_PROBED).round().astype(int))]
        if len(probed) < _NUM_PROBED:
            return None
        for task in TASKS:
            if (
                task != self._info.task
                and _acts_so(task, states[probed], labels[probed])
                and _acts_so(task, states, labels)
            ):
                return task
        return None


def _acts_so(task: str, states: np.ndarray, labels: np.ndarray) -> bool:
    """Tell whether the expert of ``task`` acts so in all these states."""
    expert = ScriptedExpert(task)
    return all(np.allclose(expert.act(state), label, atol=1e-5) for state, label in zip(states, labels, strict=True))


def _does_not_replay(look: _Look) -> Signature:
    """Say where the replay differs."""
    assert look.replayed is not None
    name = next(name for name, same in look.agrees.items() if not same)
    first = first_difference(look.episode.steps[name][: len(look.replayed)], look.replayed.of(name))
    return Signature("episodes do not replay", f"a replay in which '{name}' differs from step {first} on")


def _same(recorded: np.ndarray, replayed: np.ndarray) -> bool:
    """Tell whether they are the same but for rounding, or to float32 where that is how they are recorded."""
    if first_difference(recorded, replayed) is None:
        return True
    # Rounding before the conversion may turn it into the next float32.
    return _is_float32(recorded) and np.allclose(recorded, replayed, rtol=2**-23, atol=ROUNDING)


def _is_float32(values: np.ndarray) -> bool:
    return values.dtype == np.float64 and np.array_equal(values, values.astype(np.float32))


def _is_askable(source: str) -> bool:
    """Tell whether the labels of a source are the scripted expert's."""
    return source == "scripted" or is_corrected(source)

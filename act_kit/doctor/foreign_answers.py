"""Checks that a foreign policy's answer depends on the observation, on all of it, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from act_kit.doctor.agreement import NEGLIGIBLE, Effect, distances, measure_effect, spread
from act_kit.doctor.finding import Checks, Result, critical, ruled_out, suspected, untested, warning
from act_kit.doctor.foreign_case import NUM_EPISODES, NUM_TIMES, ForeignCase
from act_kit.errors import ActKitError
from act_kit.eval.results import success_rate
from act_kit.rollouts.agents import ExpertAgent
from act_kit.sim.engine import clip_actions
from act_kit.sim.sentences import SENTENCES
from act_kit.sim.tasks import STATE_DIM

CHECKS = Checks[ForeignCase](lambda case, name: case.name)
"""The checks; faults name the policy as their evidence."""

INPUTS = Checks[ForeignCase](lambda case, name: case.name)
"""The check of dead inputs, which is less certain than those of the actions."""

_LEAST_EFFECT = 0.05
"""Least difference that accuses, as a fraction of the spread among observations."""

_LEAST_OF_NOISE = 0.25
"""Least such difference, as a fraction of that between answers under the same condition: a policy that samples widely
differs from itself too."""

_MOST_NOISE = 0.5
"""Largest difference between two answers to the same observation, as such a fraction, that lets an input show."""

_PROBED = range(8)
"""Episodes whose observations are asked about alone, together, and in another order."""

_FIRST, _SECOND = 3, 7
"""Times of the two observations of such an episode."""

_HISTORIES = ((2, 5), (1, 4, 8))
"""Times of the observations of two earlier episodes, which must not matter."""

_RESETS = range(6)
_ROWS = list(range(NUM_EPISODES))
_STATE_PARTS = {"hand": slice(0, 3), "object": slice(4, 18), "goal": slice(STATE_DIM - 3, STATE_DIM)}
"""Numbers of the state by what they describe; the expert does not read the part of the previous step."""


# -- episodes and environments -----------------------------------------------------------------------------------------


@CHECKS.add(
    "state shared between episodes", "instrumentation", "ask for the same first observation after different episodes"
)
def resets(case: ForeignCase) -> Result:
    """Check that the first answer of an episode does not depend on the episodes before it."""
    effects = {
        "after other episodes than at the beginning": _first_answers(case),
        "after one episode than after another": _effect_of_history(case),
    }
    for what, effect in effects.items():
        if effect.is_shown and effect.size > max(_LEAST_EFFECT, _LEAST_OF_NOISE * effect.noise):
            return critical(
                f"the first answer of an episode is another one {what}, by {_percent(effect.size)} of the spread among "
                f"observations (p = {effect.p:.1g}; repeated after the same episode: {_percent(effect.noise)}): the "
                "policy keeps state from one episode to the next.",
                fix=f"discard all state of {case.name} where an episode begins: {_where_it_begins(case)}",
            )
    p = min(effect.p for effect in effects.values())
    return ruled_out(f"The first answer of an episode does not depend on earlier ones (p = {p:.2g}).")


def _where_it_begins(case: ForeignCase) -> str:
    return "a new connection" if _is_server(case) else "Agent.begin(row, …)"


def _first_answers(case: ForeignCase) -> Effect:
    """Compare the very first answers with those to the same observations now."""
    answers = [case.chunks[:, 0]]
    for _ in range(2):
        case.begin(_ROWS, _ROWS)
        answers.append(case.ask(_ROWS, _ROWS, 0))
    return measure_effect(_stacked(answers), (0, 1, 1))


def _effect_of_history(case: ForeignCase) -> Effect:
    """Compare first answers after different earlier episodes, each asked for alone."""
    answers: list[np.ndarray] = []
    conditions: list[int] = []
    for condition, times in enumerate(_HISTORIES):
        for repeat in range(3):
            of_repeat = [_after_an_episode(case, probe, probe + 8 - condition, times) for probe in _RESETS]
            if repeat:  # the first follows another history
                answers.append(np.stack(of_repeat))
                conditions.append(condition)
    return measure_effect(_stacked(answers), conditions)


def _after_an_episode(case: ForeignCase, probe: int, earlier: int, times: Sequence[int]) -> np.ndarray:
    case.begin([0], [earlier])
    for time in times:
        case.ask([0], [earlier], time)
    case.begin([0], [probe])
    answer: np.ndarray = case.ask([0], [probe], _FIRST)[0]
    return answer


@CHECKS.add("rows mixed up between environments", "instrumentation", "ask for the same observations alone and together")
def separate(case: ForeignCase) -> Result:
    """Check that an answer does not depend on which other environments are asked, or on their order."""
    if resets(case).is_fault:
        return untested("State is shared between episodes, so answers differ for that reason.")
    effect = measure_effect(_stacked([*_alone(case), *_together(case), *_reordered(case)]), (0, 0, 1, 1, 2, 2))
    numbers = f"{_percent(effect.size)} of the spread among observations (p = {effect.p:.1g})"
    if effect.is_shown and effect.size > max(_LEAST_EFFECT, _LEAST_OF_NOISE * effect.noise):
        return critical(
            f"the answer for an environment changes by {numbers} with the other environments that are asked, or with "
            f"their order; repeated under the same conditions: {_percent(effect.noise)}.",
            fix=f"answer each environment in {case.name} from its own observation and its own state, by "
            + ("connection" if _is_server(case) else "the row numbers in ``rows``"),
        )
    return ruled_out(f"Alone, together and in another order, the answers are the same to {_percent(effect.size)}.")


def _alone(case: ForeignCase) -> list[np.ndarray]:
    repeats: list[np.ndarray] = []
    for _ in range(2):
        answers: list[np.ndarray] = []
        for i in _PROBED:
            case.begin([i], [i])
            answers.append(np.stack([case.ask([i], [i], _FIRST)[0], case.ask([i], [i], _SECOND)[0]]))
        repeats.append(np.stack(answers))
    return repeats


def _together(case: ForeignCase) -> list[np.ndarray]:
    repeats: list[np.ndarray] = []
    for _ in range(2):
        case.begin(_ROWS, _ROWS)
        first, second = case.ask(_ROWS, _ROWS, _FIRST), case.ask(_ROWS, _ROWS, _SECOND)
        repeats.append(np.stack([first, second], axis=1)[: len(_PROBED)])
    return repeats


def _reordered(case: ForeignCase) -> list[np.ndarray]:
    """Ask for the first observations in another order, and for some of the second in yet another."""
    order = np.random.default_rng(0).permutation(NUM_EPISODES)
    few = list(_PROBED)[::-1]
    repeats: list[np.ndarray] = []
    for _ in range(2):
        case.begin(_ROWS, _ROWS)
        first = case.ask(order.tolist(), order.tolist(), _FIRST)[np.argsort(order)]
        second = case.ask(few, few, _SECOND)[::-1]
        repeats.append(np.stack([first[: len(_PROBED)], second], axis=1))
    return repeats


@CHECKS.add("not deterministic", "instrumentation", "ask twice for the same observation, each time in a new episode")
def deterministic(case: ForeignCase) -> Result:
    """Measure how much two answers to the same observations differ."""
    if resets(case).is_fault:
        return untested("State is shared between episodes, so answers differ for that reason.")
    first, second = _alone(case)
    pairs = _stacked([first, second])
    noise = float(distances(pairs)[:, 0, 1].mean()) / max(spread(pairs[:, 0]), 1e-9)
    if noise > NEGLIGIBLE:
        size = float(np.abs(first - second).mean())
        return warning(
            f"the same observation is answered differently: the actions differ by {size:.2g} on average, "
            f"{_percent(noise)} of the difference between two observations. That is right for a policy that "
            "samples; then no evaluation of it can be repeated exactly.",
            fix=f"let {case.name} sample with a fixed seed, or not at all (eval mode, no dropout)",
        )
    return ruled_out("The same observation is answered equally twice.")


# -- inputs ------------------------------------------------------------------------------------------------------------


@INPUTS.add("observation frozen", "inference", "ask for an observation of a rollout again, in a new episode")
def follows(case: ForeignCase) -> Result:
    """Check that actions which stay the same in a rollout are the answers to what is seen in it."""
    episodes, size = case.as_shown, case.chunks.shape[2]
    is_constant = [
        len(episode) > size and np.array_equal(episode.executed_action[size:], episode.executed_action[:-size])
        for episode in episodes
    ]
    if not all(is_constant):
        return ruled_out("The actions of a rollout change.")
    if case.agent.views is not None:
        return untested("The actions of a rollout stay the same, but its images are not kept.")
    case.begin(_ROWS, _ROWS)
    seen = np.stack([episode.state[(len(episode) - 1) // size * size] for episode in episodes])
    answers = clip_actions(case.ask(_ROWS, _ROWS, 0, states=seen)[:, 0])
    given = np.stack([episode.executed_action[0] for episode in episodes])
    num = int((np.abs(answers - given).max(axis=1) > NEGLIGIBLE).sum())
    if num < NUM_EPISODES / 2:
        return ruled_out("The actions of a rollout stay the same, as in a new episode.")
    message = (
        f"the actions stay the same until the end of all {NUM_EPISODES} rollouts, but about the last observation of "
        f"{num} the policy decides otherwise in a new episode: it does not see what happens in an episode; success "
        f"{success_rate(episodes)}."
    )
    fix = f"give {case.name} each observation, not a copy of the first one"
    return warning(message, fix=fix) if case.succeeds else critical(message, fix=fix)


@INPUTS.add("dead input", "inference", "exchange the input between environments, and compare the answers")
def uses_inputs(case: ForeignCase) -> Result:
    """Check that the answers change if an input is exchanged between environments."""
    effects = _effects_of_inputs(case)
    sizes = ", ".join(f"{name} {_percent(effect.size)}" for name, effect in effects.items())
    noise = effects["state"].noise
    if noise > _MOST_NOISE:
        return untested(f"Two answers to the same observation differ too much, by {_percent(noise)} of the spread.")
    dead = [name for name, effect in effects.items() if effect.is_absent]
    shown = [name for name in ("state", "images") if name in effects]
    fix = f"check under which key and in which form {case.name} reads its observation"
    if set(shown) <= set(dead):
        message = (
            f"no input changes the answers: they are the same with the {' and the '.join(shown)} of another "
            f"environment; success {success_rate(case.as_shown)}."
        )
        return warning(message, fix=fix) if case.succeeds else critical(message, fix=fix)
    if dead and not case.succeeds:
        return suspected(
            f"the answers do not change with the {' or the '.join(dead)} of another environment, and the policy "
            f"has success {success_rate(case.as_shown)} (changes: {sizes}). A policy may ignore an "
            "input that it does not need.",
            fix=fix,
        )
    unused = f"; it does without the {' and the '.join(dead)}" if dead else ""
    return ruled_out(f"The answers change with the inputs of another environment: {sizes}{unused}.")


def _effects_of_inputs(case: ForeignCase) -> dict[str, Effect]:
    """Measure the effect of each input on the answers."""
    others, images = np.roll(case.states, 1, axis=0), case.shown_images
    effects = {"state": _effect_of(case, _FIRST, states=others[:, _FIRST])}
    if images is not None:
        effects["images"] = _effect_of(case, _FIRST, images=np.roll(images[:, _FIRST], 1, axis=0))
    if effects["state"].is_shown and _shown_dim(case) == STATE_DIM:
        for name, part in _STATE_PARTS.items():
            changed = case.states.copy()
            changed[..., part] = others[..., part]
            time = _when_it_matters(case, changed)
            if time is not None:
                effects[f"{name} in the state"] = _effect_of(case, time, states=changed[:, time])
    if _is_server(case):
        effects["prompt"] = _effect_of_prompt(case)
    return effects


def _effect_of_prompt(case: ForeignCase) -> Effect:
    """Measure the effect of another task's prompt; a policy that refuses it reads it."""
    other = next(task for task in ("reach-v3", "push-v3") if SENTENCES[task] != SENTENCES[case.task])
    try:
        return _effect_of(case, _FIRST, task=other)
    except ActKitError:
        return Effect(size=1.0, noise=0.0, p=0.0)


def _effect_of(case: ForeignCase, time: int, **changed: Any) -> Effect:
    answers: list[np.ndarray] = []
    for conditions in ({}, {}, changed, changed):
        answers.append(_ask_twice(case, time, **conditions))
    return measure_effect(_stacked(answers), (0, 0, 1, 1))


def _ask_twice(case: ForeignCase, time: int, task: str = "", **changed: np.ndarray) -> np.ndarray:
    """Return the second answer, so that one which is late by an answer belongs to the observation."""
    case.begin(_ROWS, _ROWS, task)
    case.ask(_ROWS, _ROWS, time, **changed)
    return case.ask(_ROWS, _ROWS, time, **changed)


def _when_it_matters(case: ForeignCase, changed: np.ndarray) -> int | None:
    """Return the time at which the expert acts most differently in the changed states (E, S, 39); None for never."""
    expert = ExpertAgent()
    for row in _ROWS:
        expert.begin(row, case.init_states[row], 0)
    effects: list[float] = []
    for time in range(NUM_TIMES):
        actions = expert.plan(changed[:, time], np.array(_ROWS), None)[:, 0]
        effects.append(float(np.abs(actions - case.expert_actions()[:, time]).mean()))
    return int(np.argmax(effects)) if max(effects) > _LEAST_EFFECT else None


def _is_server(case: ForeignCase) -> bool:
    return (case.agent.provenance or {}).get("kind") == "server"


def _shown_dim(case: ForeignCase) -> int:
    shown = (case.agent.provenance or {}).get("shown", {})
    return int(shown.get("state_dim", STATE_DIM))


def _stacked(answers: Sequence[np.ndarray]) -> np.ndarray:
    """Return R answers to J observations as (J, R, D)."""
    return np.stack([answer.reshape(len(answer), -1) for answer in answers], axis=1)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %" if fraction <= 0.1 else f"{100 * fraction:.0f} %"

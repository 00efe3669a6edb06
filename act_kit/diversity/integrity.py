"""What no dataset may be: damaged, edited, or not what its own starts say it is.

Shapes: N episodes, S state, D numbers of a start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import mujoco
import numpy as np

from act_kit.diversity.reference import cached, reference_init_states
from act_kit.errors import InitialStateError
from act_kit.rollouts.episode import Episode, Recording, is_corrected
from act_kit.sim.initial_states import InitialState
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import INFORMATIVE_WIDTH_M, Task

Level = Literal["OK", "WARN", "FAIL"]

_NUM_RESETS = 16
"""Resets that tell how a task's first state follows from its start; a start has at most 6 numbers."""
_NUM_OWN = 5
"""Episodes whose first step is simulated, even where it looks right."""
_AGREE = 1e-4
"""Metres; far more than rounding, far less than a hand's edit."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong, in a sentence: with what the starts cover, with the data, or with what was demonstrated."""

    level: Level
    text: str
    about: Literal["coverage", "data", "demonstrations"] = "data"


def worst(findings: Sequence[Finding]) -> Level:
    """Return the worst finding's level, or OK."""
    levels = {finding.level for finding in findings}
    return "FAIL" if "FAIL" in levels else "WARN" if "WARN" in levels else "OK"


def check_numbers(episodes: Sequence[Episode | Recording], *, of_metaworld: bool = True) -> list[Finding]:
    """Find what cannot be learnt from: numbers that are not finite, actions out of range, hidden goals, no success.

    What was not recorded is not looked at; goals and the range of actions are known of Meta-World.
    """
    faults: dict[str, Callable[[Episode | Recording], bool]] = {
        "numbers that are not finite (NaN or infinite)": lambda e: (
            not all(
                np.isfinite(part).all() for part in (*e.steps.values(), *([e.init_state.array] if e.init_state else []))
            )
        ),
    }
    if of_metaworld:
        faults |= {
            "actions outside [-1, 1]": lambda e: any(
                bool((np.abs(e.steps[name]) > 1).any()) for name in ("action", "executed_action") if name in e.steps
            ),
            "a goal that is hidden: the last three numbers of the state are zero": lambda e: bool(
                (e.steps["state"][:, 36:] == 0).all(axis=1).any()
            ),
        }
    faults["no step that succeeds"] = lambda e: (
        "success" in e.steps and not (e.steps["success"].any() or is_corrected(e.source))
    )
    findings = []
    for what, is_at_fault in faults.items():
        found = [index for index, episode in enumerate(episodes) if is_at_fault(episode)]
        if found:
            findings.append(Finding(level="FAIL", text=f"{_some(found, len(episodes))} {what}."))
    return findings


def _some(indices: Sequence[int], of: int) -> str:
    """Say of how many episodes something is true: ``3 of 50 demonstrations (4, 7, 9) have``."""
    shown = ", ".join(map(str, indices[:3])) + (", …" if len(indices) > 3 else "")
    return f"{len(indices)} of {of} demonstrations ({shown}) {'has' if len(indices) == 1 else 'have'}"


def _name(number: int) -> str:
    """Name one of the 39 numbers of a state."""
    if number >= 36:
        return f"goal {'xyz'[number - 36]}"
    earlier, now = divmod(number, 18)
    parts = [f"hand {axis}" for axis in "xyz"] + ["gripper"]
    parts += [f"{thing} {part}" for thing in ("object", "second object") for part in ("x", "y", "z", *["turn"] * 4)]
    return parts[now] + (" one step earlier" if earlier else "")


def check_init_states(task: Task, episodes: Sequence[Episode]) -> list[Finding]:
    """Find episodes whose first state is not the one that a reset to their recorded initial state leads to.

    A linear map from initial states to first states, which some resets of the simulator show, tells which episodes to
    look at: it holds for nearly all, but not where an object settles otherwise (4 % of disassemble-v3's box). Those off
    the map, and a few, evenly over all, are held against a reset of their own, and that alone decides.
    """
    init_states = np.array([episode.init_state.rand_vec for episode in episodes])
    first = np.stack([episode.state[0] for episode in episodes])
    simulator = Simulator(task.name)
    moved, linear, coefficients = reset_map(task, simulator)
    expected = np.column_stack([init_states, np.ones(len(init_states))]) @ coefficients
    error = np.where(linear, np.abs(first - expected), 0.0)
    off_the_map = np.flatnonzero(~(error.max(axis=1) <= _AGREE))  # NaN is off too
    evenly = np.linspace(0, len(episodes) - 1, _NUM_OWN).round().astype(int)
    own_resets = np.union1d(off_the_map, evenly)
    physics_differs = []
    for index in own_resets:
        try:
            state = simulator.reset(episodes[index].init_state)
        except InitialStateError:
            continue  # no reset leads there: the map's error stays, and verdict.py says that it is outside
        error[index] = np.abs(first[index] - state)
        recorded, physics = episodes[index].physics[0], simulator.physics()
        if recorded.shape != physics.shape or not np.allclose(recorded, physics, atol=_AGREE):
            physics_differs.append(int(index))
    findings = []
    wrong = np.flatnonzero(~(error.max(axis=1) <= _AGREE))
    if len(wrong):
        episode = int(wrong[0])
        worst = int(np.nan_to_num(error[episode], nan=np.inf).argmax())
        text = (
            f"{_some(wrong.tolist(), len(episodes))} a first state that is not the one its recorded start leads to (in "
            f"{episode}, {_name(worst)} is {first[episode, worst]:.4g}, off by {error[episode, worst]:.4g}): "
            "starts or states were changed, or another version recorded them."
        )
        findings.append(Finding(level="FAIL", text=text))
    elif physics_differs:
        text = (
            f"{_some(physics_differs, len(own_resets))} recorded physics that are not those of the start: pictures "
            "would show something else."
        )
        findings.append(Finding(level="WARN", text=text))
    states = np.concatenate([episode.state for episode in episodes])
    asked = moved & linear & (np.ptp(expected, axis=0) >= INFORMATIVE_WIDTH_M)
    constant = [int(i) for i in np.flatnonzero(asked & (np.ptp(states, axis=0) == 0))]
    if constant:
        names = ", ".join(map(_name, constant))
        text = f"the state never shows another {names}, although the starts move it."
        findings.append(Finding(level="FAIL", text=text))
    return findings


def reset_map(task: Task, simulator: Simulator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which numbers of the first state the start moves, which follow it linearly in some resets, and how.

    The last has shape (D + 1, S). What follows linearly in some resets need not in all: hold what is off the map
    against a reset of its own.
    """
    init_states = reference_init_states(task)[:_NUM_RESETS]

    def reset() -> dict[str, np.ndarray]:
        return {
            "first": np.stack([simulator.reset(InitialState.of(task.name, init_state)) for init_state in init_states])
        }

    first = cached(f"resets-{task.name}", (task, init_states.tolist(), mujoco.__version__), ["first"], reset)["first"]
    ones = np.column_stack([init_states, np.ones(len(init_states))])
    coefficients = np.linalg.lstsq(ones, first, rcond=None)[0]
    linear = np.abs(first - ones @ coefficients).max(axis=0) < 1e-6
    return np.ptp(first, axis=0) >= INFORMATIVE_WIDTH_M, linear, coefficients

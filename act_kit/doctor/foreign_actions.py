"""Checks that a foreign policy's actions have the sign, the scale, the axes and the order in time that they should.

Each check tries changes of the actions, or of the images. It accuses only if the answers agree with the scripted expert
clearly better with a change than without, and then measures the effect of the change in rollouts from the same initial
states. A policy that is merely bad agrees with the expert under no change.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from act_kit.doctor.agreement import Explanation, constant_error, errors, explain
from act_kit.doctor.finding import Checks, Result, critical, ruled_out, suspected, untested
from act_kit.doctor.foreign_case import NUM_EPISODES, Change, ForeignCase
from act_kit.eval.results import success_rate
from act_kit.rollouts.agents import ExpertAgent
from act_kit.rollouts.episode import Episode
from act_kit.sim.render import CAMERAS
from act_kit.statistics import mcnemar

CHECKS = Checks[ForeignCase](lambda case, name: case.name)
"""The checks; faults name the policy as their evidence."""

_XYZ, _GRIPPER, _ALL = (0, 1, 2), (3,), (0, 1, 2, 3)
_LEAST_FACTOR = 4.0
"""Least factor between scales that is not a matter of preference: a slow controller does not have a wrong unit."""

_MAX_OFFSET = 16
_JUMPS = (0, 6, 2, 8, 4, 9, 1, 7)
"""Times of successive observations of one connection: so far apart that a late answer does not fit the next one."""

_IMAGE_TIMES = (1, 3, 5, 7)
_FLIPS: dict[str, Change] = {
    "flipped left to right": lambda images: images[..., ::-1, :],
    "flipped upside down": lambda images: images[..., ::-1, :, :],
    "rotated by 180 degrees": lambda images: images[..., ::-1, ::-1, :],
    "with red and blue exchanged": lambda images: images[..., ::-1],
}


def _judge(case: ForeignCase, found: Explanation, change: str, what: str, fix: str, **roll: Any) -> Result:
    """Return the result of a check whose best change explains the answers as ``found``; roll out with the change.

    Args:
        case: The policy.
        found: Agreement with the expert without and with the change.
        change: The change, as it continues "with …".
        what: What is wrong, if the change is right.
        fix: What to change.
        roll: Arguments of :meth:`ForeignCase.roll` for the change; none if it cannot be made in a rollout.
    """
    if not found.is_much_better or ((case.succeeds or not roll) and not found.is_exact):
        return ruled_out(f"No such change explains the actions; at best with {change}: {found}.")
    before = success_rate(case.as_shown)
    if not roll:
        text = f"{what}: {found} ({change}; p = {found.p:.1g}); success {before}."
        return suspected(text, fix=fix) if case.succeeds else critical(text, fix=fix)
    after = case.roll(**roll)
    lost, won, p = _compare(case.as_shown, after)
    text = (
        f"{what}: success {before} as it is, {success_rate(after)} with {change}, from the same initial states within "
        f"{case.max_steps} steps (p = {p:.1g}); {found} (p = {found.p:.1g})."
    )
    if won > lost and p < 0.05:
        return critical(text, fix=fix)
    if not found.is_exact:
        return ruled_out(f"With {change} the actions agree better, and the success is the same: {found}.")
    return suspected(text, fix=fix)


def _compare(before: list[Episode], after: list[Episode]) -> tuple[int, int, float]:
    """Return how many initial states lose and win success, and McNemar's p-value."""
    lost = won = 0
    for one, other in zip(before, after, strict=True):
        lost += one.success_once and not other.success_once
        won += other.success_once and not one.success_once
    return lost, won, mcnemar(lost, won)


# -- images ------------------------------------------------------------------------------------------------------------


@CHECKS.add("wrong image", "environment", "compare an image that the policy was trained on with a shown one")
def images(case: ForeignCase) -> Result:
    """Check that the policy agrees with the expert under no other image better than under the shown ones."""
    views = case.agent.views
    if views is None:
        return untested("The policy sees no images.")
    if case.num_succeeded >= NUM_EPISODES - 1:
        return ruled_out(f"With these images the policy succeeds in {case.num_succeeded} of {NUM_EPISODES} episodes.")
    assert case.shown_images is not None
    settings, cameras = f"{views.settings}", ", ".join(views.cameras)
    expert = case.expert_actions()[:, _IMAGE_TIMES]
    shown = case.actions[:, _IMAGE_TIMES]
    answers: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
    for name, flip in _FLIPS.items():
        answers[f"images {name}"] = _ask_with(case, flip(case.shown_images)), {"change_images": flip}
    for camera in CAMERAS if len(views.cameras) == 1 else ():
        if camera not in views.cameras:
            other = replace(views, cameras=(camera,))
            answers[f"the camera {camera}"] = _ask_with(case, case.images(other)), {"views": other}
    explanations = {
        name: explain(shown, given, expert, _ALL, num_tried=len(answers)) for name, (given, _) in answers.items()
    }
    best = max(explanations, key=lambda name: explanations[name].changed)
    return _judge(
        case,
        explanations[best],
        best,
        f"the policy expects other images than it is shown ({cameras}, {settings})",
        f"show {best} to {case.name}",
        **answers[best][1],
    )


def _ask_with(case: ForeignCase, images: np.ndarray) -> np.ndarray:
    """Return the first actions for some observations with other images (E, S, C, H, W, 3)."""
    rows = list(range(NUM_EPISODES))
    actions: list[np.ndarray] = []
    for time in _IMAGE_TIMES:
        case.begin(rows, rows)
        actions.append(case.ask(rows, rows, time, images=np.ascontiguousarray(images[:, time]))[:, 0])
    return np.stack(actions, axis=1)


# -- numbers of an action ----------------------------------------------------------------------------------------------

_GRIPPER_CHANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "sign turned": (lambda values: -values, "negate the 4th number"),
    "range of 0 to 1 stretched to -1 to 1": (lambda values: 2 * values - 1, "replace the 4th number g by 2 g - 1"),
    "range of 0 to 1 stretched to 1 to -1": (lambda values: 1 - 2 * values, "replace the 4th number g by 1 - 2 g"),
}


@CHECKS.add("gripper turned", "inference", "roll out with the 4th number of each action negated")
def gripper(case: ForeignCase) -> Result:
    """Check the sign and the range of the gripper's action."""
    expert = case.expert_actions()
    if constant_error(expert, _GRIPPER) == 0 and not _gripper_matters(case):
        return untested(f"The expert never moves the gripper on {case.task}, and solves it with it turned too.")
    found: dict[str, Explanation] = {}
    for name, (change, _) in _GRIPPER_CHANGES.items():
        changed = _with_gripper(change)(case.actions)
        found[name] = explain(case.actions, changed, expert, _GRIPPER, num_tried=len(_GRIPPER_CHANGES))
    best = max(found, key=lambda name: found[name].changed)
    change, fix = _GRIPPER_CHANGES[best]
    if found[best].is_much_better and not _gripper_matters(case):
        return untested(f"The expert solves {case.task} with its gripper turned too.")
    return _judge(
        case,
        found[best],
        f"the gripper's {best}",
        "the gripper's action has another sign or range than Meta-World's, -1 to open and 1 to close",
        f"{fix} of the actions of {case.name}",
        change_actions=_with_gripper(change),
    )


def _with_gripper(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def changed(actions: np.ndarray) -> np.ndarray:
        return np.concatenate([actions[..., :3], change(actions[..., 3:])], axis=-1)

    return changed


def _gripper_matters(case: ForeignCase) -> bool:
    """Return True if the expert fails with its gripper turned."""
    turned = case.roll(agent=ExpertAgent(), change_actions=_with_gripper(lambda values: -values))
    lost, won, p = _compare(case.episodes, turned)
    return lost > won and p < 0.05


@CHECKS.add("action axes turned or exchanged", "inference", "roll out with the axes as the message says")
def axes(case: ForeignCase) -> Result:
    """Check that x, y and z are in order and have their signs."""
    expert, shown = case.expert_actions(), case.actions
    candidates: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for order in itertools.permutations(_XYZ):
        candidates += [(order, signs) for signs in itertools.product((1, -1), repeat=3)]
    candidates.sort(key=_num_changed)
    del candidates[0]  # no change
    totals = [float(errors(_with_axes(*each)(shown), expert, _XYZ).mean()) for each in candidates]
    # Of several that are about as good, for an axis along which nothing moves, the one with the fewest changes.
    best = next(i for i, total in enumerate(totals) if total <= 1.1 * min(totals) + 1e-6)
    order, signs = candidates[best]
    dims = [i for i in _XYZ if order[i] != i or signs[i] < 0]
    found = explain(shown, _with_axes(order, signs)(shown), expert, dims, num_tried=len(candidates))
    name = _name_axes(order, signs)
    return _judge(
        case,
        found,
        f"(x, y, z) taken from {name} of the actions",
        "the axes of the actions are turned or exchanged",
        f"send {name} as x, y and z of the actions of {case.name}",
        change_actions=_with_axes(order, signs),
    )


def _num_changed(candidate: tuple[tuple[int, ...], tuple[int, ...]]) -> int:
    order, signs = candidate
    return sum(i != dim for i, dim in enumerate(order)) + signs.count(-1)


def _name_axes(order: tuple[int, ...], signs: tuple[int, ...]) -> str:
    """Return for example ``(-x, z, y)``."""
    names = [f"{'-' if sign < 0 else ''}{'xyz'[dim]}" for dim, sign in zip(order, signs, strict=True)]
    return f"({', '.join(names)})"


def _with_axes(order: tuple[int, ...], signs: tuple[int, ...]) -> Change:
    def changed(actions: np.ndarray) -> np.ndarray:
        return np.concatenate([actions[..., list(order)] * signs, actions[..., 3:]], axis=-1)

    return changed


@CHECKS.add("action scale off", "inference", "roll out with the first three numbers of each action scaled")
def scale(case: ForeignCase) -> Result:
    """Check that no factor makes the actions agree with the expert's."""
    expert, shown = case.expert_actions(), case.actions
    factors = [10 ** (k / 12) for k in range(-48, 49) if abs(k) >= 12 * np.log10(_LEAST_FACTOR)]
    totals = [float(errors(_with_scale(factor)(shown), expert, _XYZ).mean()) for factor in factors]
    factor = factors[int(np.argmin(totals))]
    found = explain(shown, _with_scale(factor)(shown), expert, _XYZ, num_tried=len(factors))
    size = f"{1 / factor:.2g} times the expert's"
    return _judge(
        case,
        found,
        f"x, y and z multiplied by {factor:.2g}",
        f"the actions are {size}; Meta-World's are from -1 to 1, and 1 moves the hand by 1 cm in a step",
        f"multiply the first three numbers of the actions of {case.name} by {factor:.2g}",
        change_actions=_with_scale(factor),
    )


def _with_scale(factor: float) -> Change:
    def changed(actions: np.ndarray) -> np.ndarray:
        return np.concatenate([actions[..., :3] * factor, actions[..., 3:]], axis=-1)

    return changed


# -- time --------------------------------------------------------------------------------------------------------------


@CHECKS.add("chunks executed from the wrong end", "inference", "compare a chunk with the expert's next actions")
def chunk_order(case: ForeignCase) -> Result:
    """Check that the k-th action of a chunk is one for k steps later."""
    size = case.chunks.shape[2]
    if size == 1:
        return untested("The policy sends one action at a time.")
    size = min(size, _MAX_OFFSET)
    chunks = case.chunks[:, :, :size].reshape(NUM_EPISODES, -1, 4)
    backwards = case.chunks[:, :, ::-1][:, :, :size].reshape(chunks.shape)
    now = _expert_chunks(case, size, 0)
    most = min(_MAX_OFFSET, min(map(len, case.episodes)) // 2)
    offsets = [offset for offset in range(-most, most + 1) if offset]
    num = len(offsets) + 1
    found = {0: explain(chunks, backwards, now, _ALL, num_tried=num)}
    for offset in offsets:
        then = _expert_chunks(case, size, offset)
        outside = np.isnan(now) | np.isnan(then)
        targets = np.where(outside, np.nan, now), np.where(outside, np.nan, then)
        found[offset] = explain(chunks, chunks, targets[0], _ALL, num_tried=num, changed_expert=targets[1])
    best = max(found, key=lambda offset: found[offset].changed)
    if not best:
        return _judge(
            case,
            found[best],
            "the chunks reversed in time",
            "the actions of a chunk are in reverse order",
            f"reverse the order of the actions that {case.name} sends",
            change_actions=lambda actions: actions[:, ::-1],
        )
    name, steps = f"the actions taken as those for {abs(best)} steps", "later" if best > 0 else "earlier"
    fix = f"send the chunk of {case.name} from its first action, not from the {best + 1}th"
    roll: dict[str, Any] = {}
    if best < 0:
        fix = f"leave out the first {-best} actions that {case.name} sends: they are for steps that have passed"
        if size > -best:
            roll = {"change_actions": lambda actions: actions[:, -best:]}
    return _judge(case, found[best], f"{name} {steps}", "the chunks are for other steps than are executed", fix, **roll)


def _expert_chunks(case: ForeignCase, size: int, offset: int) -> np.ndarray:
    """Return the expert's actions of ``size`` steps from some steps after each observation on, (E, S * size, 4)."""
    actions = np.stack([case.expert_actions(offset + step) for step in range(size)], axis=2)
    return actions.reshape(NUM_EPISODES, -1, 4)


@CHECKS.add("late answers", "inference", "ask twice for each observation, and execute the second answer")
def late(case: ForeignCase) -> Result:
    """Check that an answer is for the observation that it follows, not for the one before."""
    rows = list(range(NUM_EPISODES))
    case.begin(rows, rows)
    answers = np.stack([case.ask(rows, rows, time)[:, 0] for time in _JUMPS], axis=1)
    expert = case.expert_actions()[:, _JUMPS]
    now, before = expert[:, 1:], expert[:, :-1]
    found = explain(answers[:, 1:], answers[:, 1:], now, _ALL, num_tried=1, changed_expert=before)
    return _judge(
        case,
        found,
        "each observation asked twice",
        "an answer is for the observation before the last one",
        f"answer each observation in {case.name} from itself, not from a buffer",
        num_asks=2,
    )

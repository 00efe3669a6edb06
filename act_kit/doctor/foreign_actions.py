"""Checks that a foreign policy's actions have the sign, the scale, the axes and the order in time that they should.

Each check tries changes of the actions, or of the images. It accuses only if the answers agree with the scripted expert
clearly better with a change than without, and then measures the effect of the change in rollouts from the same initial
states. A policy that is merely bad agrees with the expert under no change.

Faults hide each other: axes in a wrong order cannot be recognized at a wrong scale. So the best change of the actions
is searched for as a whole, and a check compares the answers with the best change with those without its own part of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from act_kit.doctor.agreement import Explanation, constant_error, explain
from act_kit.doctor.finding import Checks, Result, critical, ruled_out, suspected, untested
from act_kit.doctor.foreign_case import NUM_EPISODES, Change, ForeignCase
from act_kit.doctor.foreign_changes import (
    GRIPPER_CHANGES,
    IDENTITY,
    IN_ORDER,
    NUM_FACTORS,
    NUM_ORDERS,
    SIGNS,
    ActionChange,
    best_change,
    best_scale,
)
from act_kit.eval.results import success_rate
from act_kit.rollouts.agents import ExpertAgent
from act_kit.rollouts.episode import Episode
from act_kit.sim.render import CAMERAS
from act_kit.statistics import mcnemar

CHECKS = Checks[ForeignCase](lambda case, name: case.name)
"""The checks; faults name the policy as their evidence."""

_XYZ, _GRIPPER, _ALL = (0, 1, 2), (3,), (0, 1, 2, 3)
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


def _judge(
    case: ForeignCase,
    found: Explanation,
    change: str,
    what: str,
    fix: str,
    *,
    others: ActionChange = IDENTITY,
    **roll: Any,
) -> Result:
    """Return the result of a check whose best change explains the answers as ``found``; roll out with the change.

    Args:
        case: The policy.
        found: Agreement with the expert without and with the change.
        change: The change, as it continues "with …".
        what: What is wrong, if the change is right.
        fix: What to change.
        others: Changes that undo other faults, in both of the compared rollouts; ``roll`` includes them.
        roll: Arguments of :meth:`ForeignCase.roll` for the change; none if it cannot be made in a rollout.
    """
    if not found.is_much_better or ((case.succeeds or not roll) and not found.is_exact):
        return ruled_out(f"No such change explains the actions; at best with {change}: {found}.")
    before = success_rate(case.as_shown)
    if not roll:
        text = f"{what}: {found} ({change}; p = {found.p:.1g}); success {before}."
        return suspected(text, fix=fix) if case.succeeds else critical(text, fix=fix)
    without = case.as_shown if others == IDENTITY else case.roll(change_actions=others)
    after = case.roll(**roll)
    lost, won, p = _compare(without, after)
    shown = f"{before} as it is" if others == IDENTITY else f"{success_rate(without)} with {others}"
    also = "" if others == IDENTITY else " too"
    text = (
        f"{what}: success {shown}, {success_rate(after)} with {change}{also}, from the same initial states within "
        f"{case.max_steps} steps (p = {p:.1g}); {found} (p = {found.p:.1g})."
    )
    if won > lost and p < 0.05:
        return critical(text, fix=fix)
    if not found.is_exact:
        return ruled_out(f"With {change} the actions agree better, and the success is the same: {found}.")
    return suspected(text, fix=fix)


def _accepted(case: ForeignCase) -> ActionChange:
    """Return the parts of the best change of the actions that make them agree much better with the expert's."""
    expert, shown, change = case.expert_actions(), case.actions, case.best_change
    hand = replace(change, gripper="")
    if not explain(shown, hand(shown), expert, _XYZ, num_tried=NUM_ORDERS).is_much_better:
        hand = IDENTITY
    both = replace(hand, gripper=change.gripper)
    is_better = explain(hand(shown), both(shown), expert, _GRIPPER, num_tried=len(GRIPPER_CHANGES)).is_much_better
    return both if is_better else hand


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


@CHECKS.add("gripper turned", "inference", "roll out with the 4th number of each action negated")
def gripper(case: ForeignCase) -> Result:
    """Check the sign and the range of the gripper's action."""
    expert = case.expert_actions()
    if constant_error(expert, _GRIPPER) == 0 and not _gripper_matters(case):
        return untested(f"The expert never moves the gripper on {case.task}, and solves it with it turned too.")
    others = replace(_accepted(case), gripper="")
    found: dict[str, Explanation] = {}
    for name in GRIPPER_CHANGES:
        changed = replace(others, gripper=name)(case.actions)
        found[name] = explain(others(case.actions), changed, expert, _GRIPPER, num_tried=len(GRIPPER_CHANGES))
    best = max(found, key=lambda name: found[name].changed)
    if found[best].is_much_better and not _gripper_matters(case):
        return untested(f"The expert solves {case.task} with its gripper turned too.")
    return _judge(
        case,
        found[best],
        f"the gripper's {best}",
        "the gripper's action has another sign or range than Meta-World's, -1 to open and 1 to close",
        f"{GRIPPER_CHANGES[best][1]} of the actions of {case.name}",
        others=others,
        change_actions=replace(others, gripper=best),
    )


def _gripper_matters(case: ForeignCase) -> bool:
    """Return True if the expert fails with its gripper turned."""
    turned = case.roll(agent=ExpertAgent(), change_actions=ActionChange(gripper="sign turned"))
    lost, won, p = _compare(case.episodes, turned)
    return lost > won and p < 0.05


@CHECKS.add("action axes turned or exchanged", "inference", "roll out with the axes as the message says")
def axes(case: ForeignCase) -> Result:
    """Check that the numbers are in order, and that x, y and z have their signs."""
    expert, shown = case.expert_actions(), case.actions
    change = replace(case.best_change, gripper=_accepted(case).gripper)
    if not change.has_axes:
        return ruled_out("No other order and no other signs of the axes agree better with the expert.")
    others = replace(change, order=IN_ORDER, signs=SIGNS)
    dims = [i for i in _ALL if change.order[i] != i or (i in _XYZ and change.signs[i] < 0)]
    name = change.axes_name
    return _judge(
        case,
        explain(others(shown), change(shown), expert, dims, num_tried=NUM_ORDERS),
        f"(x, y, z) taken from {name} of the actions",
        "the axes of the actions are turned or exchanged",
        f"send {name} as x, y and z of the actions of {case.name}"
        + ("" if 3 not in dims else ", the first as the 4th"),
        others=others,
        change_actions=change,
    )


@CHECKS.add("action scale off", "inference", "roll out with the first three numbers of each action scaled")
def scale(case: ForeignCase) -> Result:
    """Check that no factor makes the actions agree with the expert's."""
    expert, shown = case.expert_actions(), case.actions
    accepted = _accepted(case)
    change = accepted if accepted.factor != 1 else best_scale(shown, expert, accepted)
    others = replace(change, factor=1.0)
    size = f"{1 / change.factor:.2g} times the expert's"
    return _judge(
        case,
        explain(others(shown), change(shown), expert, _XYZ, num_tried=NUM_FACTORS),
        f"x, y and z multiplied by {change.factor:.2g}",
        f"the actions are {size}; Meta-World's are from -1 to 1, and 1 moves the hand by 1 cm in a step",
        f"multiply the first three numbers of the actions of {case.name} by {change.factor:.2g}",
        others=others,
        change_actions=change,
    )


# -- time --------------------------------------------------------------------------------------------------------------


@CHECKS.add("chunks executed from the wrong end", "inference", "compare a chunk with the expert's next actions")
def chunk_order(case: ForeignCase) -> Result:
    """Check that the k-th action of a chunk is one for k steps later."""
    size = case.chunks.shape[2]
    if size == 1:
        return untested("The policy sends one action at a time.")
    size = min(size, _MAX_OFFSET)
    shape = NUM_EPISODES, -1, 4
    chunks, backwards = case.chunks[:, :, :size].reshape(shape), case.chunks[:, :, ::-1][:, :, :size].reshape(shape)
    now = _expert_chunks(case, size, 0)
    most = min(_MAX_OFFSET, min(map(len, case.episodes)) // 2)
    offsets = [offset for offset in range(-most, most + 1) if offset]
    of_last = best_change(case.chunks[:, :, -1], case.expert_actions())  # which is the first one, if they are reversed
    changes = list(dict.fromkeys([IDENTITY, case.best_change, of_last]))
    num = len(changes) * (len(offsets) + 1)
    found: dict[tuple[int, ActionChange], Explanation] = {}
    for change in changes:
        found[0, change] = explain(change(chunks), change(backwards), now, _ALL, num_tried=num)
        for offset in offsets:
            then = _expert_chunks(case, size, offset)
            outside = np.isnan(now) | np.isnan(then)
            then, of_now = np.where(outside, np.nan, then), np.where(outside, np.nan, now)
            actions = change(chunks)
            found[offset, change] = explain(actions, actions, of_now, _ALL, num_tried=num, changed_expert=then)
    best, others = max(found, key=lambda each: found[each].changed)
    explanation = found[best, others]
    if not best:
        return _judge(
            case,
            explanation,
            "the chunks reversed in time",
            "the actions of a chunk are in reverse order",
            f"reverse the order of the actions that {case.name} sends",
            others=others,
            change_actions=lambda actions: others(actions[:, ::-1]),
        )
    name, steps = f"the actions taken as those for {abs(best)} steps", "later" if best > 0 else "earlier"
    fix = f"send the chunk of {case.name} from its first action, not from the {best + 1}th"
    roll: dict[str, Any] = {}
    if best < 0:
        fix = f"leave out the first {-best} actions that {case.name} sends: they are for steps that have passed"
        if size > -best:
            roll = {"change_actions": lambda actions: others(actions[:, -best:])}
    what = "the chunks are for other steps than are executed"
    return _judge(case, explanation, f"{name} {steps}", what, fix, others=others, **roll)


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
    asked = answers[:, 1:]
    change = best_change(asked, before)
    found = explain(best_change(asked, now)(asked), change(asked), now, _ALL, num_tried=1, changed_expert=before)
    return _judge(
        case,
        found,
        "each observation asked twice",
        "an answer is for the observation before the last one",
        f"answer each observation in {case.name} from itself, not from a buffer",
        others=change,
        num_asks=2,
        change_actions=change,
    )

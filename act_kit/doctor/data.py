"""Checks of a dataset."""

from __future__ import annotations

from typing import Literal

import numpy as np

from act_kit.datasets.images import ImageStore
from act_kit.diversity.faults import KINDS
from act_kit.diversity.integrity import Level
from act_kit.diversity.result import DiversityReport
from act_kit.diversity.verdict import TOO_FEW
from act_kit.doctor.case import DatasetCase
from act_kit.doctor.finding import Checks, Result, critical, ruled_out, suspected, untested, warning
from act_kit.errors import InitialStateError
from act_kit.files import quoted
from act_kit.rollouts.episode import is_dagger
from act_kit.sim.tasks import CONTROL_HZ, HORIZON, get_task

CHECKS = Checks[DatasetCase](lambda case, name: case.path / name, lambda case: case.store.reproduce_command)


@CHECKS.add("horizon or control rate mismatch", "environment", "read the dataset's attributes", "zarr.json")
def contract(case: DatasetCase) -> Result:
    """Check that the dataset has the horizon and the control rate of the benchmark."""
    case.require_metaworld()
    info = case.store.info
    if (info.horizon, info.control_hz) != (HORIZON, CONTROL_HZ):
        return critical(
            f"{case.path} was recorded with a horizon of {info.horizon} steps at {info.control_hz} Hz; the benchmark "
            f"has {HORIZON} at {CONTROL_HZ} Hz."
        )
    return ruled_out(f"{HORIZON} steps at {CONTROL_HZ} Hz.")


@CHECKS.add("goal hidden", "environment", "inspect the last three numbers of the states", "data/state")
def goal(case: DatasetCase) -> Result:
    """Check that the states contain the goal."""
    case.require_metaworld()
    goals = case.store.steps("state")[:, -3:]
    hidden = int((~goals.any(axis=1)).sum())
    if hidden:
        return critical(
            f"the goal is hidden in {hidden} of {len(goals)} states (their last three numbers are 0): a policy cannot "
            "imitate behavior that depends on the goal."
        )
    informative = np.array(get_task(case.store.info.task).informative)
    init_states = np.array(case.store.recorded_init_states)
    goal_dims = informative[informative >= 3]
    varies = len(init_states) and goal_dims.size and (np.ptp(init_states[:, goal_dims], axis=0) > 0.01).all()
    if varies and (np.ptp(goals, axis=0) < 1e-6).all():
        return critical("the initial states have different goals, but the goal in the states is constant.")
    return ruled_out("Every state contains the goal.")


_EVIDENCE = {
    "initial": "meta/rand_vec",
    "states": "data/state",
    "actions": "data/action",
    "action": "data/action",
    "labels": "data/action",
    "executed": "data/executed_action",
    "success": "data/success",
    "physics": "data/physics",
}
"""File with the evidence of a fault, by the first word of its kind."""


def _check_demonstrations(kind: str) -> None:
    """Add the check for one kind of fault of the demonstrations; all kinds share one replay."""
    how_to_verify = "act data verify DATASET; act report DATASET"

    @CHECKS.add(kind, stage="data", how_to_verify=how_to_verify, evidence=_EVIDENCE.get(kind.split()[0], "data"))
    def demonstrations(case: DatasetCase) -> Result:
        """Check that replay, labels and success agree."""
        case.require_metaworld()
        soundness = case.soundness
        untested_because = soundness.untested(kind)
        if untested_because:
            return untested(untested_because)
        for fault in soundness.faults:
            if fault.kind != kind:
                continue
            fix = soundness.fix_for(case.store)
            if not fault.is_certain:
                return suspected(fault.text, fix=fix, severity="critical")
            return (warning if kind == "physics changed" else critical)(fault.text, fix=fix)
        return ruled_out(f"Not found in any episode: {soundness.scope}")


for _kind in KINDS:
    _check_demonstrations(_kind)


@CHECKS.add("unclipped actions", "data", "inspect the range of the actions")
def clipped(case: DatasetCase) -> Result:
    """Check that all actions are finite and in the range that the environment executes."""
    case.require_metaworld()
    for name in ("action", "executed_action"):
        if name not in case.store.fields:
            continue
        values = case.store.steps(name)
        path = case.path / "data" / name
        if not np.isfinite(values).all():
            return critical(f"{name} contains values that are not finite.", path)
        beyond = float((np.abs(values) > 1).any(axis=1).mean())
        if beyond:
            message = (
                f"{100 * beyond:.1f} % of the recorded actions are outside [-1, 1] (up to {np.abs(values).max():.1f}): "
                "they are not clipped, but the environment clips them before it executes them."
            )
            return critical(message, path)
    return ruled_out("All actions are in [-1, 1].")


_MIN_NOISY = 100
"""Minimum number of unclipped noisy numbers from which the noise is estimated."""

_MAX_NOISE_RATIO = 1.25
"""Factor of the stated noise beyond which the estimate from :data:`_MIN_NOISY` numbers is not chance (3.5 sigma)."""


@CHECKS.add("labels differ from executed actions", "data", "compare action with executed_action", "data/action")
def executed(case: DatasetCase) -> Result:
    """Check that labels equal executed actions but for the noise, unless the expert labeled a policy's rollouts."""
    store = case.store
    if "executed_action" not in store.fields:
        return untested("The executed actions were not recorded.")
    own = ~np.repeat(list(map(is_dagger, store.sources)), store.episode_lengths)
    if not own.any():
        return untested("The expert labeled a policy's rollouts: executed actions differ from labels, as intended.")
    labels, executed_actions = store.steps("action")[own], store.steps("executed_action")[own]
    if store.info.noise:
        return _check_noise(labels, executed_actions, store.info.noise)
    differs = float((labels != executed_actions).any(axis=1).mean())
    if differs:
        return critical(
            f"{100 * differs:.1f} % of the labels differ from the executed actions, although the dataset states no "
            "noise."
        )
    return ruled_out("The labels are the executed actions.")


def _check_noise(labels: np.ndarray, executed_actions: np.ndarray, noise: float) -> Result:
    """Check that executed actions (T, 4) differ from labels by the stated noise, or less: merged data may have less."""
    is_inner = np.abs(labels) <= 1 - 3 * noise  # elsewhere, clipping to [-1, 1] changes the noise
    if is_inner.sum() < _MIN_NOISY:
        return untested(f"The executed actions are clipped nearly everywhere, so the noise ({noise:g}) is unknown.")
    measured = float((executed_actions - labels)[is_inner].std())
    if not 0 < measured <= _MAX_NOISE_RATIO * noise:
        return critical(
            f"The executed actions differ from the labels by {measured:.2g} (standard deviation), although the dataset "
            f"states noise of {noise:g}."
        )
    return ruled_out(f"The executed actions are the labels with noise of {measured:.2g} (stated: {noise:g}).")


@CHECKS.add("inconsistent data", "data", "act report DATASET")
def sound(case: DatasetCase) -> Result:
    """Check for initial states, states and values that no collection produces."""
    try:
        level, message = _report(case, "data")
    except InitialStateError as error:
        return critical(f"an initial state is impossible: {error}", case.path / "meta/rand_vec")
    if level != "OK":
        return (critical if level == "FAIL" else warning)(message)
    if case.store.missing_fields:
        return ruled_out(f"All values are finite. Not recorded: {', '.join(case.store.missing_fields)}.")
    return ruled_out("Every first state matches its initial state; all values are finite and in range.")


@CHECKS.add("images changed", "data", "act data info DATASET --verify")
def images(case: DatasetCase) -> Result:
    """Check that the images are unchanged since they were rendered."""
    for camera in ImageStore.cameras(case.store):
        images = ImageStore(case.store, camera)
        damaged = images.damaged_episodes()
        if damaged:
            message = (
                f"the images of {camera} in {len(damaged)} episodes (the first: {damaged[0]}) differ from what was "
                "rendered."
            )
            return critical(message, case.path / "data/images" / camera, f"{images.command} --overwrite")
    return ruled_out("All images are unchanged since rendering, or there are none.")


@CHECKS.add("poor coverage of initial states", "data", "act report DATASET")
def coverage(case: DatasetCase) -> Result:
    """Check that the demonstrated initial states cover those from which a policy is evaluated."""
    level, message = _report(case, "coverage")
    if level == "WARN" and case.diversity.num < TOO_FEW:
        return untested(message)
    if level == "OK":
        return ruled_out(case.diversity.verdict.removeprefix("OK: "))
    evidence = case.path / ("meta/rand_vec" if case.store.has_init_states else "data/state")
    return (critical if level == "FAIL" else warning)(message, evidence, case.diversity.fix)


def _report(case: DatasetCase, about: Literal["coverage", "data"]) -> tuple[Level, str]:
    """Return the worst level of the diversity report's findings of one kind, and their text."""
    texts: dict[Level, list[str]] = {"FAIL": [], "WARN": [], "OK": []}
    for finding in case.diversity.findings:
        if finding.about == about:
            texts[finding.level].append(finding.text)
    level: Level = "FAIL" if texts["FAIL"] else "WARN" if texts["WARN"] else "OK"
    return level, " ".join(texts[level])


@CHECKS.add("demonstrations go two ways", "data", "act report DATASET", "data/state")
def one_way(case: DatasetCase) -> Result:
    """Check that demonstrations from similar initial states go the same way."""
    if not isinstance(case.diversity, DiversityReport):
        return untested(f"{case.path} has no initial states.")
    conflict = case.diversity.conflict
    if conflict is None:
        return ruled_out("The demonstrations go one way, or ways that the initial state tells apart.")
    fix = "act train --data DATASET policy=flow_small, or act data filter to keep the demonstrations of one way"
    return warning(f"{conflict}.", fix=fix.replace("DATASET", quoted(case.path)))


@CHECKS.add("dataset changed", "data", "act data info DATASET --verify")
def whole(case: DatasetCase) -> Result:
    """Check that the content matches the fingerprint."""
    store = case.store
    if store.fingerprint is None:
        message = f"{store.path} is unfinished: {store.num_episodes} of {store.info.num_wanted} demonstrations."
        return warning(message, fix=f"{store.info.command} --out {quoted(store.path)} --resume")
    if store.compute_fingerprint() != store.fingerprint:
        return critical(f"the content of {store.path} was changed since collection: its fingerprint does not match.")
    return ruled_out("The content matches its fingerprint.")

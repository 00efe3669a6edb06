"""What may be wrong with a dataset by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from act_kit.collection.replay import replay_episode
from act_kit.datasets.checks import Level, worst
from act_kit.datasets.episode import is_corrected
from act_kit.datasets.images import ImageStore
from act_kit.datasets.verdict import TOO_FEW
from act_kit.diagnosis.case import DatasetCase
from act_kit.diagnosis.finding import Checks, Result, critical, ruled_out, suspected, untested, warning
from act_kit.diagnosis.generalisation import evenly
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.tasks import CONTROL_HZ, HORIZON, get_task
from act_kit.versions import versions

CHECKS = Checks[DatasetCase]()

_NUM_REPLAYED = 5
_NUM_LABELS = 20
"""Episodes whose actions are asked of the expert again."""

_MAX_SHIFT = 4


@CHECKS.add("another horizon or rate", stage="environment", settle="read the dataset's attributes")
def contract(case: DatasetCase) -> Result:
    """Was it recorded in the benchmark's environment?"""
    case.require_metaworld()
    info = case.store.info
    if (info.horizon, info.control_hz) != (HORIZON, CONTROL_HZ):
        return critical(
            f"{case.path} was recorded with a horizon of {info.horizon} steps at {info.control_hz} Hz; the benchmark "
            f"has {HORIZON} at {CONTROL_HZ} Hz.", case.path / "zarr.json", _again(case),
        )  # fmt: skip
    return ruled_out(f"{HORIZON} steps at {CONTROL_HZ} Hz.")


@CHECKS.add("goal hidden", stage="environment", settle="look at the last three numbers of the states")
def goal(case: DatasetCase) -> Result:
    """Do the states show the goal?"""
    case.require_metaworld()
    states = case.store.steps("state")
    hidden = int((~states[:, -3:].any(axis=1)).sum())
    if hidden:
        return critical(
            f"the goal is hidden in {hidden} of {len(states)} states (their last three numbers are 0): what cannot be "
            "seen cannot be imitated.", case.path / "data/state", _again(case),
        )  # fmt: skip
    task = get_task(case.store.info.task)
    moving = [int(dim) for dim in task.informative if dim >= 3]
    starts = np.array(case.store.recorded_starts)
    if (
        moving
        and len(starts)
        and (np.ptp(starts[:, moving], axis=0) > 0.01).all()
        and (np.ptp(states[:, -3:], axis=0) < 1e-6).all()
    ):
        return critical(
            "the starts have different goals, but the states show one and the same.", case.path / "data/state",
            _again(case),
        )  # fmt: skip
    return ruled_out("The goal is in every state.")


@CHECKS.add("unclipped actions", stage="data", settle="look at the range of the actions")
def clipped(case: DatasetCase) -> Result:
    """Are the actions those that the environment carries out?"""
    case.require_metaworld()
    for name in ("action", "executed_action"):
        if name not in case.store.fields:
            continue
        values = case.store.steps(name)
        if not np.isfinite(values).all():
            return critical(f"{name} holds numbers that are not finite.", case.path / "data" / name, _again(case))
        beyond = float((np.abs(values) > 1).any(axis=1).mean())
        if beyond:
            return critical(
                f"{100 * beyond:.1f} % of the recorded actions lie outside [-1, 1] (up to {np.abs(values).max():.1f}): "
                "they are not clipped, and the environment does not carry them out so.",
                case.path / "data" / name, _again(case),
            )  # fmt: skip
    return ruled_out("All actions lie in [-1, 1].")


@CHECKS.add("actions off by some steps", stage="data", settle="ask the demonstrator again, state by state")
def labels(case: DatasetCase) -> Result:
    """Is every action what the demonstrator does in that state, or does it belong to another step?"""
    case.require_metaworld()
    store = case.store
    sources = store.sources
    asked = np.array([i for i, source in enumerate(sources) if source == "scripted" or is_corrected(source)], dtype=int)
    if not len(asked):
        return untested(f"The demonstrator ({', '.join(dict.fromkeys(sources))}) cannot be asked again.")
    expert = ScriptedExpert(store.info.task)
    agrees: dict[int, list[bool]] = {shift: [] for shift in range(-_MAX_SHIFT, _MAX_SHIFT + 1)}
    ends = np.concatenate([[0], store.episode_ends])
    states, actions = store.steps("state"), store.steps("action")
    for episode in evenly(asked, _NUM_LABELS):
        span = slice(ends[episode], ends[episode + 1])
        wanted, recorded = np.stack([expert.act(state) for state in states[span]]), actions[span]
        for shift, same in agrees.items():
            ours, theirs = (wanted[shift:], recorded[: len(recorded) - shift]) if shift >= 0 else (
                wanted[:shift], recorded[-shift:]
            )  # fmt: skip
            same += np.isclose(ours, theirs, atol=1e-5).all(axis=1).tolist()
    rates = {shift: float(np.mean(same)) for shift, same in agrees.items() if same}
    if rates[0] > 0.99:
        return ruled_out(f"The scripted expert acts as recorded in {100 * rates[0]:.1f} % of the states.")
    best = max(rates, key=lambda shift: rates[shift])
    where = f"The expert acts as recorded in {100 * rates[0]:.0f} % of the states"
    if best and rates[best] > 0.9:
        steps = f"{abs(best)} step{'s' if abs(best) > 1 else ''} {'later' if best > 0 else 'earlier'}"
        return critical(
            f"the actions are off by {abs(best)}: each belongs to the state {steps}. {where}, and in "
            f"{100 * rates[best]:.0f} % of those {steps}.", case.path / "data/action", _again(case),
        )  # fmt: skip
    says = f"the recorded actions are not the expert's. {where}, and no shift in time explains the others"
    return _unless_versions(case, says, case.path / "data/action")


@CHECKS.add("labels are not what was done", stage="data", settle="compare action with executed_action")
def executed(case: DatasetCase) -> Result:
    """Without noise, what was carried out is what is to be learnt; unless a policy acted and the expert labelled."""
    store = case.store
    if store.info.noise:
        return untested("With noise, what was carried out differs from what is to be learnt, as it should.")
    if "executed_action" not in store.fields:
        return untested("Nobody recorded what was carried out.")
    own = np.repeat([not is_corrected(source) for source in store.sources], store.episode_lengths)
    if not own.any():
        return untested("A policy acted and the expert labelled: what was carried out differs, as it should.")
    differs = float((store.steps("action") != store.steps("executed_action"))[own].any(axis=1).mean())
    if differs:
        return critical(
            f"{100 * differs:.1f} % of the actions to learn are not those that were carried out, though the data say "
            "that there was no noise.", case.path / "data/action", _again(case),
        )  # fmt: skip
    return ruled_out("The actions to learn are those that were carried out.")


@CHECKS.add("episodes do not replay", stage="data", settle="act data replay DATASET")
def replays(case: DatasetCase) -> Result:
    """Do the recorded actions, from the recorded starts, lead to the recorded states, here and now?"""
    store = case.store
    episodes = store.episodes()
    for index in evenly(np.arange(len(episodes)), _NUM_REPLAYED):
        replay = replay_episode(int(index), episodes[index])
        if replay.first_difference is not None:
            says = f"episode {index} does not replay: '{replay.field}' differs from step {replay.first_difference} on"
            return _unless_versions(case, says, case.path / "data" / replay.field)
    return ruled_out("Episodes replay to the bit: starts, actions and states belong together.")


@CHECKS.add("data that cannot be", stage="data", settle="act report DATASET")
def sound(case: DatasetCase) -> Result:
    """Does the report find starts, states and numbers that no collection leaves?"""
    level, says = _report(case, "data")
    if level == "OK":
        if case.store.lacks:
            return ruled_out(f"All numbers are finite. Not recorded: {', '.join(case.store.lacks)}.")
        return ruled_out("Every first state is that of its start; all numbers are finite and in their ranges.")
    return (critical if level == "FAIL" else warning)(says, case.path, _again(case))


@CHECKS.add("pictures changed", stage="data", settle="act data info DATASET --verify")
def pictures(case: DatasetCase) -> Result:
    """Are the pictures those that were drawn?"""
    for camera in ImageStore.cameras(case.store):
        images = ImageStore(case.store, camera)
        damaged = images.damaged_episodes()
        if damaged:
            return critical(
                f"the frames of {camera} of {len(damaged)} episodes (the first: {damaged[0]}) are not what was drawn.",
                case.path / "data/images" / camera, f"{images.command} --overwrite",
            )  # fmt: skip
    return ruled_out("Every picture is as it was drawn, or there are none.")


@CHECKS.add("starts do not cover", stage="data", settle="act report DATASET")
def coverage(case: DatasetCase) -> Result:
    """Do the starts cover those that a policy will be evaluated from?"""
    level, says = _report(case, "coverage")
    if level == "WARN" and case.diversity.num < TOO_FEW:
        return untested(says)
    if level == "OK":
        return ruled_out(case.diversity.verdict.removeprefix("OK: "))
    found = critical if level == "FAIL" else warning
    evidence = "meta/rand_vec" if case.store.has_starts else "data/state"
    return found(says, case.path / evidence, case.diversity.mend)


def _report(case: DatasetCase, about: Literal["coverage", "data"]) -> tuple[Level, str]:
    """Return the worst level of the diversity report's findings of one kind, and what they say."""
    findings = [finding for finding in case.diversity.findings if finding.about == about]
    level = worst(findings)
    return level, " ".join(finding.text for finding in findings if finding.level == level)


@CHECKS.add("dataset changed", stage="data", settle="act data info DATASET --verify")
def whole(case: DatasetCase) -> Result:
    """Is the content what the collector fingerprinted?"""
    store = case.store
    if store.fingerprint is None:
        return warning(
            f"{store.path} is unfinished: {store.num_episodes} of {store.info.num_wanted} demonstrations.",
            store.path, f"{store.info.command} --out {store.path} --resume",
        )  # fmt: skip
    if store.compute_fingerprint() != store.fingerprint:
        return critical(
            f"the content of {store.path} is not what was collected: its fingerprint does not match.",
            store.path, _again(case),
        )  # fmt: skip
    return ruled_out("The content matches its fingerprint.")


def _unless_versions(case: DatasetCase, says: str, evidence: Path) -> Result:
    """Blame the data, unless they were recorded by other versions than are here: then it may be these."""
    recorded, here = case.store.info.versions, versions()
    differing = [name for name in ("metaworld", "mujoco") if recorded.get(name) != here[name]]
    if differing:
        was = ", ".join(f"{name} {recorded.get(name)} (here {here[name]})" for name in differing)
        return suspected(f"{says}; it was recorded with {was}.", evidence, _again(case), severity="critical")
    return critical(f"{says}.", evidence, _again(case))


def _again(case: DatasetCase) -> str:
    return f"{case.store.info.command} --out {case.path} --overwrite"

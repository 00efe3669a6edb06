"""Does what a policy is used on match what it was trained on: data, model, pictures, the task itself?"""

from __future__ import annotations

import numpy as np

from act_kit.datasets.images import ImageStore
from act_kit.doctor.case import RunCase
from act_kit.doctor.finding import Checks, Result, critical, ruled_out, suspected, warning
from act_kit.doctor.generalization import evenly
from act_kit.parallel import LocalExecutor
from act_kit.policies.policy import find_checkpoint
from act_kit.sim.render import find_gl, render_episode
from act_kit.sim.tasks import CONTROL_HZ, HORIZON
from act_kit.versions import versions

CHECKS = Checks[RunCase]()

_NUM_REDRAWN = 3
_EXPERT_SUCCEEDS = 0.8
"""Less than every task's expert does."""

_OFF = 2
"""Of 255: more than two renderers differ by, less than two episodes."""


@CHECKS.add("checkpoint of another run", stage="environment", how_to_verify="compare tasks and fingerprints")
def same_data(case: RunCase) -> Result:
    """Was the policy trained on the data that the run names, as they are now?"""
    contract = case.policy.contract
    path = find_checkpoint(case.folder) / "policy.json"
    tasks = tuple(dict.fromkeys(store.info.task for store in case.stores))
    if contract.tasks != tasks:
        return critical(
            f"the checkpoint is of {', '.join(contract.tasks)}, the run's data are of {', '.join(tasks)}: it is "
            "another run's.", path, case.train_again,
        )  # fmt: skip
    for shown, store in zip(contract.demonstrations, case.stores, strict=False):
        known, init_states = shown.init_states, store.recorded_init_states
        if known and len(known) < len(init_states) and known == init_states[: len(known)]:
            return warning(
                f"{store.path} has grown since: it was trained on {len(known)} of its {store.num_episodes} "
                "demonstrations.", path, case.train_again,
            )  # fmt: skip
    trained_on = [shown.fingerprint for shown in contract.demonstrations]
    if trained_on != case.fingerprints:
        return critical(
            f"the checkpoint was trained on other data than the run names (fingerprints {_short(trained_on)}, not "
            f"{_short(case.fingerprints)}): another run's, or the data were collected anew.", path, case.train_again,
        )  # fmt: skip
    for shown, store in zip(contract.demonstrations, case.stores, strict=True):
        if shown.init_states != store.recorded_init_states:
            return critical(
                f"the starts that the checkpoint says it was shown are not those of {store.path}.",
                path,
                case.train_again,
            )
    return ruled_out("The checkpoint names the tasks, the data and the starts that the run names.")


@CHECKS.add("checkpoint of another model", stage="environment", how_to_verify="compare with config.yaml")
def same_model(case: RunCase) -> Result:
    """Is the policy of the sizes, and does it see what, the run's configuration says?"""
    path = find_checkpoint(case.folder) / "policy.json"
    policy, config = case.policy, case.config
    for name in vars(config.policy).keys() - {"cameras"}:  # see same_pictures
        of_policy, of_run = getattr(policy.model.config, name), getattr(config.policy, name)
        if of_policy != of_run:
            return critical(
                f"the checkpoint has policy.{name}={of_policy}, the run's configuration {of_run}: it is another run's.",
                path, case.train_again,
            )  # fmt: skip
    return ruled_out("Sizes and inputs are those of the configuration.")


@CHECKS.add("another environment in use", stage="environment", how_to_verify="compare versions, horizon and rate")
def same_environment(case: RunCase) -> Result:
    """Were data, training and evaluations made in the environment that is here?"""
    contract = case.policy.contract
    path = find_checkpoint(case.folder) / "policy.json"
    if (contract.horizon, contract.control_hz) != (HORIZON, CONTROL_HZ):
        return critical(
            f"the policy was made for {contract.horizon} steps at {contract.control_hz} Hz; the benchmark has "
            f"{HORIZON} at {CONTROL_HZ} Hz.", path, case.train_again,
        )  # fmt: skip
    here = versions()
    made = {"training": contract.versions}
    # Of imported data nobody may know what they were recorded with.
    made |= {str(data.path): data.store.info.versions for data in case.datasets if data.store.has_init_states}
    made |= {str(evaluation.folder): evaluation.summary["versions"] for evaluation in case.evaluations}
    for name in ("metaworld", "mujoco"):
        others = [f"{what}: {of_it.get(name)}" for what, of_it in made.items() if of_it.get(name) != here[name]]
        if others:
            return warning(f"{name} is {here[name]} here; {', '.join(others)}.", path, case.train_again)
    return ruled_out(f"Data, training, evaluations have metaworld {here['metaworld']}, mujoco {here['mujoco']}.")


@CHECKS.add("goal hidden", stage="environment", how_to_verify="look at the last three numbers of the states")
def goal(case: RunCase) -> Result:
    """Did the policy see the goal in training?"""
    if case.config.policy.sees_state and not case.policy.contract.goal_visible:
        path = find_checkpoint(case.folder) / "policy.json"
        if all(store.steps("state")[:, -3:].any() for store in case.stores):
            return suspected(
                "the checkpoint says that it was not shown the goal, but its data show it: was policy.json edited?",
                path, case.train_again,
            )  # fmt: skip
        return critical(
            "the policy was trained on states that hide the goal: what cannot be seen cannot be imitated.", path,
            case.train_again,
        )  # fmt: skip
    return ruled_out("It saw the goal in training, or only pictures.")


@CHECKS.add("other pictures in use", stage="environment", how_to_verify="draw an episode again")
def same_images(case: RunCase) -> Result:
    """Does the policy see in use what it saw in training?"""
    policy = case.policy
    if policy.views is None:
        return ruled_out("It sees no pictures.")
    path = find_checkpoint(case.folder) / "policy.json"
    if tuple(policy.views.cameras) != tuple(case.config.policy.cameras):
        return critical(
            f"the policy looks through {', '.join(policy.views.cameras)} in use, it was trained with "
            f"{', '.join(case.config.policy.cameras)}.", path, case.train_again,
        )  # fmt: skip
    for store in case.stores:
        for camera in policy.views.cameras:
            images = ImageStore(store, camera)
            if images.settings != policy.views.settings:
                return critical(
                    f"the policy is shown {policy.views.settings} pictures in use, {camera} was drawn at "
                    f"{images.settings} for training.", path, case.train_again,
                )  # fmt: skip
    return _redrawn(case)


def _redrawn(case: RunCase) -> Result:
    """Draw some episodes again and compare."""
    views = case.policy.views
    assert views is not None
    gl = find_gl()
    for store in case.stores:
        episodes = store.episodes()
        chosen = evenly(np.arange(len(episodes)), _NUM_REDRAWN)
        jobs = [(views.settings, list(views.cameras), episodes[i].init_state, episodes[i].physics) for i in chosen]
        with LocalExecutor(1, gl.environment) as executor:
            drawn = list(executor.map(render_episode, jobs))
        for index, frames in zip(chosen, drawn, strict=True):
            for number, camera in enumerate(views.cameras):
                recorded = ImageStore(store, camera).episode(int(index)).astype(int)
                off = np.abs(frames.images[:, number].astype(int) - recorded).mean()
                if off > _OFF:
                    return critical(
                        f"{camera} in {store.path} does not show episode {index}: drawn again, a pixel differs by "
                        f"{off:.0f} of 255 in the mean.", store.path / "data/images" / camera,
                        f"{ImageStore(store, camera).command} --overwrite",
                    )  # fmt: skip
    return ruled_out("Cameras, sizes and episodes drawn again are the same in training and in use.")


@CHECKS.add("the task cannot be done", stage="environment", how_to_verify="let the scripted expert try")
def expert_succeeds(case: RunCase) -> Result:
    """Can the task be done from these starts at all, here?"""
    rates = {task: f"{task} {rate}" for task, rate in case.expert_rates.items()}
    failing = [rates[task] for task, rate in case.expert_rates.items() if rate.interval[1] < _EXPERT_SUCCEEDS]
    if failing:
        return critical(
            f"the scripted expert itself fails here, from fresh initial states: {', '.join(failing)}. The environment "
            "or the success rule differs from Meta-World's.", "rollouts of the doctor", "act doctor",
        )  # fmt: skip
    return ruled_out(f"The scripted expert succeeds from fresh initial states: {', '.join(rates.values())}.")


def _short(fingerprints: list[str]) -> str:
    return ", ".join(fingerprint[:8] for fingerprint in fingerprints)

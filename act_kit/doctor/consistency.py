"""Checks that the run, its checkpoint and this environment are consistent: data, model, images, task."""

from __future__ import annotations

import numpy as np

from act_kit.datasets.images import ImageStore
from act_kit.doctor.case import RunCase
from act_kit.doctor.finding import Checks, Result, critical, ruled_out, suspected, warning
from act_kit.doctor.generalization import evenly
from act_kit.parallel import LocalExecutor
from act_kit.policies.storage import find_checkpoint
from act_kit.sim.render import find_gl, render_episode
from act_kit.sim.tasks import CONTROL_HZ, HORIZON
from act_kit.versions import versions

CHECKS = Checks[RunCase]()

_NUM_RENDERED = 3
_EXPERT_SUCCEEDS = 0.8
"""A success rate that the expert of every task exceeds."""

_MAX_PIXEL_DIFFERENCE = 2
"""Mean difference of pixels, 0 to 255: more than between two renderers, less than between two episodes."""


@CHECKS.add("checkpoint of another run", stage="environment", how_to_verify="compare tasks and fingerprints")
def same_data(case: RunCase) -> Result:
    """Check that the policy was trained on the datasets that the run names, as they are now."""
    metadata = case.policy.metadata
    path = find_checkpoint(case.folder) / "policy.json"
    tasks = tuple(dict.fromkeys(store.info.task for store in case.stores))
    if metadata.tasks != tasks:
        return critical(
            f"the checkpoint is of {', '.join(metadata.tasks)}, the run's data are of {', '.join(tasks)}: the "
            "checkpoint belongs to another run.",
            path,
            case.train_again,
        )
    for demonstrations, store in zip(metadata.datasets, case.stores, strict=False):
        trained, init_states = demonstrations.init_states, store.recorded_init_states
        if trained and len(trained) < len(init_states) and trained == init_states[: len(trained)]:
            return warning(
                f"{store.path} has grown since training: the policy was trained on {len(trained)} of its "
                f"{store.num_episodes} demonstrations.",
                path,
                case.train_again,
            )
    trained_on = [demonstrations.fingerprint for demonstrations in metadata.datasets]
    if trained_on != case.fingerprints:
        return critical(
            f"the checkpoint was trained on other data than the run names (fingerprints {_short(trained_on)}, not "
            f"{_short(case.fingerprints)}): it belongs to another run, or the data were collected again.",
            path,
            case.train_again,
        )
    for demonstrations, store in zip(metadata.datasets, case.stores, strict=True):
        if demonstrations.init_states != store.recorded_init_states:
            return critical(
                f"the initial states recorded in the checkpoint differ from those of {store.path}.",
                path,
                case.train_again,
            )
    return ruled_out("The checkpoint and the run name the same tasks, data and initial states.")


@CHECKS.add("checkpoint of another model", stage="environment", how_to_verify="compare with config.yaml")
def same_model(case: RunCase) -> Result:
    """Check that the sizes and inputs of the policy match the configuration of the run."""
    path = find_checkpoint(case.folder) / "policy.json"
    policy, config = case.policy, case.config
    for name in vars(config.policy).keys() - {"cameras"}:  # see same_images
        of_policy, of_run = getattr(policy.model.config, name, None), getattr(config.policy, name)
        if of_policy != of_run:
            return critical(
                f"the checkpoint has policy.{name}={of_policy}, the run's configuration {of_run}: the checkpoint "
                "belongs to another run.",
                path,
                case.train_again,
            )
    return ruled_out("Sizes and inputs match the configuration.")


@CHECKS.add("environment mismatch", stage="environment", how_to_verify="compare versions, horizon and rate")
def same_environment(case: RunCase) -> Result:
    """Check that data, training and evaluations have the versions of this environment."""
    metadata = case.policy.metadata
    path = find_checkpoint(case.folder) / "policy.json"
    if (metadata.horizon, metadata.control_hz) != (HORIZON, CONTROL_HZ):
        return critical(
            f"the policy was made for {metadata.horizon} steps at {metadata.control_hz} Hz; the benchmark has "
            f"{HORIZON} at {CONTROL_HZ} Hz.",
            path,
            case.train_again,
        )
    here = versions()
    made = {"training": metadata.versions}
    # The versions of imported data may be unknown.
    made |= {str(data.path): data.store.info.versions for data in case.datasets if data.store.has_init_states}
    made |= {str(evaluation.folder): evaluation.provenance["versions"] for evaluation in case.evaluations}
    for name in ("metaworld", "mujoco"):
        others = [f"{place}: {used.get(name)}" for place, used in made.items() if used.get(name) != here[name]]
        if others:
            return warning(f"{name} is {here[name]} on this machine; {', '.join(others)}.", path, case.train_again)
    return ruled_out(f"Data, training, evaluations have metaworld {here['metaworld']}, mujoco {here['mujoco']}.")


@CHECKS.add("goal hidden", stage="environment", how_to_verify="inspect the last three numbers of the states")
def goal(case: RunCase) -> Result:
    """Check that the training states contain the goal."""
    if case.config.policy.sees_state and not case.policy.metadata.goal_visible:
        path = find_checkpoint(case.folder) / "policy.json"
        if all(store.steps("state")[:, -3:].any() for store in case.stores):
            return suspected(
                "the checkpoint states that the goal was hidden in training, but its data contain the goal: was "
                "policy.json edited?",
                path,
                case.train_again,
            )
        return critical(
            "the policy was trained on states that hide the goal: it cannot imitate behavior that depends on the goal.",
            path,
            case.train_again,
        )
    return ruled_out("The training states contain the goal, or the policy uses only images.")


@CHECKS.add("image mismatch", stage="environment", how_to_verify="render an episode again")
def same_images(case: RunCase) -> Result:
    """Check that the policy receives the same kind of images in training and in evaluation."""
    policy = case.policy
    if policy.views is None:
        return ruled_out("The policy uses no images.")
    path = find_checkpoint(case.folder) / "policy.json"
    if tuple(policy.views.cameras) != tuple(case.config.policy.cameras):
        return critical(
            f"the policy uses cameras {', '.join(policy.views.cameras)} in evaluation, but was trained with "
            f"{', '.join(case.config.policy.cameras)}.",
            path,
            case.train_again,
        )
    for store in case.stores:
        for camera in policy.views.cameras:
            images = ImageStore(store, camera)
            if images.settings != policy.views.settings:
                return critical(
                    f"the policy receives {policy.views.settings} images in evaluation, but {camera} was rendered at "
                    f"{images.settings} for training.",
                    path,
                    case.train_again,
                )
    return _compare_rendered(case)


def _compare_rendered(case: RunCase) -> Result:
    """Render some episodes again and compare the images."""
    views = case.policy.views
    assert views is not None
    gl = find_gl()
    for store in case.stores:
        episodes = store.episodes()
        chosen = evenly(np.arange(len(episodes)), _NUM_RENDERED)
        jobs = [(views.settings, list(views.cameras), episodes[i].init_state, episodes[i].physics) for i in chosen]
        with LocalExecutor(1, gl.environment) as executor:
            rendered = list(executor.map(render_episode, jobs))
        for index, frames in zip(chosen, rendered, strict=True):
            for number, camera in enumerate(views.cameras):
                recorded = ImageStore(store, camera).episode(int(index)).astype(int)
                difference = np.abs(frames.images[:, number].astype(int) - recorded).mean()
                if difference > _MAX_PIXEL_DIFFERENCE:
                    return critical(
                        f"the images of {camera} in {store.path} do not show episode {index}: rendered again, pixels "
                        f"differ by {difference:.0f} of 255 on average.",
                        store.path / "data/images" / camera,
                        f"{ImageStore(store, camera).command} --overwrite",
                    )
    return ruled_out("Cameras, sizes and re-rendered episodes are the same in training and in evaluation.")


@CHECKS.add("the expert fails", stage="environment", how_to_verify="run the scripted expert")
def expert_succeeds(case: RunCase) -> Result:
    """Check that the scripted expert succeeds from the test initial states in this environment."""
    rates = {task: f"{task} {rate}" for task, rate in case.expert_rates.items()}
    failing = [rates[task] for task, rate in case.expert_rates.items() if rate.interval[1] < _EXPERT_SUCCEEDS]
    if failing:
        return critical(
            f"the scripted expert fails on this machine, from test initial states: {', '.join(failing)}. The "
            "environment or the success rule differs from Meta-World's.",
            "rollouts of the doctor",
            "act doctor",
        )
    return ruled_out(f"The scripted expert succeeds from test initial states: {', '.join(rates.values())}.")


def _short(fingerprints: list[str]) -> str:
    return ", ".join(fingerprint[:8] for fingerprint in fingerprints)

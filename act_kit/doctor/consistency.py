"""Checks that the run, its checkpoint and this environment are consistent: data, model, images, task."""

from __future__ import annotations

import numpy as np

from act_kit.datasets.formats.looks import MAX_DIFFERENCE, render_reset
from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore, tasks_of
from act_kit.doctor.case import RunCase, run_checks
from act_kit.doctor.finding import Result, critical, ruled_out, suspected, untested, warning
from act_kit.doctor.generalization import evenly
from act_kit.parallel import LocalExecutor
from act_kit.sim.render import CameraViews, find_gl, render_episode
from act_kit.sim.tasks import CONTROL_HZ, HORIZON
from act_kit.versions import versions

CHECKS = run_checks()

_NUM_RENDERED = 3
_EXPERT_SUCCEEDS = 0.8
"""A success rate that the expert of every task exceeds."""

_MAX_PIXEL_DIFFERENCE = 2
"""Mean difference of pixels, 0 to 255: more than between two renderers, less than between two episodes."""


@CHECKS.add("checkpoint of another run", "environment", "compare tasks and fingerprints", "policy.json")
def same_data(case: RunCase) -> Result:
    """Check that the policy was trained on the datasets that the run names, as they are now."""
    metadata = case.policy.metadata
    tasks = tasks_of(case.stores)
    if metadata.tasks != tasks:
        return critical(
            f"the checkpoint is of {', '.join(metadata.tasks)}, the run's data are of {', '.join(tasks)}: the "
            "checkpoint belongs to another run."
        )
    differing = None
    for demonstrations, store in zip(metadata.datasets, case.stores, strict=False):
        trained, init_states = demonstrations.init_states, store.recorded_init_states
        if trained and len(trained) < len(init_states) and trained == init_states[: len(trained)]:
            return warning(
                f"{store.path} has grown since training: the policy was trained on {len(trained)} of its "
                f"{store.num_episodes} demonstrations."
            )
        if trained != init_states:
            differing = differing or store
    if case.trained_on != case.fingerprints:
        return critical(
            f"the checkpoint was trained on other data than the run names (fingerprints {_short(case.trained_on)}, not "
            f"{_short(case.fingerprints)}): it belongs to another run, or the data were collected again."
        )
    if differing:
        return critical(f"the initial states recorded in the checkpoint differ from those of {differing.path}.")
    return ruled_out("The checkpoint and the run name the same tasks, data and initial states.")


def _short(fingerprints: list[str]) -> str:
    return ", ".join(fingerprint[:8] for fingerprint in fingerprints)


@CHECKS.add("checkpoint of another model", "environment", "compare with config.yaml", "policy.json")
def same_model(case: RunCase) -> Result:
    """Check that the sizes and inputs of the policy match the configuration of the run."""
    policy, config = case.policy, case.config
    for name in vars(config.policy).keys() - {"cameras"}:  # see same_images
        of_policy, of_run = getattr(policy.model.config, name, None), getattr(config.policy, name)
        if of_policy != of_run:
            return critical(
                f"the checkpoint has policy.{name}={of_policy}, the run's configuration {of_run}: the checkpoint "
                "belongs to another run."
            )
    return ruled_out("Sizes and inputs match the configuration.")


@CHECKS.add("environment mismatch", "environment", "compare versions, horizon and rate", "policy.json")
def same_environment(case: RunCase) -> Result:
    """Check that data, training and evaluations have the versions of this environment."""
    metadata = case.policy.metadata
    if (metadata.horizon, metadata.control_hz) != (HORIZON, CONTROL_HZ):
        return critical(
            f"the policy was made for {metadata.horizon} steps at {metadata.control_hz} Hz; the benchmark has "
            f"{HORIZON} at {CONTROL_HZ} Hz."
        )
    here = versions()
    made = {"training": metadata.versions}
    for dataset in case.datasets:
        if dataset.store.has_init_states:  # the versions of imported data may be unknown
            made[str(dataset.path)] = dataset.store.info.versions
    for evaluation in case.evaluations:
        made[str(evaluation.folder)] = evaluation.provenance["versions"]
    for name in ("metaworld", "mujoco"):
        others = [f"{place}: {used.get(name)}" for place, used in made.items() if used.get(name) != here[name]]
        if others:
            return warning(f"{name} is {here[name]} on this machine; {', '.join(others)}.")
    return ruled_out(f"Data, training, evaluations have metaworld {here['metaworld']}, mujoco {here['mujoco']}.")


@CHECKS.add("goal hidden", "environment", "inspect the last three numbers of the states", "policy.json")
def goal(case: RunCase) -> Result:
    """Check that the training states contain the goal."""
    if not case.config.policy.sees_state or case.policy.metadata.goal_visible:
        return ruled_out("The training states contain the goal, or the policy uses only images.")
    if all(store.steps("state")[:, -3:].any() for store in case.stores):
        return suspected(
            "the checkpoint states that the goal was hidden in training, but its data contain the goal: was "
            "policy.json edited?"
        )
    return critical(
        "the policy was trained on states that hide the goal: it cannot imitate behavior that depends on the goal."
    )


@CHECKS.add("image mismatch", "environment", "render an episode again", "policy.json")
def same_images(case: RunCase) -> Result:
    """Check that the policy receives the same kind of images in training and in evaluation."""
    views = case.policy.views
    if views is None:
        return ruled_out("The policy uses no images.")
    if tuple(views.cameras) != tuple(case.config.policy.cameras):
        return critical(
            f"the policy uses cameras {', '.join(views.cameras)} in evaluation, but was trained with "
            f"{', '.join(case.config.policy.cameras)}."
        )
    for store in case.stores:
        for camera in views.cameras:
            settings = ImageStore(store, camera).settings
            if settings != views.settings:
                return critical(
                    f"the policy receives {views.settings} images in evaluation, but {camera} was rendered at "
                    f"{settings} for training."
                )
    return _compare_rendered(case, views)


def _compare_rendered(case: RunCase, views: CameraViews) -> Result:
    """Render some episodes again and compare the images."""
    gl = find_gl()
    for store in case.stores:
        episodes = store.episodes()
        chosen = evenly(np.arange(len(episodes)), _NUM_RENDERED)
        if "physics" in store.missing_fields:
            result = _compare_resets(store, views)
            if result.status != "RULED OUT":
                return result
            continue
        jobs = [(views.settings, list(views.cameras), episodes[i].init_state, episodes[i].physics) for i in chosen]
        with LocalExecutor(1, gl.environment) as executor:
            rendered = list(executor.map(render_episode, jobs))
        for index, frames in zip(chosen, rendered, strict=True):
            for number, camera in enumerate(views.cameras):
                images = ImageStore(store, camera)
                recorded = images.episode(int(index)).astype(int)
                difference = np.abs(frames.images[:, number].astype(int) - recorded).mean()
                if difference > _MAX_PIXEL_DIFFERENCE:
                    message = (
                        f"the images of {camera} in {store.path} do not show episode {index}: rendered again, pixels "
                        f"differ by {difference:.0f} of 255 on average."
                    )
                    return critical(message, store.path / "data/images" / camera, f"{images.command} --overwrite")
    return ruled_out("Cameras, sizes and re-rendered episodes are the same in training and in evaluation.")


def _compare_resets(store: EpisodeStore, views: CameraViews) -> Result:
    """Render the reset of an imported episode, of which no physics are known, and compare the first images."""
    if "init_state" in store.missing_fields:
        return untested(f"{store.path} was imported without initial states, from which its images could be rendered.")
    drawn = render_reset(views.settings, views.cameras, store.init_states[0])
    for camera, image in zip(views.cameras, drawn, strict=True):
        images = ImageStore(store, camera)
        difference = np.abs(image.astype(int) - images.first_frame(0)).mean()
        if difference > MAX_DIFFERENCE:
            return critical(
                f"the look {views.settings.look} does not draw the imported images of {camera} in {store.path}: at a "
                f"reset, pixels differ by {difference:.0f} of 255 on average.",
                store.path / "data/images" / camera,
                "collect demonstrations here, or train on images that a look draws: act render --help",
            )
    return ruled_out("The look of the evaluation draws the imported images.")


@CHECKS.add("the expert fails", "environment", "run the scripted expert")
def expert_succeeds(case: RunCase) -> Result:
    """Check that the scripted expert succeeds from the test initial states in this environment."""
    rates, failing = [], []
    for task, rate in case.expert_rates.items():
        rates.append(f"{task} {rate}")
        if rate.interval[1] < _EXPERT_SUCCEEDS:
            failing.append(rates[-1])
    if failing:
        message = (
            f"the scripted expert fails on this machine, from test initial states: {', '.join(failing)}. The "
            "environment or the success rule differs from Meta-World's."
        )
        return critical(message, "rollouts of the doctor", "act doctor")
    return ruled_out(f"The scripted expert succeeds from test initial states: {', '.join(rates)}.")

"""What a policy was trained on, and the conditions that it expects at inference; stored in its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from act_kit.arrays import as_array
from act_kit.sim.render import CameraViews, RenderSettings, check_cameras
from act_kit.sim.tasks import get_task

_RANGES = {"horizon": (1, 10**6), "control_hz": (1, 10**6), "step": (0, 10**12)}
"""Smallest and largest values that are read from a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrainingDataset:
    """One dataset that a policy was trained on.

    Attributes:
        task: Meta-World task.
        fingerprint: SHA-256 of its content.
        command: Command that collects it again.
        init_states: ``rand_vec`` of its episodes, used to distinguish memorization from generalization. Empty for
            imported data, where it is not recorded.
    """

    task: str
    fingerprint: str
    command: str
    init_states: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class PolicyMetadata:
    """Conditions that a policy was trained under and expects at inference.

    Attributes:
        datasets: Datasets.
        horizon: Steps of an episode.
        control_hz: Actions per second.
        versions: Versions of act_kit, metaworld, mujoco and numpy in training, and the platform.
        step: Gradient steps taken.
        goal_visible: True if the policy sees the goal and it was not zeros in training.
        views: Cameras and image settings; None for a policy without images.
        gl_renderer: OpenGL renderer of the training images; "" for a policy without images.
    """

    datasets: list[TrainingDataset]
    horizon: int
    control_hz: int
    versions: dict[str, str]
    step: int
    goal_visible: bool
    views: CameraViews | None
    gl_renderer: str

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks, in the order of the model's task indices."""
        return tuple(dict.fromkeys(data.task for data in self.datasets))

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints of the datasets."""
        return [data.fingerprint for data in self.datasets]

    def init_states_of(self, task: str) -> list[list[float]]:
        """Return every known demonstrated initial state of a task, as ``rand_vec``."""
        init_states: list[list[float]] = []
        for data in self.datasets:
            init_states += data.init_states if data.task == task else []
        return init_states

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PolicyMetadata:
        """Read the values that ``asdict`` returns.

        Raises:
            ActKitError, KeyError, TypeError, ValueError: The values are incomplete or invalid.
        """
        views = values["views"]
        if views is not None:
            settings = RenderSettings.from_dict(views["settings"])
            views = CameraViews(cameras=tuple(views["cameras"]), settings=settings)
            check_cameras(views.cameras)
        datasets = [TrainingDataset(**data) for data in values["datasets"]]
        if not datasets:
            raise ValueError("datasets: expected at least one.")
        for data in datasets:
            if not isinstance(data.task, str):
                raise TypeError("the task of a dataset is not a name.")
            if data.init_states:
                as_array(data.init_states, f"The initial states of {data.task}", ("N", len(get_task(data.task).low)))
        for name, (least, most) in _RANGES.items():
            if type(values[name]) is not int or not least <= values[name] <= most:
                raise ValueError(f"{name}={values[name]!r}: expected an integer from {least} to {most}.")
        if type(values["goal_visible"]) is not bool:
            raise ValueError(f"goal_visible={values['goal_visible']!r}: expected true or false.")
        return cls(**{**values, "views": views, "datasets": datasets})

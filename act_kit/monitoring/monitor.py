"""A monitor of a policy that acts: it raises an alarm where the states leave the demonstrated ones.

A policy that imitates knows what to do where demonstrations were. The distance to the nearest demonstrated state at
about the same time needs no model, and is compared with learned ones by ``python -m benchmarks.monitor``.
"""

# Shape suffixes: N demonstrated states, T steps, S state, F features.

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from act_kit.arrays import as_array
from act_kit.errors import CheckpointError
from act_kit.policies.state_features import RELATIVE_DIM, positions, relative_positions
from act_kit.sim.tasks import STATE_DIM

FILE = "monitor.npz"

_FORMAT = "act_kit.monitor"
_VERSION = 1

_TIME_STEPS = 20
"""Number of steps that count as much as a distance of one: without the time, a policy that stands still near a
demonstrated state would never seem lost."""

_GRIPPER = slice(3, 4)

FEATURE_DIM = RELATIVE_DIM + 2
"""Width of :func:`features`."""


def features(states_TS: np.ndarray, first_step: int = 0) -> np.ndarray:
    """Return what the distance of the states of T successive steps is measured in, float32 (T, FEATURE_DIM).

    These are the positions of hand, objects and goal relative to each other, in units of 0.1 m, and on a scale that
    saturates at the precision of a grasp; the opening of the gripper; and the time in units of 20 steps. Normalized
    states have the same scale everywhere, and miss a grasp that fails by 2 cm.
    """
    states = torch.as_tensor(states_TS, dtype=torch.float32)
    relative = relative_positions(positions(states))
    time_T = (first_step + torch.arange(len(states))) / _TIME_STEPS
    found: np.ndarray = torch.cat([relative, states[:, _GRIPPER], time_T[:, None]], dim=1).numpy()
    return found


class Monitor:
    """A monitor of episodes, one at a time.

    Example::

        monitor = Monitor.load("runs/soccer-v3/monitor")
        monitor.reset()                       # at the beginning of an episode
        is_lost = monitor.update(state)       # (39,), before every action

    Attributes:
        task: Meta-World task.
        threshold: Distance above which a state raises the alarm.
        distance: Distance of the last state.
        step: Number of states since the reset.
        is_lost: True from the first alarm of an episode on.
    """

    def __init__(self, task: str, demonstrated_NF: np.ndarray, threshold: float = float("inf")) -> None:
        """Watch with a threshold the distance to the :func:`features` of demonstrated states, (N, FEATURE_DIM)."""
        self.task = task
        self.threshold = threshold
        self._demonstrated_NF = demonstrated_NF
        self._tree = cKDTree(demonstrated_NF)
        self.reset()

    def __repr__(self) -> str:
        return f"Monitor({self.task}, {len(self._demonstrated_NF)} demonstrated states, threshold {self.threshold:.3g})"

    def reset(self) -> None:
        """Begin an episode."""
        self.step = 0
        self.distance = 0.0
        self.is_lost = False

    def update(self, state: np.ndarray) -> bool:
        """Take the next state of the episode, (39,) with a visible goal; return True from the first alarm on.

        Raises:
            ArrayError: It is not a state.
        """
        checked_TS = as_array(state, "A state", (STATE_DIM,))[None]
        self.distance = float(self.distances(checked_TS, self.step)[0])
        self.step += 1
        self.is_lost = self.is_lost or self.distance > self.threshold
        return self.is_lost

    def distances(self, states_TS: np.ndarray, first_step: int = 0) -> np.ndarray:
        """Return the distance of the states of T successive steps to the demonstrated ones, float64 (T,)."""
        found: np.ndarray = self._tree.query(features(states_TS, first_step))[0]
        return found

    def alarm_step(self, distances: np.ndarray) -> int | None:
        """Return the first step of an episode, given its distances (T,), that raises the alarm; None without one."""
        above = np.flatnonzero(distances > self.threshold)
        return int(above[0]) if len(above) else None

    def save(self, path: Path) -> None:
        """Write the monitor to a file."""
        header = np.array([_FORMAT, str(_VERSION), self.task])
        with path.open("wb") as file:
            np.savez_compressed(file, header=header, demonstrated=self._demonstrated_NF, threshold=self.threshold)

    @classmethod
    def load(cls, path: str | Path) -> Monitor:
        """Read a monitor that ``act monitor`` has written, given its folder or file.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        path = Path(path)
        file = path / FILE if path.is_dir() else path
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
                values = {key: archive[key] for key in archive.files}
            name, version, task = values["header"].tolist()
            if (name, version) != (_FORMAT, str(_VERSION)):
                raise ValueError(f"{_FORMAT} version {_VERSION} was expected")
            demonstrated_NF = as_array(values["demonstrated"], "The demonstrated states", ("N", FEATURE_DIM))
            return cls(task, demonstrated_NF, float(values["threshold"]))
        except FileNotFoundError as error:
            raise CheckpointError(f"There is no monitor at {path}. Fix: act monitor RUN") from error
        except Exception as error:  # a damaged file can raise anything
            raise CheckpointError(f"{file} is not a monitor: {error}. Fix: act monitor RUN") from error

"""Table of the 50 Meta-World v3 tasks: initial states, success rules and distances.

With the table, datasets, reports and the command line get the properties of a task without building its environment
(0.2 s each). The tests compare every row with Meta-World itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from act_kit.errors import InitialStateError, TaskError, did_you_mean

HORIZON = 500
"""Maximum number of steps of an episode; Meta-World rejects step 501."""

CONTROL_HZ = 80
"""Actions per second; one action takes five physics steps of 2.5 ms each."""

STATE_DIM = 39
ACTION_DIM = 4

INFORMATIVE_WIDTH_M = 0.005
"""Minimum width of the reset interval of an informative dimension of ``rand_vec``; narrower ones count as constant."""

MAX_BEYOND_M = 1.0
"""Maximum distance of an initial state from the reset box; beyond it, no object is on Meta-World's table."""

Difficulty = Literal["easy", "medium", "hard", "very hard"]


@dataclass(frozen=True)
class Task:
    """One Meta-World task.

    Attributes:
        name: Meta-World's name, for example ``pick-place-v3``.
        group: Difficulty (Seo et al. 2022, "Masked World Models for Visual Control").
        low, high: Bounds of ``rand_vec``, meters; 3 or 6 numbers (object position, then goal position).
        distance: Name of the definition of the distance to the goal in :mod:`act_kit.sim.distance`.
        radius: Success requires ``distance <= radius`` (in :attr:`unit`).
        extra_condition: Second condition of success, in words; "" if the distance alone determines success.
        min_object_goal_distance: Meta-World resamples while the object is closer than this to the goal (xy, meters); 0 if never.
        goal_xy: Goal position for ``min_object_goal_distance``, if it is not ``rand_vec[3:5]``.
    """

    name: str
    group: Difficulty
    low: tuple[float, ...]
    high: tuple[float, ...]
    distance: str
    radius: float
    extra_condition: str = ""
    min_object_goal_distance: float = 0.0
    goal_xy: tuple[float, float] | None = None

    @property
    def unit(self) -> str:
        """Unit of the distance and the radius: ``m``, or ``rad`` for lever-pull."""
        return "rad" if self.distance == "lever_angle" else "m"

    @property
    def width(self) -> np.ndarray:
        """Widths of the reset box, meters; float64 (3,) or (6,)."""
        return np.subtract(self.high, self.low, dtype=np.float64)

    @property
    def informative(self) -> np.ndarray:
        """Indices of the dimensions of ``rand_vec`` that vary by at least 5 mm; int (D,), D from 1 to 5."""
        return np.flatnonzero(self.width >= INFORMATIVE_WIDTH_M)

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Multi-task benchmarks that contain this task."""
        ml45 = "ML45-test" if self.name in _ML45_TEST else "ML45-train"
        return ("MT10", "MT50", ml45) if self.name in MT10 else ("MT50", ml45)

    @property
    def success_rule(self) -> str:
        """Meta-World's success rule in words."""
        rule = f"{self.distance.replace('_', ' ')} distance <= {self.radius:.4g} {self.unit}"
        return f"{rule} and {self.extra_condition}" if self.extra_condition else rule

    def dim_name(self, dim: int) -> str:
        """Return a readable name of a dimension of ``rand_vec``: ``object x``, ``goal z``."""
        return f"{'object' if dim < 3 else 'goal'} {'xyz'[dim % 3]}"

    def is_resampled(self, rand_vec: np.ndarray) -> bool:
        """Return True if Meta-World's reset resamples this vector; a reset frozen to such a vector never returns."""
        if not self.min_object_goal_distance:
            return False
        goal_xy = rand_vec[3:5] if self.goal_xy is None else np.asarray(self.goal_xy)
        return bool(np.linalg.norm(rand_vec[:2] - goal_xy) < self.min_object_goal_distance)

    def check(self, rand_vec: np.ndarray) -> None:
        """Raise :class:`InitialStateError` if the task cannot be reset to ``rand_vec``, float64 (3,) or (6,)."""
        if rand_vec.shape != (len(self.low),) or not np.isfinite(rand_vec).all():
            raise InitialStateError(
                f"Invalid initial state of {self.name}: expected {len(self.low)} finite numbers, not {rand_vec.tolist()}."
            )
        beyond = np.maximum(np.subtract(self.low, rand_vec), np.subtract(rand_vec, self.high))
        if beyond.max() > MAX_BEYOND_M:
            raise InitialStateError(
                f"{self.name} cannot be reset to {rand_vec.tolist()}: {self.dim_name(int(beyond.argmax()))} is "
                f"{beyond.max():.4g} m outside the reset box, at most {MAX_BEYOND_M:g} m are allowed. Fix: check that "
                "the numbers are in meters."
            )
        if self.is_resampled(rand_vec):
            raise InitialStateError(
                f"{self.name} cannot be reset to {rand_vec.tolist()}: the object would be closer than "
                f"{self.min_object_goal_distance} m (xy) to the goal, and Meta-World would resample forever."
            )


# fmt: off
_TABLE: Sequence[Task] = (
    Task("assembly-v3", "hard", (0.0, 0.6, 0.02, -0.1, 0.75, 0.1), (0.0, 0.6, 0.02, 0.1, 0.85, 0.1), "nut_to_peg", 0.02, min_object_goal_distance=0.1, extra_condition="below the top of the peg"),
    Task("basketball-v3", "medium", (-0.1, 0.6, 0.0299, -0.1, 0.85, 0.0), (0.1, 0.7, 0.0301, 0.1, 0.9000001, 0.0), "ball_to_hoop", 0.08, min_object_goal_distance=0.15, extra_condition="height counted twice"),
    Task("bin-picking-v3", "medium", (-0.21, 0.65, 0.02, 0.1199, 0.699, -0.001), (-0.03, 0.75, 0.02, 0.1201, 0.701, 0.001), "object", 0.05),
    Task("box-close-v3", "medium", (-0.05, 0.5, 0.02, -0.1, 0.7, 0.133), (0.05, 0.55, 0.02, 0.1, 0.8, 0.133), "object", 0.08, min_object_goal_distance=0.25),
    Task("button-press-topdown-v3", "easy", (-0.1, 0.8, 0.115), (0.1, 0.9, 0.115), "object_z", 0.024),
    Task("button-press-topdown-wall-v3", "easy", (-0.1, 0.8, 0.115), (0.1, 0.9, 0.115), "object_z", 0.024),
    Task("button-press-v3", "easy", (-0.1, 0.85, 0.115), (0.1, 0.9, 0.115), "object_y", 0.02),
    Task("button-press-wall-v3", "easy", (-0.05, 0.85, 0.1149), (0.05, 0.9, 0.1151), "object_y", 0.03),
    Task("coffee-button-v3", "easy", (-0.1, 0.8, -0.001), (0.1, 0.9, 0.001), "object_y", 0.02),
    Task("coffee-pull-v3", "medium", (-0.05, 0.7, -0.001, -0.1, 0.55, -0.001), (0.05, 0.75, 0.001, 0.1, 0.65, 0.001), "object", 0.07, min_object_goal_distance=0.15),
    Task("coffee-push-v3", "medium", (-0.1, 0.55, -0.001, -0.05, 0.7, -0.001), (0.1, 0.65, 0.001, 0.05, 0.75, 0.001), "object", 0.07, min_object_goal_distance=0.15),
    Task("dial-turn-v3", "easy", (-0.1, 0.7, 0.0), (0.1, 0.8, 0.0), "object", 0.07),
    Task("disassemble-v3", "very hard", (0.0, 0.6, 0.025, -0.1, 0.6, 0.1699), (0.1, 0.75, 0.02501, 0.1, 0.75, 0.1701), "nut_below_peg", 0.0, min_object_goal_distance=0.1),
    Task("door-close-v3", "easy", (0.0, 0.85, 0.15), (0.1, 0.95, 0.15), "object", 0.08),
    Task("door-lock-v3", "easy", (-0.1, 0.8, 0.15), (0.1, 0.85, 0.15), "object_z", 0.02),
    Task("door-open-v3", "easy", (0.0, 0.85, 0.15), (0.1, 0.95, 0.15), "object_x", 0.08),
    Task("door-unlock-v3", "easy", (-0.1, 0.8, 0.15), (0.1, 0.85, 0.15), "object_x", 0.02),
    Task("drawer-close-v3", "easy", (-0.1, 0.9, 0.0), (0.1, 0.9, 0.0), "object", 0.065),
    Task("drawer-open-v3", "easy", (-0.1, 0.9, 0.0), (0.1, 0.9, 0.0), "object", 0.03),
    Task("faucet-close-v3", "easy", (-0.1, 0.8, 0.0), (0.1, 0.85, 0.0), "object", 0.07),
    Task("faucet-open-v3", "easy", (-0.05, 0.8, 0.0), (0.05, 0.85, 0.0), "faucet_knob", 0.07),
    Task("hammer-v3", "medium", (-0.1, 0.4, 0.0), (0.1, 0.5, 0.0), "nail_left", 0.0),
    Task("hand-insert-v3", "hard", (-0.1, 0.6, 0.05, -0.04, 0.8, -0.0201), (0.1, 0.7, 0.05, 0.04, 0.88, -0.0199), "object", 0.05, min_object_goal_distance=0.15),
    Task("handle-press-side-v3", "easy", (-0.35, 0.65, -0.001), (-0.25, 0.75, 0.001), "object_z", 0.02),
    Task("handle-press-v3", "easy", (-0.1, 0.8, -0.001), (0.1, 0.9, 0.001), "object_z", 0.02),
    Task("handle-pull-side-v3", "easy", (-0.35, 0.65, 0.0), (-0.25, 0.75, 0.0), "object", 0.08),
    Task("handle-pull-v3", "easy", (-0.1, 0.8, -0.001), (0.1, 0.9, 0.001), "object_z", 0.05),
    Task("lever-pull-v3", "easy", (-0.1, 0.7, 0.0), (0.1, 0.8, 0.0), "lever_angle", math.pi / 24),
    Task("peg-insert-side-v3", "medium", (0.0, 0.5, 0.02, -0.35, 0.4, -0.001), (0.2, 0.7, 0.02, -0.25, 0.7, 0.001), "peg_head", 0.07, min_object_goal_distance=0.1, extra_condition="y and z counted twice"),
    Task("peg-unplug-side-v3", "easy", (-0.25, 0.6, -0.001), (-0.15, 0.8, 0.001), "object", 0.07),
    Task("pick-out-of-hole-v3", "hard", (0.0, 0.75, 0.02, -0.1, 0.5, 0.15), (0.0, 0.75, 0.02, 0.1, 0.6, 0.3), "object", 0.07, min_object_goal_distance=0.15),
    Task("pick-place-v3", "hard", (-0.1, 0.6, 0.02, -0.1, 0.8, 0.05), (0.1, 0.7, 0.02, 0.1, 0.9, 0.3), "object", 0.07, min_object_goal_distance=0.15),
    Task("pick-place-wall-v3", "very hard", (-0.05, 0.6, 0.015, -0.05, 0.85, 0.05), (0.05, 0.65, 0.015, 0.05, 0.9, 0.3), "object", 0.07, min_object_goal_distance=0.15),
    Task("plate-slide-back-side-v3", "easy", (-0.25, 0.6, 0.0, -0.05, 0.6, 0.015), (-0.25, 0.6, 0.0, 0.15, 0.6, 0.015), "object", 0.07),
    Task("plate-slide-back-v3", "easy", (0.0, 0.85, 0.0, -0.1, 0.6, 0.015), (0.0, 0.85, 0.0, 0.1, 0.6, 0.015), "object", 0.07),
    Task("plate-slide-side-v3", "easy", (0.0, 0.6, 0.0, -0.3, 0.54, 0.0), (0.0, 0.6, 0.0, -0.25, 0.66, 0.0), "object", 0.07),
    Task("plate-slide-v3", "easy", (0.0, 0.6, 0.0, -0.1, 0.85, 0.0), (0.0, 0.6, 0.0, 0.1, 0.9, 0.0), "object", 0.07),
    Task("push-back-v3", "hard", (-0.1, 0.8, 0.02, -0.1, 0.6, 0.0199), (0.1, 0.85, 0.02, 0.1, 0.7, 0.0201), "object", 0.07, min_object_goal_distance=0.15),
    Task("push-v3", "hard", (-0.1, 0.6, 0.02, -0.1, 0.8, 0.01), (0.1, 0.7, 0.02, 0.1, 0.9, 0.02), "object", 0.05, min_object_goal_distance=0.15),
    Task("push-wall-v3", "medium", (-0.05, 0.6, 0.015, -0.05, 0.85, 0.01), (0.05, 0.65, 0.015, 0.05, 0.9, 0.02), "object", 0.07, min_object_goal_distance=0.15),
    Task("reach-v3", "easy", (-0.1, 0.6, 0.02, -0.1, 0.8, 0.05), (0.1, 0.7, 0.02, 0.1, 0.9, 0.3), "hand", 0.05, min_object_goal_distance=0.15),
    Task("reach-wall-v3", "easy", (-0.05, 0.6, 0.015, -0.05, 0.85, 0.05), (0.05, 0.65, 0.015, 0.05, 0.9, 0.3), "hand", 0.05, min_object_goal_distance=0.15),
    Task("shelf-place-v3", "very hard", (-0.1, 0.5, 0.019, -0.1, 0.8, 0.299), (0.1, 0.6, 0.021, 0.1, 0.9, 0.301), "object", 0.07, min_object_goal_distance=0.1),
    Task("soccer-v3", "medium", (-0.1, 0.6, 0.03, -0.1, 0.8, 0.0), (0.1, 0.7, 0.03, 0.1, 0.9, 0.0), "object", 0.07, min_object_goal_distance=0.15),
    Task("stick-pull-v3", "very hard", (-0.1, 0.55, 0.0, 0.35, 0.45, 0.0199), (0.0, 0.65, 0.001, 0.45, 0.55, 0.0201), "second_object", 0.12, min_object_goal_distance=0.1, extra_condition="the stick inserted in the handle"),
    Task("stick-push-v3", "very hard", (-0.08, 0.58, 0.0, 0.399, 0.55, 0.1319), (-0.03, 0.62, 0.001, 0.401, 0.6, 0.1321), "second_object", 0.12, min_object_goal_distance=0.1, extra_condition="the stick grasped"),
    Task("sweep-into-v3", "medium", (-0.1, 0.6, 0.02, -0.001, 0.8399, 0.0199), (0.1, 0.7, 0.02, 0.001, 0.8401, 0.0201), "object_xy", 0.05, min_object_goal_distance=0.15, goal_xy=(0.0, 0.84)),
    Task("sweep-v3", "medium", (-0.1, 0.6, 0.02), (0.1, 0.7, 0.02), "object", 0.05),
    Task("window-close-v3", "easy", (0.0, 0.75, 0.2), (0.0, 0.9, 0.2), "object_x", 0.05),
    Task("window-open-v3", "easy", (-0.1, 0.7, 0.16), (0.1, 0.9, 0.16), "object_x", 0.05),
)
# fmt: on

TASKS: dict[str, Task] = {task.name: task for task in _TABLE}
"""Tasks by name, in alphabetical order."""

MT10 = frozenset(
    [
        "reach-v3",
        "push-v3",
        "pick-place-v3",
        "door-open-v3",
        "drawer-open-v3",
        "drawer-close-v3",
        "button-press-topdown-v3",
        "peg-insert-side-v3",
        "window-open-v3",
        "window-close-v3",
    ]
)
_ML45_TEST = frozenset(["bin-picking-v3", "box-close-v3", "hand-insert-v3", "door-lock-v3", "door-unlock-v3"])
BENCHMARKS = ("MT10", "MT50", "ML45-train", "ML45-test")


def get_task(name: str) -> Task:
    """Return the task ``name``, or raise :class:`TaskError` with the most similar name."""
    if name not in TASKS:
        hint = (
            did_you_mean(name, [*TASKS, *BENCHMARKS])
            or f" Expected one of the {len(TASKS)} tasks from {_TABLE[0].name} to {_TABLE[-1].name}."
        )
        raise TaskError(f"'{name}' is not a Meta-World task.{hint}")
    return TASKS[name]


@functools.cache
def benchmark_tasks(benchmark: str) -> tuple[str, ...]:
    """Return the tasks of MT10, MT25 or MT50, in Meta-World's order, which is that of its one-hot vectors."""
    from metaworld import env_dict  # takes 1 s, so imported only by those who simulate or read one-hot vectors

    return tuple(getattr(env_dict, f"{benchmark}_V3"))


def expand_tasks(text: str) -> list[str]:
    """Return the tasks in ``text``: task names (``reach-v3,push-v3``) and benchmarks (``MT10``), comma-separated."""
    names: list[str] = []
    for part in text.split(","):
        if part in BENCHMARKS:
            names += [task.name for task in _TABLE if part in task.benchmarks]
        else:
            names.append(get_task(part).name)
    return list(dict.fromkeys(names))


def map_planes(task: Task) -> list[tuple[int, int | None]]:
    """Pair the informative dimensions for 2-D maps: object x-y, goal x-y, the rest; a single one stays alone."""
    dims = task.informative.tolist()
    pairs: list[tuple[int, int | None]] = []
    num_object = sum(dim < 3 for dim in dims)
    for part in (dims[:num_object], dims[num_object:]):
        for i in range(0, len(part) - 1, 2):
            pairs.append((part[i], part[i + 1]))
        if len(part) % 2:
            first = part[0] if len(part) > 1 else None
            pairs.append((part[-1], None) if first is None else (first, part[-1]))
    return pairs

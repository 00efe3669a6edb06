"""Starts and the laws they are drawn from.

A start is everything that makes one Meta-World initial state differ from another. It travels with every episode, in
datasets, evaluations and reports, so that "did we train where we test?" is a question the data answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, cast, get_args

import numpy as np

from act_kit.arrays import as_array
from act_kit.errors import ArrayError, ConfigError, InitialStateError, did_you_mean
from act_kit.sim.tasks import TASKS, Task, get_task

SAME_INIT_STATE_M = 1e-6
"""Starts that agree to this in every dimension are one start."""

OOD_MARGIN = 0.25
"""How far beyond the reset box the law ``ood`` goes, in widths of the box."""

DistributionKind = Literal["uniform", "sobol", "grid", "mt1", "ood"]
Stream = Literal["collect", "validate", "select", "evaluate", "reference", "correct", "teleop"]
"""What starts are drawn for. Streams of one seed draw independently: selecting never sees what reporting uses, and
where a policy is corrected (DAgger) or somebody demonstrates by hand, the scripted expert of this seed has not been.
(``mt1`` has only its 50 goals to give, to every stream.)"""


_metaworlds_seed = threading.Lock()
"""Meta-World draws its goals from NumPy's global generator, which it seeds and puts back."""


@dataclass(frozen=True)
class InitialState:
    """One initial state: a task and its ``rand_vec``, 3 or 6 float64 numbers in metres, exact to the bit."""

    task: str
    rand_vec: tuple[float, ...]

    @classmethod
    def of(cls, task: str, rand_vec: np.ndarray) -> InitialState:
        """Make a start from an array (3,) or (6,).

        Raises:
            StartError: They are no finite numbers, or not as many as an initial state of the task has.
        """
        num = len(TASKS[task].low) if task in TASKS else "D"
        try:
            numbers = as_array(rand_vec, f"A start of {task}", (num,)).astype(np.float64)
        except ArrayError as error:
            raise InitialStateError(str(error)) from error
        return cls(task, tuple(numbers.tolist()))

    @property
    def array(self) -> np.ndarray:
        """``rand_vec`` as float64 (3,) or (6,)."""
        return np.array(self.rand_vec, dtype=np.float64)

    def check_is_of(self, task: str) -> None:
        """Raise :class:`InitialStateError` if this is a start of another task."""
        if self.task != task:
            raise InitialStateError(f"This is a start of {self.task}; {task} was expected.")


def stack(init_states: Sequence[InitialState]) -> np.ndarray:
    """Return the ``rand_vec`` of N starts of one task as float64 (N, D)."""
    return np.array([init_state.rand_vec for init_state in init_states], dtype=np.float64)


def number_distinct(rand_vecs: np.ndarray, same: float = SAME_INIT_STATE_M) -> np.ndarray:
    """Number the distinct rows of (N, D) from 0, as they appear; return each row's number, int64 (N,).

    Those within ``same`` in every number count as one.
    """
    firsts: list[int] = []
    numbers = np.zeros(len(rand_vecs), dtype=np.int64)
    for i, row in enumerate(rand_vecs):
        found = np.flatnonzero(np.abs(rand_vecs[firsts] - row).max(axis=1) <= same)
        numbers[i] = found[0] if len(found) else len(firsts)
        if not len(found):
            firsts.append(i)
    return numbers


def distinct(rand_vecs: np.ndarray, same: float = SAME_INIT_STATE_M) -> np.ndarray:
    """Return the distinct rows of (N, D), those within ``same`` in every number counting as one, as they appear."""
    return rand_vecs[np.unique(number_distinct(rand_vecs, same), return_index=True)[1]]


class InitialStateDistribution:
    """The distribution that starts are drawn from.

    ========= =============================================================================================
    uniform   the benchmark's own reset law: uniform in the box, drawn again while the object is too near the goal
    sobol     a scrambled Sobol sequence in the same box, with the same rejection
    grid      a lattice over the first two dimensions that vary, the others drawn uniformly; for maps
    mt1   the 50 goals of Meta-World's MT1 benchmark for this seed, over and over
    ood       outside the reset box by up to a quarter of its width, in one dimension or more; never below it
    ========= =============================================================================================
    """

    def __init__(self, task: str, kind: str = "uniform") -> None:
        if kind not in get_args(DistributionKind):
            raise ConfigError(
                f"'{kind}' is not a start law; there are {', '.join(get_args(DistributionKind))}."
                + did_you_mean(kind, get_args(DistributionKind))
            )
        self.task: Task = get_task(task)
        self.kind = cast(DistributionKind, kind)

    def __repr__(self) -> str:
        return f"StartLaw('{self.task.name}', '{self.kind}')"

    def sample(self, num: int, *, seed: int, stream: Stream) -> list[InitialState]:
        """Draw ``num`` starts. Except for ``grid``, fewer starts of the same seed and stream are their beginning.

        Raises:
            ConfigError: A number is negative or no integer, or there is no such stream.
        """
        for name, value in (("num", num), ("seed", seed)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
                raise ConfigError(f"{name}={value!r}: expected an integer from 0.")
        if stream not in get_args(Stream):
            hint = did_you_mean(stream, get_args(Stream))
            raise ConfigError(f"stream={stream!r}: choose from {', '.join(get_args(Stream))}.{hint}")
        num, seed = int(num), int(seed)
        root = np.random.SeedSequence(seed, spawn_key=(get_args(Stream).index(stream),))
        distributions: dict[DistributionKind, Callable[[np.random.SeedSequence], Iterator[np.ndarray]]] = {
            "uniform": self._uniform,
            "sobol": self._sobol,
            "grid": lambda root: self._grid(root, num),
            "mt1": lambda root: self._tasks50(seed),
            "ood": self._ood,
        }
        init_states = [
            InitialState.of(self.task.name, rand_vec) for rand_vec in islice(distributions[self.kind](root), num)
        ]
        for init_state in init_states:
            self.task.check(init_state.array)
        return init_states

    def _uniform(self, root: np.random.SeedSequence) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(root)
        while True:
            rand_vec = rng.uniform(self.task.low, self.task.high)
            if not self.task.rejects(rand_vec):
                yield rand_vec

    def _ood(self, root: np.random.SeedSequence) -> Iterator[np.ndarray]:
        """Draw uniformly from the wider box until one is outside the reset box."""
        rng = np.random.default_rng(root)
        margin = np.zeros(len(self.task.low))
        margin[self.task.informative] = OOD_MARGIN * self.task.width[self.task.informative]
        heights = np.arange(len(margin)) % 3 == 2
        low = self.task.low - np.where(heights, 0, margin)  # lower, and objects or goals would be in the table
        while True:
            rand_vec = rng.uniform(low, self.task.high + margin)
            outside = (rand_vec < self.task.low) | (rand_vec > self.task.high)
            if outside.any() and not self.task.rejects(rand_vec):
                yield rand_vec

    def _sobol(self, root: np.random.SeedSequence) -> Iterator[np.ndarray]:
        from scipy.stats import qmc

        sequence = qmc.Sobol(len(self.task.low), rng=np.random.default_rng(root))
        while True:
            for point in sequence.random(64):
                rand_vec = np.asarray(self.task.low) + point * self.task.width
                if not self.task.rejects(rand_vec):
                    yield rand_vec

    def _grid(self, root: np.random.SeedSequence, num: int) -> Iterator[np.ndarray]:
        rows, cols = self.grid_shape(num)
        dims = self.task.informative[:2]
        for index, rand_vec in enumerate(islice(self._uniform(root), num)):
            cell = (np.array([index % cols, index // cols]) + 0.5) / (cols, rows)
            lattice = np.asarray(self.task.low)[dims] + cell[: len(dims)] * self.task.width[dims]
            others = self._uniform(np.random.SeedSequence(root.entropy, spawn_key=(*root.spawn_key, index)))
            for candidate in islice(others, 1000):
                candidate[dims] = lattice
                if not self.task.rejects(candidate):
                    rand_vec = candidate
                    break
            # Where no goal at all is far enough from a lattice point, the uniform draw stands in for it.
            yield rand_vec

    def grid_shape(self, num: int) -> tuple[int, int]:
        """Return (rows, columns) of the lattice for ``num`` starts; one row where a task varies in one dimension."""
        rows = max(1, int(np.sqrt(num))) if len(self.task.informative) > 1 else 1
        return rows, -(-num // rows)

    def _tasks50(self, seed: int) -> Iterator[np.ndarray]:
        import pickle

        import metaworld

        with _metaworlds_seed:
            benchmark = metaworld.MT1(self.task.name, seed=seed)  # type: ignore[no-untyped-call]
        goals = [pickle.loads(task.data)["rand_vec"] for task in benchmark.train_tasks]
        while True:
            yield from (np.asarray(goal, dtype=np.float64) for goal in goals)

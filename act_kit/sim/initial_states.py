"""Initial states of Meta-World and the distributions they are sampled from.

An initial state contains everything that varies between two resets of a Meta-World task. Datasets, evaluations and
reports store it with every episode, so training and test initial states can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Literal, cast, get_args

import numpy as np

from act_kit.arrays import as_array
from act_kit.errors import ArrayError, ConfigError, InitialStateError, did_you_mean
from act_kit.sim.tasks import TASKS, Task, benchmark_tasks, get_task

SAME_INIT_STATE_M = 1e-6
"""Initial states that differ by at most this in every dimension count as equal."""

OOD_MARGIN = 0.25
"""Margin of the distribution ``ood`` around the reset box, as a fraction of the width of the box."""

_NUM_GOALS = 50
"""Number of goals of each task in Meta-World's benchmarks."""

DistributionKind = Literal["uniform", "sobol", "grid", "mt1", "mt50", "lerobot", "ood"]
Stream = Literal["collect", "validate", "select", "evaluate", "reference", "correct", "teleop", "finetune", "monitor"]
"""Purpose of a sample. The streams of one seed are independent: checkpoint selection never uses the initial states of
the final evaluation, fine-tuning and the calibration of a monitor use those of neither, and DAgger and teleoperation
never use those that the scripted expert of this seed demonstrated. (``mt1`` and ``mt50`` have only 50 goals, and
``lerobot`` one sequence, which all streams share.)"""


@dataclass(frozen=True)
class InitialState:
    """Initial state of an episode: a task and its ``rand_vec``, 3 or 6 float64 numbers in meters, bit-exact."""

    task: str
    rand_vec: tuple[float, ...]

    @classmethod
    def of(cls, task: str, rand_vec: np.ndarray) -> InitialState:
        """Make an initial state from an array (3,) or (6,).

        Raises:
            InitialStateError: The numbers are not finite, or their count differs from the task's.
        """
        num = len(TASKS[task].low) if task in TASKS else "D"
        try:
            numbers = as_array(rand_vec, f"An initial state of {task}", (num,)).astype(np.float64)
        except ArrayError as error:
            raise InitialStateError(str(error)) from error
        return cls(task, tuple(numbers.tolist()))

    @property
    def array(self) -> np.ndarray:
        """``rand_vec`` as float64 (3,) or (6,)."""
        return np.array(self.rand_vec, dtype=np.float64)

    def check_is_of(self, task: str) -> None:
        """Raise :class:`InitialStateError` if this is an initial state of another task."""
        if self.task != task:
            raise InitialStateError(f"The initial state is of {self.task}: expected an initial state of {task}.")


def stack(init_states: Sequence[InitialState]) -> np.ndarray:
    """Return the ``rand_vec`` of N initial states of one task as float64 (N, D)."""
    return np.array([init_state.rand_vec for init_state in init_states], dtype=np.float64)


def number_distinct(rand_vecs: np.ndarray, same: float = SAME_INIT_STATE_M) -> np.ndarray:
    """Number the distinct rows of (N, D) from 0 in order of appearance; return the number of each row, int64 (N,).

    Rows that differ by at most ``same`` in every dimension count as one.
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
    """Return the distinct rows of (N, D) in order of appearance; see :func:`number_distinct`."""
    return rand_vecs[np.unique(number_distinct(rand_vecs, same), return_index=True)[1]]


class InitialStateDistribution:
    """Initial-state distribution.

    ========= =============================================================================================
    uniform   the benchmark's reset distribution: uniform in the box, resampled if the object is too near the goal
    sobol     a scrambled Sobol sequence in the same box, with the same rejection
    grid      a lattice over the first two dimensions that vary, the others sampled uniformly; for maps
    mt1       the 50 goals of Meta-World's MT1 benchmark for this seed, repeated
    mt50      the goals that Meta-World's own MT50 environments of this seed reset to, one after the other
    lerobot   those that LeRobot's environments reset to with this seed, the next one, …
    ood       outside the reset box by up to a quarter of its width, in one dimension or more; never below it
    ========= =============================================================================================
    """

    def __init__(self, task: str, kind: str = "uniform") -> None:
        if kind not in get_args(DistributionKind):
            raise ConfigError(
                f"'{kind}' is not an initial-state distribution; choose from: {', '.join(get_args(DistributionKind))}."
                + did_you_mean(kind, get_args(DistributionKind))
            )
        self.task: Task = get_task(task)
        self.kind = cast(DistributionKind, kind)

    def __repr__(self) -> str:
        return f"InitialStateDistribution('{self.task.name}', '{self.kind}')"

    def sample(self, num: int, *, seed: int, stream: Stream) -> list[InitialState]:
        """Sample ``num`` initial states.

        Except for ``grid``, a smaller sample of the same seed and stream is a prefix of a larger one.

        Raises:
            ConfigError: ``num`` or ``seed`` is not an integer of at least 0, or ``stream`` does not exist.
        """
        for name, value in (("num", num), ("seed", seed)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
                raise ConfigError(f"{name}={value!r}: expected an integer of at least 0.")
        if stream not in get_args(Stream):
            hint = did_you_mean(stream, get_args(Stream))
            raise ConfigError(f"stream={stream!r}: choose from: {', '.join(get_args(Stream))}.{hint}")
        num, seed = int(num), int(seed)
        root = np.random.SeedSequence(seed, spawn_key=(get_args(Stream).index(stream),))
        distributions: dict[DistributionKind, Callable[[np.random.SeedSequence], Iterator[np.ndarray]]] = {
            "uniform": self._uniform,
            "sobol": self._sobol,
            "grid": lambda root: self._grid(root, num),
            "mt1": lambda root: self._mt1(seed),
            "mt50": lambda root: self._mt50(seed),
            "lerobot": lambda root: self._lerobot(seed),
            "ood": self._ood,
        }
        rand_vecs = islice(distributions[self.kind](root), num)
        init_states = [InitialState.of(self.task.name, rand_vec) for rand_vec in rand_vecs]
        for init_state in init_states:
            self.task.check(init_state.array)
        return init_states

    def _uniform(self, root: np.random.SeedSequence) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(root)
        while True:
            rand_vec = rng.uniform(self.task.low, self.task.high)
            if not self.task.is_resampled(rand_vec):
                yield rand_vec

    def _ood(self, root: np.random.SeedSequence) -> Iterator[np.ndarray]:
        """Sample uniformly from the wider box, and reject samples inside the reset box."""
        rng = np.random.default_rng(root)
        margin = np.zeros(len(self.task.low))
        margin[self.task.informative] = OOD_MARGIN * self.task.width[self.task.informative]
        heights = np.arange(len(margin)) % 3 == 2
        low = self.task.low - np.where(heights, 0, margin)  # below the box, objects or goals would be inside the table
        while True:
            rand_vec = rng.uniform(low, self.task.high + margin)
            outside = (rand_vec < self.task.low) | (rand_vec > self.task.high)
            if outside.any() and not self.task.is_resampled(rand_vec):
                yield rand_vec

    def _sobol(self, root: np.random.SeedSequence) -> Iterator[np.ndarray]:
        from scipy.stats import qmc

        sequence = qmc.Sobol(len(self.task.low), rng=np.random.default_rng(root))
        while True:
            for point in sequence.random(64):
                rand_vec = np.asarray(self.task.low) + point * self.task.width
                if not self.task.is_resampled(rand_vec):
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
                if not self.task.is_resampled(candidate):
                    rand_vec = candidate
                    break
            # If no goal is far enough from a lattice point, the uniform sample replaces it.
            yield rand_vec

    def grid_shape(self, num: int) -> tuple[int, int]:
        """Return (rows, columns) of the lattice for ``num`` initial states; one row if only one dimension varies."""
        rows = max(1, int(np.sqrt(num))) if len(self.task.informative) > 1 else 1
        return rows, -(-num // rows)

    def _mt1(self, seed: int) -> Iterator[np.ndarray]:
        goals = benchmark_goals([self.task.name], seed)[self.task.name]
        while True:
            yield from goals

    def _mt50(self, seed: int) -> Iterator[np.ndarray]:
        """Yield the goals of ``gymnasium.make_vec("Meta-World/MT50", seed=seed)``, a random one at each reset."""
        goals = benchmark_goals(benchmark_tasks("MT50"), seed)[self.task.name]
        rng = np.random.default_rng(seed)
        while True:
            yield goals[rng.choice(len(goals))]

    def _lerobot(self, seed: int) -> Iterator[np.ndarray]:
        """Yield what Meta-World's environments draw by a generator that is seeded anew for each reset."""
        for seed_of_episode in count(seed):
            yield _drawn_at_resets(self.task, np.random.default_rng(seed_of_episode), 1)[0]


def sample_each(tasks: Sequence[str], num: int, *, seed: int, stream: Stream) -> list[InitialState]:
    """Sample ``num`` initial states of each task from its reset distribution; those of a task are adjacent."""
    init_states: list[InitialState] = []
    for task in tasks:
        init_states += InitialStateDistribution(task).sample(num, seed=seed, stream=stream)
    return init_states


def benchmark_goals(tasks: Sequence[str], seed: int) -> dict[str, list[np.ndarray]]:
    """Return the 50 goals of each task in a benchmark of Meta-World, such as ``metaworld.MT50(seed=seed)``.

    Meta-World resets each environment 50 times to find them, which takes minutes; here, only its draws are repeated.
    """
    rng = np.random.RandomState(seed)
    return {name: _drawn_at_resets(get_task(name), rng, _NUM_GOALS) for name in tasks}


def _drawn_at_resets(task: Task, rng: np.random.Generator | np.random.RandomState, num: int) -> list[np.ndarray]:
    """Return what ``num`` resets of Meta-World's environment draw from its reset box.

    Each draws twice: ``SawyerXYZEnv.reset`` resets the model, and then calls MuJoCo's reset, which does so again.
    """
    low, high = np.array(task.low), np.array(task.high)
    drawn: list[np.ndarray] = []
    while len(drawn) < 2 * num:
        rand_vec = rng.uniform(low, high)
        if not task.is_resampled(rand_vec):
            drawn.append(rand_vec)
    return drawn[1::2]


def scale(task: Task, rand_vecs: np.ndarray) -> np.ndarray:
    """Return the informative dimensions of initial states in units of the width of the reset box, (…, D)."""
    dims = task.informative
    scaled: np.ndarray = (rand_vecs[..., dims] - np.asarray(task.low)[dims]) / task.width[dims]
    return scaled

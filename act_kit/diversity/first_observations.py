"""Diversity of datasets without recorded initial states, from their first states and first images.

Imported datasets contain observations, but no initial states. All first states may be equal, because the robot always
begins in the same pose, while the first images differ; if both are equal, the demonstrations have no diversity. In
Meta-World, first states usually determine the initial states, so they can be compared with the task's distribution.

Shapes: N episodes, S state, D numbers of an initial state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from act_kit.arrays import evenly_spaced
from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.faults import Soundness
from act_kit.diversity.integrity import Finding, Level, check_numbers, reset_map, worst_level
from act_kit.diversity.measure import fingerprint_findings, measure_diversity, measure_init_states
from act_kit.diversity.quality import duplicate_fraction, trajectories
from act_kit.diversity.result import DatasetReport, DiversityReport, percent
from act_kit.diversity.soundness import check_soundness
from act_kit.diversity.verdict import TOO_FEW
from act_kit.errors import DatasetError
from act_kit.files import next_free_path, quoted
from act_kit.sim.initial_states import InitialState, distinct
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import Task, get_task

_STATE_TOLERANCE = 0.01
"""Largest difference between equal first states, relative to the standard deviation within an episode."""
_MIN_STATE_TOLERANCE = 1e-6
"""Largest difference between equal first states in dimensions that do not vary within an episode."""
_NUM_PATCHES = 32
"""Number of patches per image axis; images are compared by the means of their patches, which averages out noise."""
_IMAGE_TOLERANCE = 4.0
"""Largest difference of a patch, of 255, between equal images."""
_MAX_COMPARED = 500
"""Number of evenly spaced episodes whose first observations are compared pairwise."""
_RESET_TOLERANCE_M = 1e-4
_NO_EFFECT = 1e-6
"""Largest change of a first state per change of a number of the initial state that has no effect."""


@dataclass(frozen=True, kw_only=True)
class FirstObservations(DatasetReport):
    """Diversity of the first observations of N demonstrations without recorded initial states.

    Trajectories are compared by their states and actions.

    Attributes:
        state_dim, action_dim: Dimensions of a state and of an action.
        num_compared: Number of demonstrations whose first observations were compared.
        num_distinct: Lower bound of the number of distinct first observations among them.
        num_distinct_states: Number of distinct first states.
        num_distinct_frames: Number of distinct first images per camera.
        frozen: Dimensions of the state that are constant in the first states but vary later.
        init_states: Coverage of the initial states if they are known or follow from the first states, or None.
    """

    state_dim: int
    action_dim: int
    num_compared: int
    num_distinct: int
    num_distinct_states: int
    num_distinct_frames: dict[str, int]
    frozen: list[int]
    init_states: DiversityReport | None

    def __repr__(self) -> str:
        return self.verdict

    @property
    def healthy(self) -> str:
        """Verdict without a finding."""
        text = f"{self.num_compared} demonstrations begin from {self.num_distinct} distinct first observations"
        if self.init_states:
            return f"{text}; their initial states cover {self.init_states.against} as well as {self.num} random draws."
        return f"{text}; there is no known distribution to compare them with."


def measure_dataset(
    store: EpisodeStore, *, against: np.ndarray | None = None, soundness: Soundness | None = None
) -> DiversityReport | FirstObservations:
    """Measure a dataset: its initial states, or its first observations if they were not recorded, and its soundness.

    Raises:
        DatasetError: The dataset is empty or cannot be measured.
    """
    measure = measure_first if store.missing_fields else measure_diversity
    measured: DiversityReport | FirstObservations = measure(store, against=against)
    soundness = soundness or check_soundness(store)
    findings = [*soundness.findings(), *measured.findings]
    level, fix = worst_level(findings), measured.fix
    if any(finding.about != "coverage" and finding.level == level for finding in findings):
        fix = soundness.fix_for(store)
    elif store.is_metaworld:
        fix += f" --out {quoted(next_free_path(store.path))}"
    for parent in store.info.parents:
        if "clipped_actions" in parent:
            counts = {"num_clipped": parent["clipped_actions"], "num_clipped_episodes": parent["clipped_episodes"]}
            measured = replace(measured, **counts)
    return replace(measured, soundness=soundness, findings=findings, fix=fix)


def measure_first(store: EpisodeStore, *, against: np.ndarray | None = None) -> FirstObservations:
    """Measure the first observations of a dataset.

    Raises:
        DatasetError: The dataset is empty.
    """
    recordings = list(store.iter_episodes())
    if not recordings:
        raise DatasetError(f"{store.path} contains no demonstrations.")
    task, is_metaworld, notes = store.info.task, store.is_metaworld, []
    compared = evenly_spaced(len(recordings), _MAX_COMPARED)
    first = np.empty((len(recordings), recordings[0].steps["state"].shape[1]))
    deviations = np.empty_like(first)
    for i, recording in enumerate(recordings):
        first[i], deviations[i] = recording.steps["state"][0], recording.steps["state"].std(axis=0)
    spread = np.sqrt(np.mean(np.square(np.nan_to_num(deviations)), axis=0))
    tolerance = np.maximum(_STATE_TOLERANCE * spread, _MIN_STATE_TOLERANCE)
    num_states = _count_distinct(np.nan_to_num(first[compared]), tolerance)
    num_frames = {}
    for camera in ImageStore.cameras(store):
        images = ImageStore(store, camera)
        if images.is_complete:
            num_frames[camera] = _count_distinct(_patches(images, compared), _IMAGE_TOLERANCE)
        else:
            notes.append(f"The images of {camera} were not compared: some are missing.")
    rand_vecs = known_init_states(store)
    coverage = None if rand_vecs is None else measure_init_states(get_task(task), rand_vecs, against=against)
    if store.has_init_states:
        notes.append(f"Not checked because not recorded: {', '.join(store.missing_fields)}.")
    elif coverage:
        notes.append("No initial states were recorded; they were computed from the first states.")
    else:
        notes.append(f"No initial states were recorded, so their coverage of {task} was not measured.")
    fix = f"act collect --task {task}" if is_metaworld else "record demonstrations that begin differently"
    measured = FirstObservations(
        task=task,
        num=len(recordings),
        state_dim=first.shape[1],
        action_dim=recordings[0].steps["action"].shape[1],
        num_compared=len(compared),
        num_distinct=max(num_states, *num_frames.values(), 1),
        num_distinct_states=num_states,
        num_distinct_frames=num_frames,
        frozen=np.flatnonzero((np.ptp(first, axis=0) <= tolerance) & (tolerance > _MIN_STATE_TOLERANCE)).tolist(),
        duplicate_trajectories=duplicate_fraction(trajectories(recordings)),
        init_states=coverage,
        notes=notes + (coverage.notes if coverage else []),
        findings=check_numbers(recordings, is_metaworld=is_metaworld),
        fix=coverage.fix if coverage else fix,
    )
    measured.findings.extend([*_first_findings(measured), *fingerprint_findings(store, "it was written")])
    return measured


def known_init_states(store: EpisodeStore) -> np.ndarray | None:
    """Return the initial states, recorded or computed from the first states, float64 (N, D); None if unknown."""
    if store.has_init_states:
        return store.rand_vecs
    if not store.is_metaworld:
        return None
    first = store.steps("state")[np.concatenate([[0], store.episode_ends[:-1]])]
    return recover_init_states(store.info.task, first)


def recover_init_states(name: str, first_states: np.ndarray) -> np.ndarray | None:
    """Compute the initial states of a task, float64 (N, D), from first states, (N, 39); None if they are unknown.

    They can be computed if the first state is an invertible linear function of the initial state (in most tasks) and
    all first states agree to 0.1 mm with those of the simulator after a reset. Numbers of the initial state without any
    effect (the height of the goal of push-v3: Meta-World replaces it) are sampled: no value would be the right one, and
    a constant one would look like missing diversity. Where the goal is hidden (zero), it is unknown.
    """
    if (first_states[:, 36:] == 0).all(axis=1).any():
        return None
    task, simulator = get_task(name), Simulator(name)
    _, linear, coefficients = reset_map(task, simulator)
    first = first_states[:, linear]
    center = np.asarray(task.low) + task.width / 2
    slopes = coefficients[:-1, linear]
    has_effect = np.abs(coefficients[task.informative]).max(axis=1) > _NO_EFFECT
    determined, free = task.informative[has_effect], task.informative[~has_effect]
    if np.linalg.matrix_rank(slopes[determined], tol=0.1) < len(determined) or not np.isfinite(first).all():
        return None
    if len(free) and not _resets_equally(task, simulator, free):
        return None
    first_of_center = center @ slopes + coefficients[-1, linear]
    rand_vecs: np.ndarray = center + np.linalg.lstsq(slopes.T, (first - first_of_center).T, rcond=None)[0].T
    rng = np.random.default_rng(0)
    rand_vecs[:, free] = rng.uniform(np.asarray(task.low)[free], np.asarray(task.high)[free], (len(first), len(free)))
    predicted = rand_vecs @ slopes + coefficients[-1, linear]
    return rand_vecs if bool(np.abs(predicted - first).max() <= _RESET_TOLERANCE_M) else None


def _resets_equally(task: Task, simulator: Simulator, dims: np.ndarray) -> bool:
    """Return True if initial states that differ only in ``dims`` lead to the same physics, bit-exact."""
    init_states = np.tile(np.asarray(task.low), (2, 1))
    init_states[1, dims] = np.asarray(task.high)[dims]
    physics: list[np.ndarray] = []
    for init_state in init_states:
        simulator.reset(InitialState.of(task.name, init_state))
        physics.append(simulator.physics())
    return np.array_equal(physics[0], physics[1])


def _count_distinct(rows: np.ndarray, tolerance: np.ndarray | float) -> int:
    return len(distinct(rows / tolerance, same=1.0))


def _patches(images: ImageStore, episodes: np.ndarray) -> np.ndarray:
    """Return the mean colors of the patches of the first images, flattened, float64 (N, …)."""
    rows = []
    for episode in episodes:
        frame = images.first_frame(int(episode)).astype(np.float64)
        for axis in (0, 1):
            begins = np.unique(np.linspace(0, frame.shape[axis], _NUM_PATCHES, endpoint=False).astype(int))
            sizes = np.diff([*begins, frame.shape[axis]])
            sizes = sizes.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
            frame = np.add.reduceat(frame, begins, axis=axis) / sizes
        rows.append(frame.ravel())
    return np.stack(rows)


def _first_findings(measured: FirstObservations) -> list[Finding]:
    """Return the problems of the first observations, then those of the coverage."""
    num, num_distinct, duplicates = measured.num_compared, measured.num_distinct, measured.duplicate_trajectories
    compared = "first states"
    if measured.num_distinct_frames:
        compared += f" and first images ({', '.join(measured.num_distinct_frames)})"
    findings = []

    def find(level: Level, text: str) -> None:
        findings.append(Finding(level=level, text=text, about="coverage"))

    if num > 1 and num_distinct == 1:
        find("FAIL", f"all {num} demonstrations begin from the same observation: their {compared} are equal.")
    elif num < TOO_FEW:
        find("WARN", f"{num} demonstrations are too few to assess their diversity.")
    elif num_distinct < max(5, 0.05 * num):
        find("WARN", f"the {num} demonstrations begin from only {num_distinct} distinct observations ({compared}).")
    if duplicates > 0.02:
        find("WARN", f"{percent(duplicates)} of the demonstrations are bit-exact copies of another one.")
    return findings + (measured.init_states.findings if measured.init_states else [])

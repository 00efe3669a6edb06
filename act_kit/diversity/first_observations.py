"""Diversity of datasets without recorded initial states, from their first states and first images.

Imported datasets contain observations, but no initial states. All first states may be equal, because the robot always
begins in the same pose, while the first images differ; if both are equal, the demonstrations have no diversity. In
Meta-World, first states usually determine the initial states, so they can be compared with the task's distribution.

Shapes: N episodes, S state, D numbers of an initial state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.integrity import Finding, Level, check_numbers, reset_map, worst
from act_kit.diversity.measure import measure_diversity, measure_init_states
from act_kit.diversity.result import DiversityReport, percent
from act_kit.diversity.soundness import Soundness, check_soundness
from act_kit.diversity.verdict import TOO_FEW
from act_kit.errors import DatasetError
from act_kit.files import next_free_path, quoted
from act_kit.rollouts.episode import Episode
from act_kit.sim.initial_states import distinct
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import get_task

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


@dataclass(frozen=True, kw_only=True)
class FirstObservations:
    """Diversity of the first observations of N demonstrations without recorded initial states.

    Attributes:
        task: Name of the task in the dataset.
        num: Number of demonstrations, N.
        state_dim, action_dim: Dimensions of a state and of an action.
        num_compared: Number of demonstrations whose first observations were compared.
        num_distinct: Lower bound of the number of distinct first observations among them.
        num_distinct_states: Number of distinct first states.
        num_distinct_frames: Number of distinct first images per camera.
        frozen: Dimensions of the state that are constant in the first states but vary later.
        duplicate_trajectories: Share of episodes whose states and actions equal those of an earlier episode
            (bit-exact).
        init_states: Coverage of the initial states if they are known or follow from the first states, or None.
        notes: Checks that were skipped, and why.
        findings: Problems.
        fix: How to fix them.
        soundness: Result of replaying the demonstrations and querying the expert.
    """

    task: str
    num: int
    state_dim: int
    action_dim: int
    num_compared: int
    num_distinct: int
    num_distinct_states: int
    num_distinct_frames: dict[str, int]
    frozen: list[int]
    duplicate_trajectories: float
    init_states: DiversityReport | None
    notes: list[str]
    findings: list[Finding]
    fix: str
    soundness: Soundness | None = None

    def __repr__(self) -> str:
        return self.verdict

    @property
    def level(self) -> Level:
        """Level of the worst finding."""
        return worst(self.findings)

    @property
    def verdict(self) -> str:
        """Verdict as a sentence, including the fix."""
        if self.level != "OK":
            problems = " ".join(finding.text for finding in self.findings if finding.level == self.level)
            return f"{self.level}: {problems} Fix: {self.fix}"
        text = f"OK: {self.num_compared} demonstrations begin from {self.num_distinct} distinct first observations"
        if self.init_states:
            return f"{text}; their initial states cover {self.init_states.against} as well as {self.num} random draws."
        return f"{text}; there is no known distribution to compare them with."

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and the verdict for JSON."""
        return {"level": self.level, "verdict": self.verdict, **asdict(self)}


def measure_dataset(
    store: EpisodeStore, *, against: np.ndarray | None = None, soundness: Soundness | None = None
) -> DiversityReport | FirstObservations:
    """Measure a dataset: its initial states, or its first observations if they were not recorded, and its soundness.

    Raises:
        DatasetError: The dataset is empty or cannot be measured.
    """
    measured = (
        measure_first(store, against=against) if store.missing_fields else measure_diversity(store, against=against)
    )
    soundness = soundness or check_soundness(store)
    findings = [*soundness.findings(), *measured.findings]
    is_unsound = any(finding.about != "coverage" and finding.level == worst(findings) for finding in findings)
    fix = measured.fix
    if is_unsound:
        fix = soundness.fix_for(store)
    elif store.is_metaworld:
        fix += f" --out {quoted(next_free_path(store.path))}"
    return replace(measured, soundness=soundness, findings=findings, fix=fix)


def measure_first(store: EpisodeStore, *, against: np.ndarray | None = None) -> FirstObservations:
    """Measure the first observations of a dataset.

    Raises:
        DatasetError: The dataset is empty.
    """
    recordings = list(store.iter_episodes())
    if not recordings:
        raise DatasetError(f"{store.path} contains no demonstrations.")
    compared = np.unique(np.linspace(0, len(recordings) - 1, _MAX_COMPARED).round().astype(int))
    is_metaworld = store.is_metaworld
    first = np.stack([recording.steps["state"][0] for recording in recordings]).astype(np.float64)
    tolerance = np.maximum(_STATE_TOLERANCE * _spread(recordings), _MIN_STATE_TOLERANCE)
    num_states = _count_distinct(np.nan_to_num(first[compared]) / tolerance)
    cameras = {camera: ImageStore(store, camera) for camera in ImageStore.cameras(store)}
    frames = {name: images for name, images in cameras.items() if images.is_complete}
    num_frames = {
        name: _count_distinct(_patches(images, compared) / _IMAGE_TOLERANCE) for name, images in frames.items()
    }
    trajectories = {r.steps["state"].tobytes() + r.steps["action"].tobytes() for r in recordings}
    notes = [f"The images of {name} were not compared: some are missing." for name in cameras.keys() - frames.keys()]
    rand_vecs = known_init_states(store)
    init_states = (
        None if rand_vecs is None else measure_init_states(get_task(store.info.task), rand_vecs, against=against)
    )
    if store.has_init_states:
        notes.append(f"Not checked because not recorded: {', '.join(store.missing_fields)}.")
    elif init_states:
        notes.append("No initial states were recorded; they were computed from the first states.")
    else:
        notes.append(f"No initial states were recorded, so their coverage of {store.info.task} was not measured.")
    collect_again = (
        f"act collect --task {store.info.task}" if is_metaworld else "record demonstrations that begin differently"
    )
    measured = FirstObservations(
        task=store.info.task,
        num=len(recordings),
        state_dim=first.shape[1],
        action_dim=recordings[0].steps["action"].shape[1],
        num_compared=len(compared),
        num_distinct=max(num_states, *num_frames.values(), 1),
        num_distinct_states=num_states,
        num_distinct_frames=num_frames,
        frozen=np.flatnonzero((np.ptp(first, axis=0) <= tolerance) & (tolerance > _MIN_STATE_TOLERANCE)).tolist(),
        duplicate_trajectories=1 - len(trajectories) / len(recordings),
        init_states=init_states,
        notes=notes + (init_states.notes if init_states else []),
        findings=[],
        fix=init_states.fix if init_states else collect_again,
    )
    measured.findings.extend(check_numbers(recordings, is_metaworld=is_metaworld))
    measured.findings.extend(_find_problems(measured))
    if store.fingerprint is not None and store.fingerprint != store.compute_fingerprint():
        text = "the content does not match its fingerprint: it was edited after it was written."
        measured.findings.append(Finding(level="WARN", text=text))
    return measured


def known_init_states(store: EpisodeStore) -> np.ndarray | None:
    """Return the initial states, recorded or computed from the first states, float64 (N, D); None if unknown.

    They can be computed in Meta-World if the first state is an invertible linear function of the initial state (in 46
    of 50 tasks) and all first states agree to 0.1 mm with those of the simulator after a reset.
    """
    if store.has_init_states:
        return store.rand_vecs
    if not store.is_metaworld:
        return None
    task = get_task(store.info.task)
    _, linear, coefficients = reset_map(task, Simulator(task.name))
    first = store.steps("state")[np.concatenate([[0], store.episode_ends[:-1]])][:, linear]
    center = np.asarray(task.low) + task.width / 2
    slopes = coefficients[:-1, linear]
    if np.linalg.matrix_rank(slopes[task.informative], tol=0.1) < len(task.informative) or not np.isfinite(first).all():
        return None
    first_of_center = center @ slopes + coefficients[-1, linear]
    rand_vecs: np.ndarray = center + np.linalg.lstsq(slopes.T, (first - first_of_center).T, rcond=None)[0].T
    predicted = rand_vecs @ slopes + coefficients[-1, linear]
    return rand_vecs if bool(np.abs(predicted - first).max() <= _RESET_TOLERANCE_M) else None


def _spread(recordings: Sequence[Episode]) -> np.ndarray:
    """Return the root mean square of the standard deviations of the state within each episode, (S,)."""
    deviations = [np.nan_to_num(recording.steps["state"].std(axis=0)) for recording in recordings]
    spread: np.ndarray = np.sqrt(np.mean(np.square(deviations), axis=0))
    return spread


def _count_distinct(rows: np.ndarray) -> int:
    """Count the distinct rows; values are in units of the tolerance."""
    return len(distinct(rows, same=1.0))


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


def _find_problems(measured: FirstObservations) -> list[Finding]:
    """Return the problems of the first observations."""
    findings: list[Finding] = []

    def find(level: Level, text: str) -> None:
        findings.append(Finding(level=level, text=text, about="coverage"))

    num, num_distinct = measured.num_compared, measured.num_distinct
    compared = "first states"
    if measured.num_distinct_frames:
        compared += f" and first images ({', '.join(measured.num_distinct_frames)})"
    if num > 1 and num_distinct == 1:
        find("FAIL", f"all {num} demonstrations begin from the same observation: their {compared} are equal.")
    elif num < TOO_FEW:
        find("WARN", f"{num} demonstrations are too few to assess their diversity.")
    elif num_distinct < max(5, 0.05 * num):
        find("WARN", f"the {num} demonstrations begin from only {num_distinct} distinct observations ({compared}).")
    if measured.duplicate_trajectories > 0.02:
        find(
            "WARN",
            f"{percent(measured.duplicate_trajectories)} of the demonstrations are bit-exact copies of another one.",
        )
    if measured.init_states:
        known = {finding.text for finding in findings}
        findings += [finding for finding in measured.init_states.findings if finding.text not in known]
    return findings

"""What demonstrations begin from, where nobody recorded their starts: their first states, and their first pictures.

Imported data hold what a robot saw, not where it was put. A first state may be the same for all, because the arm always
begins in one pose, and the first picture show the difference; if both are the same for all, nothing does. First states
of a task of Meta-World say where its objects were put, so such data can be held against the task's law all the same.

Shapes: N episodes, S state, D numbers of a start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.diversity.integrity import Finding, Level, check_numbers, reset_map, worst
from act_kit.diversity.measure import measure, measure_init_states
from act_kit.diversity.result import DiversityReport, percent
from act_kit.diversity.soundness import Soundness, check_soundness
from act_kit.diversity.verdict import TOO_FEW
from act_kit.errors import DatasetError
from act_kit.files import free_beside, quoted
from act_kit.rollouts.episode import Recording
from act_kit.sim.initial_states import distinct
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import get_task

_SAME = 0.01
"""First states are the same where they differ by less than this part of what varies within an episode ..."""
_LEAST = 1e-6
"""... or by less than this, where nothing does."""
_PATCHES = 32
"""Pictures are compared by the means of so many by so many patches, in which a sensor's noise averages out ..."""
_SAME_GREY = 4.0
"""... and are the same where no patch differs by so much of 255."""
_MOST = 500
"""Episodes whose first observations are compared, evenly over all: each with each."""
_AGREE_M = 1e-4


@dataclass(frozen=True, kw_only=True)
class FirstObservations:
    """What N demonstrations without starts begin from.

    Attributes:
        task: Whatever the data call it.
        num: N.
        state_dim, action_dim: Widths.
        num_compared: Of N, those whose first observations were compared.
        num_distinct: Distinct first observations among them, at least.
        num_distinct_states: Distinct first states.
        num_distinct_frames: By camera, distinct first pictures.
        frozen: Numbers of the state that never vary in the first state, although they move later.
        duplicate_trajectories: Of the episodes, those whose states and actions repeat an earlier one's to the bit.
        starts: What the starts cover, where they are known or follow from the first states; or None.
        notes: What was not judged, and why.
        findings: What is wrong.
        mend: What to do about it.
        soundness: What replaying the demonstrations and asking the expert showed.
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

    @property
    def level(self) -> Level:
        """The worst finding's level."""
        return worst(self.findings)

    @property
    def verdict(self) -> str:
        """The verdict as a sentence, with what mends it."""
        if self.level != "OK":
            wrong = " ".join(finding.text for finding in self.findings if finding.level == self.level)
            return f"{self.level}: {wrong} Fix: {self.fix}"
        begin = f"OK: {self.num_compared} demonstrations begin from {self.num_distinct} distinct first observations"
        if self.init_states:
            return f"{begin}, whose starts cover {self.init_states.against} as well as {self.num} random draws do."
        return f"{begin}; no law to hold them against is known."

    def to_dict(self) -> dict[str, Any]:
        """Return everything, the verdict included, for JSON."""
        return {"level": self.level, "verdict": self.verdict, **asdict(self)}


def measure_dataset(
    store: EpisodeStore, *, against: np.ndarray | None = None, soundness: Soundness | None = None
) -> DiversityReport | FirstObservations:
    """Measure a dataset as far as what was recorded allows: its starts, or its first observations, and its soundness.

    Raises:
        DatasetError: It holds no demonstration yet, or cannot be measured.
    """
    measured = measure_first(store, against=against) if store.lacks else measure(store, against=against)
    soundness = soundness or check_soundness(store)
    findings = [*soundness.findings(), *measured.findings]
    is_unsound = any(finding.about != "coverage" and finding.level == worst(findings) for finding in findings)
    fix = f"{measured.fix} --out {quoted(free_beside(store.path))}"
    fix = soundness.fix_for(store) if is_unsound else fix if store.is_of_metaworld else measured.fix
    return replace(measured, soundness=soundness, findings=findings, fix=fix)


def measure_first(store: EpisodeStore, *, against: np.ndarray | None = None) -> FirstObservations:
    """Measure the first observations of a dataset.

    Raises:
        DatasetError: It holds no demonstration.
    """
    recordings = list(store.recordings())
    if not recordings:
        raise DatasetError(f"{store.path} holds no demonstration.")
    compared = np.unique(np.linspace(0, len(recordings) - 1, _MOST).round().astype(int))
    of_metaworld = store.is_of_metaworld
    first = np.stack([recording.steps["state"][0] for recording in recordings]).astype(np.float64)
    tolerance = np.maximum(_SAME * _spread(recordings), _LEAST)
    num_states = _count(np.nan_to_num(first[compared]) / tolerance)
    cameras = {camera: ImageStore(store, camera) for camera in ImageStore.cameras(store)}
    frames = {name: images for name, images in cameras.items() if images.is_complete}
    num_frames = {name: _count(_patches(images, compared) / _SAME_GREY) for name, images in frames.items()}
    trajectories = {r.steps["state"].tobytes() + r.steps["action"].tobytes() for r in recordings}
    notes = [f"{name}'s pictures were not compared: some are missing." for name in cameras.keys() - frames.keys()]
    rand_vecs = known_init_states(store)
    init_states = (
        None if rand_vecs is None else measure_init_states(get_task(store.info.task), rand_vecs, against=against)
    )
    if store.has_init_states:
        notes.append(f"Not recorded, so not checked: {', '.join(store.lacks)}.")
    elif init_states:
        notes.append("No starts were recorded; these follow from the first states.")
    else:
        notes.append(f"No starts were recorded, so none are held against those of {store.info.task}.")
    again = f"act collect --task {store.info.task}" if of_metaworld else "record demonstrations that begin differently"
    measured = FirstObservations(
        task=store.info.task,
        num=len(recordings),
        state_dim=first.shape[1],
        action_dim=recordings[0].steps["action"].shape[1],
        num_compared=len(compared),
        num_distinct=max(num_states, *num_frames.values(), 1),
        num_distinct_states=num_states,
        num_distinct_frames=num_frames,
        frozen=np.flatnonzero((np.ptp(first, axis=0) <= tolerance) & (tolerance > _LEAST)).tolist(),
        duplicate_trajectories=1 - len(trajectories) / len(recordings),
        init_states=init_states,
        notes=notes + (init_states.notes if init_states else []),
        findings=[],
        fix=init_states.fix if init_states else again,
    )
    measured.findings.extend(check_numbers(recordings, of_metaworld=of_metaworld))
    measured.findings.extend(_judge(measured))
    if store.fingerprint is not None and store.fingerprint != store.compute_fingerprint():
        text = "the content does not match its fingerprint: it was changed after it was made."
        measured.findings.append(Finding(level="WARN", text=text))
    return measured


def known_init_states(store: EpisodeStore) -> np.ndarray | None:
    """Return the starts, float64 (N, D): as recorded, or as they follow from first states of Meta-World; or None.

    They follow where the first state says, linearly, all that varies of the start (as it does in 46 of 50 tasks), and
    all first states are, to 0.1 mm, such as this simulator shows after a reset.
    """
    if store.has_init_states:
        return store.rand_vecs
    if not store.is_of_metaworld:
        return None
    task = get_task(store.info.task)
    _, linear, coefficients = reset_map(task, Simulator(task.name))
    first = store.steps("state")[np.concatenate([[0], store.episode_ends[:-1]])][:, linear]
    middle = np.asarray(task.low) + task.width / 2
    slopes = coefficients[:-1, linear]
    if np.linalg.matrix_rank(slopes[task.informative], tol=0.1) < len(task.informative) or not np.isfinite(first).all():
        return None
    known = middle @ slopes + coefficients[-1, linear]
    rand_vecs: np.ndarray = middle + np.linalg.lstsq(slopes.T, (first - known).T, rcond=None)[0].T
    shown = rand_vecs @ slopes + coefficients[-1, linear]
    return rand_vecs if bool(np.abs(shown - first).max() <= _AGREE_M) else None


def _spread(recordings: Sequence[Recording]) -> np.ndarray:
    """Return how much each number of the state varies within an episode: root mean square of its deviations, (S,)."""
    deviations = [np.nan_to_num(recording.steps["state"].std(axis=0)) for recording in recordings]
    spread: np.ndarray = np.sqrt(np.mean(np.square(deviations), axis=0))
    return spread


def _count(rows: np.ndarray) -> int:
    """Count the distinct rows, in units of what is taken for the same."""
    return len(distinct(rows, same=1.0))


def _patches(images: ImageStore, episodes: np.ndarray) -> np.ndarray:
    """Return the mean colours of the patches of the first pictures, flat, float64 (N, …)."""
    rows = []
    for episode in episodes:
        frame = images.first_frame(int(episode)).astype(np.float64)
        for axis in (0, 1):
            begins = np.unique(np.linspace(0, frame.shape[axis], _PATCHES, endpoint=False).astype(int))
            sizes = np.diff([*begins, frame.shape[axis]])
            frame = np.add.reduceat(frame, begins, axis=axis) / sizes.reshape(
                [-1 if axis == i else 1 for i in range(3)]
            )
        rows.append(frame.ravel())
    return np.stack(rows)


def _judge(measured: FirstObservations) -> list[Finding]:
    """Say what is wrong with what the demonstrations begin from."""
    findings: list[Finding] = []

    def find(level: Level, text: str) -> None:
        findings.append(Finding(level=level, text=text, about="coverage"))

    num, num_distinct = measured.num_compared, measured.num_distinct
    seen = "first states" + (
        f" and first pictures ({', '.join(measured.num_distinct_frames)})" * bool(measured.num_distinct_frames)
    )
    if num > 1 and num_distinct == 1:
        find("FAIL", f"all {num} demonstrations begin from one and the same observation: their {seen} are the same.")
    elif num < TOO_FEW:
        find("WARN", f"{num} demonstrations are too few to judge what they begin from.")
    elif num_distinct < max(5, 0.05 * num):
        find("WARN", f"the {num} demonstrations begin from only {num_distinct} distinct observations ({seen}).")
    if measured.duplicate_trajectories > 0.02:
        find("WARN", f"{percent(measured.duplicate_trajectories)} of the demonstrations repeat another to the bit.")
    if measured.init_states:
        known = {finding.text for finding in findings}
        findings += [finding for finding in measured.init_states.findings if finding.text not in known]
    return findings

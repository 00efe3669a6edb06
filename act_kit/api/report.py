"""``measure_diversity``: diversity of a dataset's initial states, integrity of its data, predictors of success."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from act_kit import preflight
from act_kit.api.progress import log
from act_kit.errors import InitialStateError
from act_kit.files import temporary_path
from act_kit.outputs import require_no_overlap

if TYPE_CHECKING:
    import numpy as np

    from act_kit.datasets.store import EpisodeStore
    from act_kit.diversity.first_observations import FirstObservations
    from act_kit.diversity.result import DiversityReport
    from act_kit.doctor.case import RunCase
    from act_kit.reports.report import Report


def measure_diversity(
    dataset: str | Path | EpisodeStore,
    *,
    reference: str | Path = "test",
    run: str | Path | None = None,
    out: str | Path | None = None,
) -> DiversityReport | FirstObservations:
    """Measure the diversity of a dataset's initial states and the integrity of its data, as ``act report`` does.

    Args:
        dataset: A dataset.
        reference: ``test``, or the ``init_states.json`` of an evaluation, whose initial states must be covered.
        run: Run trained on the dataset, whose held-out loss is compared with its loss on new demonstrations.
        out: Folder of ``diversity.json`` and ``report.html``; None to write nothing.

    Raises:
        ActKitError: There is no such dataset or run, or ``out`` holds something else.
    """
    path = Path(dataset) if isinstance(dataset, str | Path) else dataset.path
    ((diversity, _),) = report_datasets(path, reference=reference, run=run, out=out)
    return diversity


def report_datasets(
    dataset: Path, *, reference: str | Path = "test", run: str | Path | None = None, out: str | Path | None = None
) -> Generator[tuple[DiversityReport | FirstObservations, Report | None]]:
    """Yield the measurement of each dataset in a folder, and its report; see :func:`measure_diversity`.

    Without ``out`` and ``run`` there is no report. With several datasets, each has its own subfolder of ``out``, and
    ``out/report.html`` is an overview.
    """
    datasets = preflight.require_datasets([dataset])
    if str(reference) != "test":
        preflight.require_file(Path(reference), "--reference", InitialStateError)
    if run:
        preflight.require_run(Path(run))
    if out:
        out = Path(out)
        require_no_overlap(out, datasets)
        if not _is_report(out, datasets):
            preflight.require_free(out, overwrite=False, otherwise="It holds no report: empty it")
        preflight.require_writable(out)
    from act_kit.datasets.store import EpisodeStore
    from act_kit.diversity.first_observations import measure_dataset
    from act_kit.reports.dataset import dataset_report, datasets_report

    stores = [EpisodeStore.open(folder) for folder in datasets]
    init_states = None if str(reference) == "test" else _init_states_of(Path(reference), stores)
    results = []
    with _run_case(run) as case:
        for store in stores:
            diversity = measure_dataset(store, against=init_states)
            report = None
            if out or case:
                report = dataset_report(
                    store, diversity, against=init_states, predictors=_predict(store, diversity, case)
                )
            if out and report:
                folder = out / store.path.name if len(stores) > 1 else out
                report.write(folder / "report.html", folder / "diversity.json")
            results.append((store.path.name, diversity))
            yield diversity, report
    if out and len(stores) > 1:
        datasets_report(results, dataset).write(out / "report.html", out / "diversity.json")


def _is_report(out: Path, datasets: list[Path]) -> bool:
    """Return True if a folder holds an earlier report, complete or not, which the new one replaces."""
    if not out.is_dir():
        return False
    files = [out / "report.html", out / "diversity.json"]
    report_paths = {*files, *map(temporary_path, files), *(out / path.name for path in datasets)}
    return files[0].exists() or set(out.iterdir()) <= report_paths


def _run_case(run: str | Path | None) -> AbstractContextManager[RunCase | None]:
    if run is None:
        return nullcontext()
    from act_kit.doctor.case import RunCase  # imports PyTorch, which takes a second

    return closing(RunCase(Path(run), 1))


def _predict(
    store: EpisodeStore, diversity: DiversityReport | FirstObservations, case: RunCase | None
) -> list[tuple[str, str, str]]:
    """Return name, value and expectation of each predictor of success; none for damaged data."""
    from act_kit.doctor.generalization import IncomparableError, nearest_replay_rate

    for finding in diversity.findings:
        if finding.about != "coverage" and finding.level == "FAIL":
            return []
    rows = []
    if not store.missing_fields:
        name = "success rate of the nearest demonstration, replayed from test initial states"
        note = "memorization alone achieves this; a policy should do better"
        rows.append((name, str(nearest_replay_rate(store)), note))
    if case is None:
        return rows
    try:
        gap = case.gap_of(store)
    except IncomparableError as error:
        log.info(f"The loss of {case.folder} on new demonstrations is not comparable: {error}")
        return rows
    for result in case.results:
        if result.task == store.info.task and gap.is_alarming and not result.succeeds:
            log.warning(f"{case.folder} memorizes its initial states: {gap}.")
    value = f"{gap.held_out:.4f} held out, {gap.fresh:.4f} new"
    return [*rows, (f"loss of {case.folder}", value, "new at most 1.5 times held out")]


def _init_states_of(reference: Path, stores: list[EpisodeStore]) -> np.ndarray:
    """Load the initial states of an evaluation, (M, 3 or 6); all datasets must have its task."""
    from act_kit.eval.init_state_sets import InitialStateSet
    from act_kit.sim.initial_states import stack

    init_state_set = InitialStateSet.load(reference)
    tasks = {store.info.task for store in stores}
    if tasks != {init_state_set.task}:
        raise InitialStateError(
            f"{reference} holds initial states of {init_state_set.task}; the data are of {', '.join(sorted(tasks))}."
        )
    return stack(init_state_set.init_states)

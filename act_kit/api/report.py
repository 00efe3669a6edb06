"""``measure_diversity``: diversity of a dataset's initial states, integrity of its data, predictors of success."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from act_kit.api.progress import log
from act_kit.errors import InitialStateError
from act_kit.files import temporary_path
from act_kit.outputs import require_no_overlap
from act_kit.preflight import require_datasets, require_file, require_free, require_run, require_writable

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
) -> Generator[tuple[DiversityReport | FirstObservations, Report]]:
    """Yield the measurement of each dataset in a folder, and its report; see :func:`measure_diversity`.

    With several datasets, each has its own subfolder of ``out``, and ``out/report.html`` is an overview.
    """
    datasets = require_datasets([dataset])
    if str(reference) != "test":
        require_file(Path(reference), "--reference", InitialStateError)
    if run:
        require_run(Path(run))
    if out:
        out = Path(out)
        require_no_overlap(out, datasets)
        if not _is_report(out, datasets):
            require_free(out, overwrite=False, otherwise="It holds no report: empty it")
        require_writable(out)
    from act_kit.datasets.store import EpisodeStore, find_datasets
    from act_kit.diversity.first_observations import measure_dataset
    from act_kit.reports.dataset import dataset_report, datasets_report

    stores = [EpisodeStore.open(folder) for folder in find_datasets([dataset])]
    init_states = None if str(reference) == "test" else _init_states_of(Path(reference), stores)
    case = _run_case(Path(run)) if run else None
    results = []
    for store in stores:
        diversity = measure_dataset(store, against=init_states)
        is_damaged = any(finding.about != "coverage" and finding.level == "FAIL" for finding in diversity.findings)
        predictors = [] if is_damaged else list(_predict(store, case))
        report = dataset_report(store, diversity, against=init_states, predictors=predictors)
        if out:
            folder = out / store.path.name if len(stores) > 1 else out
            report.write(folder / "report.html", folder / "diversity.json")
        results.append((store.path.name, diversity))
        yield diversity, report
    if case:
        case.close()
    if out and len(stores) > 1:
        datasets_report(results, dataset).write(out / "report.html", out / "diversity.json")


def _is_report(out: Path, datasets: list[Path]) -> bool:
    """Return True if a folder holds an earlier report, complete or not, which the new one replaces."""
    if not out.is_dir():
        return False
    files = [out / "report.html", out / "diversity.json"]
    report_paths = {*files, *map(temporary_path, files), *(out / path.name for path in datasets)}
    return files[0].exists() or set(out.iterdir()) <= report_paths


def _run_case(run: Path) -> RunCase:
    from act_kit.doctor.case import RunCase  # imports PyTorch, which takes a second

    return RunCase(run, 1)


def _predict(store: EpisodeStore, case: RunCase | None) -> Generator[tuple[str, str, str]]:
    from act_kit.doctor.generalization import IncomparableError, nearest_replay_rate

    if not store.missing_fields:
        yield (
            "success rate of the nearest demonstration, replayed from test initial states",
            str(nearest_replay_rate(store)),
            "memorization alone achieves this; a policy should do better",
        )
    if case is None:
        return
    try:
        gap = case.gap_of(store)
    except IncomparableError as error:
        log.info(f"The loss of {case.folder} on new demonstrations is not comparable: {error}")
        return
    if gap.is_alarming:
        succeeds = {result.task: result.succeeds for result in case.results}
        if not succeeds[store.info.task]:
            log.warning(f"{case.folder} memorizes its initial states: {gap}.")
    yield (
        f"loss of {case.folder}",
        f"{gap.held_out:.4f} held out, {gap.fresh:.4f} new",
        "new at most 1.5 times held out",
    )


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

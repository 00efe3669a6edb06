"""``act report``: the diversity of a dataset's initial states and the integrity of its data."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from act_kit.cli.console import console, info, warn
from act_kit.cli.preflight import require_datasets, require_file, require_free, require_run, require_writable
from act_kit.errors import InitialStateError
from act_kit.files import temporary_path
from act_kit.outputs import require_no_overlap

if TYPE_CHECKING:
    import numpy as np

    from act_kit.datasets.store import EpisodeStore
    from act_kit.doctor.case import RunCase


def report(
    dataset: Annotated[
        Path, typer.Argument(help="A dataset made by act collect, or a folder of several.", show_default=False)
    ],
    reference: Annotated[
        str,
        typer.Option(
            help="Reference of the diversity: test, or the init_states.json of an evaluation.",
        ),
    ] = "test",
    run: Annotated[
        Path | None,
        typer.Option(
            help="Run trained on the dataset, whose held-out loss is compared with its loss on new demonstrations.",
            show_default="none",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report.", show_default="DATASET-report")] = None,
) -> None:
    """Report the diversity of a dataset's initial states: a verdict, the numbers, a page with figures.

    For imported data without initial states: the diversity of their first states and images.

    The exit code is 2 if the verdict is FAIL (of any dataset, if there are several), so that a script can stop.
    """
    datasets = require_datasets([dataset])
    if reference != "test":
        require_file(Path(reference), "--reference", InitialStateError)
    if run:
        require_run(run)
    out = out or dataset.with_name(dataset.resolve().name + "-report")
    require_no_overlap(out, datasets)
    if not _is_report(out, datasets):
        require_free(out, overwrite=False, otherwise="It holds no report: empty it")
    require_writable(out)
    from rich.text import Text

    from act_kit.datasets.store import EpisodeStore, find_datasets
    from act_kit.diversity.first_observations import measure_dataset
    from act_kit.diversity.result import DiversityReport
    from act_kit.reports.diversity import COLORS, terminal_table, write_overview, write_report

    folders = find_datasets([dataset])
    stores = [EpisodeStore.open(folder) for folder in folders]
    init_states = None if reference == "test" else _init_states_of(reference, {store.info.task for store in stores})
    results = []
    case = _run_case(run) if run else None
    for store in stores:
        diversity = measure_dataset(store, against=init_states)
        is_damaged = any(finding.about != "coverage" and finding.level == "FAIL" for finding in diversity.findings)
        predictors = [] if is_damaged else list(_predict(store, case))
        folder = out if len(stores) == 1 else out / store.path.name
        page = write_report(store, diversity, folder, against=init_states, predictors=predictors)
        results.append((store.path.name, diversity))
        console.print(terminal_table(diversity))
        for quantity, value, expected in predictors:
            info(f"{quantity}: {value} ({expected})")
        for finding in diversity.findings:
            if finding.level != diversity.level:
                warn(f"Also: {finding.text}")
        for note in diversity.notes:
            info(note)
        if isinstance(diversity, DiversityReport) and diversity.more:
            info(diversity.more)
        console.print(Text(diversity.verdict, style=f"bold {COLORS[diversity.level]}"), soft_wrap=True)
    if case:
        case.close()
    if len(stores) > 1:
        page = write_overview(results, f"{dataset}: {len(stores)} datasets", out)
    info(f"Page: {page}")
    raise typer.Exit(2 if any(diversity.level == "FAIL" for _, diversity in results) else 0)


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
    """Yield rows (quantity, value, expected value) that predict success before any rollout of a policy."""
    from act_kit.doctor.generalization import IncomparableError, nearest_replay_rate

    if not store.missing_fields:
        yield (
            "success rate of the nearest demonstration, replayed from test initial states",
            str(nearest_replay_rate(store)),
            "memorization alone achieves this; a policy should do better",
        )
    if case:
        try:
            gap = case.gap_of(store)
        except IncomparableError as error:
            info(f"The loss of {case.folder} on new demonstrations is not comparable: {error}")
            return
        succeeds = {result.task: result.succeeds for result in case.results} if gap.is_alarming else {}
        if gap.is_alarming and not succeeds[store.info.task]:
            warn(f"{case.folder} memorizes its initial states: {gap}.")
        yield (
            f"loss of {case.folder}",
            f"{gap.held_out:.4f} held out, {gap.fresh:.4f} new",
            "new at most 1.5 times held out",
        )


def _init_states_of(reference: str, tasks: set[str]) -> np.ndarray:
    """Load the initial states of an evaluation, (M, 3 or 6); all datasets must have its task."""
    from act_kit.eval.init_state_sets import InitialStateSet
    from act_kit.sim.initial_states import stack

    init_state_set = InitialStateSet.load(Path(reference))
    if tasks != {init_state_set.task}:
        raise InitialStateError(
            f"{reference} holds initial states of {init_state_set.task}; the data are of {', '.join(sorted(tasks))}."
        )
    return stack(init_state_set.init_states)

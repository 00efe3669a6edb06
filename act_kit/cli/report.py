"""``act report``: does a dataset cover the starts its policy will be evaluated from, and are its data sound?"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from act_kit.cli.console import complain, console, say
from act_kit.cli.preflight import require_datasets, require_file, require_free, require_run, require_writable
from act_kit.errors import InitialStateError
from act_kit.files import require_apart, unfinished

if TYPE_CHECKING:
    import numpy as np

    from act_kit.datasets.store import EpisodeStore
    from act_kit.doctor.case import RunCase


def report(
    dataset: Annotated[
        Path, typer.Argument(help="A dataset that act collect made, or a folder of several.", show_default=False)
    ],
    reference: Annotated[
        str, typer.Option(help="What the starts are held reference: fresh, or the init_states.json of an evaluation.")
    ] = "test",
    run: Annotated[
        Path | None,
        typer.Option(
            help="A run trained on it: is its loss on fresh demonstrations what it promises?", show_default="none"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report.", show_default="DATASET-report")] = None,
) -> None:
    """Report the diversity of a dataset's starts: a verdict, the numbers, a page with pictures.

    Of imported data without starts: the diversity of what they begin from, states and pictures.

    The exit code is 2 if the verdict is FAIL (of any dataset, if there are several), so that a script can stop there.
    """
    datasets = require_datasets([dataset])
    if reference != "test":
        require_file(Path(reference), "--reference", InitialStateError)
    if run:
        require_run(run)
    out = out or dataset.with_name(dataset.resolve().name + "-report")
    require_apart(out, datasets)
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
    measured = []
    case = _run_case(run) if run else None
    for store in stores:
        diversity = measure_dataset(store, against=init_states)
        is_alone = len(stores) == 1
        broken = any(finding.about != "coverage" and finding.level == "FAIL" for finding in diversity.findings)
        predictors = [] if broken else list(_predict(store, case))
        page = write_report(
            store, diversity, out if is_alone else out / store.path.name, against=init_states, predictors=predictors
        )
        measured.append((store.path.name, diversity))
        console.print(terminal_table(diversity))
        for what, value, expected in predictors:
            say(f"{what}: {value} ({expected})")
        for finding in diversity.findings:
            if finding.level != diversity.level:
                complain(f"Also: {finding.text}")
        for note in diversity.notes:
            say(note)
        if isinstance(diversity, DiversityReport) and diversity.more:
            say(diversity.more)
        console.print(Text(diversity.verdict, style=f"bold {COLORS[diversity.level]}"), soft_wrap=True)
    if case:
        case.close()
    if len(stores) > 1:
        page = write_overview(measured, f"{dataset}: {len(stores)} datasets", out)
    say(f"Page: {page}")
    raise typer.Exit(2 if any(diversity.level == "FAIL" for _, diversity in measured) else 0)


def _is_report(out: Path, datasets: list[Path]) -> bool:
    """Return whether an earlier report is in a folder, or what a kill left of one: this one replaces it."""
    if not out.is_dir():
        return False
    files = [out / "report.html", out / "diversity.json"]
    ours = {*files, *map(unfinished, files), *(out / path.name for path in datasets)}
    return files[0].exists() or set(out.iterdir()) <= ours


def _run_case(run: Path) -> RunCase:
    from act_kit.doctor.case import RunCase  # PyTorch, which takes a second

    return RunCase(run, 1)


def _predict(store: EpisodeStore, case: RunCase | None) -> Generator[tuple[str, str, str]]:
    """Yield rows of what can be tried before any rollout of a policy."""
    from act_kit.doctor.generalization import Incomparable, memory_succeeds

    if not store.lacks:
        yield (
            "the nearest demonstration, replayed from fresh starts, succeeds",
            str(memory_succeeds(store)),
            "what memory alone achieves; a policy should do better",
        )
    if case:
        try:
            gap = case.gap_of(store)
        except Incomparable as error:
            say(f"The loss of {case.folder} on fresh demonstrations tells nothing: {error}")
            return
        succeeds = {result.task: result.succeeds for result in case.results} if gap.is_alarming else {}
        if gap.is_alarming and not succeeds[store.info.task]:
            complain(f"{case.folder} has learnt its starts by heart: {gap}.")
        yield (
            f"loss of {case.folder}",
            f"{gap.held_out:.4f} held out, {gap.fresh:.4f} fresh",
            "fresh at most 1.5 times held out",
        )


def _init_states_of(reference: str, tasks: set[str]) -> np.ndarray:
    """Load an evaluation set's starts, (M, 3 or 6); it must be of the one task that the datasets are of."""
    from act_kit.eval.init_state_sets import InitialStateSet
    from act_kit.sim.initial_states import stack

    init_state_set = InitialStateSet.load(Path(reference))
    if tasks != {init_state_set.task}:
        raise InitialStateError(
            f"{reference} holds starts of {init_state_set.task}; the data are of {', '.join(sorted(tasks))}."
        )
    return stack(init_state_set.init_states)

"""Files of an evaluation: ``init_states.json``, ``episodes.csv``, ``summary.json``, and ``sweep.json`` after a sweep.

This module is their only writer and their only reader. An evaluation of several tasks has a folder per task and a
``summary.json`` of all of them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.errors import ActKitError, DamagedFileError
from act_kit.eval.failure_modes import FAILURE_MODES
from act_kit.eval.init_state_sets import InitialStateSet
from act_kit.eval.results import (
    OPTIONAL,
    PROVENANCE,
    SHARED_PROVENANCE,
    EpisodeResult,
    Evaluation,
    select,
    summarize,
    summarize_all,
)
from act_kit.eval.stages import stages
from act_kit.eval.sweep import WARNING, SweepRow
from act_kit.files import quoted, read_json, read_text, write_json
from act_kit.sim.tasks import HORIZON, TASKS, get_task
from act_kit.statistics import Rate

_LARGEST = 1e12
"""Upper bound on distances, z and numbers of episodes: a diverging simulation crashes before it."""

_NUMBERS: dict[str, tuple[str, float]] = {
    "success_once": ("d", 1),
    "success_at_end": ("d", 1),
    "success_step": ("d", HORIZON),
    "initial_distance": (".6f", _LARGEST),
    "min_distance": (".6f", _LARGEST),
    "final_distance": (".6f", _LARGEST),
    "distance_to_nearest_demo": ("", _LARGEST),  # all digits: rounded, episodes at the edge of a bin could swap bins
    "largest_z": (".3f", _LARGEST),
    "clip_fraction": (".4f", 1),
    "num_steps": ("d", HORIZON),
}
"""Format and upper bound of each column with numbers; the lower bound is 0, the other columns hold text."""

_OPTIONAL = {
    "success_step",
    "distance_to_nearest_demo",
    "largest_z",
    "recognized_task",
    "furthest_stage",
    "failure_mode",
    "crash",
}
"""Columns whose cells may be empty, for None."""

_TOLERANCES = {"largest_z": 1e-3, "clip_fraction": 1e-4}
"""Tolerances of numbers of the summary, since the rows have fewer digits; 2e-6 for all others."""


# -- writing -----------------------------------------------------------------------------------------------------------


def write_evaluation(
    evaluation: Evaluation, out: Path, videos: Mapping[int, Path] | None = None, sweep: Sequence[SweepRow] = ()
) -> None:
    """Write the evaluation of one task into the folder ``out``; ``videos`` in it are named in their rows."""
    out.mkdir(parents=True, exist_ok=True)
    evaluation.init_state_set.save(out / "init_states.json")
    rows: list[dict[str, Any]] = []
    for i, episode in enumerate(evaluation.episodes):
        cells: dict[str, Any] = {"episode": i, "init_state": _numbers(evaluation.init_state_set, i)}
        for field in fields(EpisodeResult):
            value, (spec, _) = getattr(episode, field.name), _NUMBERS.get(field.name, ("", 0))
            cells[field.name] = "" if value is None else format(value, spec)
        video = (videos or {}).get(i)
        rows.append({**cells, "video": str(video.relative_to(out)) if video else ""})
    with (out / "episodes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_json(out / "summary.json", summarize(evaluation))
    if sweep:
        write_sweep(sweep, out / "sweep.json")


def write_overview(evaluations: Sequence[Evaluation], out: Path) -> None:
    """Write the summary of an evaluation of several tasks into ``out``, which holds the folders of the tasks."""
    write_json(out / "summary.json", summarize_all(evaluations))


def write_sweep(rows: Sequence[SweepRow], path: Path) -> None:
    """Write the rows of a sweep as JSON."""
    values: list[dict[str, Any]] = []
    for row in rows:
        compared = {"gained": row.gained, "lost": row.lost, "mcnemar_p": row.p}
        values.append({"chunking": row.chunking, "success_once": row.rate.to_dict(), **compared})
    write_json(path, {"warning": WARNING, "rows": values})


def _numbers(init_state_set: InitialStateSet, i: int) -> str:
    return " ".join(map(repr, init_state_set.init_states[i].rand_vec))


# -- reading -----------------------------------------------------------------------------------------------------------


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Read an evaluation of one or several tasks, and recompute every number of its summaries.

    Raises:
        DamagedFileError: A file is missing or damaged, a row is inconsistent, or a summary has another number.
    """
    try:
        summary = read_json(folder / "summary.json")
        if "tasks" not in summary:
            evaluations = [read_evaluation(folder)]
        else:
            evaluations = [read_evaluation(folder / get_task(task).name) for task in summary["tasks"]]
            _refuse_differences(folder, summarize_all(evaluations), summary)
        for evaluation in evaluations:
            check_summary(evaluation)
            if "tasks" in summary:
                _refuse_differences(folder, select(evaluation.provenance, SHARED_PROVENANCE), summary)
    except _DAMAGE as error:
        raise damaged(folder, error) from error
    return evaluations


def read_evaluation(folder: Path) -> Evaluation:
    """Read the evaluation of one task; :func:`check_summary` compares its summary with its episodes.

    Raises:
        DamagedFileError: A file is missing or damaged, a row is of another initial state, or its data is inconsistent.
    """
    try:
        summary = read_json(folder / "summary.json")
        init_state_set = InitialStateSet.load(folder / "init_states.json")
        evaluation = Evaluation(
            init_state_set=init_state_set,
            episodes=_read_episodes(folder / "episodes.csv", init_state_set),
            baselines={name: _read_rate(values) for name, values in summary["baselines"].items()},
            demonstrated=np.empty((0, len(get_task(init_state_set.task).low))),
            provenance=select(summary, (*PROVENANCE, *OPTIONAL)),
            folder=folder,
        )
        if evaluation.protocol.horizon != summary["horizon"] or not 0 <= evaluation.delay <= HORIZON:
            raise ValueError("its horizon or its delay is not that of its protocol")
        return evaluation
    except _DAMAGE as error:
        raise damaged(folder, error) from error


def check_summary(evaluation: Evaluation) -> None:
    """Compare the summary in the folder of an evaluation with the one that its episodes give.

    Raises:
        DamagedFileError: A number differs.
    """
    try:
        reported = read_json(evaluation.folder / "summary.json")
        expected = summarize(evaluation)
        del expected["num_far"]  # the rounding of z may move an episode across the limit
        distance = reported["distance"]  # a fraction of rounded distances would be too inexact
        expected["closed_distance_fraction"] = 1 - distance["final"] / distance["initial"]
        _refuse_differences(evaluation.folder, expected, reported)
    except _DAMAGE as error:
        raise damaged(evaluation.folder, error) from error


_DAMAGE = (
    *(ActKitError, OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError),
    csv.Error,
)


def damaged(folder: Path, error: Exception) -> DamagedFileError:
    """Return the error as one that says how to evaluate again."""
    if isinstance(error, DamagedFileError) and "Fix: " in str(error):
        return error
    problem = (
        str(error) if isinstance(error, ActKitError) else f"{folder} is not an evaluation of this act_kit: {error!r}."
    )
    return DamagedFileError(f"{problem} Fix: evaluate again: act eval RUN --out {quoted(folder)} --overwrite")


def _read_episodes(file: Path, init_state_set: InitialStateSet) -> list[EpisodeResult]:
    """Read the rows of ``episodes.csv``, which must be those of the initial states."""
    table = list(csv.DictReader(io.StringIO(read_text(file), newline="")))
    num = len(init_state_set.init_states)
    if len(table) != num:
        raise DamagedFileError(f"{file} has {len(table)} episodes for {num} initial states.")
    episodes: list[EpisodeResult] = []
    for i, cells in enumerate(table):
        try:
            if None in (*cells, *cells.values()):
                raise ValueError("too few or too many cells")
            if (cells["episode"], cells["init_state"]) != (str(i), _numbers(init_state_set, i)):
                raise ValueError("episode or init_state is not that of init_states.json")
            episodes.append(_read_episode(cells, init_state_set.task))
        except (KeyError, ValueError) as error:
            problem = f"there is no column {error}" if isinstance(error, KeyError) else error
            raise DamagedFileError(f"{file}, row {i}: {problem}.") from error
    return episodes


def _read_episode(cells: Mapping[str, str], task: str) -> EpisodeResult:
    """Parse the cells of a row, and check their ranges and their consistency."""
    values: dict[str, Any] = {}
    for field in fields(EpisodeResult):
        cell: Any = cells[field.name]
        if field.name in _NUMBERS and (cell or field.name not in _OPTIONAL):
            spec, highest = _NUMBERS[field.name]
            cell = int(cell) if spec == "d" else float(cell)
            if not 0 <= cell <= highest:
                raise ValueError(f"{field.name} is {cell}, not between 0 and {highest:g}")
        values[field.name] = None if cell == "" else cell
    for name in ("success_once", "success_at_end"):
        values[name] = bool(values[name])
    row = EpisodeResult(**values)
    rules = (
        ("min_distance", row.min_distance <= min(row.initial_distance, row.final_distance)),
        ("success_at_end", row.success_once or not row.success_at_end),
        ("success_step", row.success_once == (row.success_step is not None)),
        ("furthest_stage", row.furthest_stage in (None, *stages(task))),
        ("furthest_stage", row.success_once == (row.furthest_stage == "success")),
        ("recognized_task", row.recognized_task in (None, *TASKS)),
        ("failure_mode", row.failure_mode in (None, *FAILURE_MODES)),
        ("failure_mode", row.success_once == (row.failure_mode is None)),
        ("crash", (row.failure_mode == "crashed") == (row.crash is not None)),
    )
    for name, is_consistent in rules:
        if not is_consistent:
            raise ValueError(f"{name} is '{cells[name]}', which contradicts the other cells")
    return row


def _read_rate(values: Mapping[str, Any]) -> Rate:
    successes, num = values["successes"], values["num"]
    if not (type(successes) is type(num) is int and 0 <= successes <= num and 0 < num < _LARGEST):
        raise ValueError(f"{successes} of {num} successes")
    return Rate(successes, num)


def _refuse_differences(folder: Path, expected: Mapping[str, Any], reported: Mapping[str, Any]) -> None:
    """Refuse a summary in which a value that follows from the episodes is different or missing, or has more entries."""
    for key, value in expected.items():
        own, other = _leaves(key, value), _leaves(key, reported[key])
        for name in {**own, **other}:
            if not _agree(own.get(name), other.get(name), _TOLERANCES.get(key, 2e-6)):
                raise DamagedFileError(
                    f"{folder / 'summary.json'} does not agree with the episodes: {name} is {other.get(name)}; "
                    f"recomputed from the episodes, it is {own.get(name)}."
                )


def _leaves(name: str, value: Any) -> dict[str, Any]:
    """Return the values in nested mappings and lists by their dotted names."""
    if not isinstance(value, (Mapping, list)):
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        leaves |= _leaves(f"{name}.{key}", inner)
    return leaves


def _agree(expected: Any, reported: Any, tolerance: float) -> bool:
    if isinstance(expected, float) and type(reported) in (int, float):
        return bool(abs(expected - reported) <= tolerance)
    return type(expected) is type(reported) and bool(expected == reported)

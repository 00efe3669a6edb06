"""Consistency check of the files of an evaluation: ``summary.json`` is recomputed from ``episodes.csv``."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from act_kit.errors import DamagedFileError
from act_kit.eval.distance_to_demos import divide
from act_kit.eval.init_state_sets import InitialStateSet
from act_kit.eval.stages import stages
from act_kit.files import read_text
from act_kit.sim.tasks import HORIZON, Difficulty, get_task
from act_kit.statistics import MacroAverageRate, Rate

_ROUNDING = {"largest_z": 1e-3, "clip_fraction": 1e-4}
"""Tolerances of numbers of the summary, since the rows have fewer digits; 2e-6 for all others."""

_LARGEST = 1e12
"""Upper bound on distances, z and numbers of episodes: a diverging simulation crashes before it."""


@dataclass(frozen=True, kw_only=True)
class EpisodeRow:
    """A row of ``episodes.csv`` whose numbers are in their ranges.

    Attributes:
        success_once, success_at_end: Success of the benchmark, at any step and at the last step.
        initial, min, final: Distances.
        nearest: Distance of the initial state to the nearest demonstrated one, in box widths; None if unknown.
        largest_z: Largest normalized coordinate.
        clip_fraction: Fraction of action values outside [-1, 1].
        furthest: Furthest stage; "" if none was reached.
        failure_mode: Failure mode; "" if the episode succeeded.
        crash: Error of the simulation; "" if there was none.
    """

    success_once: bool
    success_at_end: bool
    initial: float
    min: float
    final: float
    nearest: float | None
    largest_z: float
    clip_fraction: float
    furthest: str
    failure_mode: str
    crash: str


@dataclass(frozen=True, kw_only=True)
class EvaluationRows:
    """The episodes of an evaluation of one task.

    Attributes:
        init_state_set: Initial states.
        rows: Rows, one per initial state.
        digest: SHA-256 of the initial states and of every number of every episode: equal for copies of an evaluation.
    """

    init_state_set: InitialStateSet
    rows: list[EpisodeRow]
    digest: str


def read_rows(folder: Path) -> EvaluationRows:
    """Read ``init_states.json`` and ``episodes.csv`` of an evaluation of one task.

    Raises:
        DatasetError: ``init_states.json`` is damaged.
        DamagedFileError: A row is missing, is of another initial state, or holds inconsistent data.
    """
    init_state_set = InitialStateSet.load(folder / "init_states.json")
    file = folder / "episodes.csv"
    try:
        table = list(csv.DictReader(io.StringIO(read_text(file), newline="")))
    except csv.Error as error:
        raise DamagedFileError(f"{file} is not CSV: {error}.") from error
    if len(table) != len(init_state_set.init_states):
        raise DamagedFileError(
            f"{file} has {len(table)} episodes for {len(init_state_set.init_states)} initial states."
        )
    digest = hashlib.sha256(init_state_set.hash.encode())
    rows: list[EpisodeRow] = []
    for i, cells in enumerate(table):
        try:
            _require(None not in (*cells, *cells.values()), "too few or too many cells")
            _require(cells["episode"] == str(i), f"episode is {cells['episode']}")
            init_state = tuple(float(x) for x in cells["init_state"].split())
            _require(init_state == init_state_set.init_states[i].rand_vec, "init_state is not that of init_states.json")
            rows.append(_read_row(cells, init_state_set.task))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            problem = f"there is no column {error}" if isinstance(error, KeyError) else error
            raise DamagedFileError(f"{file}, row {i}: {problem}.") from error
        digest.update(repr(sorted((key, cell) for key, cell in cells.items() if key != "video")).encode())
    return EvaluationRows(init_state_set=init_state_set, rows=rows, digest=digest.hexdigest())


def _read_row(cells: Mapping[str, str], task: str) -> EpisodeRow:
    """Parse the cells of a row, and check their ranges and their consistency."""
    crash, success_once = cells["crash"], _flag(cells, "success_once")
    if success_once:
        _number(cells, "success_step", 0, HORIZON)
    _number(cells, "num_steps", 0, HORIZON)
    row = EpisodeRow(
        success_once=success_once,
        success_at_end=_flag(cells, "success_at_end"),
        initial=_number(cells, "initial_distance", 0, _LARGEST),
        min=_number(cells, "min_distance", 0, _LARGEST),
        final=_number(cells, "final_distance", 0, _LARGEST),
        nearest=_number(cells, "distance_to_nearest_demo", 0, _LARGEST) if cells["distance_to_nearest_demo"] else None,
        largest_z=_number(cells, "largest_z", 0, _LARGEST),
        clip_fraction=_number(cells, "clip_fraction", 0, 1),
        furthest=cells["furthest_stage"],
        failure_mode=cells["failure_mode"],
        crash=crash,
    )
    _require(row.min <= min(row.initial, row.final), f"min_distance is {row.min}, above the initial or the final one")
    _require(success_once or not row.success_at_end, "success_at_end without success_once")
    _require(bool(cells["success_step"]) == success_once, f"success_step is '{cells['success_step']}'")
    _require(row.furthest in ("", *stages(task)), f"furthest_stage is '{row.furthest}'")
    _require((row.furthest == "success") == success_once, f"furthest_stage is '{row.furthest}'")
    _require((row.failure_mode == "") == success_once, f"failure_mode is '{row.failure_mode}'")
    _require(
        (row.failure_mode == "crashed") == bool(crash), f"failure_mode is '{row.failure_mode}', crash is '{crash}'"
    )
    return row


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _flag(cells: Mapping[str, str], name: str) -> bool:
    _require(cells[name] in ("0", "1"), f"{name} is '{cells[name]}', not 0 or 1")
    return cells[name] == "1"


def _number(cells: Mapping[str, str], name: str, low: float, high: float) -> float:
    value = float(cells[name])
    _require(low <= value <= high, f"{name} is {value}, not between {low} and {high:g}")
    return value


def check_summary(folder: Path, summary: Any, rows: EvaluationRows) -> None:
    """Recompute every number of the summary of one task.

    Raises:
        DamagedFileError: A number differs.
    """
    _refuse_differences(folder, recount(rows), summary)
    distance = summary["distance"]
    expected = {"closed_distance_fraction": 1 - distance["final"] / distance["initial"]}
    _refuse_differences(folder, expected, summary)
    _refuse_differences(folder, {"baselines": _recomputed_rates(summary["baselines"])}, summary)


def recount(evaluation: EvaluationRows) -> dict[str, Any]:
    """Recompute from the rows the numbers of :func:`act_kit.reports.evaluation.summarize`."""
    init_state_set, rows = evaluation.init_state_set, evaluation.rows
    order = stages(init_state_set.task)
    failure_modes = [row.failure_mode for row in rows if row.failure_mode]
    known = [row for row in rows if row.nearest is not None]
    bins = divide([row.nearest or 0.0 for row in known], [row.success_once for row in known]) if known else []
    distance = {
        "initial": float(np.mean([row.initial for row in rows])),
        "min": float(np.mean([row.min for row in rows])),
        "final": float(np.mean([row.final for row in rows])),
    }
    reached = [order.index(row.furthest) for row in rows if row.furthest in order]
    stage_counts: dict[str, int] = {}
    for i, stage in enumerate(order):
        stage_counts[stage] = sum(index >= i for index in reached)
    return {
        "task": init_state_set.task,
        "success_once": Rate(sum(row.success_once for row in rows), len(rows)).to_dict(),
        "success_at_end": Rate(sum(row.success_at_end for row in rows), len(rows)).to_dict(),
        "distance_unit": get_task(init_state_set.task).unit,
        "distance": distance,
        "largest_z": max(row.largest_z for row in rows),
        "clip_fraction": float(np.mean([row.clip_fraction for row in rows])),
        "crashes": [i for i, row in enumerate(rows) if row.crash],
        "stage_counts": stage_counts,
        "failures": {failure_mode: failure_modes.count(failure_mode) for failure_mode in failure_modes},
        "success_by_distance_to_nearest_demo": [
            {"low": each.low, "high": each.high, "success_once": each.rate.to_dict()} for each in bins
        ],
        "init_state_set": {
            "kind": init_state_set.kind,
            "seed": init_state_set.seed,
            "num": len(init_state_set.init_states),
            "num_distinct": init_state_set.num_distinct,
            "hash": init_state_set.hash,
        },
    }


def check_overview(
    folder: Path, overview: Any, summaries: Mapping[str, Any], tasks: Mapping[str, EvaluationRows]
) -> None:
    """Recompute every number of the summary of several tasks from the checked summaries of the tasks.

    Raises:
        DamagedFileError: A number differs.
    """
    _refuse_differences(folder, recount_overview(summaries, tasks), overview)
    shared_keys = ("horizon", "chunking", "policy_step", "versions", "device", "training")
    for summary in summaries.values():
        _refuse_differences(folder, {key: summary[key] for key in shared_keys}, overview)


def recount_overview(summaries: Mapping[str, Any], tasks: Mapping[str, EvaluationRows]) -> dict[str, Any]:
    """Recompute from rows and summaries the numbers of :func:`act_kit.reports.overview.summarize_all`."""
    counted = {name: recount(rows) for name, rows in tasks.items()}
    experts = {name: summaries[name]["baselines"].get("expert") for name in tasks}
    means: dict[str, Any] = {}
    for group in ("all", *get_args(Difficulty)):
        members = [name for name in tasks if group in ("all", get_task(name).group)]
        if members:
            means[group] = {
                "num_tasks": len(members),
                "success_once": _mean_values([counted[name]["success_once"] for name in members]),
                "success_at_end": _mean_values([counted[name]["success_at_end"] for name in members]),
                "expert": _mean_values([experts[name] for name in members]),
            }
    return {
        "tasks": {
            name: {
                "group": get_task(name).group,
                "success_once": counts["success_once"],
                "success_at_end": counts["success_at_end"],
                "final_distance": counts["distance"]["final"],
                "distance_unit": counts["distance_unit"],
                "expert": experts[name],
                "interpretation": summaries[name]["interpretation"],
            }
            for name, counts in counted.items()
        },
        "means": means,
    }


def _mean_values(rates: Sequence[Mapping[str, Any] | None]) -> dict[str, float | None] | None:
    known = tuple(_rate(rate) for rate in rates if rate)
    if len(known) < len(rates):
        return None
    mean = MacroAverageRate(known)
    low, high = mean.interval or (None, None)
    return {"value": mean.value, "low": low, "high": high}


def _rate(values: Mapping[str, Any]) -> Rate:
    """Read a rate of a summary.

    Raises:
        ValueError: Its counts are inconsistent.
    """
    successes, num = values["successes"], values["num"]
    _require(
        type(successes) is type(num) is int and 0 <= successes <= num and 0 < num < _LARGEST,
        f"{successes} of {num} successes",
    )
    return Rate(successes, num)


def _recomputed_rates(rates: Mapping[str, Any]) -> dict[str, Any]:
    """Return rates with their values and intervals recomputed from their counts."""
    return {name: _rate(values).to_dict() for name, values in rates.items()}


def _refuse_differences(folder: Path, expected: Mapping[str, Any], reported: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        difference = _difference(key, value, reported[key], _ROUNDING.get(key, 2e-6))
        if difference:
            raise DamagedFileError(f"{folder / 'summary.json'} does not agree with the episodes: {difference}.")


def _difference(name: str, expected: Any, reported: Any, tolerance: float) -> str:
    """Describe the first number that differs; "" if none does. The reported mapping may have additional keys."""
    if isinstance(expected, Mapping) and isinstance(reported, Mapping):
        keys = {*expected, *reported} if name.endswith(("failures", "stage_counts")) else expected
        pairs = [(f"{name}.{key}", expected.get(key), reported.get(key)) for key in keys]
    elif isinstance(expected, list) and isinstance(reported, list) and len(expected) == len(reported):
        pairs = [(f"{name}.{i}", *both) for i, both in enumerate(zip(expected, reported, strict=True))]
    elif isinstance(expected, float) and isinstance(reported, (int, float)) and not isinstance(reported, bool):
        is_same = abs(expected - reported) <= tolerance
        return "" if is_same else f"{name} is {reported:g}; recomputed from the episodes, it is {expected:g}"
    else:
        is_same = type(expected) is type(reported) and expected == reported
        return "" if is_same else f"{name} is {reported}; recomputed from the episodes, it is {expected}"
    differences = (_difference(*pair, tolerance) for pair in pairs)
    return next(filter(None, differences), "")

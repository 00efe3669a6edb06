"""An evaluation's files, held against each other: the numbers of ``summary.json`` follow from ``episodes.csv``."""

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
from act_kit.reports.evaluation import rate_values
from act_kit.sim.tasks import HORIZON, Difficulty, get_task
from act_kit.statistics import MacroAverageRate, Rate

_ROUNDING = {"largest_z": 1e-3, "clip_fraction": 1e-4}
"""How far a number of the summary may be from that of the rows, which have fewer digits; 2e-6 for others."""

_LARGEST = 1e12
"""No distance, z or number of episodes is larger: a simulation that goes wild has crashed before."""


@dataclass(frozen=True, kw_only=True)
class EpisodeRow:
    """A row of ``episodes.csv``; its numbers are in their ranges.

    Attributes:
        success_once, success_at_end: Of the benchmark.
        initial, min, final: Distances.
        nearest: Distance of the initial state to the nearest demonstrated one, in box widths; None if unknown.
        largest_z: Largest normalized coordinate.
        clip_fraction: Of the actions.
        furthest: The last stage that it shows; "" if it shows none.
        label: Why it failed; "" if it did not.
        crash: What broke down; "" if nothing did.
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
        evalset: The initial states.
        rows: One per initial state.
        digest: SHA-256 of the initial states and of every number of every episode: equal for copies of an evaluation.
    """

    init_state_set: InitialStateSet
    rows: list[EpisodeRow]
    digest: str


def read_rows(folder: Path) -> EvaluationRows:
    """Read ``init_states.json`` and ``episodes.csv`` of an evaluation of one task.

    Raises:
        DatasetError: ``init_states.json`` is damaged.
        DamagedFileError: A row is missing, is of another initial state, or holds what cannot be.
    """
    init_state_set = InitialStateSet.load(folder / "init_states.json")
    file = folder / "episodes.csv"
    try:
        table = list(csv.DictReader(io.StringIO(read_text(file), newline="")))
    except csv.Error as error:
        raise DamagedFileError(f"{file} is not CSV: {error}.") from error
    if len(table) != len(init_state_set.init_states):
        raise DamagedFileError(f"{file} has {len(table)} episodes for {len(init_state_set.init_states)} starts.")
    digest = hashlib.sha256(init_state_set.hash.encode())
    rows: list[EpisodeRow] = []
    for i, cells in enumerate(table):
        try:
            _require(None not in (*cells, *cells.values()), "too few or too many cells")
            _require(cells["episode"] == str(i), f"episode is {cells['episode']}")
            init_state = tuple(float(x) for x in cells["init_state"].split())
            _require(init_state == init_state_set.init_states[i].rand_vec, "start is not that of init_states.json")
            rows.append(_read_row(cells, init_state_set.task))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            what = f"there is no column {error}" if isinstance(error, KeyError) else error
            raise DamagedFileError(f"{file}, row {i}: {what}.") from error
        digest.update(repr(sorted((key, cell) for key, cell in cells.items() if key != "video")).encode())
    return EvaluationRows(init_state_set=init_state_set, rows=rows, digest=digest.hexdigest())


def _read_row(cells: Mapping[str, str], task: str) -> EpisodeRow:
    """Check a row's cells one by one and against each other."""
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
    _require((row.failure_mode == "") == success_once, f"label is '{row.failure_mode}'")
    _require((row.failure_mode == "crashed") == bool(crash), f"label is '{row.failure_mode}', crash is '{crash}'")
    return row


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ValueError(otherwise)


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
        DamagedFileError: One differs.
    """
    _refuse_differences(folder, recount(rows), summary)
    distance = summary["distance"]
    expected = {"closed_distance_fraction": 1 - distance["final"] / distance["initial"]}
    _refuse_differences(folder, expected, summary)
    _refuse_differences(folder, {"baselines": _recomputed_rates(summary["baselines"])}, summary)


def recount(evaluation: EvaluationRows) -> dict[str, Any]:
    """Return what :func:`act_kit.reports.evaluation.summarize` computes of an evaluation's episodes, from their rows."""
    init_state_set, rows = evaluation.init_state_set, evaluation.rows
    order = stages(init_state_set.task)
    reached = [order.index(row.furthest) for row in rows if row.furthest in order]
    failure_modes = [row.failure_mode for row in rows if row.failure_mode]
    known = [row for row in rows if row.nearest is not None]
    bins = divide([row.nearest or 0.0 for row in known], [row.success_once for row in known]) if known else []
    return {
        "task": init_state_set.task,
        "success_once": rate_values(Rate(sum(row.success_once for row in rows), len(rows))),
        "success_at_end": rate_values(Rate(sum(row.success_at_end for row in rows), len(rows))),
        "distance_unit": get_task(init_state_set.task).unit,
        "distance": {
            when: float(np.mean([getattr(row, when) for row in rows])) for when in ("initial", "min", "final")
        },
        "largest_z": max(row.largest_z for row in rows),
        "clip_fraction": float(np.mean([row.clip_fraction for row in rows])),
        "crashes": [i for i, row in enumerate(rows) if row.crash],
        "stage_counts": {stage: sum(index >= i for index in reached) for i, stage in enumerate(order)},
        "failures": {failure_mode: failure_modes.count(failure_mode) for failure_mode in failure_modes},
        "success_by_nearest_demonstration": [
            {"low": each.low, "high": each.high, "success_once": rate_values(each.rate)} for each in bins
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
    """Recompute every number of the summary of several tasks from theirs, which are checked before.

    Raises:
        DamagedFileError: One differs.
    """
    _refuse_differences(folder, recount_overview(summaries, tasks), overview)
    for summary in summaries.values():
        same = ("horizon", "chunking", "policy_step", "versions", "device", "training")
        _refuse_differences(folder, {key: summary[key] for key in same}, overview)


def recount_overview(summaries: Mapping[str, Any], tasks: Mapping[str, EvaluationRows]) -> dict[str, Any]:
    """Return what :func:`act_kit.reports.overview.summarize_all` computes, from the rows and summaries of the tasks."""
    counted = {name: recount(rows) for name, rows in tasks.items()}
    experts = {name: summaries[name]["baselines"].get("expert") for name in tasks}
    means: dict[str, Any] = {}
    for group in ("all", *get_args(Difficulty)):
        members = [name for name in tasks if group in ("all", get_task(name).group)]
        if members:
            rates = {what: [counted[name][what] for name in members] for what in ("success_once", "success_at_end")}
            rates["expert"] = [experts[name] for name in members]
            means[group] = {"num_tasks": len(members), **{what: _mean_values(rates[what]) for what in rates}}
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
        ValueError: Its counts cannot be.
    """
    successes, num = values["successes"], values["num"]
    _require(
        type(successes) is type(num) is int and 0 <= successes <= num and 0 < num < _LARGEST,
        f"{successes} of {num} successes",
    )
    return Rate(successes, num)


def _recomputed_rates(rates: Mapping[str, Any]) -> dict[str, Any]:
    """Return rates with their values and intervals computed from their counts."""
    return {who: rate_values(_rate(values)) for who, values in rates.items()}


def _refuse_differences(folder: Path, expected: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        found = _difference(key, value, said[key], _ROUNDING.get(key, 2e-6))
        if found:
            raise DamagedFileError(f"{folder / 'summary.json'} does not agree with the episodes: {found}.")


def _difference(name: str, expected: Any, said: Any, tolerance: float) -> str:
    """Name the first number in which two values differ; "" if they do not. A mapping may say more than is expected."""
    if isinstance(expected, Mapping) and isinstance(said, Mapping):
        keys = {*expected, *said} if name.endswith(("failures", "stage_counts")) else expected
        pairs = [(f"{name}.{key}", expected.get(key), said.get(key)) for key in keys]
    elif isinstance(expected, list) and isinstance(said, list) and len(expected) == len(said):
        pairs = [(f"{name}.{i}", *both) for i, both in enumerate(zip(expected, said, strict=True))]
    elif isinstance(expected, float) and isinstance(said, (int, float)) and not isinstance(said, bool):
        return "" if abs(expected - said) <= tolerance else f"{name} is {said:g}; the episodes make it {expected:g}"
    else:
        is_same = type(expected) is type(said) and expected == said
        return "" if is_same else f"{name} is {said}; the episodes make it {expected}"
    differences = (_difference(*pair, tolerance) for pair in pairs)
    return next(filter(None, differences), "")

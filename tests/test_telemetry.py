"""Metrics: declared once, written once, read under the same name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from act_kit.errors import MetricError
from act_kit.telemetry import METRICS, MetricLogger, read_metrics, series


def test_an_undeclared_name_can_be_neither_written_nor_read(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path)
    with pytest.raises(MetricError, match=r"'train/los' is not a declared metric. Did you mean 'train/loss'"):
        logger.log(1, {"train/los": 1.0})
    with pytest.raises(MetricError, match="'eval/sucess' is not a declared metric"):
        logger.latest("eval/sucess")
    with pytest.raises(MetricError, match="not a declared metric"):
        series(tmp_path, "reward")
    logger.close()


def test_what_was_not_measured_is_absent_not_zero(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path)
    logger.log(1, {"train/loss": 0.5})
    assert logger.latest("train/loss") == 0.5
    assert logger.latest("eval/success") is None
    logger.close()
    assert series(tmp_path, "eval/success") == []


def test_names_carry_their_source_and_only_the_environment_is_eval() -> None:
    assert {name.partition("/")[0] for name in METRICS} == {"train", "val", "eval"}
    assert {name for name in METRICS if name.startswith("eval/")} == {
        "eval/success", "eval/success_low", "eval/success_high", "eval/final_distance"
    }  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.5])
def test_values_out_of_range_are_refused(tmp_path: Path, value: float) -> None:
    logger = MetricLogger(tmp_path)
    with pytest.raises(MetricError, match="not in its range"):
        logger.log(1, {"eval/success": value})
    logger.close()


def test_there_is_one_step_counter(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path)
    logger.log(5, {"train/loss": 1.0})
    with pytest.raises(MetricError, match="Step 4 was logged after step 5"):
        logger.log(4, {"train/loss": 1.0})
    logger.close()


def test_both_files_hold_the_same_records(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = MetricLogger(tmp_path)
    for step in (1, 2, 3):
        logger.log(step, {"train/loss": 1.0 / step})
    logger.close()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == read_metrics(
        tmp_path
    )
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(e.step, pytest.approx(e.value)) for e in events] == series(tmp_path, "train/loss")


def test_a_log_that_holds_nothing_stops_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = MetricLogger(tmp_path)
    monkeypatch.setattr(logger._tensorboard, "add_scalar", lambda *args: None)
    with pytest.raises(MetricError, match="lack train/loss"):
        logger.log(1, {"train/loss": 1.0})
    logger.close()


def test_a_record_that_does_not_reach_the_disk_stops_the_run_at_once(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path)
    logger._file.close()
    with Path("/dev/null").open("a") as nowhere:
        logger._file = nowhere
        with pytest.raises(MetricError, match="does not hold what was just written"):
            logger.log(1, {"train/loss": 1.0})
        logger.close()


def test_after_a_kill_the_records_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path)
    for step in (1, 2, 3):
        logger.log(step, {"train/loss": float(step)})
    logger.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
    resumed = MetricLogger(tmp_path, resume_step=2)
    assert resumed.latest("train/loss") == 2.0
    resumed.log(3, {"train/loss": 30.0})
    resumed.close()
    assert series(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]

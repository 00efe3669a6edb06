"""Metrics: declared once, written once, read by the same name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ConfigError, DamagedFileError, MetricError
from act_kit.metrics import METRICS, MetricLogger, log_evaluation, read_metrics, read_tensorboard, series
from act_kit.options import to_dict
from act_kit.training.trainer import Trainer
from tests.conftest import tiny_config


def test_an_undeclared_name_can_be_neither_written_nor_read(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path)
    with pytest.raises(MetricError, match=r"'train/los' is not a declared metric. Did you mean 'train/loss'"):
        logger.log(1, {"train/los": 1.0})
    with pytest.raises(MetricError, match="'eval/sucess' is not a declared metric"):
        logger.latest("eval/sucess")
    with pytest.raises(MetricError, match="not a declared metric"):
        series(tmp_path, "reward")
    logger.close()


def test_an_unmeasured_metric_is_absent_not_zero(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path)
    logger.log(1, {"train/loss": 0.5})
    assert logger.latest("train/loss") == 0.5
    assert logger.latest("eval/success") is None
    logger.close()
    assert series(tmp_path, "eval/success") == []


def test_names_begin_with_their_source_and_eval_is_the_environment() -> None:
    assert {name.partition("/")[0] for name in METRICS} == {"train", "val", "eval", "finetune", "host", "device"}
    measured = {name for name in METRICS if name.startswith("eval/") and not name.endswith("-v3")}
    assert measured == {"eval/success", "eval/success_low", "eval/success_high", "eval/final_distance"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.5])
def test_values_out_of_range_are_refused(tmp_path: Path, value: float) -> None:
    logger = MetricLogger(tmp_path)
    with pytest.raises(MetricError, match="not in its range"):
        logger.log(1, {"eval/success": value})
    logger.close()


def test_a_decreasing_step_is_refused(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path)
    logger.log(5, {"train/loss": 1.0})
    with pytest.raises(MetricError, match="Step 4 was logged after step 5"):
        logger.log(4, {"train/loss": 1.0})
    logger.close()


def test_both_files_hold_the_same_records(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path)
    for step in (1, 2, 3):
        logger.log(step, {"train/loss": 1.0 / step})
    logger.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == read_metrics(tmp_path)
    written = read_tensorboard(tmp_path / "tensorboard")["train/loss"]
    assert written == pytest.approx(dict(series(tmp_path, "train/loss")))


def test_a_pipe_among_the_tensorboard_files_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.out.tfevents.1")
    with pytest.raises(DamagedFileError, match="not a regular file"):
        read_tensorboard(tmp_path)


def test_an_empty_log_stops_the_run_at_the_first_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = MetricLogger(tmp_path)
    monkeypatch.setattr(logger._tensorboard, "write", lambda *args: None)
    with pytest.raises(MetricError, match="lack train/loss"):
        logger.log(1, {"train/loss": 1.0})
    logger.close()


def test_a_record_that_does_not_reach_the_disk_stops_the_run(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path)
    logger._file.close()
    with Path("/dev/null").open("a", encoding="utf-8") as nowhere:
        logger._file = nowhere
        with pytest.raises(MetricError, match="does not contain the record just written"):
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


def wandb_history(run: Path) -> list[dict[str, float]]:
    """Read the records that W&B's client wrote to disk: LevelDB's log format, a record per message."""
    from wandb.proto import wandb_internal_pb2

    records = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        data, at, message = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            message += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # a complete message, or its last part
                record = wandb_internal_pb2.Record.FromString(message)  # type: ignore[attr-defined]
                items: dict[str, float] = {}
                for item in record.history.item:
                    key = item.key or item.nested_key[0]
                    if not key.startswith("_"):
                        items[key] = json.loads(item.value_json)
                if record.history.item:
                    records.append(items)
                message = b""
    return records


def test_weights_and_biases_gets_the_same_records_and_resumes_the_same_run(
    reach_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny_config("wandb_project=manipulation", "trainer.steps=4", "trainer.log_every=2")

    def interrupt(trainer: Trainer) -> None:
        if trainer.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(config, [reach_store], tmp_path, evaluator=None).train(interrupt)
    name = (tmp_path / "wandb_id").read_text()
    resumed = Trainer(config, [reach_store], tmp_path, evaluator=None)
    resumed.resume()
    resumed.train()
    records = read_metrics(tmp_path)
    assert {record["step"] for record in records} == {1, 2, 4}
    assert wandb_history(tmp_path) == records
    assert {path.name.rpartition(name)[1] for path in tmp_path.glob("wandb/offline-run-*")} == {name}


def test_a_missing_weights_and_biases_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"needs W&B's client: pip install 'wandb>=0\.19'"):
        MetricLogger(tmp_path, wandb_project="manipulation")


def test_weights_and_biases_gets_configuration_group_tables_and_videos(
    reach_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[dict[str, object]] = []
    logged: list[dict[str, object]] = []
    summaries: dict[str, str] = {}

    class Session:
        def define_metric(self, name: str, summary: str) -> None:
            summaries[name] = summary

        def log(self, values: dict[str, object]) -> None:
            logged.append(values)

        def finish(self) -> None:
            pass

    def init(**options: object) -> Session:
        sessions.append(options)
        return Session()

    client = SimpleNamespace(
        init=init,
        errors=SimpleNamespace(Error=RuntimeError),
        Table=lambda columns, data: ("table", columns, data),
        Video=lambda path, format: ("video", path, format),
    )
    monkeypatch.setitem(sys.modules, "wandb", client)
    run = tmp_path / "chunks" / "seed-0"
    run.mkdir(parents=True)
    (run.parent / "seeds.json").write_text("[0]", encoding="utf-8")
    config = tiny_config("wandb_project=manipulation", "trainer.steps=2", "trainer.log_every=1")
    Trainer(config, [reach_store], run, evaluator=None).train()
    assert (sessions[0]["group"], sessions[0]["config"]) == ("chunks", to_dict(config))
    assert (summaries["eval/success"], summaries["val/l1"]) == ("max", "min")
    assert "train/lr" not in summaries
    results = run / "eval-test"
    (results / "videos").mkdir(parents=True)
    (results / "videos" / "0003-failure.mp4").touch()
    (results / "episodes.csv").write_text("episode,success_once\n0,1\n", encoding="utf-8")
    log_evaluation(run, "manipulation", results)
    assert sessions[-1]["id"] == sessions[0]["id"]
    assert logged[-1] == {
        "eval-test/episodes": ("table", ["episode", "success_once"], [["0", "1"]]),
        "eval-test/videos/0003-failure": ("video", str(results / "videos" / "0003-failure.mp4"), "mp4"),
    }

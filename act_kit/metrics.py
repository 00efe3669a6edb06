"""Metrics that cannot be misread: each is declared once, written by one logger, under one step counter.

A progress bar that read ``"rewards"`` where the trainer wrote ``"reward"`` once showed a dead training for weeks; two
loggers with competing step counters once recorded nothing at all. So an undeclared name is an error, for the writer
and for the reader; what was not measured is absent, never 0; and after the first records the files are read back.
"""

from __future__ import annotations

import csv
import json
import math
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from act_kit.errors import ConfigError, DamagedFileError, MetricError, did_you_mean, install_hint
from act_kit.files import SEEDS, read_text, require_regular, still_there, write_text
from act_kit.sim.tasks import expand_tasks


@dataclass(frozen=True)
class Metric:
    """A declared metric.

    Attributes:
        name: ``<source>/<what>``; only what was measured in the environment is called ``eval/…``.
        unit: Of its values.
        better: Which direction is better, if one is.
        low, high: The range that its values cannot leave.
    """

    name: str
    unit: str
    better: Literal["up", "down", None]
    low: float = 0.0
    high: float = math.inf


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("eval/success", "fraction", "up", 0, 1),
        Metric("eval/success_low", "fraction", "up", 0, 1),
        Metric("eval/success_high", "fraction", "up", 0, 1),
        Metric("eval/final_distance", "m (rad for lever-pull)", "down"),
        *(Metric(f"eval/success/{task}", "fraction", "up", 0, 1) for task in expand_tasks("MT50")),
        Metric("train/loss", "action units", "down"),
        Metric("train/l1_posterior", "action units", "down"),
        Metric("train/l1_prior", "action units", "down"),
        Metric("train/kl", "nats", None),
        Metric("train/grad_norm", "", None),
        Metric("train/lr", "", None),
        Metric("train/steps_per_s", "1/s", "up"),
        Metric("train/roofline_fraction", "fraction", "up"),
        Metric("host/memory", "GB", None),
        Metric("device/memory", "GB", None),
        Metric("val/l1_reconstruction", "action units", "down"),
        Metric("val/l1", "action units", "down"),
    )
}


def metric(name: str) -> Metric:
    """Return the declaration of a metric, or raise :class:`MetricError`."""
    if name not in METRICS:
        raise MetricError(f"'{name}' is not a declared metric.{did_you_mean(name, METRICS)} See act_kit/telemetry.py.")
    return METRICS[name]


class MetricLogger:
    """Writes records to ``metrics.jsonl``, the source of truth, and the same ones to TensorBoard and perhaps W&B."""

    def __init__(
        self, run: Path, *, resume_step: int = 0, wandb_project: str = "", config: Mapping[str, Any] | None = None
    ) -> None:
        """Open the logs of ``run``; records after ``resume_step``, left by a run that was killed, are dropped.

        Weights & Biases get ``config`` too.

        Raises:
            ConfigError: A project at Weights & Biases is named, but its client is missing or does not get in.
        """
        self._wandb = _open_wandb(run, wandb_project, config) if wandb_project else None
        self.path = run / "metrics.jsonl"
        self._tensorboard_dir = run / "tensorboard"
        kept = [record for record in read_metrics(run) if record["step"] <= resume_step]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._tensorboard = _EventFile(self._tensorboard_dir, purge_step=resume_step + 1)
        self._latest: dict[str, float] = {}
        for record in kept:
            self._latest |= {name: value for name, value in record.items() if name != "step"}
        self._step = resume_step
        self._verified = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values of declared metrics at a step that never decreases.

        Raises:
            MetricError: An undeclared name, a value out of range or not finite, a step that goes back, or files that
                do not hold what was written to them.
            OutputError: The run has been deleted meanwhile.
        """
        if step < self._step:
            raise MetricError(f"Step {step} was logged after step {self._step}: there is one step counter.")
        for name, value in values.items():
            declared = metric(name)
            if not (math.isfinite(value) and declared.low <= value <= declared.high):
                raise MetricError(f"{name} = {value} is not in its range, {declared.low} to {declared.high}.")
        with still_there(self.path, self.path.parent):
            self.path.stat()
        self._step = step
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        self._tensorboard.write(step, values)
        if self._wandb:
            self._wandb.log({"step": step, **values})
        self._latest |= values
        if not self._verified:
            self._verify(step, values)
            self._verified = True

    @property
    def step(self) -> int:
        """The step of the last record."""
        return self._step

    def latest(self, name: str) -> float | None:
        """Return the last value of a declared metric, or None if it was never measured."""
        return self._latest.get(metric(name).name)

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()

    def _verify(self, step: int, values: Mapping[str, float]) -> None:
        """Read both files back: a log that holds nothing is found out at the first record, not after 18 hours."""
        if read_metrics(self.path.parent)[-1:] != [{"step": step, **values}]:
            raise MetricError(f"{self.path} does not hold what was just written to it. Is the disk full?")
        missing = sorted(set(values) - set(read_tensorboard(self._tensorboard_dir)))
        if missing:
            raise MetricError(f"The TensorBoard files in {self._tensorboard_dir} lack {', '.join(missing)}.")


class _EventFile:
    """A TensorBoard file whose records are on disk when :meth:`write` returns.

    PyTorch's SummaryWriter writes in a thread, which prints a traceback of its own when the disk is full.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        """Begin a file; what earlier ones hold from ``purge_step`` on is void."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"  # readers sort by name
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._append(step=purge_step, file_version="brain.Event:2")
        self._append(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step."""
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._append(step=step, summary=self._summary(value=scalars))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, **parts: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **parts).SerializeToString())
        self._file.flush()


def read_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    """Return the values in a folder's TensorBoard files, by name and step.

    Raises:
        DamagedFileError: One of its files is no regular file: reading a pipe would never end.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for file in folder.iterdir():
        require_regular(file)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    values: dict[str, dict[int, float]] = {}
    for name in events.Tags()["scalars"]:
        values[name] = {event.step: event.value for event in events.Scalars(name)}
    return values


def _open_wandb(run: Path, project: str, config: Mapping[str, Any] | None = None) -> Any:
    """Begin a run at Weights & Biases, or go on with that of ``run``; the runs of several seeds are a group."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(f"wandb_project={project} needs W&B's client: {install_hint('wandb')}") from error
    note = run / "wandb_id"
    group = run.resolve().parent.name if (run.resolve().parent / SEEDS).exists() else None
    if not note.exists():
        write_text(note, uuid.uuid4().hex)
    try:
        return wandb.init(
            project=project,
            group=group,
            id=read_text(note),
            resume="allow",
            dir=run,
            name=run.name,
            config=dict(config or {}),
        )
    except wandb.errors.Error as error:
        hint = "Log in (wandb login), or set WANDB_MODE=offline."
        raise ConfigError(f"wandb_project={project}: {error} {hint}") from error


def log_evaluation(run: Path, project: str, results: Path) -> None:
    """Send the episodes of an evaluation of ``run`` (``episodes.csv`` in ``results``) and its videos to its W&B run.

    Raises:
        ConfigError: The client of Weights & Biases is missing or does not get in.
    """
    session = _open_wandb(run, project)
    import wandb

    rows = list(csv.DictReader(read_text(results / "episodes.csv").splitlines()))
    name = results.name if results.resolve().parent == run.resolve() else f"{results.parent.name}/{results.name}"
    values: dict[str, Any] = {
        f"{name}/episodes": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
    }
    for path in sorted((results / "videos").glob("*.mp4")):
        values[f"{name}/videos/{path.stem}"] = wandb.Video(str(path), format="mp4")
    session.log(values)
    session.finish()


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Read the records of a run; each has ``step`` and the metrics measured then.

    The last line is skipped if it was torn by a kill: it has no end.

    Raises:
        DamagedFileError: Another line is not a record.
    """
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    *lines, _torn = read_text(path).split("\n")
    return [_record(path, number, line) for number, line in enumerate(lines, 1)]


def _record(path: Path, number: int, line: str) -> dict[str, float]:
    try:
        record = json.loads(line)
        values = list(record.values())
        if type(record["step"]) is not int or not all(type(value) in (int, float) for value in values):
            raise ValueError("a step and numbers were expected")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: line {number}: {error}.") from error
    return dict(record)


def series(run: Path, name: str) -> list[tuple[int, float]]:
    """Return ``(step, value)`` of one declared metric over a run, where it was measured."""
    declared = metric(name).name
    return [(int(record["step"]), record[declared]) for record in read_metrics(run) if declared in record]

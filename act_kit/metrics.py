"""Training metrics: each is declared once and written by one logger with one step counter.

A progress bar that read ``"rewards"`` where the trainer wrote ``"reward"`` once hid a failed training for weeks; two
loggers with competing step counters once recorded nothing. Therefore an undeclared name is an error, for the writer and
the reader; a metric that was not measured is absent, never 0; and the files are read back after the first record.
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
from act_kit.files import SEEDS, read_text, require_existing, require_regular, write_text
from act_kit.sim.tasks import expand_tasks


@dataclass(frozen=True)
class Metric:
    """A declared metric.

    Attributes:
        name: ``<source>/<quantity>``; only quantities measured in the environment are named ``eval/…``.
        unit: Unit of the values.
        better: Direction that is better, whose extreme Weights & Biases shows as the summary of a run; or None.
        low, high: Range of the values.
    """

    name: str
    unit: str
    better: Literal["up", "down", None]
    low: float = 0.0
    high: float = math.inf

    def accepts(self, value: float) -> bool:
        """Return True if a value is finite and in the range."""
        return math.isfinite(value) and self.low <= value <= self.high

    @property
    def range(self) -> str:
        """The range with its unit, for messages."""
        return f"{self.low:g} to {self.high:g} {self.unit}".rstrip()


_DECLARED = (
    Metric("eval/success", "fraction", "up", 0, 1),
    Metric("eval/success_low", "fraction", "up", 0, 1),
    Metric("eval/success_high", "fraction", "up", 0, 1),
    Metric("eval/final_distance", "m (rad for lever-pull)", "down"),
    Metric("train/loss", "action units", "down"),
    Metric("train/l1", "action units", "down"),
    Metric("train/grad_norm", "", None),
    Metric("train/lr", "", None),
    Metric("train/steps_per_s", "1/s", "up"),
    Metric("train/roofline_fraction", "fraction", "up"),
    Metric("host/memory", "GB", None),
    Metric("device/memory", "GB", None),
    Metric("val/l1", "action units", "down"),
    Metric("finetune/success", "fraction of the noisy episodes", "up", 0, 1),
    Metric("finetune/iteration", "", None),
    Metric("finetune/steps_per_s", "1/s", "up"),
    Metric("finetune/divergence", "nats", None, -math.inf),
    Metric("finetune/base_divergence", "nats", None),
    Metric("finetune/clip_fraction", "fraction", None, 0, 1),
    Metric("finetune/policy_loss", "", None, -math.inf),
    Metric("finetune/policy_grad_norm", "", None),
    Metric("finetune/policy_steps", "", None),
    Metric("finetune/value_loss", "", "down"),
    Metric("finetune/value_grad_norm", "", None),
    Metric("finetune/explained_variance", "fraction", "up", -math.inf, 1),
    Metric("finetune/value_low", "reward of a success", None, -math.inf),
    Metric("finetune/value_high", "reward of a success", None, -math.inf),
    Metric("finetune/sigma", "action units", None),
    *[Metric(f"eval/success/{task}", "fraction", "up", 0, 1) for task in expand_tasks("MT50")],
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _DECLARED}
"""Declared metrics by name; a policy's model adds its own (:func:`act_kit.policies.chunk_model.register_model`)."""


def metric(name: str) -> Metric:
    """Return the declaration of a metric, or raise :class:`MetricError`."""
    if name not in METRICS:
        raise MetricError(f"'{name}' is not a declared metric.{did_you_mean(name, METRICS)} See act_kit/metrics.py.")
    return METRICS[name]


class MetricLogger:
    """Logger of a run: writes records to ``metrics.jsonl``, TensorBoard and, optionally, Weights & Biases.

    ``metrics.jsonl`` is the source of truth.

    Attributes:
        step: Step of the last record.
    """

    def __init__(
        self, run: Path, *, resume_step: int = 0, wandb_project: str = "", config: Mapping[str, Any] | None = None
    ) -> None:
        """Open the logs of ``run`` and drop records after ``resume_step``, which a killed run left.

        ``config`` is sent to Weights & Biases.

        Raises:
            ConfigError: A W&B project is given, but the W&B client is missing or cannot log in.
        """
        self._wandb = _open_wandb(run, wandb_project, config) if wandb_project else None
        if self._wandb:
            for declared in METRICS.values():
                if declared.better:
                    self._wandb.define_metric(declared.name, summary="max" if declared.better == "up" else "min")
        self.path = run / "metrics.jsonl"
        self._tensorboard_dir = run / "tensorboard"
        self._latest: dict[str, float] = {}
        kept = []
        for record in read_metrics(run):
            if record["step"] <= resume_step:
                kept.append(json.dumps(record) + "\n")
                self._latest |= record
        write_text(self.path, "".join(kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._tensorboard = _EventFile(self._tensorboard_dir, purge_step=resume_step + 1)
        self.step = resume_step
        self._verified = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values of declared metrics at a step that never decreases.

        Raises:
            MetricError: A name is undeclared, a value is out of range or not finite, the step decreases, or the files
                do not contain the first record.
            OutputError: The run has been deleted in the meantime.
        """
        if step < self.step:
            raise MetricError(f"Step {step} was logged after step {self.step}: expected steps that never decrease.")
        for name, value in values.items():
            declared = metric(name)
            if not declared.accepts(value):
                raise MetricError(f"{name} = {value} is not in its range: {declared.range}.")
        with require_existing(self.path, self.path.parent):
            self.path.stat()
        self.step = step
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        self._tensorboard.write(step, values)
        if self._wandb:
            self._wandb.log({"step": step, **values})
        self._latest |= values
        if not self._verified:
            self._verify(step, values)
            self._verified = True

    def latest(self, name: str) -> float | None:
        """Return the last value of a declared metric, or None if it was never measured."""
        metric(name)
        return self._latest.get(name)

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()

    def _verify(self, step: int, values: Mapping[str, float]) -> None:
        """Read both files back, to detect an empty log at the first record instead of after 18 hours."""
        if read_metrics(self.path.parent)[-1:] != [{"step": step, **values}]:
            raise MetricError(f"{self.path} does not contain the record just written. Fix: check for a full disk.")
        missing = sorted(set(values) - set(read_tensorboard(self._tensorboard_dir)))
        if missing:
            raise MetricError(f"The TensorBoard files in {self._tensorboard_dir} lack {', '.join(missing)}.")


class _EventFile:
    """TensorBoard file whose records are on disk when :meth:`write` returns.

    PyTorch's SummaryWriter writes in a thread, which prints its own traceback when the disk is full.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        """Create a file; records of earlier files from ``purge_step`` on become invalid."""
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
        """Write the values of a step."""
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
        DamagedFileError: A file is not a regular file; reading a pipe would never end.
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
    """Start a W&B run, or resume the one of ``run``; the runs of several seeds form a group."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(f"wandb_project={project} needs W&B's client: {install_hint('wandb')}") from error
    id_file = run / "wandb_id"
    group = run.resolve().parent.name if (run.resolve().parent / SEEDS).exists() else None
    if not id_file.exists():
        write_text(id_file, uuid.uuid4().hex)
    try:
        where: Any = {"project": project, "group": group, "dir": run, "name": run.name}
        return wandb.init(**where, id=read_text(id_file), resume="allow", config=dict(config or {}))
    except wandb.errors.Error as error:
        raise ConfigError(
            f"wandb_project={project}: {error} Fix: log in (wandb login), or set WANDB_MODE=offline."
        ) from error


def log_evaluation(run: Path, project: str, results: Path) -> None:
    """Send the episodes of an evaluation of ``run`` (``episodes.csv`` in ``results``) and its videos to its W&B run.

    Raises:
        ConfigError: The W&B client is missing or cannot log in.
    """
    session = _open_wandb(run, project)
    import wandb

    rows = list(csv.reader(read_text(results / "episodes.csv").splitlines()))
    name = results.name if results.resolve().parent == run.resolve() else f"{results.parent.name}/{results.name}"
    values: dict[str, Any] = {f"{name}/episodes": wandb.Table(columns=list(rows[0]), data=rows[1:])}
    for path in sorted((results / "videos").glob("*.mp4")):
        values[f"{name}/videos/{path.stem}"] = wandb.Video(str(path), format="mp4")
    session.log(values)
    session.finish()


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Read the records of a run; each has ``step`` and the metrics measured at that step.

    A last line without a newline, truncated by a kill, is skipped.

    Raises:
        DamagedFileError: Another line is not a record.
    """
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    *lines, _truncated = read_text(path).split("\n")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if type(record["step"]) is not int or not {int, float}.issuperset(map(type, record.values())):
                raise ValueError("expected a step and numbers")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedFileError(f"{path} is damaged: line {number}: {error}.") from error
        records.append(record)
    return records


def series(run: Path, name: str) -> list[tuple[int, float]]:
    """Return ``(step, value)`` of a declared metric at every step of a run where it was measured."""
    metric(name)
    return [(int(record["step"]), record[name]) for record in read_metrics(run) if name in record]

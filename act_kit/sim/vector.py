"""Many simulators of one task, spread over processes, stepped together: one message per process and chunk."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import numpy as np

from act_kit.errors import WorkerError
from act_kit.sim.simulator import Segment, Simulator
from act_kit.sim.starts import Start
from act_kit.sim.workers import init_worker


@dataclass(frozen=True)
class Crash:
    """What a row returns instead of a segment when its simulation broke down."""

    message: str


class _Rows:
    """The simulators of one process, built when first reset."""

    def __init__(self, task: str) -> None:
        self.task = task
        self._simulators: dict[int, Simulator] = {}

    def reset(self, starts: Mapping[int, Start]) -> dict[int, tuple[np.ndarray, float]]:
        outcome = {}
        for row, start in starts.items():
            if row not in self._simulators:
                self._simulators[row] = Simulator(self.task)
            outcome[row] = self._simulators[row].reset(start), self._simulators[row].distance
        return outcome

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, Segment | Crash]:
        return {row: self._step(row, chunk) for row, chunk in actions.items()}

    def _step(self, row: int, chunk: np.ndarray) -> Segment | Crash:
        try:
            return self._simulators[row].step_chunk(chunk)
        except Exception as error:
            # One unstable simulation must not take the others of its process with it. Its row starts afresh.
            del self._simulators[row]
            return Crash(f"{type(error).__name__}: {error}")


def _serve(task: str, connection: Connection) -> None:
    init_worker()
    rows = _Rows(task)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(getattr(rows, method)(arguments))
        except Exception as error:
            connection.send(error)


class VectorSimulator:
    """Simulators by row. Row r lives in process ``r % num_workers``; with one worker, in this process."""

    def __init__(self, task: str, num_rows: int, num_workers: int) -> None:
        self.task = task
        self.num_rows = num_rows
        self.num_workers = min(num_workers, num_rows)
        self._own: _Rows | None = None
        self._workers: list[tuple[BaseProcess, Connection]] = []
        if self.num_workers == 1:
            self._own = _Rows(task)
            return
        context = multiprocessing.get_context("spawn")
        for _ in range(self.num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(task, theirs), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    def reset(self, starts: Mapping[int, Start]) -> dict[int, tuple[np.ndarray, float]]:
        """Reset rows to starts; return each one's state, float64 (39,), and distance."""
        return self._call("reset", starts)

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, Segment | Crash]:
        """Step rows by chunks (N, 4), all processes at the same time."""
        return self._call("step", actions)

    def _call(self, method: str, arguments: Mapping[int, Any]) -> dict[int, Any]:
        if self._own is not None:
            own: dict[int, Any] = getattr(self._own, method)(arguments)
            return own
        shares: dict[Connection, dict[int, Any]] = {}
        for row, value in arguments.items():
            shares.setdefault(self._workers[row % self.num_workers][1], {})[row] = value
        try:
            for connection, share in shares.items():
                connection.send((method, share))
            replies = [connection.recv() for connection in shares]
        except (EOFError, ConnectionError) as error:
            raise WorkerError(self.task) from error
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return {row: value for reply in replies for row, value in reply.items()}

    def close(self) -> None:
        """End the processes."""
        for process, connection in self._workers:
            connection.close()
            process.join(timeout=10)
        self._workers = []

    def __enter__(self) -> VectorSimulator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

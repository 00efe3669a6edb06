"""Many simulators, spread over processes: one message per process and chunk, answered when it is done."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Literal

import numpy as np

from act_kit.arrays import name_rows
from act_kit.errors import ArrayError, InitialStateError
from act_kit.sim.engine import StepBatch
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import CameraViews, find_gl, get_renderer
from act_kit.sim.simulator import Simulator, as_actions
from act_kit.sim.tasks import get_task
from act_kit.sim.threads import Exclusive
from act_kit.sim.workers import Worker, died, environment, init_worker


@dataclass(frozen=True)
class SimulationFailure:
    """What a row answers instead of a segment when its simulation broke down."""

    message: str


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a row answers to a reset or to a chunk of actions.

    Attributes:
        state: float64 (39,), after it.
        distance: After it.
        segment: What happened on the way; None after a reset.
        images: uint8 (C, H, W, 3), after it; None without views, and at the horizon, where nobody looks any more.
    """

    state: np.ndarray
    distance: float
    step_batch: StepBatch | None
    images: np.ndarray | None


_Method = Literal["reset", "step"]


class _Rows:
    """The simulators of one process, each built when its row is first reset to a start of that task."""

    def __init__(self, engine: str, views: CameraViews | None) -> None:
        self._engine = engine
        self._views = views
        self._simulators: dict[int, Simulator] = {}
        self._first_of_task: dict[str, Simulator] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def answer(self, method: _Method, arguments: Mapping[int, Any]) -> dict[int, StepResult | SimulationFailure]:
        """Carry out one message."""
        return {row: self._answer(method, row, argument) for row, argument in arguments.items()}

    def _answer(self, method: _Method, row: int, argument: Any) -> StepResult | SimulationFailure:
        began = time.perf_counter()
        step_batch = None
        if method == "reset":
            simulator = self._simulator(row, argument.task)
            simulator.reset(argument)
        else:
            simulator = self._simulators[row]
            try:
                step_batch = simulator.step_chunk(argument)
            except Exception as error:
                # One unstable simulation must not take the others of its process with it. Its row starts afresh.
                del self._simulators[row]
                return SimulationFailure(f"{type(error).__name__}: {error}")
        simulated = time.perf_counter()
        images = None
        if self._views and simulator.steps_left:
            images = get_renderer(self._views.settings).draw(simulator, simulator.physics(), self._views.cameras)
        self.seconds["simulating"] += simulated - began
        self.seconds["rendering"] += time.perf_counter() - simulated
        return StepResult(state=simulator.state, distance=simulator.distance, step_batch=step_batch, images=images)

    def _simulator(self, row: int, task: str) -> Simulator:
        """Return the row's simulator, another one if its task changes."""
        if row not in self._simulators or self._simulators[row].task.name != task:
            self._simulators[row] = Simulator(task, self._engine)
            # Kept, and with it the model that those of a task share: that takes 0.2 s, the next simulator 3 ms.
            self._first_of_task.setdefault(task, self._simulators[row])
        return self._simulators[row]


def _serve(engine: str, views: CameraViews | None, connection: Connection) -> None:
    init_worker()
    rows = _Rows(engine, views)
    # Read ahead: whoever sends the next message must not have to wait until this one is answered.
    messages: queue.SimpleQueue[tuple[_Method, Mapping[int, Any]] | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                messages.put(connection.recv())
        except (EOFError, OSError):
            messages.put(None)

    threading.Thread(target=read, daemon=True, name="read").start()
    while (message := messages.get()) is not None:
        try:
            answers: dict[int, StepResult | SimulationFailure] | Exception = rows.answer(*message)
        except Exception as error:
            answers = error
        try:
            connection.send((answers, dict(rows.seconds)))
        except OSError:  # the parent has stopped listening
            return
        rows.seconds.clear()


def _check_row(row: object) -> None:
    if isinstance(row, bool) or not isinstance(row, int | np.integer) or row < 0:
        raise ArrayError(f"Row {row!r} of a vector simulator: expected an integer from 0.")


class VectorSimulator:
    """Simulators by row, each of the task that it was last reset to a start of.

    Row r lives in process ``r % num_workers``. ``reset`` and ``step`` return at once; ``receive`` returns what has been
    answered. Those of one process are carried out in their order. A process needs 30 MB for each task that came its
    way, 70 MB if it draws, and 1 MB for each row. One thread uses it at a time; several threads make one each.

    Attributes:
        num_workers: Processes that simulate, be it this one.
        views: Through which cameras every state is shown; None for none.
        seconds: Where the processes spent their time since this was made: simulating, rendering.
    """

    def __init__(self, num_workers: int, *, engine: str = "fast", views: CameraViews | None = None) -> None:
        """Use so many processes of their own, or with 0 this one, which then needs a GL library set to draw views."""
        self.num_workers = max(1, num_workers)
        self.views = views
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._num_asked = 0
        self._begun: set[int] = set()
        self._exclusive = Exclusive("vector simulator", "make one for each thread.")
        self._own = None if num_workers else _Rows(engine, views)
        self._inbox: deque[tuple[_Method, Mapping[int, Any]]] = deque()
        self._workers: list[tuple[Worker, Connection]] = []
        with environment(find_gl(num_workers).environment if num_workers and views else {}):
            for _ in range(num_workers):
                ours, theirs = multiprocessing.Pipe()
                process = Worker(target=_serve, args=(engine, views, theirs), daemon=True)
                process.start()
                theirs.close()
                self._workers.append((process, ours))

    def __getstate__(self) -> object:
        raise TypeError(
            "A VectorSimulator cannot be copied or pickled: it has processes. Fix: make another; to copy an episode, "
            "use a Simulator and simulator.save()."
        )

    def reset(self, init_states: Mapping[int, InitialState]) -> None:
        """Reset rows to starts.

        Raises:
            StartError: One is no start, or Meta-World would never accept it; nothing has been reset then.
        """
        for row, init_state in init_states.items():
            _check_row(row)
            if not isinstance(init_state, InitialState):
                raise InitialStateError(f"Row {row} is reset to a Start, not to {type(init_state).__name__}.")
            get_task(init_state.task).check(init_state.array)
        with self._exclusive:
            self._ask("reset", init_states)
            self._begun.update(init_states)

    def step(self, chunks: Mapping[int, np.ndarray]) -> None:
        """Step rows by chunks of actions (T, 4), clipped to [-1, 1].

        Raises:
            ArrayError: They are no finite numbers of that shape; no row has been stepped then.
            StartError: A row was never reset.
        """
        missing = chunks.keys() - self._begun
        if missing:
            raise InitialStateError(f"{name_rows(sorted(missing))} has no episode yet. Fix: reset it to a start first.")
        checked = {row: as_actions(chunk, f"actions of row {row}") for row, chunk in chunks.items()}
        with self._exclusive:
            self._ask("step", checked)

    def _ask(self, method: _Method, arguments: Mapping[int, Any]) -> None:
        if self._own is not None:
            if arguments:
                self._inbox.append((method, arguments))
            return
        shares: dict[int, dict[int, Any]] = {}
        for row, argument in arguments.items():
            shares.setdefault(row % self.num_workers, {})[row] = argument
        try:
            for worker, share in shares.items():
                self._workers[worker][1].send((method, share))
                self._num_asked += 1
        except (EOFError, OSError) as error:
            raise died("simulated", [process for process, _ in self._workers]) from error

    def receive(self) -> dict[int, StepResult | SimulationFailure]:
        """Wait for the next answers and return all there are, by row; empty if nothing was asked."""
        with self._exclusive:
            return self._receive_all()

    def _receive_all(self) -> dict[int, StepResult | SimulationFailure]:
        if self._own is not None:
            answers = self._own.answer(*self._inbox.popleft()) if self._inbox else {}
            self._note(self._own.seconds)
            self._own.seconds.clear()
            return answers
        answers = {}
        if self._num_asked:
            connections = [connection for _, connection in self._workers]
            for connection in wait(connections):
                answers |= self._receive(connection)
        return answers

    def _receive(self, connection: Any) -> dict[int, StepResult | SimulationFailure]:
        try:
            answers, seconds = connection.recv()
        except (EOFError, OSError) as error:
            raise died("simulated", [process for process, _ in self._workers]) from error
        self._num_asked -= 1
        if isinstance(answers, Exception):
            raise answers
        self._note(seconds)
        received: dict[int, StepResult | SimulationFailure] = answers
        return received

    def _note(self, seconds: Mapping[str, float]) -> None:
        for what, spent in seconds.items():
            self.seconds[what] += spent

    def close(self) -> None:
        """End the processes."""
        for _, connection in self._workers:
            connection.close()
        for process, _ in self._workers:
            process.join(timeout=10)
        self._workers = []

    def __enter__(self) -> VectorSimulator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

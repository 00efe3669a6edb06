"""Many simulators distributed over processes, with one message per process and chunk."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from act_kit.arrays import name_rows
from act_kit.errors import ArrayError, InitialStateError
from act_kit.sim.engine import StepBatch
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import CameraViews, find_gl, get_renderer
from act_kit.sim.simulator import Simulator, as_actions
from act_kit.sim.tasks import get_task
from act_kit.sim.threads import SingleThreadGuard
from act_kit.workers import Worker, environment, init_worker, worker_error


@dataclass(frozen=True)
class SimulationFailure:
    """Result of a row whose simulation raised an exception.

    Attributes:
        message: Type and message of the exception.
    """

    message: str


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of a reset, or of a chunk of actions, of one row.

    Attributes:
        state: float64 (39,), after the last step.
        distance: Distance to the goal after the last step.
        step_batch: Results of the steps; None after a reset.
        images: uint8 (C, H, W, 3), after the last step; None without views, and at the horizon, where no images are
            needed.
        physics: float64 (P,), MuJoCo's full integration state after the last step; None unless it was requested.
    """

    state: np.ndarray
    distance: float
    step_batch: StepBatch | None
    images: np.ndarray | None
    physics: np.ndarray | None = None


_Result: TypeAlias = StepResult | SimulationFailure


_Argument: TypeAlias = InitialState | np.ndarray | None


class _Message(NamedTuple):
    """Message to a process, by row: the initial state to reset to, the actions to execute, or None for the physics."""

    arguments: Mapping[int, _Argument]
    settle_steps: int = 0
    rewards: bool = False
    physics: bool = False


class _Rows:
    """Simulators of one process, each created at the first reset of its row to an initial state of its task."""

    def __init__(self, engine: str, views: CameraViews | None, seconds: dict[str, float]) -> None:
        self._engine = engine
        self._views = views
        self._simulators: dict[int, Simulator] = {}
        self._first_of_task: dict[str, Simulator] = {}
        self.seconds = seconds

    def execute(self, message: _Message) -> dict[int, _Result]:
        """Execute one message; return the result of each row."""
        return {row: self._execute(row, argument, message) for row, argument in message.arguments.items()}

    def _execute(self, row: int, argument: _Argument, message: _Message) -> _Result:
        if argument is None:
            simulator = self._simulators[row]
            return StepResult(
                state=simulator.state,
                distance=simulator.distance,
                step_batch=None,
                images=None,
                physics=simulator.physics(),
            )
        start_time = time.perf_counter()
        step_batch = None
        if isinstance(argument, InitialState):
            simulator = self._simulator(row, argument.task)
            simulator.reset(argument)
            simulator.settle(message.settle_steps)
        else:
            simulator = self._simulators[row]
            try:
                step_batch = simulator.execute(argument, rewards=message.rewards, physics=message.physics)
            except Exception as error:
                # One unstable simulation must not stop the others of its process. Its row gets a new simulator.
                del self._simulators[row]
                return SimulationFailure(f"{type(error).__name__}: {error}")
        simulated_time = time.perf_counter()
        images = None
        if self._views and simulator.steps_left:
            images = get_renderer(self._views.settings).draw(simulator, simulator.physics(), self._views.cameras)
        self.seconds["simulating"] += simulated_time - start_time
        self.seconds["rendering"] += time.perf_counter() - simulated_time
        return StepResult(state=simulator.state, distance=simulator.distance, step_batch=step_batch, images=images)

    def _simulator(self, row: int, task: str) -> Simulator:
        """Return the row's simulator; replace it if the task changes."""
        if row not in self._simulators or self._simulators[row].task.name != task:
            self._simulators[row] = Simulator(task, self._engine)
            # Keeps the shared model of the task alive: it takes 0.2 s, each further simulator 3 ms.
            self._first_of_task.setdefault(task, self._simulators[row])
        return self._simulators[row]


def _serve(engine: str, views: CameraViews | None, connection: Connection) -> None:
    init_worker()
    seconds: defaultdict[str, float] = defaultdict(float)
    rows = _Rows(engine, views, seconds)
    # Reads ahead, so that the sender of the next message does not wait for the result of this one.
    messages: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                messages.put(connection.recv())
        except (EOFError, OSError):
            messages.put(None)

    threading.Thread(target=read, daemon=True, name="read").start()
    while (message := messages.get()) is not None:
        try:
            results: dict[int, _Result] | Exception = rows.execute(message)
        except Exception as error:
            results = error
        try:
            connection.send((results, dict(seconds)))
        except OSError:  # the parent has closed the connection
            return
        seconds.clear()


class VectorSimulator:
    """Simulators by row; the task of a row is that of its last reset.

    Row r runs in process ``r % num_workers``. ``reset`` and ``step`` return immediately; ``receive`` returns the
    available results. A process executes its messages in order. It needs 30 MB for each task it has simulated, 70 MB
    if it renders, and 1 MB for each row. Only one thread may use a vector simulator at a time; each thread makes its
    own.

    Attributes:
        num_workers: Number of processes that simulate, including this process if there are no others.
        views: Cameras whose images are rendered after each reset and chunk; None for none.
        seconds: Total time of the processes by activity: simulating, rendering.
    """

    def __init__(self, num_workers: int, *, engine: str = "fast", views: CameraViews | None = None) -> None:
        """Start ``num_workers`` processes; with 0, simulate in this process.

        With ``views`` and 0 workers, the environment of this process must select an OpenGL library.
        """
        self.num_workers = max(1, num_workers)
        self.views = views
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._num_pending = 0
        self._reset_rows: set[int] = set()
        self._exclusive = SingleThreadGuard("vector simulator", "make one for each thread.")
        self._local_rows = None if num_workers else _Rows(engine, views, self.seconds)
        self._inbox: deque[_Message] = deque()
        self._workers: list[tuple[Worker, Connection]] = []
        with environment(find_gl(num_workers).environment if num_workers and views else {}):
            for _ in range(num_workers):
                parent_end, worker_end = multiprocessing.Pipe()
                process = Worker(target=_serve, args=(engine, views, worker_end), daemon=True)
                process.start()
                worker_end.close()
                self._workers.append((process, parent_end))

    def __getstate__(self) -> object:
        raise TypeError(
            "A VectorSimulator cannot be copied or pickled because it has processes. Fix: make another one; to copy an "
            "episode, use a Simulator and simulator.save()."
        )

    def reset(self, init_states: Mapping[int, InitialState], *, settle_steps: int = 0) -> None:
        """Reset rows to initial states, and execute ``settle_steps`` zero actions; the result is that after them.

        Raises:
            InitialStateError: A task cannot be reset to its initial state; no row has been reset.
        """
        for row, init_state in init_states.items():
            if isinstance(row, bool) or not isinstance(row, int | np.integer) or row < 0:
                raise ArrayError(f"Row {row!r} of a vector simulator: expected an integer of at least 0.")
            if not isinstance(init_state, InitialState):
                raise InitialStateError(
                    f"Row {row} cannot be reset to {type(init_state).__name__}: expected an InitialState."
                )
            get_task(init_state.task).check(init_state.array)
        with self._exclusive:
            self._send(_Message(arguments=init_states, settle_steps=settle_steps))
            self._reset_rows.update(init_states)

    def step(self, chunks: Mapping[int, np.ndarray], *, rewards: bool = False, physics: bool = False) -> None:
        """Step rows by chunks of actions (T, 4), clipped to [-1, 1]; see :meth:`Simulator.step_chunk`.

        Raises:
            ArrayError: The actions are not finite numbers of this shape; no row has been stepped.
            InitialStateError: A row was never reset.
        """
        missing = chunks.keys() - self._reset_rows
        if missing:
            raise InitialStateError(f"No episode yet in {name_rows(sorted(missing))}. Fix: call reset before step.")
        checked = {row: as_actions(chunk, f"actions of row {row}") for row, chunk in chunks.items()}
        self.execute(checked, rewards=rewards, physics=physics)

    def execute(self, chunks: Mapping[int, np.ndarray], *, rewards: bool = False, physics: bool = False) -> None:
        """Step rows by chunks of actions, float32 (T, 4) in [-1, 1], without checking them; see :meth:`step`."""
        with self._exclusive:
            self._send(_Message(arguments=chunks, rewards=rewards, physics=physics))

    def request_physics(self, rows: Iterable[int]) -> None:
        """Request the current physics state of rows that were reset; see :attr:`StepResult.physics`."""
        with self._exclusive:
            self._send(_Message(arguments=dict.fromkeys(rows)))

    def _send(self, message: _Message) -> None:
        if self._local_rows is not None:
            if message.arguments:
                self._inbox.append(message)
            return
        shares: dict[int, dict[int, _Argument]] = {}
        for row, argument in message.arguments.items():
            shares.setdefault(row % self.num_workers, {})[row] = argument
        try:
            for worker, share in shares.items():
                self._workers[worker][1].send(message._replace(arguments=share))
                self._num_pending += 1
        except (EOFError, OSError) as error:
            raise worker_error("simulating", [process for process, _ in self._workers]) from error

    def receive(self) -> dict[int, _Result]:
        """Wait for results and return all available ones, by row; empty if no message is pending."""
        with self._exclusive:
            results: dict[int, _Result] = {}
            if self._local_rows is not None:
                if self._inbox:
                    results = self._local_rows.execute(self._inbox.popleft())
            elif self._num_pending:
                for connection in wait([connection for _, connection in self._workers]):
                    results |= self._receive(connection)
            return results

    def _receive(self, connection: Any) -> dict[int, _Result]:
        results: dict[int, _Result] | Exception
        try:
            results, seconds = connection.recv()
        except (EOFError, OSError) as error:
            raise worker_error("simulating", [process for process, _ in self._workers]) from error
        self._num_pending -= 1
        if isinstance(results, Exception):
            raise results
        for activity, spent in seconds.items():
            self.seconds[activity] += spent
        return results

    def close(self) -> None:
        """Stop the processes."""
        for _, connection in self._workers:
            connection.close()
        for process, _ in self._workers:
            process.join(timeout=10)
        self._workers = []

    def __enter__(self) -> VectorSimulator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

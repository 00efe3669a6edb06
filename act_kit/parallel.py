"""Where jobs run: in this process, in processes of this machine, or on a Ray cluster. The results are the same.

A job is a call of a module-level function; it may run anywhere, and again after its process died, so it must depend on
its arguments alone.
"""

from __future__ import annotations

import logging
import os
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from act_kit import interrupts
from act_kit.errors import ConfigError, did_you_mean, install_hint
from act_kit.sim.workers import Pool, died, environment
from act_kit.versions import what_decides_bits

R = TypeVar("R")

_RETRIES = 5
"""How often a job may lose its process or its node before it is to blame itself."""


_POLL_S = 0.2
"""How soon a Ctrl-C is noticed that waits for a good moment."""


class Executor(ABC):
    """Runs jobs, several at a time.

    Attributes:
        num_workers: How many.
    """

    num_workers: int

    @abstractmethod
    def map(self, function: Callable[..., R], jobs: Iterable[tuple[Any, ...]]) -> Generator[R]:
        """Yield the results of ``function(*job)`` in the order of ``jobs``, which are taken as needed.

        Closed early, it drops the jobs that have not begun.

        Raises:
            WorkerError: A job lost its process, and nobody takes it up.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the processes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class LocalExecutor(Executor):
    """Processes of this machine; with one worker, this process."""

    def __init__(self, num_workers: int, variables: Mapping[str, str] | None = None) -> None:
        """Use so many processes; ``variables`` are set in their environment, which always takes at least one."""
        self.num_workers = num_workers
        self._variables = variables or {}
        self._pool: Pool | None = Pool(num_workers) if num_workers > 1 or variables else None

    def map(self, function: Callable[..., R], jobs: Iterable[tuple[Any, ...]]) -> Generator[R]:
        """Yield results in order; see :class:`Executor`."""
        if self._pool is None:
            for job in jobs:
                yield function(*job)
            return
        pending: deque[Future[R]] = deque()
        try:
            for job in jobs:
                with environment(self._variables):  # a process may start here
                    pending.append(self._pool.submit(function, *job))
                if len(pending) > 2 * self.num_workers:
                    yield _result(pending.popleft())
            while pending:
                yield _result(pending.popleft())
        except BrokenProcessPool as error:
            raise died(f"ran {function.__name__}", self._pool.workers) from error
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[R]) -> R:
    """Wait for a result, or for the user to interrupt."""
    while not wait([future], timeout=_POLL_S).done:
        interrupts.raise_if_interrupted()
    return future.result()


class RayExecutor(Executor):
    """An existing Ray cluster: the one at ``RAY_ADDRESS``, or the one this machine is in. Its nodes need act_kit too.

    A job whose process or node dies is done again by another.
    """

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(f"--executor ray needs Ray: {install_hint('ray')}") from error
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            if address != "auto":
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), timeout=5).close()  # Ray itself would try for minutes
            ray.init(
                address=address, runtime_env={"env_vars": dict(variables or {})}, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"There is no Ray cluster at RAY_ADDRESS={address}. Start one: ray start --head; or set RAY_ADDRESS to "
                "one, as HOST:PORT."
            ) from error
        self._ray: Any = ray
        try:
            self.num_workers = self._check_nodes(what_decides_bits())
        except BaseException:
            self.close()
            raise

    def _check_nodes(self, ours: dict[str, str]) -> int:
        """Count the cluster's processors; refuse nodes whose results would not be this machine's to the bit."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = self._ray
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}
        if not nodes:
            raise ConfigError("The Ray cluster has no processors. Add a node: ray start --address=HOST:PORT")
        answers = {}
        for name in nodes:
            here = NodeAffinitySchedulingStrategy(name, soft=False)
            answers[name] = ray.remote(scheduling_strategy=here)(what_decides_bits).remote()
        for name, answer in answers.items():
            host = nodes[name]["NodeManagerHostname"]
            try:
                theirs = ray.get(answer)
            except ray.exceptions.RayError as error:
                raise ConfigError(f"act_kit does not run on the Ray node {host}: install it there too.") from error
            if theirs != ours:
                raise ConfigError(
                    f"The Ray node {host} has {theirs}, here is {ours}: its bytes would be others. Fix: install the "
                    "same there; if only the rounding differs, export OPENBLAS_CORETYPE=Haswell on all nodes, or use "
                    "nodes with the same processor."
                )
        return int(sum(node["Resources"]["CPU"] for node in nodes.values()))

    def map(self, function: Callable[..., R], jobs: Iterable[tuple[Any, ...]]) -> Generator[R]:
        """Yield results in order; see :class:`Executor`."""
        ray = self._ray
        remote = ray.remote(max_retries=_RETRIES, num_cpus=1)(function)
        pending: deque[Any] = deque()
        try:
            for job in jobs:
                pending.append(remote.remote(*job))
                if len(pending) > 2 * self.num_workers:
                    yield ray.get(pending.popleft())
            while pending:
                yield ray.get(pending.popleft())
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise died(f"ran {function.__name__}", ()) from error
        finally:
            for reference in pending:
                ray.cancel(reference)

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """Where work goes.

    Attributes:
        executor: ``local`` or ``ray``.
        num_workers: Processes of this machine.
    """

    executor: str
    num_workers: int

    def __post_init__(self) -> None:
        if self.executor not in ("local", "ray"):
            hint = did_you_mean(self.executor, ("local", "ray"))
            raise ConfigError(f"'{self.executor}' is not an executor; there are local and ray.{hint}")

    def make_executor(self, variables: Mapping[str, str] | None = None) -> Executor:
        """Make it, its processes with these environment variables.

        Raises:
            ConfigError: Ray or its cluster is missing.
        """
        return LocalExecutor(self.num_workers, variables) if self.executor == "local" else RayExecutor(variables)

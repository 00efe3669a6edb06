"""Executors that run jobs in this process, in local processes, or on a Ray cluster, with identical results.

A job is a call of a module-level function. It can run in any process and can be repeated after its process died, so
its result must depend only on its arguments.
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
from act_kit.versions import numeric_environment
from act_kit.workers import Pool, environment, worker_error

R = TypeVar("R")
J = TypeVar("J")

_RETRIES = 5
"""Number of times that Ray restarts a job whose process or node died; after that, the job fails."""

_POLL_S = 0.2
"""Interval at which the executor checks for a deferred Ctrl-C."""


class Executor(ABC):
    """Base class of executors, which run several jobs at a time.

    Attributes:
        num_workers: Number of jobs that run at the same time.
    """

    num_workers: int

    @abstractmethod
    def map(self, function: Callable[..., R], jobs: Iterable[tuple[Any, ...]]) -> Generator[R]:
        """Yield the results of ``function(*job)`` in the order of ``jobs``, which are consumed as needed.

        Closing the generator early cancels the jobs that have not started.

        Raises:
            WorkerError: The process of a job died, and the job is not retried.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the processes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class LocalExecutor(Executor):
    """Executor that runs jobs in local processes, or in this process if there is only one worker."""

    def __init__(self, num_workers: int, variables: Mapping[str, str] | None = None) -> None:
        """Use ``num_workers`` processes, with ``variables`` in their environment.

        With ``variables``, jobs run in a separate process even if there is only one worker.
        """
        self.num_workers = num_workers
        self._variables = variables or {}
        self._pool: Pool | None = Pool(num_workers) if num_workers > 1 or variables else None

    def map(self, function: Callable[..., R], jobs: Iterable[tuple[Any, ...]]) -> Generator[R]:
        """Yield results in order; see :class:`Executor`."""
        pool = self._pool
        if pool is None:
            for job in jobs:
                yield function(*job)
            return

        def submit(*job: Any) -> Future[R]:
            with environment(self._variables):  # submitting a job can start a process
                return pool.submit(function, *job)

        try:
            yield from _in_order(jobs, submit, _result, Future.cancel, self.num_workers)
        except BrokenProcessPool as error:
            raise worker_error(f"running {function.__name__}", pool.workers) from error

    def close(self) -> None:
        """Stop the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    jobs: Iterable[tuple[Any, ...]],
    submit: Callable[..., J],
    result: Callable[[J], R],
    cancel: Callable[[J], object],
    num_workers: int,
) -> Generator[R]:
    """Submit jobs as needed and yield their results in order; cancel the submitted ones if it is closed early."""
    pending: deque[J] = deque()
    try:
        for job in jobs:
            pending.append(submit(*job))
            if len(pending) > 2 * num_workers:
                yield result(pending.popleft())
        while pending:
            yield result(pending.popleft())
    finally:
        for submitted in pending:
            cancel(submitted)


def _result(future: Future[R]) -> R:
    """Return the result of a future; raise if the user interrupts."""
    while not wait([future], timeout=_POLL_S).done:
        interrupts.raise_if_interrupted()
    return future.result()


class RayExecutor(Executor):
    """Executor that runs jobs on an existing Ray cluster: the one at ``RAY_ADDRESS``, or the one of this machine.

    act_kit must be installed on its nodes. A job whose process or node dies runs again in another process.
    """

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                f"--executor ray requires Ray, which is not installed. Fix: {install_hint('ray')}"
            ) from error
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            if address != "auto":
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), timeout=5).close()  # Ray itself retries for minutes
            runtime_env = {"env_vars": dict(variables or {})}
            ray.init(address=address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"There is no Ray cluster at RAY_ADDRESS={address}. Fix: start one with: ray start --head; or set "
                "RAY_ADDRESS to the HOST:PORT of a running cluster."
            ) from error
        self._ray: Any = ray
        try:
            self.num_workers = self._check_nodes(numeric_environment())
        except BaseException:
            self.close()
            raise

    def _check_nodes(self, local: dict[str, str]) -> int:
        """Return the number of CPUs of the cluster.

        Raises:
            ConfigError: A node has other versions than ``local`` or rounds differently, so its results would not be
                bit-exact; or there is no node, or act_kit is missing on a node.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = self._ray
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not nodes:
            raise ConfigError("The Ray cluster has no CPUs. Fix: add a node with: ray start --address=HOST:PORT")
        pending = []
        for node in nodes:
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            pending.append(ray.remote(scheduling_strategy=on_node)(numeric_environment).remote())
        for node, reference in zip(nodes, pending, strict=True):
            host = node["NodeManagerHostname"]
            try:
                remote = ray.get(reference)
            except ray.exceptions.RayError as error:
                raise ConfigError(f"act_kit does not run on the Ray node {host}. Fix: install it there.") from error
            if remote != local:
                raise ConfigError(
                    f"The Ray node {host} has {remote}, this machine has {local}: the results would not be bit-exact. "
                    "Fix: install the same versions there; if only the rounding differs, export "
                    "OPENBLAS_CORETYPE=Haswell on all nodes, or use nodes with the same processor."
                )
        return int(sum(node["Resources"]["CPU"] for node in nodes))

    def map(self, function: Callable[..., R], jobs: Iterable[tuple[Any, ...]]) -> Generator[R]:
        """Yield results in order; see :class:`Executor`."""
        ray = self._ray
        remote = ray.remote(max_retries=_RETRIES, num_cpus=1)(function)
        try:
            yield from _in_order(jobs, remote.remote, ray.get, ray.cancel, self.num_workers)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise worker_error(f"running {function.__name__}", ()) from error

    def close(self) -> None:
        """Disconnect from the cluster."""
        self._ray.shutdown()


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """Choice of an executor.

    Attributes:
        executor: ``local`` or ``ray``.
        num_workers: Number of local processes.
    """

    executor: str
    num_workers: int

    def __post_init__(self) -> None:
        if self.executor not in ("local", "ray"):
            hint = did_you_mean(self.executor, ("local", "ray"))
            raise ConfigError(f"'{self.executor}' is not an executor; choose from: local, ray.{hint}")

    def make_executor(self, variables: Mapping[str, str] | None = None) -> Executor:
        """Return the executor; its processes have ``variables`` in their environment.

        Raises:
            ConfigError: Ray is not installed, or there is no cluster.
        """
        return LocalExecutor(self.num_workers, variables) if self.executor == "local" else RayExecutor(variables)

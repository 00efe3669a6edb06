"""Executors: results in order and identical in all executors, also after the death of processes and nodes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from act_kit.collection.collect import collect
from act_kit.collection.render import render
from act_kit.config.collection import CollectConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ConfigError, DatasetError, WorkerError
from act_kit.overrides import compose
from act_kit.parallel import ExecutorConfig, LocalExecutor, RayExecutor
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.rollouts.rollout import RolloutPool, make_rollout_function
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.render import Gl, RenderSettings
from tests.conftest import ONE_THREAD, SERIAL, act, contents, make_dataset
from tests.eval.untrained import untrained_policy


def square_slowly(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3))
    return number**2, os.getpid()


def raise_dataset_error(number: int) -> None:
    raise DatasetError(f"number {number}")


def kill_own_process(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.e2e
@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_are_in_order_and_jobs_are_consumed_as_needed(num_workers: int) -> None:
    consumed: list[int] = []

    def jobs() -> Iterator[tuple[int]]:
        for number in range(100):
            consumed.append(number)
            yield (number,)

    with LocalExecutor(num_workers) as executor:
        results = executor.map(square_slowly, jobs())
        first = [next(results)[0] for _ in range(10)]
        results.close()
    assert first == [number**2 for number in range(10)]
    assert len(consumed) < 20


def test_an_error_of_a_job_is_raised_in_the_caller() -> None:
    with LocalExecutor(2) as executor, pytest.raises(DatasetError, match="number 3"):
        list(executor.map(raise_dataset_error, [(3,)]))


def test_a_process_that_dies_raises_a_worker_error() -> None:
    with LocalExecutor(2) as executor, pytest.raises(WorkerError, match="died while running kill_own_process"):
        list(executor.map(kill_own_process, [(3,)]))


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'local'"):
        ExecutorConfig(executor="locl", num_workers=1)


# -- on a real cluster: one test, because a cluster takes ten seconds to start, and two clusters interfere -------------


@contextmanager
def cluster() -> Generator[SimpleNamespace]:
    """Start a Ray cluster of a head without CPUs and three nodes with one CPU each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    small = {"object_store_memory": 10**8, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(3)]
    try:
        cluster.wait_for_nodes()
        yield SimpleNamespace(address=cluster.address, remove_node=lambda: cluster.remove_node(nodes.pop()))
    finally:
        cluster.shutdown()


def kill_process(name: str) -> None:
    """Kill a process of the cluster that is running the function ``name``."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            running = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if running.startswith(f"ray::{name}".encode()):
            os.kill(int(process.name), signal.SIGKILL)
            return
    pytest.fail(f"no process runs {name}")


def check_collection(cluster: SimpleNamespace, folder: Path) -> None:
    """Remove a process, then a node: all attempts are collected once and are equal to those of one process."""
    config = compose(CollectConfig, flags={"task": "shelf-place-v3", "n": 40, "noise": 0.3})
    attempts: list[int] = []

    def disturb(num_kept: int, num_attempts: int) -> None:
        if num_attempts == 5:
            kill_process("run_attempt")
        if num_attempts == 15:
            cluster.remove_node()
        attempts.append(num_attempts)

    with RayExecutor() as executor:
        assert executor.num_workers == 3
        with pytest.raises(
            ConfigError, match=r"The Ray node .* has .*, this machine has .*another.* install the same versions"
        ):
            executor._check_nodes({"mujoco": "another"})
        collect(config, folder / "ray", executor=executor, on_progress=disturb)
    collect(config, folder / "local", executor=SERIAL)
    assert attempts == list(range(1, len(attempts) + 1))
    assert contents(folder / "ray") == contents(folder / "local")


def check_evaluation(gl: Gl, policy: Policy) -> None:
    """Evaluate an image policy of several tasks."""
    init_states = []
    for task in policy.tasks:
        init_states += InitialStateDistribution(task).sample(3, seed=0, stream="evaluate")
    with RayExecutor(gl.environment) as executor:
        remote = make_rollout_function(executor, "fast")(PolicyAgent(policy), init_states)
    with RolloutPool(1) as pool:
        local = pool(PolicyAgent(policy), init_states)
    assert [outcome.init_state for outcome in remote] == init_states
    for a, b in zip(remote, local, strict=True):
        assert np.array_equal(a.executed_action, b.executed_action)
        assert np.array_equal(a.distances, b.distances)


def check_rendering(gl: Gl, folder: Path) -> None:
    """Kill the process that renders."""
    settings = RenderSettings(height_px=32, width_px=32)
    killed: list[int] = []

    def disturb(num_done: int) -> None:
        if num_done == 2:
            kill_process("render_episode")
            killed.append(num_done)

    with RayExecutor(gl.environment) as executor:
        store = make_dataset(folder / "ray", n=8)
        render(store, ["corner4"], settings, executor=executor, on_progress=disturb)
    with LocalExecutor(1, gl.environment) as local:
        render(make_dataset(folder / "local", n=8), ["corner4"], settings, executor=local)
    assert killed == [2]
    assert contents(folder / "ray") == contents(folder / "local")


def check_commands(folder: Path, run: Path) -> None:
    cluster_env = {**ONE_THREAD, **os.environ}
    for executor in ("ray", "local"):
        out = folder / executor
        act("collect", "--task", "reach-v3", "--n", 3, "--executor", executor, "--out", out, check=0, env=cluster_env)
        options = ["--episodes", 4, "demonstrated_episodes=0", "baseline_episodes=2", "--executor", executor]
        act("eval", run, *options, "--out", folder / f"eval-{executor}", check=0, env=cluster_env)
        options = ["--steps", 1200, "ppo.sigma=0.1", "episodes=2", "select_episodes=2", "--executor", executor]
        act("finetune", run, *options, "--out", folder / f"finetuned-{executor}", check=0, env=cluster_env)
    assert contents(folder / "ray") == contents(folder / "local")
    episodes = [(folder / f"eval-{executor}" / "episodes.csv").read_text() for executor in ("ray", "local")]
    assert episodes[0] == episodes[1]
    tuned = [Policy.load(folder / f"finetuned-{executor}" / "checkpoints" / "last") for executor in ("ray", "local")]
    assert tuned[0].metadata.step > 0
    assert tuned[0].weights_hash == tuned[1].weights_hash
    no_cluster_env = {**ONE_THREAD, "RAY_ADDRESS": "127.0.0.1:1"}
    refused = act("render", folder / "local", "--executor", "ray", check=2, env=no_cluster_env)
    assert "There is no Ray cluster at RAY_ADDRESS=127.0.0.1:1" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.e2e
@pytest.mark.gl
@pytest.mark.filterwarnings("ignore")  # Ray's own warnings
def test_results_are_bit_exact_on_a_cluster_that_loses_processes_and_nodes(
    gl: Gl,
    tiny_run: Path,
    reach_store: EpisodeStore,
    push_store: EpisodeStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with cluster() as running:
        monkeypatch.setenv("RAY_ADDRESS", running.address)
        check_collection(running, tmp_path / "collection")
        check_evaluation(gl, untrained_policy([reach_store, push_store], gl.renderer).with_chunking(n_action_steps=8))
        check_rendering(gl, tmp_path / "rendering")
        check_commands(tmp_path / "commands", tiny_run)

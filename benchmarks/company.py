"""Training beside other work: gradient steps a second, alone and while other processes burn every processor.

    python benchmarks/company.py DATA
    python benchmarks/company.py DATA --rounds 20 policy=act trainer.batch_size=8
    python benchmarks/company.py DATA --together trainer.steps=300

Each way of using threads is a process of its own that trains for a second when its turn comes, so all of them see the
same machine. Prints the median over the rounds, and its 10th and 90th percentile.

With ``--together``: how long two trainings and a part of the tests take one after the other, and all at once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

WAYS: dict[str, dict[str, str]] = {
    "all threads, which loop for a moment and then sleep (as act trains)": {"GOMP_SPINCOUNT": "1000"},
    "all threads, which sleep at once while they wait": {"OMP_WAIT_POLICY": "PASSIVE"},
    "all threads, which loop while they wait (OpenMP's default)": {"GOMP_SPINCOUNT": "300000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


TESTS = ("tests/policies", "tests/training")
"""What runs beside the trainings."""


def train_when_asked(data: str, overrides: list[str]) -> None:
    """Train for as many seconds as each line of standard input says, and print the rate."""
    import torch

    from act_kit.config.training import TrainConfig
    from act_kit.datasets.chunk_dataset import load_chunk_sampler
    from act_kit.datasets.store import EpisodeStore
    from act_kit.overrides import compose
    from act_kit.training.distributed import SINGLE_PROCESS
    from act_kit.training.learner import Learner

    config = compose(TrainConfig, overrides, {})
    store, cpu = EpisodeStore.open(data), torch.device("cpu")
    windows = load_chunk_sampler(
        [store],
        chunk_size=config.policy.chunk_size,
        val_fraction=config.trainer.val_fraction,
        max_share_after_success=config.trainer.max_share_after_success,
        seed=0,
        device=cpu,
        images_TCHW3=None,
    )
    learner = Learner(config, windows, (store.info.task,), device=cpu, group=SINGLE_PROCESS)
    learner.step(0)
    print("ready", flush=True)
    for line in sys.stdin:
        began, num = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < float(line):
            learner.step(0)
            num += 1
        print(num / passed, flush=True)


def run_all(data: str, overrides: list[str], folder: Path, *, at_once: bool) -> float:
    """Run two trainings and a part of the tests; return the seconds that all of them took."""
    act = [sys.executable, "-m", "act_kit"]
    commands = [[*act, "train", "--data", data, *overrides, "--out", str(folder / name)] for name in ("a", "b")]
    commands.append([sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *TESTS])
    began, running = time.perf_counter(), []
    for command in commands:
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        if not at_once:
            running[-1].wait()
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"exit codes {codes}")
    return time.perf_counter() - began


def measure_together(data: str, overrides: list[str]) -> None:
    """Print how long everything takes, one after the other and at once."""
    with tempfile.TemporaryDirectory() as folder:
        after = run_all(data, overrides, Path(folder) / "after", at_once=False)
        at_once = run_all(data, overrides, Path(folder) / "at-once", at_once=True)
    print(f"one after the other {after:.0f} s, at once {at_once:.0f} s: {after / at_once:.2f} times as fast")


def burn() -> None:
    """Use a processor for ever."""
    while True:
        pass


@contextmanager
def company(num: int) -> Iterator[None]:
    """Keep so many processors busy."""
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(num)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()


def main() -> None:
    """Measure all ways, alone and in company, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("override", nargs="*", help="options of act train")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of training at a time")
    parser.add_argument("--together", action="store_true", help="two trainings and a part of the tests")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    if arguments.worker:
        train_when_asked(arguments.data, arguments.override)
        return
    if arguments.together:
        measure_together(arguments.data, arguments.override)
        return
    measure_ways([arguments.data, *arguments.override], num_rounds=arguments.rounds, seconds=arguments.seconds)


def measure_ways(training: Sequence[str], *, num_rounds: int, seconds: float) -> None:
    """Measure all ways in turn, alone and in company, and print a Markdown table."""
    command = [sys.executable, __file__, "--worker", *training]
    processes = {
        way: subprocess.Popen(
            command, env={**os.environ, **settings}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for way, settings in WAYS.items()
    }

    def rate(process: subprocess.Popen[str]) -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{seconds}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    for process in processes.values():
        assert process.stdout is not None
        process.stdout.readline()
    num_cpus = os.cpu_count() or 1
    print(f"| | alone, steps/s | beside {num_cpus} busy processes, steps/s |\n|---|---|---|")
    measured: dict[str, list[str]] = {way: [] for way in WAYS}
    for num_busy in (0, num_cpus):
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        with company(num_busy):
            for _ in range(num_rounds):
                for way, process in processes.items():
                    rates[way].append(rate(process))
        for way, of_way in rates.items():
            low, middle, high = np.percentile(of_way, [10, 50, 90])
            measured[way].append(f"{middle:.1f} [{low:.1f}, {high:.1f}]")
    for process in processes.values():
        process.kill()
    for way, cells in measured.items():
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

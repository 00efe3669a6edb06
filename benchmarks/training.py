"""A training as users run it: its step rate beside the roofline, and the most memory that all its processes take.

    python benchmarks/training.py DATA
    python benchmarks/training.py DATA trainer.batch_size=128
    python benchmarks/training.py RENDERED policy=act_image_small trainer.steps=600

The step rate is the median of the records; the memory is the sum of the processes' proportional shares (PSS), which
counts what they share once, sampled four times a second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median

import psutil

from act_kit.metrics import series


def watch(process: psutil.Process, peaks: list[int], done: threading.Event) -> None:
    """Note the memory of a process and its children until ``done``."""
    while not done.wait(0.25):
        total = 0
        for member in (process, *process.children(recursive=True)):
            try:
                total += member.memory_full_info().pss
            except psutil.Error:  # it has just ended
                continue
        peaks.append(total)


def main() -> None:
    """Run one training and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("override", nargs="*", help="options of act train")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-c", "from act_kit.cli import main; main()", "train", "--data", str(arguments.data)]
        started = subprocess.Popen([*command, "--out", str(run), *arguments.override], stdout=subprocess.DEVNULL)
        peaks: list[int] = []
        done = threading.Event()
        watcher = threading.Thread(target=watch, args=(psutil.Process(started.pid), peaks, done))
        watcher.start()
        code = started.wait()
        done.set()
        watcher.join()
        if code:
            raise SystemExit(code)
        rate = median(dict(series(run, "train/steps_per_s")).values())
        fraction = median(dict(series(run, "train/roofline_fraction")).values())
    size_mb = sum(file.stat().st_size for file in arguments.data.rglob("*") if file.is_file()) / 1e6
    print(
        f"{' '.join(arguments.override) or 'defaults'}: {rate:.1f} steps/s, {100 * fraction:.0f} % of the roofline; at "
        f"most {max(peaks) / 1e9:.2f} GB in all processes, of a dataset of {size_mb:.0f} MB on disk"
    )


if __name__ == "__main__":
    main()

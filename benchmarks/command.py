"""The command line, as benchmarks run it."""

from __future__ import annotations

import os
import subprocess
import sys


def act(*arguments: object) -> None:
    """Run ``act`` on one thread, since two trainings side by side get further than one on both processors.

    Raises:
        SystemExit: It failed; with all that it printed.
    """
    command = [sys.executable, "-c", "from act_kit.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")

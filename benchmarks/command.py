"""The command line, as benchmarks run it."""

from __future__ import annotations

import os
import subprocess
import sys

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def act(*arguments: object, patch: str = "", code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run ``act`` in a process of its own, on one thread: two trainings side by side get further so.

    ``patch`` is a line of Python that goes before, to break something; ``code`` the exit code that is expected, None
    for any.

    Raises:
        SystemExit: Its exit code is another; with all that it printed.
    """
    program = f"{patch}\nfrom act_kit.cli import main\nmain()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD)
    if code is not None and done.returncode != code:
        raise SystemExit(
            f"act {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done

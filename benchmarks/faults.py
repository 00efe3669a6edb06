"""Benchmark of the doctor: faults are injected into a healthy run, one at a time, with the real commands and files.

    python -m benchmarks.faults --out faults

The faults and what they must be found as are in ``tests/doctor``. A fault counts as found if the doctor ranks it first,
or if a command refuses it with a message that names it. Sound runs must have no critical finding. The cases are kept in
the folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.table import print_rows


def main() -> None:
    """Inject every fault, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the cases; emptied first")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    arguments = parser.parse_args()
    print("| fault | found as | |\n|---|---|---|", flush=True)
    sys.exit(
        print_rows(
            "tests/doctor/test_faults.py",
            "tests/doctor/test_data.py",
            only=[arguments.only],
            options=[f"--basetemp={arguments.out}"],
        )
    )


if __name__ == "__main__":
    main()

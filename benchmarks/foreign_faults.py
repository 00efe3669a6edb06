"""Benchmark of the doctor of foreign policies: healthy, bad and faulty ones on several tasks.

    python -m benchmarks.foreign_faults [--only NAME]

The policies are in ``tests/doctor/foreign_policies.py``. Columns: policy, task, the first finding (of healthy and bad
policies, all findings), its status. A row FAILED is a missed fault or a false alarm.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.table import print_rows


def main() -> None:
    """Examine every policy, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="policies or tasks whose name contains this")
    arguments = parser.parse_args()
    print("| policy | task | found | |\n|---|---|---|---|", flush=True)
    sys.exit(print_rows("tests/doctor/test_foreign.py", only=[arguments.only]))


if __name__ == "__main__":
    main()

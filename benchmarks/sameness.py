"""Prove that the fast engine is Meta-World: every number of it against Meta-World's own environment, bit by bit.

python -m benchmarks.sameness [TASK …]       about 6 minutes for all 50 on one core; prints a Markdown table

The comparison is in ``tests/sim/engine_comparison.py``.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.table import print_rows


def main() -> None:
    """Print the table; exit 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help="all tasks if none is given")
    names = [f"[{task}]" for task in parser.parse_args().tasks]
    print("| task | steps compared | differences |\n| --- | --- | --- |", flush=True)
    sys.exit(print_rows("tests/sim/test_engines.py", only=names or [""]))


if __name__ == "__main__":
    main()

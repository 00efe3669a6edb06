"""The command line: one module per verb, each of whose bodies reads as what the verb does.

Importing this package imports nothing else of it, so that :func:`main` can handle Ctrl-C before anything takes time.
"""

from __future__ import annotations

from act_kit import interrupts


def main() -> None:
    """Run the command line; a user's mistake ends in one message and exit code 2, never in a traceback."""
    interrupts.install()
    from act_kit.cli.app import run

    run()

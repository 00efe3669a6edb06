"""The command line: one module per verb.

Importing this package imports none of its modules, so that :func:`main` can handle Ctrl-C before slow imports.
"""

from __future__ import annotations

from act_kit import interrupts


def main() -> None:
    """Run the command line; a user error ends in one message and exit code 2, never in a traceback."""
    interrupts.install()
    from act_kit.cli.app import run

    run()

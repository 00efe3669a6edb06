"""``act doctor``: diagnosis of a run, a dataset, an evaluation, a foreign policy or this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.api.diagnose import diagnose
from act_kit.cli.options import Overrides, Token, Workers, command


@command
def doctor(
    target: str | None = None,
    overrides: Overrides = None,
    *,
    task: str | None = None,
    n_action_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Actions executed of each chunk of a policy server or a LeRobot policy.",
            show_default="of a server, all; of a LeRobot policy, as trained",
        ),
    ] = None,
    token: Token = "",
    out: Path | None = None,
    workers: Workers = 0,
) -> None:
    """Find out why a policy fails, or check a dataset or this machine for faults.

    It reads logs, data, checkpoint and evaluations, measures missing values, and ranks the findings. If a policy is not
    a run of act_kit, its behavior is examined. The exit code is 2 if a critical fault is confirmed.

    \b
    act doctor runs/pick-place-v3
    act doctor my_policy:act --task push-v3
    act doctor ws://localhost:8000 --task push-v3
    act doctor lerobot:checkpoints/last/pretrained_model --task push-v3 served.look=lerobot

    Args:
        target: A run, a dataset, an evaluation, or a folder of runs and datasets; MODULE:NAME, ws://HOST:PORT or \
lerobot:FOLDER. Default: this machine.
        task: Task of a policy that is not a run.
        out: JSON file for the findings. [default: none]
    """
    diagnoses = diagnose(
        target,
        task,
        n_action_steps=n_action_steps,
        token=token,
        overrides=overrides or [],
        out=out,
        workers=workers,
        on_diagnosis=lambda diagnosis: diagnosis.report.print(),
    )
    raise typer.Exit(2 if any(diagnosis.is_fatal for diagnosis in diagnoses) else 0)

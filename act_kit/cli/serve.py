"""``act serve``: a trained policy behind a WebSocket."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from act_kit.api.device import check_device
from act_kit.cli import options
from act_kit.cli.console import info
from act_kit.preflight import require_run


@options.command
def serve(
    run: Path,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 = a free one.")] = 8000,
    token: options.Token = "",
    n_action_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Actions of each predicted chunk to send.", show_default="as trained"),
    ] = None,
    temporal_ensemble: bool | None = None,
    device: options.Device = "auto",
) -> None:
    """Serve a policy over WebSocket, to the clients of openpi and of vla-eval.

    \b
    act serve runs/pick-place-v3 --port 8000

    Args:
        run: A run, or a checkpoint of it.
        host: Address to listen on; one that other machines can reach requires --token.
        temporal_ensemble: Predict at every step and average the overlapping chunks. [default: as trained]
    """
    require_run(run)
    check_device(device)
    from act_kit.api.serve import serve as serve_policy

    serve_policy(
        run,
        host=host,
        port=port,
        token=token,
        n_action_steps=n_action_steps,
        temporal_ensemble=temporal_ensemble,
        device=device,
        on_ready=lambda address: info(f"Serving {run} at {address}; Ctrl-C stops it."),
    )

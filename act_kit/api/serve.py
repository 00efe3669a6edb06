"""``serve``: a trained policy behind a WebSocket, for the clients of openpi and of vla-eval."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from act_kit.api.agents import serving_missing
from act_kit.api.device import choose_device
from act_kit.policies.policy import Policy


def serve(
    policy: str | Path | Policy,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str = "",
    n_action_steps: int | None = None,
    temporal_ensemble: bool | None = None,
    device: str = "auto",
    on_ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve a policy until this process is interrupted.

    Args:
        policy: A run or checkpoint, or a loaded policy.
        host: Address to listen on; another than this machine's own requires a token.
        port: Port; 0 = a free one.
        token: Token that clients must send; "" = none.
        n_action_steps, temporal_ensemble: Chunking of the policy; None for the setting that it was trained with.
        device: ``auto``, ``cpu`` or ``cuda``, for a policy that is loaded.
        on_ready: Receives the address as soon as clients can connect.

    Raises:
        ActKitError: There is no such policy, or the address cannot be used.
    """
    try:
        from act_kit.serving.server import PolicyServer
    except ModuleNotFoundError as error:
        raise serving_missing(error) from error
    if not isinstance(policy, Policy):
        policy = Policy.load(policy, device=choose_device(device))
    policy = policy.with_chunking(n_action_steps=n_action_steps, temporal_ensemble=temporal_ensemble)

    async def run() -> None:
        async with PolicyServer(policy, token=token).listen(host, port) as server:
            actual_host, actual_port = server.sockets[0].getsockname()[:2]
            shown = f"[{actual_host}]" if ":" in actual_host else actual_host
            on_ready(f"ws://{shown}:{actual_port}")
            await server.serve_forever()

    asyncio.run(run())

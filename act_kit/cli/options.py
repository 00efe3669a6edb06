"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

from act_kit.errors import ConfigError
from act_kit.sim.workers import num_cpus

Workers = Annotated[
    int, typer.Option(min=0, help="Processes that simulate; 0 for one per processor. Never changes a result.")
]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="local, or ray: the cluster at RAY_ADDRESS. Never changes a result.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]…", help="Any option of the configuration.", show_default=False),
]
Device = Annotated[str, typer.Option(help="Where the network runs: auto, cpu or cuda.")]


def count_workers(workers: int) -> int:
    """Resolve ``--workers``."""
    return workers or num_cpus()


def choose_device(device: str) -> str:
    """Resolve ``--device``: a GPU if there is one, unless told otherwise."""
    if device == "auto":
        return "cuda" if _has_gpu() else "cpu"
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"'{device}' is not a device; there are auto, cpu and cuda.")
    if device == "cuda" and not _has_gpu():
        raise ConfigError("--device cuda: PyTorch finds no GPU here. Use --device cpu.")
    return device


def _has_gpu() -> bool:
    import torch  # 1 s, which `act --help` need not wait for

    return torch.cuda.is_available()

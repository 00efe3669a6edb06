"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from act_kit.errors import ConfigError
from act_kit.options import to_dict
from act_kit.processors import num_cpus

Workers = Annotated[
    int, typer.Option(min=0, help="Simulation processes; 0 = one per processor. Never changes a result.")
]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="local, or ray (the cluster at RAY_ADDRESS). Never changes a result.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the content of the output folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]…", help="Configuration options.", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the configuration and the plan, and exit.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the composed configuration as YAML, and exit.")
]
Device = Annotated[str, typer.Option(help="Device of the network: auto, cpu or cuda.")]


def count_workers(workers: int) -> int:
    """Resolve ``--workers``: 0 = one process per processor."""
    return workers or num_cpus()


def show_config(config: object, plan: Sequence[str] = ()) -> None:
    """Print a configuration as YAML, followed by the plan as comments."""
    from omegaconf import OmegaConf

    typer.echo(OmegaConf.to_yaml(OmegaConf.create(to_dict(config))), nl=False)
    for line in plan:
        typer.echo(f"# {line}")


def choose_device(device: str) -> str:
    """Resolve ``--device``: auto selects a GPU if there is one."""
    check_device(device)
    if device == "auto":
        return "cuda" if _has_gpu() else "cpu"
    if device == "cuda" and not _has_gpu():
        raise ConfigError("--device cuda: PyTorch finds no GPU on this machine. Fix: --device cpu")
    return device


def check_device(device: str) -> None:
    """Refuse a ``--device`` that does not exist; this does not import PyTorch."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"'{device}' is not a device; choose from: auto, cpu, cuda.")


def _has_gpu() -> bool:
    import torch  # takes 1 s, which `act --help` must not

    return torch.cuda.is_available()

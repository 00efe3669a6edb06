"""``act export``: a policy as an ONNX file."""

from __future__ import annotations

from pathlib import Path

from act_kit.api.export import export as export_policy
from act_kit.cli.console import console, info
from act_kit.cli.options import command


@command
def export(run: Path, *, out: Path | None = None, overwrite: bool = False) -> None:
    """Export a policy to an ONNX file, which runs in onnxruntime without act_kit and PyTorch.

    Its inputs are raw states, images and task indices, its outputs action chunks; its metadata describe its use. The
    file is written only if onnxruntime reproduces the checkpoint's predictions.

    \b
    act export runs/pick-place-v3 --out pick-place.onnx

    Args:
        run: A run, or a checkpoint of it.
        out: The file. [default: RUN/policy.onnx]
        overwrite: Replace an existing export.
    """
    with console.status("exporting"):
        path = export_policy(run, out, overwrite=overwrite)
    info(f"{path}: {path.stat().st_size / 1e6:.1f} MB")

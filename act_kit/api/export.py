"""``export``: a trained policy as an ONNX file."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from act_kit.api.progress import log
from act_kit.errors import ConfigError, OutputError, install_hint
from act_kit.files import quoted
from act_kit.outputs import hidden_sibling, locked
from act_kit.preflight import require_run, require_writable

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def export(run: str | Path, out: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Export a policy to an ONNX file that runs without act_kit and PyTorch, as ``act export`` does.

    Its inputs are raw observations: ``states``, float32 (B, 39); ``tasks``, int64 (B,), the index of each row's task,
    if there are several, or ``first_states``, float32 (B, 39), the first state of each row's episode, of a policy that
    recognizes its task; ``images``, uint8 (B, C, H, W, 3), if the policy has cameras. Its outputs are ``actions``,
    float32 (B, K, 4) in [-1, 1], and ``unclipped_actions``, for temporal ensembling. The metadata ``act_kit``, JSON,
    holds tasks, chunking, cameras, control rate and the fingerprint of the checkpoint.

    The file is written only if onnxruntime reproduces the checkpoint's self-test batch.

    Args:
        run: A run, or a checkpoint of it. A model of your own must be registered first, by importing its module.
        out: The file; by default ``RUN/policy.onnx``.
        overwrite: Replace an existing export.

    Returns:
        Path of the file.

    Raises:
        ActKitError: There is no such policy, a package is missing, ``out`` exists, or the model cannot be exported.
    """
    run = Path(run)
    require_run(run)
    out = Path(out) if out else run / "policy.onnx"
    _require_packages()
    _check_out(out, overwrite=overwrite)
    require_writable(out.parent)
    from act_kit.policies.onnx import TOLERANCE, check_self_test, to_onnx
    from act_kit.policies.policy import Policy
    from act_kit.policies.storage import find_checkpoint, read_self_test

    checkpoint = find_checkpoint(run).resolve()
    policy = Policy.load(checkpoint)
    content = to_onnx(policy)
    error_max = check_self_test(content, read_self_test(checkpoint))
    _write(out, content, overwrite=overwrite)
    log.info(f"{policy}: onnxruntime reproduces the self-test within {error_max:.1g} (allowed: {TOLERANCE})")
    return out


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"act export needs {', '.join(missing)}, of the extra 'onnx', which is not installed. Fix: "
            f"{install_hint('onnx')}"
        )


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Raise :class:`OutputError` if ``out`` exists and may not be replaced."""
    if out.is_dir():
        raise OutputError(f"{out} is a folder. Fix: name a file, such as --out {quoted(out / 'policy.onnx')}")
    if not out.exists():
        return
    if not overwrite:
        raise OutputError(f"{out} exists. Fix: --overwrite replaces it, or choose another --out.")
    from act_kit.policies.onnx import is_export

    if not out.is_file() or not is_export(out):
        raise OutputError(
            f"{out} was not made by act export, so --overwrite does not replace it. Fix: choose another --out."
        )


def _write(out: Path, content: bytes, *, overwrite: bool) -> None:
    """Write the file atomically; nothing is left behind if that fails or is interrupted."""
    with locked(out):
        _check_out(out, overwrite=overwrite)
        folder = hidden_sibling(out, "new")
        try:
            folder.mkdir()
            (folder / out.name).write_bytes(content)
            os.replace(folder / out.name, os.path.realpath(out))  # a link to a file stays a link
        finally:
            shutil.rmtree(folder, ignore_errors=True)

"""Tensors in files, and whether they are those of a network: all of them, no others, of the same shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from act_kit.errors import DamagedFileError
from act_kit.files import require_regular


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file.

    Raises:
        FileNotFoundError, PermissionError: It is missing, or not ours to read.
        DamagedFileError: It is no safetensors file, or not all of one.
    """
    require_regular(path)
    try:
        return load_file(path)
    except Exception as error:  # what safetensors raises at a damaged header, PyTorch at a damaged layout
        raise DamagedFileError(f"{path} is no safetensors file, or damaged: {str(error)[:200]}.") from error


def state_dict_mismatch(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Say how many tensors of ``own`` can be taken from ``given`` and the first that cannot; "" if all fit."""
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    misshapen = sorted(name for name in own.keys() & given.keys() if own[name].shape != given[name].shape)
    if not (missing or unknown or misshapen):
        return ""
    return (
        f"{len(own.keys() & given.keys()) - len(misshapen)} of {len(own)} tensors can be loaded. Missing: "
        f"{missing[:3]}; unknown: {unknown[:3]}; of another shape: {misshapen[:3]}."
    )

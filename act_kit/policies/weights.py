"""Loading of tensor files, and the check that their names and shapes match those of a network."""

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
        FileNotFoundError, PermissionError: The file is missing or not readable.
        DamagedFileError: The file is not a safetensors file, or is truncated.
    """
    require_regular(path)
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises on a damaged header, PyTorch on a damaged layout
        raise DamagedFileError(f"{path} is damaged or not a safetensors file: {str(error)[:200]}.") from error


def state_dict_mismatch(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Describe how the tensors ``given`` differ from ``own``, with the first names that differ; "" if all match."""
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    misshapen = sorted(name for name in own.keys() & given.keys() if own[name].shape != given[name].shape)
    if not (missing or unknown or misshapen):
        return ""
    return (
        f"{len(own.keys() & given.keys()) - len(misshapen)} of {len(own)} tensors can be loaded. Missing: "
        f"{missing[:3]}; unknown: {unknown[:3]}; of another shape: {misshapen[:3]}."
    )

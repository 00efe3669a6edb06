"""Choice of the device of the network."""

from __future__ import annotations

from act_kit.errors import ConfigError


def check_device(device: str) -> None:
    """Refuse a device that does not exist; this does not import PyTorch."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"'{device}' is not a device; choose from: auto, cpu, cuda.")


def choose_device(device: str) -> str:
    """Resolve ``auto``, which selects a GPU if there is one."""
    check_device(device)
    import torch  # takes 1 s, which a refusal must not

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError("--device cuda: PyTorch finds no GPU on this machine. Fix: --device cpu")
    return "cuda" if has_gpu and device != "cpu" else "cpu"

"""Checkpoints of a run: ``checkpoints/step-001200``, and the links ``last`` and ``best`` to them.

A checkpoint is complete before ``last`` points to it, and links are replaced atomically. After a kill at any moment,
``last`` is therefore a checkpoint from which training resumes bit-exact; it also records which one is ``best``. Nothing
is pickled.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from act_kit.errors import CheckpointError
from act_kit.files import read_json, require_existing, write_json
from act_kit.policies.policy import Policy
from act_kit.policies.weights import load_tensors, state_dict_mismatch


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """State that a bit-exact resume needs in addition to the policy.

    Attributes:
        step: Gradient steps taken.
        best_successes: Successes in the best checkpoint's selection rollouts, or -1 before the first.
        best_step: Step of the best checkpoint.
        optimizer: AdamW's moments, by ``<parameter>.<moment>``.
        weights: Weights of the model if the policy is their moving average; otherwise empty.
        rng: States of torch's generators, uint8: ``host``, and ``device``, which is empty without a GPU.
        extra: What fine-tuning keeps besides: the critic, the noise, counters.
    """

    step: int
    best_successes: int
    best_step: int
    optimizer: dict[str, Tensor]
    weights: dict[str, Tensor]
    rng: dict[str, Tensor]
    extra: dict[str, Tensor] = field(default_factory=dict)


_NUMBERS = ("step", "best_successes", "best_step")
_TENSORS = ("optimizer", "weights", "rng", "extra")


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoints"

    @property
    def exist(self) -> bool:
        """True if a checkpoint was saved."""
        return (self.folder / "last").exists()

    def save(self, policy: Policy, state: TrainingState, self_test: Mapping[str, np.ndarray]) -> None:
        """Save policy and state as ``last``, and delete all checkpoints except ``last`` and ``best``.

        Raises:
            OutputError: The run has been deleted in the meantime.
        """
        name = _name(state.step)
        with require_existing(self.folder.parent), _convert_disk_errors():
            self.folder.mkdir(exist_ok=True)
            for torn in self.folder.glob(".step-*"):
                shutil.rmtree(torn)
            fresh = self.folder / f".{name}"
            fresh.mkdir()
            policy.save(fresh, self_test)
            tensors: dict[str, Tensor] = {}
            for group in _TENSORS:
                for key, tensor in getattr(state, group).items():
                    tensors[f"{group}/{key}"] = tensor.detach().cpu().contiguous()
            save_file(tensors, fresh / "training.safetensors")
            write_json(fresh / "training.json", {key: getattr(state, key) for key in _NUMBERS})
            target = self.folder / name
            if target.exists():  # left by a run that was killed before linking it
                shutil.rmtree(target)
            fresh.rename(target)
            self._link("last", name)
            self._tidy(state)

    def _tidy(self, state: TrainingState) -> None:
        """Link the best checkpoint, in case a kill prevented it, and delete all others except the last one."""
        best = _name(state.best_step)
        if state.best_successes >= 0 and (self.folder / best).is_dir():
            self._link("best", best)
        links = [self.folder / "last", self.folder / "best"]
        kept = {os.readlink(link) for link in links if link.is_symlink()}
        for old in self.folder.glob("step-*"):
            if old.name not in kept:
                shutil.rmtree(old)

    def _link(self, link: str, name: str) -> None:
        fresh = self.folder / f".{link}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(name)
        os.replace(fresh, self.folder / link)

    def load_last(self) -> tuple[Policy, TrainingState]:
        """Load the policy and the state of the last checkpoint.

        Raises:
            CheckpointError: There is no checkpoint, or it is damaged.
        """
        folder = self.folder / "last"
        policy = Policy.load(folder)
        try:
            state = _read_state(folder, policy)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"The checkpoint {folder} is damaged, training cannot resume from it: {error}."
            ) from error
        self._tidy(state)
        return policy, state


def _read_state(folder: Path, policy: Policy) -> TrainingState:
    """Read a checkpoint's training state, or raise one of the errors that :meth:`Checkpoints.load_last` converts."""
    numbers = read_json(folder / "training.json")
    is_valid = all(type(number) is int and number >= -1 for number in numbers.values())
    if not is_valid or numbers["best_step"] > numbers["step"]:
        raise ValueError(f"training.json: {numbers}")
    if numbers["step"] != policy.metadata.step:
        raise ValueError(f"training.json is of step {numbers['step']}, policy.json of {policy.metadata.step}")
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict, optimizer={}, weights={}, extra={})
    for name, tensor in load_tensors(folder / "training.safetensors").items():
        if not tensor.isfinite().all():
            raise ValueError("training.safetensors holds numbers that are not finite")
        group, _, key = name.partition("/")
        groups[group][key] = tensor
    torch.Generator().set_state(groups["rng"]["host"])
    mismatch = state_dict_mismatch(policy.model.state_dict(), groups["weights"]) if groups["weights"] else ""
    if mismatch or "device" not in groups["rng"]:
        raise ValueError(mismatch or "training.safetensors has no rng/device")
    fields: dict[str, Any] = {**numbers, **groups}
    return TrainingState(**fields)


@contextmanager
def _convert_disk_errors() -> Generator[None]:
    """Raise the system's OSError (such as a full disk) where safetensors wraps it in its own error."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"code: (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), "a checkpoint") from error


def _name(step: int) -> str:
    return f"step-{step:06d}"


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """Return an optimizer's state as tensors by ``<parameter>.<key>``."""
    tensors: dict[str, Tensor] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"{names[parameter]}.{key}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, names: dict[Tensor, str], saved: dict[str, Tensor]) -> None:
    """Restore an optimizer's state from tensors of :func:`optimizer_tensors`, one set per parameter.

    Raises:
        CheckpointError: A tensor is missing or has the wrong shape.
    """
    states: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in saved.items():
        name, _, moment = key.rpartition(".")
        states[name][moment] = tensor.clone()
    for parameter, name in names.items():
        if not states[name] or any(moment.shape not in (parameter.shape, ()) for moment in states[name].values()):
            raise CheckpointError(f"The checkpoint's optimizer state of {name} is missing or has the wrong shape.")
        optimizer.state[parameter] = states[name]

"""A policy on disk: ``model.safetensors`` and ``policy.json``, which must fit each other in every tensor.

The tensors include a self-test batch, whose predictions a loaded policy must reproduce. Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import act_kit.policies.heads.act  # noqa: F401, registers the model of the default options
from act_kit.config.policy import PolicyConfig, load_head, load_own_head
from act_kit.config.training import ChunkingConfig
from act_kit.errors import CheckpointError, ConfigError
from act_kit.files import quoted, read_json, write_json
from act_kit.options import build
from act_kit.policies.chunk_model import ChunkModel, make_model
from act_kit.policies.metadata import PolicyMetadata
from act_kit.policies.normalizer import Normalizer
from act_kit.policies.weights import state_dict_mismatch
from act_kit.sim.tasks import STATE_DIM

FORMAT = {"format": "act_kit.policy", "version": 3}

_SELF_TEST_PREFIX = "self_test."
"""Prefix of the names of the self-test batch's tensors."""

_TASK_EMBEDDINGS = ".task.given_NE"
"""End of the name of the tensor of given task embeddings, which a multi-task model may have."""

_DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "U8": torch.uint8, "BOOL": torch.bool}
"""Tensor types by their safetensors names; a checkpoint has no others."""

_MAX_JSON_BYTES = 64 * 2**20
"""Largest ``policy.json``; the initial states of 50 tasks with 1,000 demonstrations each take a fifth of it."""

_MAX_SELF_TEST_ROWS = 4096


def named_tensors(model: ChunkModel, normalizer: Normalizer) -> dict[str, Tensor]:
    """Return all tensors of a policy by their names on disk."""
    return nn.ModuleDict({"model": model, "normalizer": normalizer}).state_dict()


def write_policy(
    folder: Path,
    model: ChunkModel,
    normalizer: Normalizer,
    metadata: PolicyMetadata,
    chunking: ChunkingConfig,
    self_test: Mapping[str, np.ndarray],
) -> None:
    """Write the files of a policy; ``self_test`` holds observations and the ``chunks`` predicted for them."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in named_tensors(model, normalizer).items():
        tensors[name] = tensor.detach().cpu().contiguous()
    for name, rows in self_test.items():
        tensors[_SELF_TEST_PREFIX + name] = torch.from_numpy(rows).contiguous()
    save_file(tensors, folder / "model.safetensors")
    parts = {"policy": asdict(model.config), "chunking": asdict(chunking), "metadata": asdict(metadata)}
    write_json(folder / "policy.json", FORMAT | parts)


def read_policy(folder: Path) -> tuple[ChunkModel, Normalizer, PolicyMetadata, ChunkingConfig, dict[str, np.ndarray]]:
    """Read what :func:`write_policy` wrote; every tensor must be present and match the options of the model.

    Raises:
        CheckpointError: A file is missing, of another format, truncated or damaged, or the model is not registered.
    """
    with _name_damage(folder):
        description = read_json(folder / "policy.json", max_bytes=_MAX_JSON_BYTES)
        _check_format(folder, description)
        layout = _read_layout(folder / "model.safetensors")
        metadata = PolicyMetadata.from_dict(description["metadata"])
        chunking = build(ChunkingConfig, description["chunking"])
        config = build(PolicyConfig.kind_of(description["policy"]), description["policy"])
        cameras = metadata.views.cameras if metadata.views else ()
        if config.cameras != cameras:
            raise ValueError(f"its model has cameras {config.cameras}, its metadata {cameras}")
    _check_layout(folder, config, metadata, layout)
    tensors = load_file(folder / "model.safetensors")
    self_test: dict[str, np.ndarray] = {}
    for name in list(tensors):
        if name.startswith(_SELF_TEST_PREFIX):
            self_test[name.removeprefix(_SELF_TEST_PREFIX)] = tensors.pop(name).numpy()
    embeddings = _find_task_embeddings(tensors)
    model = make_model(config, num_tasks=len(metadata.tasks), task_embeddings_NE=embeddings)
    normalizer = Normalizer(STATE_DIM)
    nn.ModuleDict({"model": model, "normalizer": normalizer}).load_state_dict(tensors)
    return model, normalizer, metadata, chunking, self_test


def _find_task_embeddings(tensors: Mapping[str, Tensor]) -> Tensor | None:
    return next((tensor for name, tensor in tensors.items() if name.endswith(_TASK_EMBEDDINGS)), None)


def read_self_test(folder: Path) -> dict[str, np.ndarray]:
    """Read the self-test batch, and the ``chunks`` predicted for it, of a checkpoint that :func:`read_policy` reads."""
    self_test: dict[str, np.ndarray] = {}
    with safe_open(folder / "model.safetensors", framework="np") as file:
        for name in file.keys():  # noqa: SIM118, it is not a mapping
            if name.startswith(_SELF_TEST_PREFIX):
                self_test[name.removeprefix(_SELF_TEST_PREFIX)] = file.get_tensor(name)
    return self_test


@contextmanager
def _name_damage(folder: Path) -> Generator[None]:
    """Convert every error of damaged files to one that names the checkpoint."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can raise any exception
        reason = str(error).rstrip(".")
        raise CheckpointError(f"The checkpoint {folder} is damaged: {reason}. Fix: train again.") from error


def _check_format(folder: Path, description: Mapping[str, Any]) -> None:
    found = {key: description[key] for key in FORMAT}
    if found != FORMAT:
        raise CheckpointError(
            f"{folder} has format {found['format']!r} version {found['version']!r}: this act_kit reads "
            f"{FORMAT['format']!r} version {FORMAT['version']}."
        )
    name, head = description["policy"]["name"], description["policy"].get("head")
    if head:
        try:
            load_own_head(str(head))
        except ConfigError as error:
            raise CheckpointError(f"The checkpoint {folder} has a model that does not load: {error}") from error
    load_head(str(name))
    if isinstance(name, str) and name not in PolicyConfig.kinds:
        raise CheckpointError(
            f"The checkpoint {folder} has a model '{name}', which is not registered. Fix: import the module that "
            "registers it, or train with policy.head=MODULE:CLASS, which the checkpoint remembers."
        )


def _read_layout(path: Path) -> dict[str, Tensor]:
    """Return the names, shapes and types of a file's tensors, read from its header only."""
    if not path.is_file():  # reading a pipe would never end
        raise ValueError(f"{path.name} is missing or not a regular file")
    layout: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, it is not a mapping
            part = file.get_slice(name)
            layout[name] = torch.empty(part.get_shape(), dtype=_DTYPES[part.get_dtype()], device="meta")
    return layout


def _check_layout(folder: Path, config: PolicyConfig, metadata: PolicyMetadata, layout: dict[str, Tensor]) -> None:
    """Raise :class:`CheckpointError` unless a file's tensors match the model's, before memory is allocated for them."""
    given: dict[str, Tensor] = {}
    for name, tensor in layout.items():
        if not name.startswith(_SELF_TEST_PREFIX):
            given[name] = tensor
        elif tensor.ndim and len(tensor) > _MAX_SELF_TEST_ROWS:
            raise CheckpointError(
                f"The checkpoint {folder} is damaged: its self-test batch has {len(tensor)} rows, more than "
                f"{_MAX_SELF_TEST_ROWS}."
            )
    with torch.device("meta"):
        embeddings = _find_task_embeddings(layout)
        model = make_model(config, num_tasks=len(metadata.tasks), task_embeddings_NE=embeddings)
        own = named_tensors(model, Normalizer(STATE_DIM))
    problem = state_dict_mismatch(own, given)
    for name, tensor in own.items():
        if not problem and tensor.dtype != given[name].dtype:
            problem = f"{name} is {given[name].dtype}, not {tensor.dtype}."
    if problem:
        raise CheckpointError(f"The checkpoint {folder} does not fit: {problem}")


def find_checkpoint(path: Path) -> Path:
    """Return a checkpoint's folder, given that folder or its run: ``checkpoints/best`` if it exists, else ``last``.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    for folder in (path, path / "checkpoints" / "best", path / "checkpoints" / "last"):
        if (folder / "policy.json").exists():
            return folder
    raise CheckpointError(
        f"There is no trained policy at {path}. Train one: act train --data DATASET --out {quoted(path)}"
    )

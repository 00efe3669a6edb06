"""A trained policy as one object and one folder: all that inference needs, and proof that it was loaded whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from act_kit.config import ExecutionConfig, PolicyConfig, build
from act_kit.errors import CheckpointError, ConfigError
from act_kit.policy.act import ACT
from act_kit.policy.execution import ChunkExecutor
from act_kit.policy.normaliser import Normaliser
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM

FORMAT = "act_kit.policy"
VERSION = 1

QUERY_ROWS = {"cpu": 16, "cuda": 128}
"""States are always predicted in blocks of this many, by device. Matrix products of one shape give a row the same bits
wherever it stands in the block and whatever stands beside it; of different shapes they do not (seen, and tested, on the
CPU). So no result of an evaluation depends on how many environments wait together."""

PROBE_TOLERANCE = 1e-3
"""Largest difference, in units of the action, between the probe's stored and recomputed output."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a policy was trained on, and so what it may be used on.

    Attributes:
        task: Meta-World task.
        dataset_fingerprint: SHA-256 of the demonstrations.
        dataset_command: The command that collects them again.
        demonstrated_starts: Their ``rand_vec``: what it saw, to tell memory from generalisation.
        horizon: Steps of an episode.
        control_hz: Actions a second.
        versions: Of act_kit, metaworld, mujoco, numpy in training.
        step: Gradient steps taken.
        goal_visible: Whether the goal in the state was anything but zeros.
    """

    task: str
    dataset_fingerprint: str
    dataset_command: str
    demonstrated_starts: list[list[float]]
    horizon: int
    control_hz: int
    versions: dict[str, str]
    step: int
    goal_visible: bool


class Policy:
    """Acts on states as Meta-World gives them: raw, unnormalised, goal visible.

    One environment::

        policy.reset()
        action = policy.act(state)            # (39,) -> (4,)

    Many: ``policy.act(states)`` with (B, 39) -> (B, 4), ``policy.reset(env_mask)`` where episodes begin. As an agent of
    ``metaworld.evaluation.evaluation``: ``eval_action`` and ``reset``.
    """

    def __init__(
        self, model: ACT, normaliser: Normaliser, contract: Contract, execution: ExecutionConfig, *, device: str = "cpu"
    ) -> None:
        if execution.execute > model.config.chunk_size:
            raise CheckpointError(
                f"This policy predicts {model.config.chunk_size} actions at once; execute={execution.execute} of them "
                "cannot be carried out."
            )
        self.model = model.to(device).eval()
        self.normaliser = normaliser.to(device)
        self.contract = contract
        self.execution = execution
        self.device = torch.device(device)
        self.executor = ChunkExecutor(execution, self.chunk_size, ACTION_DIM)
        self._queue: dict[int, np.ndarray] = {}

    def __repr__(self) -> str:
        execution = "ensembling" if self.execution.ensemble else f"executing {self.execution.execute}"
        return f"Policy({self.contract.task}, step {self.contract.step}, chunks of {self.chunk_size}, {execution})"

    @property
    def chunk_size(self) -> int:
        """K: actions predicted at once."""
        return self.model.config.chunk_size

    def with_execution(self, *, execute: int | None = None, ensemble: bool | None = None) -> Policy:
        """Return the same policy carrying out its chunks in another way; None leaves a setting as trained."""
        changes: dict[str, Any] = {"execute": execute, "ensemble": ensemble}
        execution = replace(self.execution, **{key: value for key, value in changes.items() if value is not None})
        return Policy(self.model, self.normaliser, self.contract, execution, device=str(self.device))

    # -- acting ----------------------------------------------------------------------------------------------------

    def predict(self, states: np.ndarray) -> np.ndarray:
        """Predict chunks (B, K, 4) float32, unclipped, for states (B, 39) of any float type.

        Raises:
            CheckpointError: The states are of another shape, or hide the goal that this policy was trained to see.
        """
        if states.ndim != 2 or states.shape[1] != STATE_DIM:
            raise CheckpointError(f"The policy expects states (B, {STATE_DIM}), not {states.shape}.")
        if self.contract.goal_visible and not states[:, -3:].any():
            raise CheckpointError(
                "These states hide the goal (their last three numbers are 0), but the policy was trained to see it. "
                "Make the environment fully observable: env._partially_observable = False."
            )
        size, on_gpu = QUERY_ROWS[self.device.type], self.device.type == "cuda"
        chunks: list[torch.Tensor] = []
        with torch.inference_mode():
            for begin in range(0, len(states), size):
                rows = torch.as_tensor(states[begin : begin + size], dtype=torch.float32)
                block = torch.zeros(size, STATE_DIM, pin_memory=on_gpu)
                block[: len(rows)] = rows
                chunk = self.model.predict(self.normaliser(block.to(self.device, non_blocking=on_gpu)))
                chunks.append(chunk[: len(rows)])
            predicted: np.ndarray = torch.cat(chunks).cpu().numpy()
        return predicted

    def plan(self, states: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Query environments ``rows`` (B,) at states (B, 39); return their next actions (B, N, 4), in [-1, 1]."""
        actions: np.ndarray = np.clip(self.executor.plan(self.predict(states), rows), -1.0, 1.0)
        return actions

    def act(self, state: np.ndarray) -> np.ndarray:
        """Return the action for one state, (39,) -> (4,), or for one of each environment, (B, 39) -> (B, 4)."""
        states = np.atleast_2d(state)
        idle = np.array([row for row in range(len(states)) if not len(self._queue.get(row, ()))], dtype=np.int64)
        if len(idle):
            for row, actions in zip(idle, self.plan(states[idle], idle), strict=True):
                self._queue[int(row)] = actions
        actions = np.stack([self._queue[row][0] for row in range(len(states))])
        self._queue = {row: queue[1:] for row, queue in self._queue.items()}
        return actions if state.ndim == 2 else actions[0]

    def reset(self, env_mask: np.ndarray | None = None) -> None:
        """Forget the plans of all environments, or of those where ``env_mask`` (B,) is true."""
        if env_mask is None:
            self._queue.clear()
            self.executor = ChunkExecutor(self.execution, self.chunk_size, ACTION_DIM)
            return
        rows = np.flatnonzero(env_mask)
        self.executor.reset(rows)
        for row in rows:
            self._queue.pop(int(row), None)

    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        """Act as ``metaworld.evaluation.Agent``: float64 (B, 39) -> float64 (B, 4)."""
        return self.act(observations).astype(np.float64)

    # -- on disk ---------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        return tensors | {f"normaliser.{name}": tensor for name, tensor in self.normaliser.state_dict().items()}

    def save(self, folder: Path, probe_states: np.ndarray) -> None:
        """Write ``model.safetensors`` and ``policy.json`` to ``folder``.

        ``probe_states`` (B, 39) and what the policy predicts for them are stored, so that loading proves itself.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        tensors["probe.states"] = torch.tensor(probe_states, dtype=torch.float32)
        tensors["probe.chunks"] = torch.from_numpy(self.predict(probe_states))
        description = {
            "format": FORMAT,
            "version": VERSION,
            "policy": asdict(self.model.config),
            "execution": asdict(self.execution),
            "contract": asdict(self.contract),
        }
        save_file(tensors, folder / "model.safetensors")
        (folder / "policy.json").write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> Policy:
        """Load a checkpoint folder, or the best checkpoint of a run; every tensor must be there and fit.

        Raises:
            CheckpointError: It is missing, foreign, truncated, incomplete, or computes something else than when saved.
        """
        folder = find_checkpoint(Path(path))
        try:
            description = json.loads((folder / "policy.json").read_text())
            tensors = load_file(folder / "model.safetensors")
            version = description["format"], description["version"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                f"The checkpoint {folder} is damaged: {error}. Train again, or use another."
            ) from error
        if version != (FORMAT, VERSION):
            raise CheckpointError(
                f"{folder} has format {version[0]!r} version {version[1]!r}; "
                f"this act_kit reads {FORMAT!r} version {VERSION}."
            )
        try:
            contract = Contract(**description["contract"])
            execution = build(ExecutionConfig, description["execution"])
            model = ACT(build(PolicyConfig, description["policy"]))
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"The checkpoint {folder} is damaged: policy.json: {error}. Train again.") from error
        policy = cls(model, Normaliser(STATE_DIM), contract, execution, device=device)
        probe_states, probe_chunks = tensors.pop("probe.states", None), tensors.pop("probe.chunks", None)
        policy._load_strictly(folder, tensors)
        if probe_states is None or probe_chunks is None:
            raise CheckpointError(f"The checkpoint {folder} has no probe to check itself by. Train again.")
        off = float(np.abs(policy.predict(probe_states.numpy()) - probe_chunks.numpy()).max())
        if not off <= PROBE_TOLERANCE:
            raise CheckpointError(
                f"The checkpoint {folder} does not compute what it computed when it was saved: its probe is off by "
                f"{off:.3g} (allowed: {PROBE_TOLERANCE}). Weights or normaliser have changed since."
            )
        return policy

    def _load_strictly(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        own = self._tensors()
        missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        misshapen = sorted(name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape)
        if missing or unknown or misshapen:
            raise CheckpointError(
                f"The checkpoint {folder} does not fit: {len(own.keys() & tensors.keys()) - len(misshapen)} of "
                f"{len(own)} tensors can be loaded. Missing: {missing[:3]}; unknown: {unknown[:3]}; of another shape: "
                f"{misshapen[:3]}."
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    @property
    def num_tensors(self) -> int:
        """How many tensors a checkpoint of this policy holds, all of which loading requires."""
        return len(self._tensors())


def find_checkpoint(path: Path) -> Path:
    """Return the folder of a checkpoint, given it or its run: ``checkpoints/best``, or ``last`` without a best.

    Raises:
        CheckpointError: There is none.
    """
    for folder in (path, path / "checkpoints" / "best", path / "checkpoints" / "last"):
        if (folder / "policy.json").exists():
            return folder
    raise CheckpointError(f"There is no trained policy at {path}. Train one: act train --data DATASET --out {path}")

"""A trained policy as one object and one folder: all that inference needs, and proof that it was loaded whole."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from act_kit.config import ExecutionConfig, PolicyConfig
from act_kit.errors import CheckpointError, ConfigError, RenderError
from act_kit.overrides import build
from act_kit.policy.act import ACT, Observation
from act_kit.policy.execution import ChunkExecutor
from act_kit.policy.normaliser import Normaliser
from act_kit.policy.weights import misfit
from act_kit.sim.render import RenderSettings, Views
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM

FORMAT = "act_kit.policy"
VERSION = 2

QUERY_ROWS = {"cpu": 16, "cuda": 128}
"""Observations are always predicted in blocks of this many, by device. Matrix products of one shape give a row the
same bits wherever it stands in the block and whatever stands beside it; of different shapes they do not (seen, and
tested, on the CPU). So no result of an evaluation depends on how many environments wait together."""

_PROBE = "probe."
"""What the names of the probe's tensors begin with."""

PROBE_TOLERANCE = 1e-3
"""Largest difference, in units of the action, between the probe's stored and recomputed output."""


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """One dataset that a policy was trained on.

    Attributes:
        task: Meta-World task.
        fingerprint: SHA-256 of its content.
        command: The command that collects it again.
        starts: The ``rand_vec`` of its episodes: what the policy saw, to tell memory from generalisation. None of
            imported data, where nobody recorded them.
    """

    task: str
    fingerprint: str
    command: str
    starts: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a policy was trained on, and so what it may be used on.

    Attributes:
        demonstrations: The datasets.
        horizon: Steps of an episode.
        control_hz: Actions a second.
        versions: Of act_kit, metaworld, mujoco, numpy in training.
        step: Gradient steps taken.
        goal_visible: Whether it saw goals, and they were anything but zeros.
        views: The cameras it sees through, and what their frames look like; None if it sees none.
        gl_renderer: Who drew those it was trained on; "" if it sees none.
    """

    demonstrations: list[Demonstrations]
    horizon: int
    control_hz: int
    versions: dict[str, str]
    step: int
    goal_visible: bool
    views: Views | None
    gl_renderer: str

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order by which the model numbers them."""
        return tuple(dict.fromkeys(demonstrations.task for demonstrations in self.demonstrations))

    def starts_of(self, task: str) -> list[list[float]]:
        """Return every demonstrated start of a task that is known, as ``rand_vec``."""
        return [start for shown in self.demonstrations if shown.task == task for start in shown.starts]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Contract:
        """Read what ``asdict`` made."""
        views = values["views"]
        if views is not None:
            views = Views(cameras=tuple(views["cameras"]), settings=RenderSettings(**views["settings"]))
        demonstrations = [Demonstrations(**shown) for shown in values["demonstrations"]]
        return cls(**{**values, "views": views, "demonstrations": demonstrations})


class Policy:
    """Acts on states as Meta-World gives them: raw, unnormalised, goal visible; and on pictures, if it sees any.

    One environment::

        policy.reset()
        action = policy.act(state)            # (39,) -> (4,)

    Many: ``policy.act(states)`` with (B, 39) -> (B, 4), ``policy.reset(env_mask)`` where episodes begin. As an agent of
    ``metaworld.evaluation.evaluation``: ``eval_action`` and ``reset``. A policy of several tasks acts on one of them:
    ``policy.for_task("push-v3")``.

    Attributes:
        folder: The checkpoint it was loaded from; None if it was not.
    """

    def __init__(
        self, model: ACT, normaliser: Normaliser, contract: Contract, execution: ExecutionConfig, *,
        device: str = "cpu", folder: Path | None = None,
    ) -> None:  # fmt: skip
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
        self.folder = folder
        self.executor = ChunkExecutor(execution, self.chunk_size, ACTION_DIM)
        self._queue: dict[int, np.ndarray] = {}
        self._task = 0 if len(self.tasks) == 1 else None

    def __repr__(self) -> str:
        execution = "ensembling" if self.execution.ensemble else f"executing {self.execution.execute}"
        return f"Policy({', '.join(self.tasks)}, step {self.contract.step}, chunks of {self.chunk_size}, {execution})"

    @property
    def chunk_size(self) -> int:
        """K: actions predicted at once."""
        return self.model.config.chunk_size

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it was trained on, in the order of their numbers."""
        return self.contract.tasks

    @property
    def views(self) -> Views | None:
        """The cameras it sees through; None if it sees none."""
        return self.contract.views

    def for_task(self, task: str) -> Policy:
        """Return the same policy, acting on one of its tasks.

        Raises:
            CheckpointError: It was not trained on that task.
        """
        if task not in self.tasks:
            raise CheckpointError(f"This policy was trained on {', '.join(self.tasks)}, not on {task}.")
        policy = self.with_execution()
        policy._task = self.tasks.index(task)
        return policy

    def with_execution(self, *, execute: int | None = None, ensemble: bool | None = None) -> Policy:
        """Return the same policy carrying out its chunks in another way; None leaves a setting as trained."""
        changes: dict[str, Any] = {"execute": execute, "ensemble": ensemble}
        execution = replace(self.execution, **{key: value for key, value in changes.items() if value is not None})
        policy = Policy(
            self.model, self.normaliser, self.contract, execution, device=str(self.device), folder=self.folder
        )
        policy._task = self._task
        return policy

    # -- acting ----------------------------------------------------------------------------------------------------

    def predict(
        self, states: np.ndarray, images: np.ndarray | None = None, tasks: np.ndarray | None = None
    ) -> np.ndarray:
        """Predict chunks (B, K, 4) float32, unclipped.

        Args:
            states: (B, 39) of any float type.
            images: uint8 (B, C, H, W, 3), of :attr:`views`; None for a policy that sees none.
            tasks: int64 (B,), the number of each row's task in :attr:`tasks`; None for the one it acts on.

        Raises:
            CheckpointError: States or images are of another shape, or hide the goal that this policy was trained to
                see, or it is not said which of several tasks they are of.
        """
        if states.ndim != 2 or states.shape[1] != STATE_DIM:
            raise CheckpointError(f"The policy expects states (B, {STATE_DIM}), not {states.shape}.")
        if self.contract.goal_visible and not states[:, -3:].any():
            raise CheckpointError(
                "These states hide the goal (their last three numbers are 0), but the policy was trained to see it. "
                "Make the environment fully observable: env._partially_observable = False."
            )
        self._check_images(images, len(states))
        if tasks is None:
            if self._task is None:
                raise CheckpointError(
                    f"This policy knows {len(self.tasks)} tasks; say which: policy.for_task('{self.tasks[0]}')"
                )
            tasks = np.full(len(states), self._task)
        size = QUERY_ROWS[self.device.type]
        chunks: list[torch.Tensor] = []
        with torch.inference_mode():
            for begin in range(0, len(states), size):
                rows = slice(begin, begin + size)
                observation = Observation(
                    states_BS=self.normaliser(self._block(states[rows].astype(np.float32), size)),
                    tasks_B=self._block(tasks[rows].astype(np.int64), size),
                    images_BCHW3=None if images is None else self._block(images[rows], size),
                )
                chunks.append(self.model.predict(observation)[: len(states[rows])])
            predicted: np.ndarray = torch.cat(chunks).cpu().numpy()
        return predicted

    def _block(self, rows: np.ndarray, size: int) -> torch.Tensor:
        """Bring rows to the device, with zeros behind them up to the size of a block."""
        on_gpu = self.device.type == "cuda"
        block = torch.zeros((size, *rows.shape[1:]), dtype=torch.from_numpy(rows[:0]).dtype, pin_memory=on_gpu)
        block[: len(rows)] = torch.from_numpy(rows)
        return block.to(self.device, non_blocking=on_gpu)

    def _check_images(self, images: np.ndarray | None, num_rows: int) -> None:
        if self.views is None:
            if images is not None:
                raise CheckpointError("This policy acts on states alone; give it no images.")
            return
        size = self.views.settings
        expected = (num_rows, len(self.views.cameras), size.height_px, size.width_px, 3)
        if images is None or images.shape != expected or images.dtype != np.uint8:
            given = "none" if images is None else f"{images.dtype} {images.shape}"
            raise CheckpointError(
                f"The policy expects images of {', '.join(self.views.cameras)} at {size} px, uint8 {expected}, "
                f"not {given}."
            )

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None = None) -> np.ndarray:
        """Query environments ``rows`` (B,) at states (B, 39); return their next actions (B, N, 4), in [-1, 1]."""
        actions: np.ndarray = np.clip(self.executor.plan(self.predict(states, images), rows), -1.0, 1.0)
        return actions

    def act(self, state: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
        """Return the action for one state, (39,) -> (4,), or for one of each environment, (B, 39) -> (B, 4).

        ``image``, uint8 (C, H, W, 3) or (B, C, H, W, 3), is looked at where a chunk is at its end.
        """
        states = np.atleast_2d(state)
        idle = np.array([row for row in range(len(states)) if not len(self._queue.get(row, ()))], dtype=np.int64)
        if len(idle):
            images = None if image is None else image.reshape(len(states), *image.shape[-4:])[idle]
            for row, actions in zip(idle, self.plan(states[idle], idle, images), strict=True):
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

    def _on(self, device: str) -> Policy:
        """Copy it to a device."""
        model, normaliser = copy.deepcopy(self.model), copy.deepcopy(self.normaliser)
        return Policy(model, normaliser, self.contract, self.execution, device=device, folder=self.folder)

    @property
    def weights_hash(self) -> str:
        """SHA-256 of its tensors, the normaliser's too."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    # -- on disk ---------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        return tensors | {f"normaliser.{name}": tensor for name, tensor in self.normaliser.state_dict().items()}

    def save(self, folder: Path, probe: Mapping[str, np.ndarray]) -> None:
        """Write ``model.safetensors`` and ``policy.json`` to ``folder``.

        ``probe``, arguments of :meth:`predict`, is stored with what the policy predicts for it, so that loading proves
        itself.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        tensors |= {f"{_PROBE}{name}": torch.from_numpy(rows).contiguous() for name, rows in probe.items()}
        # On the processor, here and when it is loaded: a GPU rounds otherwise.
        judge = self if self.device.type == "cpu" else self._on("cpu")
        tensors[f"{_PROBE}chunks"] = torch.from_numpy(judge.predict(**probe))
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
        probe = {name.removeprefix(_PROBE): tensors.pop(name) for name in list(tensors) if name.startswith(_PROBE)}
        try:
            contract = Contract.of(description["contract"])
            execution = build(ExecutionConfig, description["execution"])
            model = ACT(
                build(PolicyConfig, description["policy"]), num_tasks=len(contract.tasks),
                task_embeddings_NE=tensors.get("model.task.given_NE"),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError, ConfigError, RenderError) as error:
            raise CheckpointError(f"The checkpoint {folder} is damaged: policy.json: {error}. Train again.") from error
        policy = cls(model, Normaliser(STATE_DIM), contract, execution, folder=folder.resolve())
        policy._load_strictly(folder, tensors)
        if "chunks" not in probe:
            raise CheckpointError(f"The checkpoint {folder} has no probe to check itself by. Train again.")
        expected = probe.pop("chunks").numpy()
        once, twice = (policy.predict(**{name: rows.numpy() for name, rows in probe.items()}) for _ in range(2))
        if not np.array_equal(once, twice):
            raise CheckpointError(
                f"The policy {folder} is not deterministic: asked twice about the same states, it answers up to "
                f"{np.abs(once - twice).max():.2g} apart. In use z is 0 and nothing is sampled or dropped out."
            )
        off = float(np.abs(once - expected).max())
        if not off <= PROBE_TOLERANCE:
            raise CheckpointError(
                f"The checkpoint {folder} does not compute what it computed when it was saved: its probe is off by "
                f"{off:.3g} (allowed: {PROBE_TOLERANCE}). Weights or normaliser have changed since."
            )
        return policy if device == "cpu" else policy._on(device)

    def _load_strictly(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        own = self._tensors()
        wrong = misfit(own, tensors)
        if wrong:
            raise CheckpointError(f"The checkpoint {folder} does not fit: {wrong}")
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

"""A trained policy as one object and one folder: everything inference needs, with a self-test that loading verifies."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from act_kit.arrays import as_array, as_bytes, as_mask, check_shape, name_rows
from act_kit.config import ChunkingConfig, PolicyConfig
from act_kit.errors import ActKitError, ArrayError, CheckpointError, ConfigError
from act_kit.files import quoted, read_json, write_json
from act_kit.options import build
from act_kit.policies.act import ACT, Observation
from act_kit.policies.chunking import ActionChunker
from act_kit.policies.normalizer import Normalizer
from act_kit.policies.one_hot import split_observations
from act_kit.policies.weights import state_dict_mismatch
from act_kit.sim.render import CameraViews, RenderSettings, check_cameras
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM, get_task
from act_kit.sim.threads import SingleThreadGuard

FORMAT = "act_kit.policy"
VERSION = 2

QUERY_ROWS = {"cpu": 16, "cuda": 128}
"""Number of rows in the fixed-size blocks that observations are predicted in, by device.

Matrix products of one shape compute a row to the same bits at every place in the block and next to any other rows;
products of different shapes do not (observed and tested on the CPU). Therefore no evaluation result depends on how many
environments are queried together.
"""

Tasks = Sequence[str] | np.ndarray
"""Task of each row: names, or indices into :attr:`Policy.tasks`."""

_SELF_TEST_PREFIX = "self_test."
"""Prefix of the names of the self-test batch's tensors."""

_TASK_EMBEDDINGS = "model.task.given_NE"
"""Name of the tensor of given task embeddings, which a multi-task model may have."""

_DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "U8": torch.uint8, "BOOL": torch.bool}
"""Tensor types by their safetensors names; a checkpoint has no others."""

_MAX_JSON_BYTES = 64 * 2**20
"""Largest ``policy.json``; the initial states of 50 tasks with 1,000 demonstrations each take a fifth of it."""

_MAX_SELF_TEST_ROWS = 4096

SELF_TEST_TOLERANCE = 1e-3
"""Largest difference, in action units, between the stored and recomputed predictions of the self-test batch."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """One dataset that a policy was trained on.

    Attributes:
        task: Meta-World task.
        fingerprint: SHA-256 of its content.
        command: Command that collects it again.
        init_states: ``rand_vec`` of its episodes, used to distinguish memorization from generalization. Empty for
            imported data, where it is not recorded.
    """

    task: str
    fingerprint: str
    command: str
    init_states: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class PolicyMetadata:
    """Conditions that a policy was trained under and expects at inference.

    Attributes:
        demonstrations: Datasets.
        horizon: Steps of an episode.
        control_hz: Actions per second.
        versions: Versions of act_kit, metaworld, mujoco and numpy in training, and the platform.
        step: Gradient steps taken.
        goal_visible: True if the policy sees the goal and it was not zeros in training.
        views: Cameras and image settings; None for a policy without images.
        gl_renderer: OpenGL renderer of the training images; "" for a policy without images.
    """

    demonstrations: list[TrainingData]
    horizon: int
    control_hz: int
    versions: dict[str, str]
    step: int
    goal_visible: bool
    views: CameraViews | None
    gl_renderer: str

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks, in the order of the model's task indices."""
        return tuple(dict.fromkeys(data.task for data in self.demonstrations))

    def init_states_of(self, task: str) -> list[list[float]]:
        """Return every known demonstrated initial state of a task, as ``rand_vec``."""
        init_states: list[list[float]] = []
        for data in self.demonstrations:
            if data.task == task:
                init_states += data.init_states
        return init_states

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PolicyMetadata:
        """Read the values that ``asdict`` returns.

        Raises:
            ActKitError, KeyError, TypeError, ValueError: The values are incomplete or invalid.
        """
        views = values["views"]
        if views is not None:
            views = CameraViews(cameras=tuple(views["cameras"]), settings=RenderSettings(**views["settings"]))
            check_cameras(views.cameras)
        demonstrations = [TrainingData(**data) for data in values["demonstrations"]]
        if not all(isinstance(data.task, str) for data in demonstrations):
            raise TypeError("the task of a dataset is not a name.")
        if not demonstrations:
            raise ValueError("demonstrations: expected at least one dataset.")
        for data in demonstrations:
            if data.init_states:
                as_array(data.init_states, f"The initial states of {data.task}", ("N", len(get_task(data.task).low)))
        for name, least, most in (("horizon", 1, 10**6), ("control_hz", 1, 10**6), ("step", 0, 10**12)):
            if type(values[name]) is not int or not least <= values[name] <= most:
                raise ValueError(f"{name}={values[name]!r}: expected an integer from {least} to {most}.")
        if type(values["goal_visible"]) is not bool:
            raise ValueError(f"goal_visible={values['goal_visible']!r}: expected true or false.")
        return cls(**{**values, "views": views, "demonstrations": demonstrations})


class Policy:
    """A trained policy, which acts on Meta-World's raw, unnormalized states with a visible goal, on images, or both.

    One environment::

        policy.reset()
        action = policy.act(state)            # (39,) -> (4,)

    Many environments: ``policy.act(states)`` with (B, 39) -> (B, 4), ``policy.reset(env_mask)`` where episodes begin.
    As an agent of ``metaworld.evaluation.evaluation``: ``eval_action`` and ``reset``.

    A multi-task policy needs the task of each row. For one task, use ``policy.for_task("push-v3")``; for several,
    ``policy.act(states, tasks=["push-v3", "reach-v3"])``, or the observations of Meta-World's MT10, MT25 and MT50 with
    ``use_one_hot=True``, which contain the task: (B, 49), (B, 64) and (B, 89).

    Several threads may call :meth:`predict`. To act, each thread needs its own policy with the same weights:
    ``policy.with_chunking()``. A copy of a policy keeps its own action chunks.

    Attributes:
        folder: Checkpoint that it was loaded from; None otherwise.
    """

    def __init__(
        self,
        model: ACT,
        normalizer: Normalizer,
        metadata: PolicyMetadata,
        chunking: ChunkingConfig,
        *,
        device: str = "cpu",
        folder: Path | None = None,
    ) -> None:
        if chunking.n_action_steps > model.config.chunk_size:
            raise CheckpointError(
                f"This policy predicts {model.config.chunk_size} actions at once; "
                f"n_action_steps={chunking.n_action_steps} is more. Fix: n_action_steps={model.config.chunk_size}"
            )
        self.model = model.to(device).eval()
        self.normalizer = normalizer.to(device)
        self.metadata = metadata
        self.chunking = chunking
        self.device = torch.device(device)
        self.folder = folder
        self.executor = ActionChunker(chunking, self.chunk_size, ACTION_DIM)
        self._queue: dict[int, np.ndarray] = {}
        self._num_envs: int | None = None
        self._exclusive = _single_thread_guard()
        self._task = 0 if len(self.tasks) == 1 else None

    def __getstate__(self) -> dict[str, Any]:
        own = {"_queue": dict(self._queue), "executor": copy.deepcopy(self.executor), "_exclusive": None}
        return {**vars(self), **own}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes, _exclusive=_single_thread_guard())

    def __repr__(self) -> str:
        chunking = "ensembling" if self.chunking.temporal_ensemble else f"executing {self.chunking.n_action_steps}"
        return f"Policy({', '.join(self.tasks)}, step {self.metadata.step}, chunks of {self.chunk_size}, {chunking})"

    @property
    def chunk_size(self) -> int:
        """K: number of actions predicted at once."""
        return self.model.config.chunk_size

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks it was trained on, in the order of their indices."""
        return self.metadata.tasks

    @property
    def views(self) -> CameraViews | None:
        """Cameras and image settings; None for a policy without images."""
        return self.metadata.views

    def for_task(self, task: str) -> Policy:
        """Return the same policy, fixed to one of its tasks.

        Raises:
            CheckpointError: The policy was not trained on that task.
        """
        if task not in self.tasks:
            raise CheckpointError(f"This policy was trained on {', '.join(self.tasks)}, not on {task}.")
        policy = self.with_chunking()
        policy._task = self.tasks.index(task)
        return policy

    def with_chunking(self, *, n_action_steps: int | None = None, temporal_ensemble: bool | None = None) -> Policy:
        """Return the same policy with other chunking settings; None keeps a setting as trained."""
        settings: dict[str, Any] = {"n_action_steps": n_action_steps, "temporal_ensemble": temporal_ensemble}
        chunking = replace(self.chunking, **{key: value for key, value in settings.items() if value is not None})
        policy = Policy(
            self.model, self.normalizer, self.metadata, chunking, device=str(self.device), folder=self.folder
        )
        policy._task = self._task
        return policy

    # -- acting ----------------------------------------------------------------------------------------------------

    def predict(self, states: np.ndarray, images: np.ndarray | None = None, tasks: Tasks | None = None) -> np.ndarray:
        """Predict chunks (B, K, 4) float32, unclipped.

        Args:
            states: (B, 39) of any real type, or each followed by a benchmark's one-hot task.
            images: uint8 (B, C, H, W, 3), of :attr:`views`; None for a policy without images.
            tasks: Name of each row's task, or its index in :attr:`tasks`, int (B,); None for the policy's fixed task,
                or the tasks in the states.

        Raises:
            ArrayError: States, images or tasks have the wrong type, shape or meaning, the states hide the goal that
                this policy was trained to see, or the task of a multi-task policy is not given; the message names the
                rows.
        """
        states, one_hot_tasks = split_observations(states)
        self._check_goals(states)
        checked = self._check_images(images, len(states))
        indices = self._resolve_tasks(len(states), tasks, one_hot_tasks)
        size = QUERY_ROWS[self.device.type]
        chunks = [torch.empty((0, self.chunk_size, ACTION_DIM), device=self.device)]
        with torch.inference_mode():
            for begin in range(0, len(states), size):
                rows = slice(begin, begin + size)
                observation = Observation(
                    states_BS=self.normalizer(self._pad_block(states[rows].astype(np.float32), size)),
                    tasks_B=self._pad_block(indices[rows], size),
                    images_BCHW3=None if checked is None else self._pad_block(checked[rows], size),
                )
                chunks.append(self.model.predict(observation)[: len(states[rows])])
            predicted: np.ndarray = torch.cat(chunks).cpu().numpy()
        return predicted

    def _check_goals(self, states: np.ndarray) -> None:
        hidden = np.flatnonzero(~states[:, -3:].any(axis=1))
        if self.metadata.goal_visible and len(hidden):
            raise ArrayError(
                f"The states in {name_rows(hidden)} hide the goal (their last three numbers are 0), but the policy was "
                "trained to see it. Fix: make the environment fully observable, env._partially_observable = False."
            )

    def _resolve_tasks(self, num_rows: int, tasks: Tasks | None, one_hot_tasks: list[str] | None) -> np.ndarray:
        """Return the task index of each row, int64 (B,), from the caller's ``tasks`` and those in the states."""
        from_states = None if one_hot_tasks is None else self._task_indices(one_hot_tasks)
        from_caller = self._task_indices(tasks) if tasks is not None else None
        if from_caller is None and self._task is not None:
            from_caller = np.full(num_rows, self._task)
        if from_caller is None and from_states is None:
            raise ArrayError(
                f"This policy was trained on {len(self.tasks)} tasks ({', '.join(self.tasks)}), and states of "
                f"{STATE_DIM} numbers do not name the task. Fix: policy.act(states, tasks=[…]) with the name of each "
                "row's task, or observations with Meta-World's one-hot task (use_one_hot=True); policy.for_task(…) "
                "only where every row is of that task."
            )
        if from_caller is None:
            assert from_states is not None
            return from_states
        check_shape(from_caller, "tasks", (num_rows,))
        if from_states is not None and (from_caller != from_states).any():
            wrong = np.flatnonzero(from_caller != from_states)
            first = int(wrong[0])
            raise ArrayError(
                f"The one-hot task in {name_rows(wrong)} is {self.tasks[from_states[first]]}, but the policy is set to "
                f"{self.tasks[from_caller[first]]}: expected the same task."
            )
        return from_caller

    def _task_indices(self, tasks: Tasks) -> np.ndarray:
        """Return the indices, int64 (B,), of tasks given by name or by index."""
        given = np.asarray(list(tasks))
        if given.dtype.kind != "U":
            indices = as_array(given, "tasks", ("B",))
            wrong = np.flatnonzero((indices < 0) | (indices >= len(self.tasks)))
            if indices.dtype.kind == "f" or len(wrong):
                raise ArrayError(
                    f"tasks {given.tolist()}: expected names of tasks, or integers from 0 to {len(self.tasks) - 1}."
                )
            return indices.astype(np.int64)
        check_shape(given, "tasks", ("B",))
        known = {task: index for index, task in enumerate(self.tasks)}
        unknown = [row for row, task in enumerate(given.tolist()) if task not in known]
        if unknown:
            raise ArrayError(
                f"The task in {name_rows(unknown)} is {given[unknown[0]]}: expected one that this policy was trained "
                f"on, {', '.join(self.tasks)}."
            )
        return np.array([known[task] for task in given.tolist()], dtype=np.int64)

    def _pad_block(self, rows: np.ndarray, size: int) -> torch.Tensor:
        """Move rows to the device, padded with zeros to the size of a block."""
        on_gpu = self.device.type == "cuda"
        given = torch.from_numpy(np.ascontiguousarray(rows))
        block = torch.zeros((size, *given.shape[1:]), dtype=given.dtype, pin_memory=on_gpu)
        block[: len(given)] = given
        return block.to(self.device, non_blocking=on_gpu)

    def _check_images(self, images: np.ndarray | None, num_rows: int) -> np.ndarray | None:
        if self.views is None:
            if images is not None:
                raise ArrayError("This policy acts on states only: expected no images.")
            return None
        size, cameras = self.views.settings, self.views.cameras
        shape = (num_rows, len(cameras), size.height_px, size.width_px, 3)
        expected = f"The policy expects images of {', '.join(cameras)} at {size} px, uint8 {shape}"
        if images is None:
            raise ArrayError(f"{expected}, not none.")
        given = np.shape(images)
        if given == (*shape[:2], 3, *shape[2:4]):
            raise ArrayError(f"{expected}, not channels first, {given}. Fix: images.transpose(0, 1, 3, 4, 2)")
        if given[1:] == shape[1:] and given != shape:
            raise ArrayError(f"{expected}, not {given[0]} rows: expected one row of images for each state.")
        return as_bytes(images, f"{expected}. Given images", shape)

    def plan(
        self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None = None, tasks: Tasks | None = None
    ) -> np.ndarray:
        """Query environments ``rows`` (B,) at states (B, 39); return their next actions (B, N, 4), in [-1, 1].

        See :meth:`predict` for images, tasks and errors.
        """
        planned = self.executor.plan(self.predict(states, images, tasks), rows)
        actions: np.ndarray = np.clip(planned, -1.0, 1.0)
        return actions

    def act(self, state: np.ndarray, image: np.ndarray | None = None, tasks: Tasks | str | None = None) -> np.ndarray:
        """Return the action for one state, (39,) -> (4,), or for the states of all environments, (B, 39) -> (B, 4).

        ``image``, uint8 (C, H, W, 3) or (B, C, H, W, 3), is used only in environments whose chunk has ended. ``tasks``
        is the task, or the task of each environment. See :meth:`predict` for errors; the number of environments may
        change only after :meth:`reset`.
        """
        with self._exclusive:
            return self._act(state, image, tasks)

    def _act(self, state: np.ndarray, image: np.ndarray | None, tasks: Tasks | str | None) -> np.ndarray:
        is_one = np.ndim(state) == 1
        states = np.asarray(state)[None] if is_one else state
        images = np.asarray(image)[None] if is_one and image is not None else image
        tasks = [tasks] * len(states) if isinstance(tasks, str) else tasks
        split, one_hot_tasks = split_observations(states)
        self._check_goals(split)
        indices = self._resolve_tasks(len(split), tasks, one_hot_tasks)
        if self._num_envs not in (None, len(split)):
            raise ArrayError(
                f"{len(split)} states: expected {self._num_envs}, one for each environment as in the last call. Fix: "
                "policy.reset() before other episodes begin."
            )
        self._num_envs = len(split)
        idle = np.array([row for row in range(len(split)) if not len(self._queue.get(row, ()))], dtype=np.int64)
        checked = self._check_images(images, len(split)) if len(idle) or images is not None else None
        if len(idle):
            planned = self.plan(split[idle], idle, None if checked is None else checked[idle], indices[idle])
            self._queue.update(zip(idle.tolist(), planned, strict=True))
        actions = np.empty((len(split), ACTION_DIM), dtype=np.float32)
        for row in range(len(split)):
            actions[row] = self._queue[row][0]
            self._queue[row] = self._queue[row][1:]
        return actions[0] if is_one else actions

    def reset(self, env_mask: np.ndarray | None = None) -> None:
        """Discard the action chunks of all environments, or of those where ``env_mask``, bool (B,), is true.

        Raises:
            ArrayError: The mask has the wrong type (environment indices are not a mask) or length.
        """
        with self._exclusive:
            if env_mask is None:
                self._queue.clear()
                self._num_envs = None
                self.executor = ActionChunker(self.chunking, self.chunk_size, ACTION_DIM)
                return
            rows = np.flatnonzero(as_mask(env_mask, "The mask of a reset", self._num_envs))
            self.executor.reset(rows)
            for row in rows:
                self._queue.pop(int(row), None)

    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        """Act as ``metaworld.evaluation.Agent``: float64 (B, 39) -> float64 (B, 4)."""
        return self.act(observations).astype(np.float64)

    def _copy_to(self, device: str) -> Policy:
        """Return a copy of the policy on a device."""
        model, normalizer = copy.deepcopy(self.model), copy.deepcopy(self.normalizer)
        return Policy(model, normalizer, self.metadata, self.chunking, device=device, folder=self.folder)

    @property
    def weights_hash(self) -> str:
        """SHA-256 of all its tensors, including the normalizer's."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    # -- on disk ---------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, torch.Tensor]:
        return _named_tensors(self.model, self.normalizer)

    def save(self, folder: Path, self_test: Mapping[str, np.ndarray]) -> None:
        """Write ``model.safetensors`` and ``policy.json`` to ``folder``.

        ``self_test``, arguments of :meth:`predict`, is stored with the policy's predictions for it, which :meth:`load`
        must reproduce.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        for name, rows in self_test.items():
            tensors[f"{_SELF_TEST_PREFIX}{name}"] = torch.from_numpy(rows).contiguous()
        # Predict on the CPU, here and in load: a GPU rounds differently.
        on_cpu = self if self.device.type == "cpu" else self._copy_to("cpu")
        tensors[f"{_SELF_TEST_PREFIX}chunks"] = torch.from_numpy(on_cpu.predict(**self_test))
        description = {
            "format": FORMAT,
            "version": VERSION,
            "policy": asdict(self.model.config),
            "chunking": asdict(self.chunking),
            "metadata": asdict(self.metadata),
        }
        save_file(tensors, folder / "model.safetensors")
        write_json(folder / "policy.json", description)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> Policy:
        """Load a checkpoint folder, or the best checkpoint of a run; every tensor must be present and match.

        Args:
            path: Folder of the checkpoint or the run.
            device: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.

        Raises:
            CheckpointError: The checkpoint is missing, of another format, truncated or incomplete, or does not
                reproduce the predictions of its self-test batch.
            ConfigError: There is no such device.
        """
        device = _choose_device(device)
        folder = find_checkpoint(Path(path))
        description = _read_description(folder)
        layout = _read_layout(folder)
        try:
            metadata = PolicyMetadata.from_dict(description["metadata"])
            chunking = build(ChunkingConfig, description["chunking"])
            config = build(PolicyConfig, description["policy"])
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, ActKitError) as error:
            reason = str(error).rstrip(".")
            raise CheckpointError(f"The checkpoint {folder} is damaged: policy.json: {reason}. Train again.") from error
        _check_layout(folder, config, metadata, layout)
        tensors = load_file(folder / "model.safetensors")
        self_test: dict[str, torch.Tensor] = {}
        for name in list(tensors):
            if name.startswith(_SELF_TEST_PREFIX):
                self_test[name.removeprefix(_SELF_TEST_PREFIX)] = tensors.pop(name)
        model = ACT(config, num_tasks=len(metadata.tasks), task_embeddings_NE=tensors.get(_TASK_EMBEDDINGS))
        policy = cls(model, Normalizer(STATE_DIM), metadata, chunking, folder=folder.resolve())
        with torch.no_grad():
            for name, tensor in policy._tensors().items():
                tensor.copy_(tensors[name])
        policy._run_self_test(folder, self_test)
        return policy if device == "cpu" else policy._copy_to(device)

    def _run_self_test(self, folder: Path, self_test: dict[str, torch.Tensor]) -> None:
        """Raise :class:`CheckpointError` unless the policy reproduces the stored predictions of its self-test batch."""
        if "chunks" not in self_test:
            raise CheckpointError(f"The checkpoint {folder} has no self-test batch. Fix: train again.")
        expected = self_test.pop("chunks").numpy()
        observations = {name: rows.numpy() for name, rows in self_test.items()}
        try:
            first, second = (self.predict(**observations) for _ in range(2))
        except (TypeError, ActKitError) as error:
            raise CheckpointError(
                f"The checkpoint {folder} is damaged: its self-test batch: {error} Fix: train again."
            ) from error
        if not np.array_equal(first, second):
            raise CheckpointError(
                f"The policy {folder} is not deterministic: two predictions for the same states differ by up to "
                f"{np.abs(first - second).max():.2g}. Expected: z = 0, no sampling and no dropout at inference."
            )
        error_max = float(np.abs(first - expected).max()) if first.shape == expected.shape else float("nan")
        if not error_max <= SELF_TEST_TOLERANCE:
            raise CheckpointError(
                f"The checkpoint {folder} does not reproduce the predictions it was saved with: they differ by "
                f"{error_max:.3g} (allowed: {SELF_TEST_TOLERANCE}). Its weights or normalizer have changed since."
            )

    @property
    def num_tensors(self) -> int:
        """Number of tensors in a checkpoint of this policy; loading requires all of them."""
        return len(self._tensors())


def _single_thread_guard() -> SingleThreadGuard:
    return SingleThreadGuard("policy", "make one with the same weights for each thread: policy.with_chunking()")


def _choose_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise ConfigError(f"device='{device}': choose from: auto, cpu, cuda, cuda:1.")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device='{device}': PyTorch finds no such GPU. Fix: device='auto'")
    return device


def _read_description(folder: Path) -> dict[str, Any]:
    """Return the content of ``policy.json``, after checking its format and version."""
    try:
        description = read_json(folder / "policy.json", max_bytes=_MAX_JSON_BYTES)
        version = description["format"], description["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The checkpoint {folder} is damaged: {error}. Train again, or use another.") from error
    if version != (FORMAT, VERSION):
        raise CheckpointError(
            f"{folder} has format {version[0]!r} version {version[1]!r}: "
            f"this act_kit reads {FORMAT!r} version {VERSION}."
        )
    read: dict[str, Any] = description
    return read


def _read_layout(folder: Path) -> dict[str, torch.Tensor]:
    """Return the names, shapes and types of the tensors in ``model.safetensors``, read from its header only."""
    path = folder / "model.safetensors"
    try:
        if not path.is_file():  # reading a pipe would never end
            raise CheckpointError(f"The checkpoint {folder} is damaged: {path.name} is missing or not a regular file.")
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is not a mapping
            return {
                name: torch.empty(part.get_shape(), dtype=_DTYPES[part.get_dtype()], device="meta")
                for name, part in slices.items()
            }
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"The checkpoint {folder} is damaged: {error}. Train again, or use another.") from error


def _check_layout(
    folder: Path, config: PolicyConfig, metadata: PolicyMetadata, layout: Mapping[str, torch.Tensor]
) -> None:
    """Raise :class:`CheckpointError` unless a file's tensors match the model's, before memory is allocated for them."""
    cameras = metadata.views.cameras if metadata.views else ()
    if config.cameras != cameras:
        raise CheckpointError(
            f"The checkpoint {folder} is damaged: its model has cameras {config.cameras}, its metadata {cameras}."
        )
    self_test = [tensor for name, tensor in layout.items() if name.startswith(_SELF_TEST_PREFIX)]
    num_rows = max((len(tensor) for tensor in self_test if tensor.ndim), default=0)
    if num_rows > _MAX_SELF_TEST_ROWS:
        raise CheckpointError(
            f"The checkpoint {folder} is damaged: its self-test batch has {num_rows} rows, more than "
            f"{_MAX_SELF_TEST_ROWS}."
        )
    with torch.device("meta"):
        model = ACT(config, num_tasks=len(metadata.tasks), task_embeddings_NE=layout.get(_TASK_EMBEDDINGS))
        own = _named_tensors(model, Normalizer(STATE_DIM))
    given = {name: tensor for name, tensor in layout.items() if not name.startswith(_SELF_TEST_PREFIX)}
    mismatch = state_dict_mismatch(own, given)
    if mismatch:
        raise CheckpointError(f"The checkpoint {folder} does not fit: {mismatch}")
    for name, tensor in own.items():
        if tensor.dtype != given[name].dtype:
            raise CheckpointError(
                f"The checkpoint {folder} does not fit: {name} is {given[name].dtype}, not {tensor.dtype}."
            )


def _named_tensors(model: ACT, normalizer: Normalizer) -> dict[str, torch.Tensor]:
    """Return all tensors of a policy by their names on disk."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return tensors | {f"normalizer.{name}": tensor for name, tensor in normalizer.state_dict().items()}


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

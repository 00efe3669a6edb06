"""A trained policy: everything inference needs, in one object and one folder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from act_kit.arrays import as_mask, check_shape
from act_kit.config.training import ChunkingConfig
from act_kit.errors import ActKitError, ArrayError, CheckpointError, ConfigError
from act_kit.policies.chunk_model import ChunkModel, Observation
from act_kit.policies.chunking import ActionChunker
from act_kit.policies.first_states import FirstStates
from act_kit.policies.inputs import Tasks, check_images, check_states, split_observations
from act_kit.policies.metadata import PolicyMetadata
from act_kit.policies.normalizer import Normalizer
from act_kit.policies.query_blocks import make_blocks
from act_kit.policies.storage import find_checkpoint, named_tensors, read_policy, write_policy
from act_kit.sim.render import CameraViews
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM
from act_kit.sim.threads import SingleThreadGuard

SELF_TEST_TOLERANCE = 1e-3
"""Largest difference, in action units, between the stored and recomputed predictions of the self-test batch."""


class Policy:
    """A trained policy, which acts on Meta-World's raw, unnormalized states with a visible goal, on images, or both.

    One environment::

        policy.reset()
        action = policy.act(state)            # (39,) -> (4,)

    Many environments: ``policy.act(states)`` with (B, 39) -> (B, 4), ``policy.reset(env_mask)`` where episodes begin.
    As an agent of ``metaworld.evaluation.evaluation``: ``eval_action`` and ``reset``.

    A multi-task policy needs the task of each row. For one task, use ``policy.for_task("push-v3")``; for several,
    ``policy.act(states, tasks=["push-v3", "reach-v3"])``, or the observations of Meta-World's MT10, MT25 and MT50 with
    ``use_one_hot=True``, which contain the task: (B, 49), (B, 64) and (B, 89). A policy trained with
    ``policy.recognize_task`` ignores them: it recognizes its task from the first state after a reset.

    Several threads may call :meth:`predict`. To act, each thread needs its own policy with the same weights:
    ``policy.with_chunking()``. A copy of a policy keeps its own action chunks.

    Attributes:
        folder: Checkpoint that it was loaded from; None otherwise.
    """

    def __init__(
        self,
        model: ChunkModel,
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
        self.chunker = ActionChunker(chunking, self.chunk_size, ACTION_DIM)
        self._first_states = FirstStates()
        self._queue: dict[int, np.ndarray] = {}
        self._num_envs: int | None = None
        self._exclusive = _single_thread_guard()
        self._task = 0 if len(self.tasks) == 1 else None

    def __getstate__(self) -> dict[str, Any]:
        own = {"_queue": dict(self._queue), "_exclusive": None}
        for name in ("chunker", "_first_states"):
            own[name] = copy.deepcopy(vars(self)[name])
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
    def recognizes_task(self) -> bool:
        """True if it recognizes its task from the first state of the episode, and ignores the task it is told."""
        return self.model.recognizes_task

    @property
    def views(self) -> CameraViews | None:
        """Cameras and image settings; None for a policy without images."""
        return self.metadata.views

    @property
    def num_tensors(self) -> int:
        """Number of tensors in a checkpoint of this policy; loading requires all of them."""
        return len(named_tensors(self.model, self.normalizer))

    @property
    def weights_hash(self) -> str:
        """SHA-256 of all its tensors, including the normalizer's."""
        digest = hashlib.sha256()
        for name, tensor in sorted(named_tensors(self.model, self.normalizer).items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

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
        chunking = self.chunking
        if n_action_steps is not None:
            chunking = replace(chunking, n_action_steps=n_action_steps)
        if temporal_ensemble is not None:
            chunking = replace(chunking, temporal_ensemble=temporal_ensemble)
        policy = Policy(
            self.model, self.normalizer, self.metadata, chunking, device=str(self.device), folder=self.folder
        )
        policy._task = self._task
        return policy

    def _copy_to(self, device: str) -> Policy:
        """Return a copy of the policy on a device."""
        model, normalizer = copy.deepcopy(self.model), copy.deepcopy(self.normalizer)
        return Policy(model, normalizer, self.metadata, self.chunking, device=device, folder=self.folder)

    # -- acting ----------------------------------------------------------------------------------------------------

    def predict(
        self,
        states: np.ndarray,
        images: np.ndarray | None = None,
        tasks: Tasks | None = None,
        first_states: np.ndarray | None = None,
    ) -> np.ndarray:
        """Predict chunks (B, K, 4) float32, unclipped.

        Args:
            states: (B, 39) of any real type, or each followed by a benchmark's one-hot task.
            images: uint8 (B, C, H, W, 3), of :attr:`views`; None for a policy without images.
            tasks: Name of each row's task, or its index in :attr:`tasks`, int (B,); None for the policy's fixed task,
                or the tasks in the states.
            first_states: The first state of each row's episode, of the form of ``states``; read only by a policy that
                recognizes its task.

        Raises:
            ArrayError: States, images or tasks have the wrong type, shape or meaning, the states hide the goal that
                this policy was trained to see, or the task of a multi-task policy is not given; the message names the
                rows.
        """
        # Not in inference mode, in which tensors that need gradients would not be refused.
        blocks = self.observe(states, images, tasks, first_states)
        chunks = [torch.empty((0, self.chunk_size, ACTION_DIM), device=self.device)]
        with torch.inference_mode():
            for observation, num_rows in blocks:
                chunks.append(self.model.predict(observation)[:num_rows])
            predicted: np.ndarray = torch.cat(chunks).cpu().numpy()
        return predicted

    def observe(
        self,
        states: np.ndarray,
        images: np.ndarray | None = None,
        tasks: Tasks | None = None,
        first_states: np.ndarray | None = None,
    ) -> Iterator[tuple[Observation, int]]:
        """Return the inputs of the model in blocks of a fixed size, and the number of rows of each that are given.

        See :meth:`predict` for the arguments and errors.
        """
        states, indices = self._check_states(states, tasks)
        first = self._check_first(first_states, len(states)) if self.recognizes_task else None
        checked = check_images(images, len(states), self.views)
        return make_blocks(self.normalizer, self.device, states, indices, checked, first)

    def _check_states(self, states: np.ndarray, tasks: Tasks | None) -> tuple[np.ndarray, np.ndarray]:
        return check_states(states, tasks, self.metadata, self._task, recognizes_task=self.recognizes_task)

    def _check_first(self, first_states: np.ndarray | None, num_rows: int) -> np.ndarray:
        if first_states is None:
            raise ArrayError(
                "This policy recognizes its task from the first state of the episode: expected first_states, one for "
                "each state. Fix: policy.act(states) and policy.reset(), which keep them"
            )
        first, _ = split_observations(first_states)
        check_shape(first, "first_states", (num_rows, STATE_DIM))
        return first

    def recognize_task(self, first_states: np.ndarray) -> np.ndarray:
        """Return the probabilities (B, N) of :attr:`tasks`, given the first states (B, 39) of episodes.

        Raises:
            ArrayError: The states are wrong, or this policy is told its task.
        """
        if not self.recognizes_task:
            raise ArrayError("This policy is told its task: expected one trained with policy.recognize_task=true.")
        first = self._check_first(first_states, len(first_states))
        blocks = [torch.empty((0, len(self.tasks)), device=self.device)]
        with torch.inference_mode():
            tasks = np.zeros(len(first), dtype=np.int64)
            for observation, num_rows in make_blocks(self.normalizer, self.device, first, tasks, None, first):
                assert observation.first_states_BS is not None
                blocks.append(self.model.recognize_task(observation.first_states_BS)[:num_rows])
        probabilities: np.ndarray = torch.cat(blocks).cpu().numpy()
        return probabilities

    def plan(
        self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None = None, tasks: Tasks | None = None
    ) -> np.ndarray:
        """Query environments ``rows`` (B,) at states (B, 39); return their next actions (B, N, 4), in [-1, 1].

        See :meth:`predict` for images, tasks and errors.
        """
        actions: np.ndarray = np.clip(self.plan_unclipped(states, rows, images, tasks), -1.0, 1.0)
        return actions

    def plan_unclipped(
        self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None = None, tasks: Tasks | None = None
    ) -> np.ndarray:
        """Return the next actions (B, N, 4) as predicted; see :meth:`plan`."""
        first = self._first_states.of(rows, states) if self.recognizes_task else None
        return self.chunker.plan(self.predict(states, images, tasks, first), rows)

    def begin_episodes(self, rows: np.ndarray) -> None:
        """Forget the last episodes of environments ``rows``, int (B,), which :meth:`plan` was called with."""
        self.chunker.reset(rows)
        self._first_states.reset(rows)

    def act(self, state: np.ndarray, image: np.ndarray | None = None, tasks: Tasks | str | None = None) -> np.ndarray:
        """Return the action for one state, (39,) -> (4,), or for the states of all environments, (B, 39) -> (B, 4).

        ``image``, uint8 (C, H, W, 3) or (B, C, H, W, 3), is used only in environments whose chunk has ended. ``tasks``
        is the task, or the task of each environment. See :meth:`predict` for errors; the number of environments may
        change only after :meth:`reset`.
        """
        is_one = np.ndim(state) == 1
        states = np.asarray(state)[None] if is_one else state
        images = np.asarray(image)[None] if is_one and image is not None else image
        tasks = [tasks] * len(states) if isinstance(tasks, str) else tasks
        with self._exclusive:
            states, indices = self._check_states(states, tasks)
            if self._num_envs not in (None, len(states)):
                raise ArrayError(
                    f"{len(states)} states: expected {self._num_envs}, one for each environment as in the last call. "
                    "Fix: policy.reset() before other episodes begin."
                )
            self._num_envs = len(states)
            idle = np.array([row for row in range(len(states)) if not len(self._queue.get(row, ()))], dtype=np.int64)
            checked = check_images(images, len(states), self.views) if len(idle) or images is not None else None
            if len(idle):
                planned = self.plan(states[idle], idle, None if checked is None else checked[idle], indices[idle])
                self._queue.update(zip(idle.tolist(), planned, strict=True))
            actions = np.empty((len(states), ACTION_DIM), dtype=np.float32)
            for row in range(len(states)):
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
                self.chunker = ActionChunker(self.chunking, self.chunk_size, ACTION_DIM)
                self._first_states = FirstStates()
                return
            rows = np.flatnonzero(as_mask(env_mask, "The mask of a reset", self._num_envs))
            self.begin_episodes(rows)
            for row in rows:
                self._queue.pop(int(row), None)

    def eval_action(self, observations: np.ndarray) -> np.ndarray:
        """Act as ``metaworld.evaluation.Agent``: float64 (B, 39) -> float64 (B, 4)."""
        return self.act(observations).astype(np.float64)

    # -- on disk ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path, self_test: Mapping[str, np.ndarray]) -> None:
        """Write ``model.safetensors`` and ``policy.json`` to ``folder``.

        ``self_test``, arguments of :meth:`predict`, is stored with the policy's predictions for it, which :meth:`load`
        must reproduce.
        """
        # Predict on the CPU, here and in load: a GPU rounds differently.
        on_cpu = self if self.device.type == "cpu" else self._copy_to("cpu")
        chunks = on_cpu.predict(**self_test)
        write_policy(folder, self.model, self.normalizer, self.metadata, self.chunking, {**self_test, "chunks": chunks})

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
        model, normalizer, metadata, chunking, self_test = read_policy(folder)
        policy = cls(model, normalizer, metadata, chunking, folder=folder.resolve())
        policy._run_self_test(folder, self_test)
        return policy if device == "cpu" else policy._copy_to(device)

    def _run_self_test(self, folder: Path, self_test: dict[str, np.ndarray]) -> None:
        """Raise :class:`CheckpointError` unless the policy reproduces the stored predictions of its self-test batch."""
        if "chunks" not in self_test:
            raise CheckpointError(f"The checkpoint {folder} has no self-test batch. Fix: train again.")
        expected = self_test.pop("chunks")
        try:
            first, second = self.predict(**self_test), self.predict(**self_test)
        except (TypeError, ActKitError) as error:
            raise CheckpointError(
                f"The checkpoint {folder} is damaged: its self-test batch: {error} Fix: train again."
            ) from error
        if not np.array_equal(first, second):
            raise CheckpointError(
                f"The policy {folder} is not deterministic: two predictions for the same states differ by up to "
                f"{np.abs(first - second).max():.2g}. Expected: no sampling and no dropout at inference."
            )
        error_max = float(np.abs(first - expected).max()) if first.shape == expected.shape else float("nan")
        if not error_max <= SELF_TEST_TOLERANCE:
            raise CheckpointError(
                f"The checkpoint {folder} does not reproduce the predictions it was saved with: they differ by "
                f"{error_max:.3g} (allowed: {SELF_TEST_TOLERANCE}). Its weights or normalizer have changed since."
            )


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

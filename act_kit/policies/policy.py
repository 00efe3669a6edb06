"""A trained policy as one object and one folder: all that inference needs, and proof that it was loaded whole."""

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
from act_kit.overrides import build
from act_kit.policies.act import ACT, Observation
from act_kit.policies.chunking import ActionChunker
from act_kit.policies.normalizer import Normalizer
from act_kit.policies.one_hot import split_observations
from act_kit.policies.weights import state_dict_mismatch
from act_kit.sim.render import CameraViews, RenderSettings, check_cameras
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM, get_task
from act_kit.sim.threads import Exclusive

FORMAT = "act_kit.policy"
VERSION = 2

QUERY_ROWS = {"cpu": 16, "cuda": 128}
"""Observations are always predicted in blocks of this many, by device. Matrix products of one shape give a row the
same bits wherever it stands in the block and whatever stands beside it; of different shapes they do not (seen, and
tested, on the CPU). So no result of an evaluation depends on how many environments wait together."""

Tasks = Sequence[str] | np.ndarray
"""The task of each row: names, or numbers in :attr:`Policy.tasks`."""

_PROBE = "probe."
"""What the names of the probe's tensors begin with."""

_TASK_EMBEDDINGS = "model.task.given_NE"
"""The tensor that a model of several tasks may have been given."""

_DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "U8": torch.uint8, "BOOL": torch.bool}
"""Types of tensors by their names in a safetensors file; a checkpoint has no others."""

_MAX_JSON_BYTES = 64 * 2**20
"""Of ``policy.json``; the initial states of 50 tasks with 1,000 demonstrations each take a fifth of it."""

_MAX_PROBE_ROWS = 4096

PROBE_TOLERANCE = 1e-3
"""Largest difference, in units of the action, between the probe's stored and recomputed output."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
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
    init_states: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class PolicyMetadata:
    """What a policy was trained on, and so what it may be used on.

    Attributes:
        demonstrations: The datasets.
        horizon: Steps of an episode.
        control_hz: Actions a second.
        versions: Of act_kit, metaworld, mujoco and numpy in training, and the platform.
        step: Gradient steps taken.
        goal_visible: Whether it saw goals, and they were anything but zeros.
        views: The cameras it sees through, and what their frames look like; None if it sees none.
        gl_renderer: Who drew those it was trained on; "" if it sees none.
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
        """The tasks, in the order by which the model numbers them."""
        return tuple(dict.fromkeys(demonstrations.task for demonstrations in self.demonstrations))

    def init_states_of(self, task: str) -> list[list[float]]:
        """Return every demonstrated start of a task that is known, as ``rand_vec``."""
        return [init_state for shown in self.demonstrations if shown.task == task for init_state in shown.init_states]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> PolicyMetadata:
        """Read what ``asdict`` made.

        Raises:
            ActKitError, KeyError, TypeError, ValueError: It is none, or says what cannot be.
        """
        views = values["views"]
        if views is not None:
            views = CameraViews(cameras=tuple(views["cameras"]), settings=RenderSettings(**views["settings"]))
            check_cameras(views.cameras)
        demonstrations = [TrainingData(**shown) for shown in values["demonstrations"]]
        if not all(isinstance(shown.task, str) for shown in demonstrations):
            raise TypeError("the task of its demonstrations is no name.")
        if not demonstrations:
            raise ValueError("it names no demonstrations.")
        for shown in demonstrations:
            if shown.init_states:
                as_array(shown.init_states, f"The starts of {shown.task}", ("N", len(get_task(shown.task).low)))
        for name, least, most in (("horizon", 1, 10**6), ("control_hz", 1, 10**6), ("step", 0, 10**12)):
            if type(values[name]) is not int or not least <= values[name] <= most:
                raise ValueError(f"{name}={values[name]!r}: an integer from {least} to {most} was expected.")
        if type(values["goal_visible"]) is not bool:
            raise ValueError(f"goal_visible={values['goal_visible']!r}: true or false was expected.")
        return cls(**{**values, "views": views, "demonstrations": demonstrations})


class Policy:
    """Acts on states as Meta-World gives them: raw, unnormalised, goal visible; and on pictures, if it sees any.

    One environment::

        policy.reset()
        action = policy.act(state)            # (39,) -> (4,)

    Many: ``policy.act(states)`` with (B, 39) -> (B, 4), ``policy.reset(env_mask)`` where episodes begin. As an agent of
    ``metaworld.evaluation.evaluation``: ``eval_action`` and ``reset``.

    A policy of several tasks must know the task of each row: of one task, ``policy.for_task("push-v3")``; of several,
    ``policy.act(states, tasks=["push-v3", "reach-v3"])``, or the observations of Meta-World's MT10, MT25 and MT50 with
    ``use_one_hot=True``, which name it themselves: (B, 49), (B, 64) and (B, 89).

    Several threads may call :meth:`predict`; to act, each takes a policy of its own with the same weights,
    ``policy.with_execution()``. A copy plans for itself.

    Attributes:
        folder: The checkpoint it was loaded from; None if it was not.
    """

    def __init__(
        self, model: ACT, normalizer: Normalizer, contract: PolicyMetadata, chunking: ChunkingConfig, *,
        device: str = "cpu", folder: Path | None = None,
    ) -> None:  # fmt: skip
        if chunking.n_action_steps > model.config.chunk_size:
            raise CheckpointError(
                f"This policy predicts {model.config.chunk_size} actions at once; n_action_steps={chunking.n_action_steps} of them "
                "cannot be carried out."
            )
        self.model = model.to(device).eval()
        self.normalizer = normalizer.to(device)
        self.contract = contract
        self.chunking = chunking
        self.device = torch.device(device)
        self.folder = folder
        self.executor = ActionChunker(chunking, self.chunk_size, ACTION_DIM)
        self._queue: dict[int, np.ndarray] = {}
        self._num_envs: int | None = None
        self._exclusive = _one_thread()
        self._task = 0 if len(self.tasks) == 1 else None

    def __getstate__(self) -> dict[str, Any]:
        own = {"_queue": dict(self._queue), "executor": copy.deepcopy(self.executor), "_exclusive": None}
        return {**vars(self), **own}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes, _exclusive=_one_thread())

    def __repr__(self) -> str:
        chunking = "ensembling" if self.chunking.temporal_ensemble else f"executing {self.chunking.n_action_steps}"
        return f"Policy({', '.join(self.tasks)}, step {self.contract.step}, chunks of {self.chunk_size}, {chunking})"

    @property
    def chunk_size(self) -> int:
        """K: actions predicted at once."""
        return self.model.config.chunk_size

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it was trained on, in the order of their numbers."""
        return self.contract.tasks

    @property
    def views(self) -> CameraViews | None:
        """The cameras it sees through; None if it sees none."""
        return self.contract.views

    def for_task(self, task: str) -> Policy:
        """Return the same policy, acting on one of its tasks.

        Raises:
            CheckpointError: It was not trained on that task.
        """
        if task not in self.tasks:
            raise CheckpointError(f"This policy was trained on {', '.join(self.tasks)}, not on {task}.")
        policy = self.with_chunking()
        policy._task = self.tasks.index(task)
        return policy

    def with_chunking(self, *, n_action_steps: int | None = None, temporal_ensemble: bool | None = None) -> Policy:
        """Return the same policy carrying out its chunks in another way; None leaves a setting as trained."""
        changes: dict[str, Any] = {"n_action_steps": n_action_steps, "temporal_ensemble": temporal_ensemble}
        chunking = replace(self.chunking, **{key: value for key, value in changes.items() if value is not None})
        policy = Policy(
            self.model, self.normalizer, self.contract, chunking, device=str(self.device), folder=self.folder
        )
        policy._task = self._task
        return policy

    # -- acting ----------------------------------------------------------------------------------------------------

    def predict(self, states: np.ndarray, images: np.ndarray | None = None, tasks: Tasks | None = None) -> np.ndarray:
        """Predict chunks (B, K, 4) float32, unclipped.

        Args:
            states: (B, 39) of any real type, or with a benchmark's one-hot task behind each.
            images: uint8 (B, C, H, W, 3), of :attr:`views`; None for a policy that sees none.
            tasks: The name of each row's task, or its number in :attr:`tasks`, int (B,); None for the one that the
                policy acts on, or that the states name.

        Raises:
            ArrayError: States, images or tasks are of another type, shape or meaning, or hide the goal that this policy
                was trained to see, or it is not said which of several tasks they are of; the message names the rows.
        """
        states, named = split_observations(states)
        self._check_goals(states)
        checked = self._check_images(images, len(states))
        numbers = self._number_tasks(len(states), tasks, named)
        size = QUERY_ROWS[self.device.type]
        chunks = [torch.empty((0, self.chunk_size, ACTION_DIM), device=self.device)]
        with torch.inference_mode():
            for begin in range(0, len(states), size):
                rows = slice(begin, begin + size)
                observation = Observation(
                    states_BS=self.normalizer(self._block(states[rows].astype(np.float32), size)),
                    tasks_B=self._block(numbers[rows], size),
                    images_BCHW3=None if checked is None else self._block(checked[rows], size),
                )
                chunks.append(self.model.predict(observation)[: len(states[rows])])
            predicted: np.ndarray = torch.cat(chunks).cpu().numpy()
        return predicted

    def _check_goals(self, states: np.ndarray) -> None:
        hidden = np.flatnonzero(~states[:, -3:].any(axis=1))
        if self.contract.goal_visible and len(hidden):
            raise ArrayError(
                f"The states in {name_rows(hidden)} hide the goal (their last three numbers are 0), but the policy was "
                "trained to see it. Fix: make the environment fully observable, env._partially_observable = False."
            )

    def _number_tasks(self, num_rows: int, tasks: Tasks | None, named: list[str] | None) -> np.ndarray:
        """Return the number of each row's task, int64 (B,), given what the caller says and what the states name."""
        numbers = None if named is None else self._look_up(named)
        said = self._look_up(tasks) if tasks is not None else None
        if said is None and self._task is not None:
            said = np.full(num_rows, self._task)
        if said is None and numbers is None:
            raise ArrayError(
                f"This policy knows {len(self.tasks)} tasks ({', '.join(self.tasks)}), and {STATE_DIM} numbers do not "
                "say which. Fix: policy.act(states, tasks=[…]) with the name of each row's task, or observations with "
                "Meta-World's one-hot task (use_one_hot=True); policy.for_task(…) only where every row is of that task."
            )
        if said is None:
            assert numbers is not None
            return numbers
        check_shape(said, "tasks", (num_rows,))
        if numbers is not None and (said != numbers).any():
            wrong = np.flatnonzero(said != numbers)
            first = int(wrong[0])
            raise ArrayError(
                f"The one-hot task in {name_rows(wrong)} is {self.tasks[numbers[first]]}, but the policy was to act on "
                f"{self.tasks[said[first]]} there."
            )
        return said

    def _look_up(self, tasks: Tasks) -> np.ndarray:
        """Return the numbers, int64 (B,), of tasks given by name or by number."""
        given = np.asarray(list(tasks))
        if given.dtype.kind != "U":
            numbers = as_array(given, "tasks", ("B",))
            wrong = np.flatnonzero((numbers < 0) | (numbers >= len(self.tasks)))
            if numbers.dtype.kind == "f" or len(wrong):
                raise ArrayError(
                    f"tasks {given.tolist()}: expected names of tasks, or integers from 0 to {len(self.tasks) - 1}."
                )
            return numbers.astype(np.int64)
        check_shape(given, "tasks", ("B",))
        known = {task: number for number, task in enumerate(self.tasks)}
        unknown = [row for row, task in enumerate(given.tolist()) if task not in known]
        if unknown:
            raise ArrayError(
                f"The task in {name_rows(unknown)} is {given[unknown[0]]}: expected one that this policy was trained "
                f"on, {', '.join(self.tasks)}."
            )
        return np.array([known[task] for task in given.tolist()], dtype=np.int64)

    def _block(self, rows: np.ndarray, size: int) -> torch.Tensor:
        """Bring rows to the device, with zeros behind them up to the size of a block."""
        on_gpu = self.device.type == "cuda"
        given = torch.from_numpy(np.ascontiguousarray(rows))
        block = torch.zeros((size, *given.shape[1:]), dtype=given.dtype, pin_memory=on_gpu)
        block[: len(given)] = given
        return block.to(self.device, non_blocking=on_gpu)

    def _check_images(self, images: np.ndarray | None, num_rows: int) -> np.ndarray | None:
        if self.views is None:
            if images is not None:
                raise ArrayError("This policy acts on states alone: expected no images.")
            return None
        size, cameras = self.views.settings, self.views.cameras
        expected = (num_rows, len(cameras), size.height_px, size.width_px, 3)
        what = f"The policy expects images of {', '.join(cameras)} at {size} px, uint8 {expected}"
        if images is None:
            raise ArrayError(f"{what}, not none.")
        shape = np.shape(images)
        if shape == (*expected[:2], 3, *expected[2:4]):
            raise ArrayError(f"{what}, not colors first, {shape}. Fix: images.transpose(0, 1, 3, 4, 2)")
        if shape[1:] == expected[1:] and shape != expected:
            raise ArrayError(f"{what}, not {shape[0]} rows: one of images for each state.")
        return as_bytes(images, f"{what}. Given images", expected)

    def plan(
        self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None = None, tasks: Tasks | None = None
    ) -> np.ndarray:
        """Query environments ``rows`` (B,) at states (B, 39); return their next actions (B, N, 4), in [-1, 1].

        For images and tasks, and for what is refused, see :meth:`predict`.
        """
        planned = self.executor.plan(self.predict(states, images, tasks), rows)
        actions: np.ndarray = np.clip(planned, -1.0, 1.0)
        return actions

    def act(self, state: np.ndarray, image: np.ndarray | None = None, tasks: Tasks | str | None = None) -> np.ndarray:
        """Return the action for one state, (39,) -> (4,), or for one of each environment, (B, 39) -> (B, 4).

        ``image``, uint8 (C, H, W, 3) or (B, C, H, W, 3), is looked at where a chunk is at its end. ``tasks`` names the
        task, or the task of each environment. See :meth:`predict` for what is refused; the number of environments may
        change only after :meth:`reset`.
        """
        with self._exclusive:
            return self._act(state, image, tasks)

    def _act(self, state: np.ndarray, image: np.ndarray | None, tasks: Tasks | str | None) -> np.ndarray:
        is_one = np.ndim(state) == 1
        states = np.asarray(state)[None] if is_one else state
        images = np.asarray(image)[None] if is_one and image is not None else image
        tasks = [tasks] * len(states) if isinstance(tasks, str) else tasks
        split, named = split_observations(states)
        self._check_goals(split)
        numbers = self._number_tasks(len(split), tasks, named)
        if self._num_envs not in (None, len(split)):
            raise ArrayError(
                f"{len(split)} states: expected {self._num_envs}, one for each environment, as before. Fix: "
                "policy.reset() where other episodes begin."
            )
        self._num_envs = len(split)
        idle = np.array([row for row in range(len(split)) if not len(self._queue.get(row, ()))], dtype=np.int64)
        checked = self._check_images(images, len(split)) if len(idle) or images is not None else None
        if len(idle):
            planned = self.plan(split[idle], idle, None if checked is None else checked[idle], numbers[idle])
            self._queue.update(zip(idle.tolist(), planned, strict=True))
        actions = np.empty((len(split), ACTION_DIM), dtype=np.float32)
        for row in range(len(split)):
            actions[row] = self._queue[row][0]
            self._queue[row] = self._queue[row][1:]
        return actions[0] if is_one else actions

    def reset(self, env_mask: np.ndarray | None = None) -> None:
        """Forget the plans of all environments, or of those where ``env_mask``, bool (B,), is true.

        Raises:
            ArrayError: The mask is of another type (numbers of environments are none) or length.
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

    def _on(self, device: str) -> Policy:
        """Copy it to a device."""
        model, normalizer = copy.deepcopy(self.model), copy.deepcopy(self.normalizer)
        return Policy(model, normalizer, self.contract, self.chunking, device=device, folder=self.folder)

    @property
    def weights_hash(self) -> str:
        """SHA-256 of its tensors, the normaliser's too."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    # -- on disk ---------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, torch.Tensor]:
        return _named_tensors(self.model, self.normalizer)

    def save(self, folder: Path, self_test: Mapping[str, np.ndarray]) -> None:
        """Write ``model.safetensors`` and ``policy.json`` to ``folder``.

        ``self_test``, arguments of :meth:`predict`, is stored with what the policy predicts for it, so that loading proves
        itself.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        tensors |= {f"{_PROBE}{name}": torch.from_numpy(rows).contiguous() for name, rows in self_test.items()}
        # On the processor, here and when it is loaded: a GPU rounds otherwise.
        judge = self if self.device.type == "cpu" else self._on("cpu")
        tensors[f"{_PROBE}chunks"] = torch.from_numpy(judge.predict(**self_test))
        description = {
            "format": FORMAT,
            "version": VERSION,
            "policy": asdict(self.model.config),
            "chunking": asdict(self.chunking),
            "contract": asdict(self.contract),
        }
        save_file(tensors, folder / "model.safetensors")
        write_json(folder / "policy.json", description)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> Policy:
        """Load a checkpoint folder, or the best checkpoint of a run; every tensor must be there and fit.

        Args:
            path: The folder.
            device: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.

        Raises:
            CheckpointError: It is missing, foreign, truncated, incomplete, or computes something else than when saved.
            ConfigError: There is no such device.
        """
        device = _choose_device(device)
        folder = find_checkpoint(Path(path))
        description = _read_description(folder)
        layout = _read_layout(folder)
        try:
            contract = PolicyMetadata.of(description["contract"])
            chunking = build(ChunkingConfig, description["chunking"])
            config = build(PolicyConfig, description["policy"])
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, ActKitError) as error:
            reason = str(error).rstrip(".")
            raise CheckpointError(f"The checkpoint {folder} is damaged: policy.json: {reason}. Train again.") from error
        _check_layout(folder, config, contract, layout)
        tensors = load_file(folder / "model.safetensors")
        self_test = {name.removeprefix(_PROBE): tensors.pop(name) for name in list(tensors) if name.startswith(_PROBE)}
        model = ACT(config, num_tasks=len(contract.tasks), task_embeddings_NE=tensors.get(_TASK_EMBEDDINGS))
        policy = cls(model, Normalizer(STATE_DIM), contract, chunking, folder=folder.resolve())
        with torch.no_grad():
            for name, tensor in policy._tensors().items():
                tensor.copy_(tensors[name])
        policy._prove(folder, self_test)
        return policy if device == "cpu" else policy._on(device)

    def _prove(self, folder: Path, self_test: dict[str, torch.Tensor]) -> None:
        """Raise :class:`CheckpointError` unless this policy computes what it computed when it was saved."""
        if "chunks" not in self_test:
            raise CheckpointError(f"The checkpoint {folder} has no probe to check itself by. Train again.")
        expected = self_test.pop("chunks").numpy()
        observations = {name: rows.numpy() for name, rows in self_test.items()}
        try:
            once, twice = (self.predict(**observations) for _ in range(2))
        except (TypeError, ActKitError) as error:
            raise CheckpointError(f"The checkpoint {folder} is damaged: its probe: {error} Train again.") from error
        if not np.array_equal(once, twice):
            raise CheckpointError(
                f"The policy {folder} is not deterministic: asked twice about the same states, it answers up to "
                f"{np.abs(once - twice).max():.2g} apart. In use z is 0 and nothing is sampled or dropped out."
            )
        off = float(np.abs(once - expected).max()) if once.shape == expected.shape else float("nan")
        if not off <= PROBE_TOLERANCE:
            raise CheckpointError(
                f"The checkpoint {folder} does not compute what it computed when it was saved: its probe is off by "
                f"{off:.3g} (allowed: {PROBE_TOLERANCE}). Weights or normaliser have changed since."
            )

    @property
    def num_tensors(self) -> int:
        """How many tensors a checkpoint of this policy holds, all of which loading requires."""
        return len(self._tensors())


def _one_thread() -> Exclusive:
    return Exclusive("policy", "make one with the same weights for each thread: policy.with_execution()")


def _choose_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise ConfigError(f"device='{device}': choose from auto, cpu, cuda, cuda:1.")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device='{device}': PyTorch finds no such GPU here. Fix: device='auto'.")
    return device


def _read_description(folder: Path) -> dict[str, Any]:
    """Return what ``policy.json`` says, of this version."""
    try:
        description = read_json(folder / "policy.json", max_bytes=_MAX_JSON_BYTES)
        version = description["format"], description["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The checkpoint {folder} is damaged: {error}. Train again, or use another.") from error
    if version != (FORMAT, VERSION):
        raise CheckpointError(
            f"{folder} has format {version[0]!r} version {version[1]!r}; "
            f"this act_kit reads {FORMAT!r} version {VERSION}."
        )
    read: dict[str, Any] = description
    return read


def _read_layout(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of ``model.safetensors`` without their numbers, from its header alone."""
    path = folder / "model.safetensors"
    try:
        if not path.is_file():  # a pipe would never end
            raise CheckpointError(f"The checkpoint {folder} is damaged: {path.name} is missing, or no regular file.")
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            return {
                name: torch.empty(part.get_shape(), dtype=_DTYPES[part.get_dtype()], device="meta")
                for name, part in slices.items()
            }
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"The checkpoint {folder} is damaged: {error}. Train again, or use another.") from error


def _check_layout(
    folder: Path, config: PolicyConfig, contract: PolicyMetadata, layout: Mapping[str, torch.Tensor]
) -> None:
    """Raise :class:`CheckpointError` unless a file's tensors are the model's; memory is taken for neither yet."""
    cameras = contract.views.cameras if contract.views else ()
    if config.cameras != cameras:
        raise CheckpointError(f"The checkpoint {folder} is damaged: its model sees {config.cameras}, not {cameras}.")
    rows = max((len(tensor) for name, tensor in layout.items() if name.startswith(_PROBE) and tensor.ndim), default=0)
    if rows > _MAX_PROBE_ROWS:
        raise CheckpointError(f"The checkpoint {folder} is damaged: its probe has {rows} rows.")
    with torch.device("meta"):
        model = ACT(config, num_tasks=len(contract.tasks), task_embeddings_NE=layout.get(_TASK_EMBEDDINGS))
        own = _named_tensors(model, Normalizer(STATE_DIM))
    given = {name: tensor for name, tensor in layout.items() if not name.startswith(_PROBE)}
    wrong = state_dict_mismatch(own, given)
    if wrong:
        raise CheckpointError(f"The checkpoint {folder} does not fit: {wrong}")
    for name, tensor in own.items():
        if tensor.dtype != given[name].dtype:
            raise CheckpointError(
                f"The checkpoint {folder} does not fit: {name} is {given[name].dtype}, not {tensor.dtype}."
            )


def _named_tensors(model: ACT, normalizer: Normalizer) -> dict[str, torch.Tensor]:
    """Return all tensors of a policy by the names that they have on disk."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return tensors | {f"normaliser.{name}": tensor for name, tensor in normalizer.state_dict().items()}


def find_checkpoint(path: Path) -> Path:
    """Return the folder of a checkpoint, given it or its run: ``checkpoints/best``, or ``last`` without a best.

    Raises:
        CheckpointError: There is none.
    """
    for folder in (path, path / "checkpoints" / "best", path / "checkpoints" / "last"):
        if (folder / "policy.json").exists():
            return folder
    raise CheckpointError(
        f"There is no trained policy at {path}. Train one: act train --data DATASET --out {quoted(path)}"
    )

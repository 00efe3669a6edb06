"""Pretrained LeRobot policies (huggingface/lerobot) as agents, through their own pre- and post-processors.

A LeRobot policy keeps one queue of actions, for one environment or for several that always step together. Here
environments begin and end at different times, so only ``predict_action_chunk`` is called, which keeps nothing, and
every environment executes its own actions. Policies that keep past observations are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from act_kit.config.evaluation import ServedConfig
from act_kit.config.training import ChunkingConfig
from act_kit.errors import CheckpointError, ConfigError, did_you_mean, install_hint
from act_kit.files import quoted, read_json
from act_kit.policies.chunking import ActionChunker
from act_kit.rollouts.agents import Agent
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import CAMERAS, CameraViews, RenderSettings, check_cameras
from act_kit.sim.sentences import SENTENCES
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM

_STATE, _ENVIRONMENT, _IMAGE = "observation.state", "observation.environment_state", "observation.image"
_EMPTY_CAMERA = "observation.images.empty_camera_"
"""Prefix of images that the environment does not have; the policy fills them in (SmolVLA, pi0)."""

_STATES = {
    (_STATE, 4): slice(4),
    (_STATE, STATE_DIM): slice(STATE_DIM),
    (_ENVIRONMENT, STATE_DIM): slice(STATE_DIM),
    (_ENVIRONMENT, STATE_DIM - 4): slice(4, STATE_DIM),
}
"""Part of Meta-World's state by key and size: hand and gripper, all of it, or what ``act data convert`` puts beside."""

_DEFAULT_CAMERA = "corner2"
"""Camera of an image that is not named after one: that of LeRobot's Meta-World environment and datasets."""

_MAX_ROWS = 32
"""Environments of one forward pass: more do not make it faster, and large images would fill the memory."""


@dataclass(frozen=True, kw_only=True)
class LeRobotInputs:
    """What a LeRobot policy is shown, by the names of its inputs.

    Attributes:
        states: Part of the state, float64 (39,), of each input.
        images: Names of the images, in the order of the cameras of ``views``.
        views: Cameras; None for a policy without images.
    """

    states: Mapping[str, slice]
    images: tuple[str, ...]
    views: CameraViews | None


class LeRobotAgent(Agent):
    """Agent that runs a LeRobot policy.

    Attributes:
        latencies_s: Seconds from the observations of all waiting environments to their actions, by task.
    """

    source = "lerobot"

    def __init__(
        self,
        folder: Path,
        config: ServedConfig | None = None,
        *,
        n_action_steps: int | None = None,
        device: str = "cpu",
    ) -> None:
        """Load the policy in ``folder``.

        Args:
            folder: Folder that ``save_pretrained`` wrote, such as ``checkpoints/last/pretrained_model``.
            config: Cameras, look and prompt.
            n_action_steps: Actions to execute of each chunk; None for the policy's own number.
            device: ``cpu`` or ``cuda``.

        Raises:
            ConfigError: lerobot is not installed, or an option does not fit the policy.
            CheckpointError: The folder is incomplete or damaged, or act_kit cannot show the policy what it needs.
        """
        config = config or ServedConfig()
        values = read_config(folder)
        self.inputs = choose_inputs(values, folder, config)
        self.views = self.inputs.views
        version, self._policy, self._preprocess, self._postprocess = _load(folder, values["type"], device)
        chunking = _choose_chunking(self._policy.config, folder, n_action_steps)
        self._chunker = ActionChunker(chunking, self._policy.config.chunk_size, ACTION_DIM)
        self._prompt = config.prompt
        self._tasks: dict[int, str] = {}
        self._latencies_s: dict[str, list[float]] = {}
        self.latencies_s = self._latencies_s
        self._name = str(folder)
        with (folder / "model.safetensors").open("rb") as file:
            weights_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.provenance = {
            "kind": "lerobot",
            "name": self._name,
            "type": values["type"],
            "weights_sha256": weights_sha256,
            "lerobot": version,
            "n_action_steps": self._chunker.actions_per_query,
            "temporal_ensemble_coeff": chunking.temporal_ensemble_coeff if chunking.temporal_ensemble else None,
            "shown": {
                "states": list(self.inputs.states),
                "images": list(self.inputs.images),
                "cameras": list(self.views.cameras) if self.views else [],
                "images_px": str(self.views.settings) if self.views else "",
                "prompt": config.prompt,
            },
        }

    def __repr__(self) -> str:
        shown = [*self.inputs.states, *self.inputs.images]
        views = f" ({', '.join(self.views.cameras)} at {self.views.settings} px)" if self.views else ""
        return f"LeRobot policy {self._name}, which is shown {', '.join(shown)}{views}"

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        """Discard the chunks of the environment's last episode, and choose the prompt."""
        self._chunker.reset(np.array([row]))
        self._tasks[row] = init_state.task

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Predict action chunks, and return the actions to execute (B, N, 4)."""
        start_time = time.perf_counter()
        chunks = []
        for begin in range(0, len(rows), _MAX_ROWS):
            part = slice(begin, begin + _MAX_ROWS)
            tasks = [self._tasks[row] for row in rows[part].tolist()]
            prompts = [SENTENCES[task] for task in tasks] if self._prompt == "sentence" else tasks
            chunks.append(self._predict(states[part], None if images is None else images[part], prompts))
        actions = self._chunker.plan(np.concatenate(chunks), rows)
        elapsed_s = time.perf_counter() - start_time
        self.num_asked = max(self.num_asked, len(rows))
        for task in {self._tasks[row] for row in rows.tolist()}:
            self._latencies_s.setdefault(task, []).append(elapsed_s)
        return actions

    def _predict(self, states: np.ndarray, images: np.ndarray | None, prompts: list[str]) -> np.ndarray:
        """Return chunks, float32 (B, K, 4), as ``lerobot-eval`` (``src/lerobot/scripts/lerobot_eval.py``) does."""
        observation: dict[str, Any] = {"task": prompts}
        for key, part in self.inputs.states.items():
            observation[key] = torch.from_numpy(states[:, part].astype(np.float32))
        for index, key in enumerate(self.inputs.images):
            assert images is not None
            channels_first = np.ascontiguousarray(images[:, index].transpose(0, 3, 1, 2))
            observation[key] = torch.from_numpy(channels_first).type(torch.float32) / 255
        uses_amp = getattr(self._policy.config, "use_amp", False)
        device_type = torch.device(self._policy.config.device).type
        with torch.inference_mode(), torch.autocast(device_type, enabled=uses_amp):
            chunks_BKA = self._policy.predict_action_chunk(self._preprocess(observation))
            # Post-processors are made for single actions (B, A).
            actions = self._postprocess(chunks_BKA.flatten(0, 1))
        chunks: np.ndarray = actions.reshape(chunks_BKA.shape).float().cpu().numpy()
        return chunks


def read_config(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a policy whose files are all there.

    Raises:
        CheckpointError: A file is missing or damaged, or a processor runs code that is not lerobot's.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}: expected a pretrained LeRobot policy. "
                "Fix: name its folder, such as lerobot:outputs/train/RUN/checkpoints/last/pretrained_model"
            )
    values = read_json(folder / "config.json")
    if not isinstance(values, dict) or not isinstance(values.get("type"), str):
        raise CheckpointError(f"{folder / 'config.json'} names no type of policy: expected a LeRobot policy.")
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}: lerobot before 0.4 stored the normalization in the policy. Fix: "
                f"python -m lerobot.processor.migrate_policy_normalization --pretrained-path {quoted(folder)}"
            )
        _check_processor(folder / name)
    return values


def _check_processor(path: Path) -> None:
    """Refuse a processor that lerobot would build from any class, with any arguments, of any module."""
    processor = read_json(path)
    steps = processor.get("steps") if isinstance(processor, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise CheckpointError(f"{path} has no list of steps: expected a processor of lerobot.")
    for step in steps:
        name = step.get("registry_name") or step.get("class")
        if not isinstance(name, str) or ("registry_name" not in step and not name.startswith("lerobot.")):
            raise CheckpointError(f"{path} has the step {name!r}: expected one of lerobot's own, no other code is run.")


def choose_inputs(values: Mapping[str, Any], folder: Path, config: ServedConfig) -> LeRobotInputs:
    """Return what the policy is shown, from the ``input_features`` of its configuration and the options.

    Raises:
        CheckpointError: An input is not Meta-World's, or has another shape.
        ConfigError: ``served.cameras`` does not fit.
        RenderError: A camera does not exist, or a size is out of range.
    """
    shapes = _shapes(values, "input_features", folder)
    states: dict[str, slice] = {}
    images: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        if key == _IMAGE or key.startswith(f"{_IMAGE}s."):
            if not key.startswith(_EMPTY_CAMERA):
                images[key] = shape
        elif len(shape) == 1 and (key, shape[0]) in _STATES:
            states[key] = _STATES[key, shape[0]]
        else:
            known = ", ".join(f"{name} ({size},)" for name, size in _STATES)
            raise CheckpointError(
                f"{folder} needs {key} of shape {shape}, which Meta-World does not have: expected {known}, or images."
            )
    action = _shapes(values, "output_features", folder).get("action")
    if action != (ACTION_DIM,):
        raise CheckpointError(f"{folder} has actions of shape {action}: expected ({ACTION_DIM},), Meta-World's.")
    return LeRobotInputs(states=states, images=tuple(images), views=_choose_views(images, folder, config))


def _shapes(values: Mapping[str, Any], name: str, folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the features of a configuration."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for key, feature in (values[name] or {}).items():
            shapes[str(key)] = tuple(map(int, feature["shape"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {name} are not shapes by name.") from error
    return shapes


def _choose_views(images: Mapping[str, tuple[int, ...]], folder: Path, config: ServedConfig) -> CameraViews | None:
    """Return the cameras of the images: those of the options, or those that the images are named after."""
    if not images:
        if config.cameras:
            raise ConfigError(f"served.cameras: {folder} acts on states only. Fix: leave it out")
        return None
    shapes = set(images.values())
    if len(shapes) > 1 or any(len(shape) != 3 or shape[0] != 3 for shape in shapes):
        found = ", ".join(f"{key} {shape}" for key, shape in images.items())
        raise CheckpointError(f"{folder} needs {found}: expected images (3, H, W) of one size.")
    cameras = config.cameras
    if not cameras:
        names = [key.rpartition(".")[2] for key in images]
        cameras = tuple(name if name in CAMERAS else _DEFAULT_CAMERA for name in names)
    if len(cameras) != len(images) or len(set(cameras)) < len(cameras):
        raise ConfigError(
            f"{folder} needs {len(images)} images, {', '.join(images)}: expected a camera for each, not "
            f"{', '.join(cameras)}. Fix: served.cameras=[{','.join(CAMERAS[: len(images)])}]"
        )
    check_cameras(cameras)
    _, height_px, width_px = next(iter(shapes))
    settings = RenderSettings(height_px=height_px, width_px=width_px, look=config.look)
    return CameraViews(cameras=cameras, settings=settings)


def _load(folder: Path, kind: str, device: str) -> tuple[str, Any, Any, Any]:
    """Return lerobot's version, the policy, and its pre- and post-processor.

    Raises:
        ConfigError: lerobot is not installed.
        CheckpointError: lerobot cannot load the folder, or the policy keeps past observations.
    """
    try:
        import lerobot
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    except Exception as error:  # versions of torch and torchvision that do not fit raise RuntimeError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"LeRobot policies need lerobot 0.4 in this environment ({reason}). Fix: {install_hint('lerobot-policy')}"
        ) from error
    known = sorted(PreTrainedConfig.get_known_choices())
    if kind not in known:
        raise CheckpointError(
            f"{folder}: lerobot {lerobot.__version__} has no policy of type '{kind}'; it has: {', '.join(known)}."
            f"{did_you_mean(kind, known)}"
        )
    try:
        with contextlib.redirect_stdout(sys.stderr):  # lerobot prints what it loads
            config = PreTrainedConfig.from_pretrained(folder)
            config.device = device
            if getattr(config, "pretrained_backbone_weights", None):
                config.pretrained_backbone_weights = None  # they are in the folder; lerobot would download them first
            policy = get_policy_class(kind).from_pretrained(folder, config=config, strict=True)
            overrides = {"device_processor": {"device": device}}
            processors = make_pre_post_processors(config, str(folder), preprocessor_overrides=overrides)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise CheckpointError(f"lerobot {lerobot.__version__} cannot load {folder}: {reason}.") from error
    kept = set(getattr(policy, "_queues", None) or {}) - {"action"}
    if config.n_obs_steps != 1 or kept or not hasattr(config, "chunk_size"):
        raise CheckpointError(
            f"{folder} is a policy of type '{kind}', which keeps past observations of a single environment: expected "
            "one that plans a chunk of actions from the last observation, such as act, smolvla or pi0."
        )
    return str(lerobot.__version__), policy, *processors


def _choose_chunking(config: Any, folder: Path, n_action_steps: int | None) -> ChunkingConfig:
    """Return the chunking of a policy: its own, with ``n_action_steps`` if that is given."""
    coeff = getattr(config, "temporal_ensemble_coeff", None)
    if coeff is not None:
        if n_action_steps is not None:
            raise ConfigError(
                f"--n-action-steps: {folder} averages overlapping chunks at every step. Fix: leave it out"
            )
        return ChunkingConfig(temporal_ensemble=True, temporal_ensemble_coeff=coeff)
    num = config.n_action_steps if n_action_steps is None else n_action_steps
    if not 1 <= num <= config.chunk_size:
        raise ConfigError(f"--n-action-steps {num}: {folder} predicts {config.chunk_size} actions at once.")
    return ChunkingConfig(n_action_steps=num)

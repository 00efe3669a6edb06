"""A policy as an ONNX model: raw observations in, actions out. It runs without act_kit and PyTorch.

The graph holds all that :class:`~act_kit.policies.policy.Policy` does between an observation and its actions: the
normalizer, the features of the state, the task embedding, the scaling of images, the model and the clipping. What is
left to the user is in the model's metadata: which actions of a chunk to execute, and which images to render.

Shapes: B batch, K chunk, A action, S state, C cameras, H and W height and width of an image.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from act_kit.errors import ExportError
from act_kit.policies.chunk_model import Observation
from act_kit.policies.policy import Policy
from act_kit.sim.looks import find_look
from act_kit.sim.tasks import STATE_DIM
from act_kit.versions import versions

FORMAT = {"format": "act_kit.onnx", "version": 1}

METADATA_KEY = "act_kit"
"""Key of the JSON object in the metadata of an ONNX model."""

OUTPUTS = ("actions", "unclipped_actions")
"""Outputs, float32 (B, K, 4) each. Temporal ensembling averages predictions before it clips the mean."""

TOLERANCE = 1e-4
"""Largest difference, in action units, between the predictions of a checkpoint and those of its export."""

_PLACE = re.compile(r'File "([^"]+)", line (\d+), in ')
_TORCH = Path(torch.__file__).parent

_OPSET = 18
"""Version of the ONNX operators: the one that PyTorch's exporter translates to without conversion."""


class _PolicyGraph(nn.Module):
    """The policy as one function of tensors, whose arguments become the inputs of the ONNX model."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.model = policy.model
        self.normalizer = policy.normalizer
        self.num_tasks = len(policy.tasks)

    def forward(
        self,
        states: Tensor,
        tasks: Tensor | None = None,
        images: Tensor | None = None,
        first_states: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return clipped and unclipped actions, (B, K, A) each."""
        if tasks is None:
            tasks = torch.zeros(states.shape[0], dtype=torch.int64)
        # ONNX counts negative indices from the end; beyond the end, onnxruntime refuses them.
        tasks_B = torch.where(tasks < 0, self.num_tasks, tasks)
        observation = Observation(
            states_BS=self.normalizer(states),
            raw_states_BS=states,
            tasks_B=tasks_B,
            images_BCHW3=images,
            first_states_BS=None if first_states is None else self.normalizer(first_states),
        )
        chunks_BKA = self.model.predict(observation)
        return chunks_BKA.clamp(-1.0, 1.0), chunks_BKA


def to_onnx(policy: Policy) -> bytes:
    """Return a policy on the CPU as a serialized ONNX model with metadata, the same bytes for the same policy.

    Raises:
        ExportError: The model's ``predict`` does what ONNX cannot express, or only for one batch size.
    """
    try:
        model = _trace(policy)
        model.metadata_props.add(key=METADATA_KEY, value=json.dumps(describe(policy)))
        content: bytes = model.SerializeToString()
    except Exception as error:  # tracing runs the model's own code, which can raise any exception
        name, kind = policy.model.config.name, type(policy.model)
        raise ExportError(
            f"The model '{name}' cannot be exported to ONNX: {_reason_of(error)}. Expected: a predict() that "
            "torch.export can trace for any number of rows, of operators that ONNX has. Fix: change predict() of "
            f"{kind.__module__}.{kind.__qualname__}, or install other versions of the exporter (here torch "
            f"{torch.__version__}, onnxscript {version('onnxscript')})."
        ) from error
    return content


def _trace(policy: Policy) -> onnx.ModelProto:
    """Return the graph of a policy for any batch size, without the paths of the code that it was traced from."""
    example = {"states": torch.zeros(2, STATE_DIM)}
    if policy.recognizes_task:
        example["first_states"] = torch.zeros(2, STATE_DIM)
    elif len(policy.tasks) > 1:
        example["tasks"] = torch.zeros(2, dtype=torch.int64)
    if policy.views:
        settings = policy.views.settings
        size = (2, len(policy.views.cameras), settings.height_px, settings.width_px, 3)
        example["images"] = torch.zeros(size, dtype=torch.uint8)
    batch = torch.export.Dim("batch")
    logger = logging.getLogger("torch")
    level = logger.level
    # A failure is raised, and PyTorch prints it too, with the whole graph; a success, that torchvision is missing.
    with torch.no_grad(), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        logger.setLevel(logging.CRITICAL)
        try:
            # strict: for the other tracer len(tensor), which models use for B, is a constant.
            program = torch.export.export(
                _PolicyGraph(policy).eval(),
                (),
                kwargs=example,
                dynamic_shapes={name: {0: batch} for name in example},
                strict=True,
            )
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch's exporter uses deprecated names of PyTorch
            exported = torch.onnx.export(
                program, dynamo=True, output_names=OUTPUTS, opset_version=_OPSET, verbose=False
            )
        finally:
            logger.setLevel(level)
    assert exported is not None
    model: onnx.ModelProto = exported.model_proto
    graph = model.graph
    for node in graph.node:
        del node.metadata_props[:]
    del graph.value_info[:]
    for value in [*graph.input, *graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def _reason_of(error: BaseException) -> str:
    """Return the first line of the error that caused an error, and the line of the model's code, if it is known."""
    text = str(error)
    while error.__cause__ is not None:
        error = error.__cause__
        text += f"\n{error}"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if reason.startswith("Constraints violated"):  # PyTorch's message for a batch size that is not variable
        reason = "it has a fixed number of rows"
    places = [place for place in _PLACE.findall(text) if not Path(place[0]).is_relative_to(_TORCH)]
    return f"{reason}, {places[-1][0]}:{places[-1][1]}" if places else reason


def describe(policy: Policy) -> dict[str, Any]:
    """Return the metadata of an exported policy, JSON values: what its user must know and cannot read off the graph."""
    metadata, views = policy.metadata, policy.views
    cameras: list[dict[str, Any]] = []
    if views:
        look = find_look(views.settings.look)
        for name in views.cameras:
            cameras.append({"name": name, "rotated_180": name in look.rotated, "part": look.parts.get(name)})
    return {
        **FORMAT,
        "tasks": list(policy.tasks),
        "recognizes_task": policy.recognizes_task,
        "chunk_size": policy.chunk_size,
        "n_action_steps": policy.chunking.n_action_steps,
        "temporal_ensemble": policy.chunking.temporal_ensemble,
        "temporal_ensemble_coeff": policy.chunking.temporal_ensemble_coeff,
        "control_hz": metadata.control_hz,
        "horizon": metadata.horizon,
        "goal_visible": metadata.goal_visible,
        "cameras": cameras,
        "rendering": asdict(views.settings) if views else None,
        "gl_renderer": metadata.gl_renderer,
        "model": policy.model.config.name,
        "step": metadata.step,
        "fingerprint": policy.weights_hash,
        "act_kit": versions()["act_kit"],
        "trained_with": metadata.versions,
    }


def check_self_test(content: bytes, self_test: Mapping[str, np.ndarray]) -> float:
    """Run a checkpoint's self-test batch in onnxruntime; return the largest difference from its stored ``chunks``.

    The batch is run as a whole and its first row alone, so that a model of one batch size does not pass.

    Raises:
        ExportError: onnxruntime cannot run the model, or a difference is larger than :data:`TOLERANCE`.
    """
    chunks = self_test["chunks"]
    error_max = 0.0
    try:
        session = _make_session(content)
        inputs: dict[str, np.ndarray] = {}
        for given in session.get_inputs():
            values = self_test[given.name]
            inputs[given.name] = values.astype(np.float32) if given.name.endswith("states") else values
        for rows in (slice(None), slice(1)):
            actions, unclipped = session.run(OUTPUTS, {name: values[rows] for name, values in inputs.items()})
            difference = [actions - np.clip(chunks[rows], -1.0, 1.0), unclipped - chunks[rows]]
            error_max = float(np.maximum(error_max, np.abs(difference).max()))  # NaN stays NaN
    except Exception as error:  # its errors have no common base
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} cannot run the export: {_reason_of(error)}."
        ) from error
    if not error_max <= TOLERANCE:
        raise ExportError(
            f"The export does not reproduce the predictions of the checkpoint: those for its self-test batch differ by "
            f"{error_max:.3g} in onnxruntime {onnxruntime.__version__} (allowed: {TOLERANCE}). Expected: a predict() "
            "without random numbers. Fix: change it, or install another onnxruntime. No file was written."
        )
    return error_max


def _make_session(content: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # an error is raised, and need not be printed too
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def is_export(path: Path) -> bool:
    """Return True if a file is an ONNX model that this package exported."""
    try:
        model = onnx.load(path, load_external_data=False)
        return any(entry.key == METADATA_KEY for entry in model.metadata_props)
    except Exception:  # a file of any other format
        return False

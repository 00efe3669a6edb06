"""Evaluate a policy that act export wrote to an ONNX file: onnxruntime predicts its actions.

Run: act export runs/reach-v3 --out reach.onnx && python examples/onnx_policy.py reach.onnx
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime

import act_kit
from act_kit.config.training import ChunkingConfig
from act_kit.policies.chunking import ActionChunker
from act_kit.rollouts.agents import Agent
from act_kit.sim.initial_states import InitialState
from act_kit.sim.render import CameraViews, RenderSettings
from act_kit.sim.tasks import ACTION_DIM


class OnnxAgent(Agent):
    """Agent that runs an exported policy as its metadata describe."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.metadata = json.loads(self.session.get_modelmeta().custom_metadata_map["act_kit"])
        self.tasks: list[str] = self.metadata["tasks"]
        if self.metadata["cameras"]:
            cameras = tuple(camera["name"] for camera in self.metadata["cameras"])
            self.views = CameraViews(cameras=cameras, settings=RenderSettings.from_dict(self.metadata["rendering"]))
        names = ("n_action_steps", "temporal_ensemble", "temporal_ensemble_coeff")
        chunking = ChunkingConfig(**{name: self.metadata[name] for name in names})
        self._chunker = ActionChunker(chunking, self.metadata["chunk_size"], ACTION_DIM)
        self._row_tasks: dict[int, int] = {}
        self._first_states: dict[int, np.ndarray] = {}

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        """Forget the environment's last episode, and choose its task."""
        self._chunker.reset(np.array([row]))
        self._first_states.pop(row, None)
        self._row_tasks[row] = self.tasks.index(init_state.task)

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Return the next actions (B, N, 4) for states (B, 39); the simulator clips them."""
        inputs = {"states": states.astype(np.float32)}
        if self.metadata["recognizes_task"]:
            for row, state in zip(rows.tolist(), inputs["states"], strict=True):
                self._first_states.setdefault(row, state)
            inputs["first_states"] = np.stack([self._first_states[row] for row in rows.tolist()])
        elif len(self.tasks) > 1:
            inputs["tasks"] = np.array([self._row_tasks[int(row)] for row in rows])
        if images is not None:
            inputs["images"] = images
        (chunks,) = self.session.run(["unclipped_actions"], inputs)
        return self._chunker.plan(chunks, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="ONNX file that act export wrote.")
    parser.add_argument("--episodes", type=int, default=50, help="Episodes for each of its tasks.")
    parser.add_argument("--workers", type=int, default=0, help="Simulation processes; 0 = one per processor.")
    args = parser.parse_args()

    agent = OnnxAgent(args.file)
    for task in agent.tasks:
        print(act_kit.evaluate(agent, task, episodes=args.episodes, workers=args.workers))


if __name__ == "__main__":  # processes are spawned, and import this file
    main()

"""Train a model of your own: an affine map from the state to the next actions, instead of ACT.

A model is a class of options and a :class:`ChunkModel` that is registered under it. Training, checkpoints, evaluation
and the doctor then work as for ACT. Run: python examples/custom_head.py --out /tmp/linear
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

import act_kit
from act_kit.config.policy import PolicyConfig
from act_kit.policies.chunk_model import ChunkBatch, ChunkModel, Observation, register_model
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM


@dataclass(frozen=True, kw_only=True)
class LinearConfig(PolicyConfig):
    """Options of every model, such as ``policy.chunk_size``; its own would be further fields."""

    name: str = "linear"


@register_model(LinearConfig)
class LinearModel(ChunkModel):
    """Chunk regressor; the previous frame in the state lets it see velocities."""

    def __init__(self, config: PolicyConfig, *, num_tasks: int = 1, task_embeddings_NE: Tensor | None = None) -> None:
        super().__init__(config)
        self.linear = nn.Linear(STATE_DIM, config.chunk_size * ACTION_DIM)

    def predict(self, observation: Observation) -> Tensor:
        """Predict chunks (B, K, 4) from normalized states (B, 39)."""
        chunks: Tensor = self.linear(observation.states_BS).unflatten(1, (-1, ACTION_DIM))
        return chunks

    def compute_loss(self, batch: ChunkBatch) -> dict[str, Tensor]:
        """Return the L1, which is minimized; both names are recorded: ``train/loss`` and ``train/l1``."""
        l1 = batch.l1(self.predict(batch.observation))
        return {"loss": l1, "l1": l1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demonstrations", type=int, default=50)
    parser.add_argument("--steps", type=int, default=2000, help="Gradient steps.")
    parser.add_argument("--out", type=Path, required=True, help="New folder.")
    args = parser.parse_args()

    store = act_kit.collect("reach-v3", args.demonstrations, out=args.out / "data", workers=1)
    overrides = ["policy.name=linear", "selection.num_evaluations=2"]
    print(act_kit.train(store.path, args.out / "run", steps=args.steps, overrides=overrides, workers=1))


if __name__ == "__main__":
    main()

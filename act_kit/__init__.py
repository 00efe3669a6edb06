"""act_kit: an imitation-learning data pipeline and evaluation toolkit for ACT on Meta-World.

What stands in ``__all__`` is the public interface; everything else may change. Names load on first use, so that
``import act_kit`` costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module

from act_kit.processors import thread_settings

TYPE_CHECKING = False  # importing typing takes longer than all of this
if TYPE_CHECKING:
    from typing import Any

    from act_kit.collection.collect import collect
    from act_kit.config import CollectConfig, EvalConfig, TrainConfig
    from act_kit.datasets.chunk_dataset import ChunkDataset
    from act_kit.datasets.store import EpisodeStore
    from act_kit.diversity.measure import measure_diversity
    from act_kit.diversity.result import DiversityReport
    from act_kit.errors import ActKitError
    from act_kit.eval.evaluate import evaluate
    from act_kit.eval.init_state_sets import InitialStateSet, make_init_state_set
    from act_kit.eval.results import Evaluation
    from act_kit.overrides import compose
    from act_kit.parallel import LocalExecutor
    from act_kit.policies.policy import Policy
    from act_kit.rollouts.episode import Episode
    from act_kit.rollouts.rollout import RolloutPool
    from act_kit.sim.initial_states import InitialState, InitialStateDistribution
    from act_kit.sim.simulator import Simulator
    from act_kit.sim.tasks import TASKS, Task
    from act_kit.sim.vector import VectorSimulator
    from act_kit.training.trainer import Trainer

os.environ.update(thread_settings())  # before PyTorch is imported, here or in a process that is started from here

_HOMES = {
    "ActKitError": "errors",
    "ChunkDataset": "datasets.chunk_dataset",
    "CollectConfig": "config",
    "DiversityReport": "diversity.result",
    "Episode": "rollouts.episode",
    "EpisodeStore": "datasets.store",
    "EvalConfig": "config",
    "InitialStateSet": "eval.init_state_sets",
    "Evaluation": "eval.results",
    "LocalExecutor": "parallel",
    "RolloutPool": "rollouts.rollout",
    "Policy": "policies.policy",
    "Simulator": "sim.simulator",
    "InitialState": "sim.initial_states",
    "InitialStateDistribution": "sim.initial_states",
    "TASKS": "sim.tasks",
    "Task": "sim.tasks",
    "TrainConfig": "config",
    "Trainer": "training.trainer",
    "VectorSimulator": "sim.vector",
    "collect": "collection.collect",
    "compose": "overrides",
    "evaluate": "eval.evaluate",
    "make_init_state_set": "eval.init_state_sets",
    "measure_diversity": "diversity.measure",
}

__all__ = [
    "TASKS",
    "ActKitError",
    "ChunkDataset",
    "CollectConfig",
    "DiversityReport",
    "Episode",
    "EpisodeStore",
    "EvalConfig",
    "Evaluation",
    "InitialState",
    "InitialStateDistribution",
    "InitialStateSet",
    "LocalExecutor",
    "Policy",
    "RolloutPool",
    "Simulator",
    "Task",
    "TrainConfig",
    "Trainer",
    "VectorSimulator",
    "collect",
    "compose",
    "evaluate",
    "make_init_state_set",
    "measure_diversity",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'act_kit' has no attribute '{name}'")
    return getattr(import_module(f"act_kit.{_HOMES[name]}"), name)

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
    from act_kit.datasets.diversity import measure
    from act_kit.datasets.episode import Episode
    from act_kit.datasets.measured import Diversity
    from act_kit.datasets.store import EpisodeStore
    from act_kit.datasets.windows import ChunkDataset
    from act_kit.errors import ActKitError
    from act_kit.eval.evalset import EvalSet, make_evalset
    from act_kit.eval.evaluate import Evaluation, evaluate
    from act_kit.eval.rollout import LocalRoll
    from act_kit.executors import LocalExecutor
    from act_kit.overrides import compose
    from act_kit.policy.policy import Policy
    from act_kit.sim.simulator import Simulator
    from act_kit.sim.starts import Start, StartLaw
    from act_kit.sim.tasks import TASKS, Task
    from act_kit.sim.vector import VectorSimulator
    from act_kit.training.trainer import Trainer

os.environ.update(thread_settings())  # before PyTorch is imported, here or in a process that is started from here

_HOMES = {
    "ActKitError": "errors",
    "ChunkDataset": "datasets.windows",
    "CollectConfig": "config",
    "Diversity": "datasets.measured",
    "Episode": "datasets.episode",
    "EpisodeStore": "datasets.store",
    "EvalConfig": "config",
    "EvalSet": "eval.evalset",
    "Evaluation": "eval.evaluate",
    "LocalExecutor": "executors",
    "LocalRoll": "eval.rollout",
    "Policy": "policy.policy",
    "Simulator": "sim.simulator",
    "Start": "sim.starts",
    "StartLaw": "sim.starts",
    "TASKS": "sim.tasks",
    "Task": "sim.tasks",
    "TrainConfig": "config",
    "Trainer": "training.trainer",
    "VectorSimulator": "sim.vector",
    "collect": "collection.collect",
    "compose": "overrides",
    "evaluate": "eval.evaluate",
    "make_evalset": "eval.evalset",
    "measure": "datasets.diversity",
}

__all__ = [
    "TASKS",
    "ActKitError",
    "ChunkDataset",
    "CollectConfig",
    "Diversity",
    "Episode",
    "EpisodeStore",
    "EvalConfig",
    "EvalSet",
    "Evaluation",
    "LocalExecutor",
    "LocalRoll",
    "Policy",
    "Simulator",
    "Start",
    "StartLaw",
    "Task",
    "TrainConfig",
    "Trainer",
    "VectorSimulator",
    "collect",
    "compose",
    "evaluate",
    "make_evalset",
    "measure",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'act_kit' has no attribute '{name}'")
    return getattr(import_module(f"act_kit.{_HOMES[name]}"), name)

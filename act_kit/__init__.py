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

    from act_kit.api.collect import collect as collect
    from act_kit.api.compare import compare as compare
    from act_kit.api.diagnose import Diagnosis as Diagnosis
    from act_kit.api.diagnose import diagnose as diagnose
    from act_kit.api.evaluate import evaluate as evaluate
    from act_kit.api.evaluate import evaluate_tasks as evaluate_tasks
    from act_kit.api.export import export as export
    from act_kit.api.finetune import finetune as finetune
    from act_kit.api.monitor import monitor as monitor
    from act_kit.api.progress import Progress as Progress
    from act_kit.api.render import render as render
    from act_kit.api.report import measure_diversity as measure_diversity
    from act_kit.api.serve import serve as serve
    from act_kit.api.train import train as train
    from act_kit.comparison.compare import Comparison as Comparison
    from act_kit.config.collection import CollectConfig as CollectConfig
    from act_kit.config.evaluation import EvalConfig as EvalConfig
    from act_kit.config.evaluation import MonitorConfig as MonitorConfig
    from act_kit.config.finetuning import FinetuneConfig as FinetuneConfig
    from act_kit.config.training import TrainConfig as TrainConfig
    from act_kit.datasets.chunk_dataset import ChunkDataset as ChunkDataset
    from act_kit.datasets.store import EpisodeStore as EpisodeStore
    from act_kit.diversity.result import DiversityReport as DiversityReport
    from act_kit.errors import ActKitError as ActKitError
    from act_kit.eval.init_state_sets import InitialStateSet as InitialStateSet
    from act_kit.eval.init_state_sets import make_init_state_set as make_init_state_set
    from act_kit.eval.results import Evaluation as Evaluation
    from act_kit.monitoring.monitor import Monitor as Monitor
    from act_kit.overrides import compose as compose
    from act_kit.parallel import LocalExecutor as LocalExecutor
    from act_kit.policies.policy import Policy as Policy
    from act_kit.rollouts.episode import Episode as Episode
    from act_kit.rollouts.rollout import RolloutPool as RolloutPool
    from act_kit.sim.initial_states import InitialState as InitialState
    from act_kit.sim.initial_states import InitialStateDistribution as InitialStateDistribution
    from act_kit.sim.simulator import Simulator as Simulator
    from act_kit.sim.tasks import TASKS as TASKS
    from act_kit.sim.tasks import Task as Task
    from act_kit.sim.vector import VectorSimulator as VectorSimulator
    from act_kit.training.trainer import Trainer as Trainer

os.environ.update(thread_settings())  # before PyTorch is imported, here or in a process that is started from here

_HOMES = {
    "ActKitError": "errors",
    "ChunkDataset": "datasets.chunk_dataset",
    "CollectConfig": "config.collection",
    "Comparison": "comparison.compare",
    "Diagnosis": "api.diagnose",
    "DiversityReport": "diversity.result",
    "Episode": "rollouts.episode",
    "EpisodeStore": "datasets.store",
    "EvalConfig": "config.evaluation",
    "Evaluation": "eval.results",
    "FinetuneConfig": "config.finetuning",
    "InitialState": "sim.initial_states",
    "InitialStateDistribution": "sim.initial_states",
    "InitialStateSet": "eval.init_state_sets",
    "LocalExecutor": "parallel",
    "Monitor": "monitoring.monitor",
    "MonitorConfig": "config.evaluation",
    "Policy": "policies.policy",
    "Progress": "api.progress",
    "RolloutPool": "rollouts.rollout",
    "Simulator": "sim.simulator",
    "TASKS": "sim.tasks",
    "Task": "sim.tasks",
    "TrainConfig": "config.training",
    "Trainer": "training.trainer",
    "VectorSimulator": "sim.vector",
    "collect": "api.collect",
    "compare": "api.compare",
    "compose": "overrides",
    "diagnose": "api.diagnose",
    "evaluate": "api.evaluate",
    "evaluate_tasks": "api.evaluate",
    "export": "api.export",
    "finetune": "api.finetune",
    "make_init_state_set": "eval.init_state_sets",
    "measure_diversity": "api.report",
    "monitor": "api.monitor",
    "render": "api.render",
    "serve": "api.serve",
    "train": "api.train",
}
"""Modules of the public names."""

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'act_kit' has no attribute '{name}'")
    return getattr(import_module(f"act_kit.{_HOMES[name]}"), name)

"""A dataset, a run and its evaluation, made by the real commands, in which faults are put."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from act_kit.datasets.store import EpisodeStore
from tests.conftest import act

TASK = "reach-v3"
NUM = 50
TRAINING = (
    "policy.cvae_layers=1",
    "trainer.steps=600",
    "trainer.validate_every=300",
    "selection.num_evaluations=2",
    "selection.episodes=10",
)


@dataclass(frozen=True)
class Case:
    """A dataset, a run trained on it and that run's evaluation, all in one folder."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def evaluation(self) -> Path:
        return self.run / "eval-test"

    @property
    def checkpoint(self) -> Path:
        return (self.run / "checkpoints" / "best").resolve()

    def collect(self, *arguments: object) -> None:
        """Collect the dataset."""
        act("collect", "--task", TASK, "--n", NUM, "--out", self.data, "--workers", 1, *arguments, check=0)

    def train(self, *arguments: object) -> None:
        """Train on it, and evaluate."""
        act("train", "--data", self.data, "--out", self.run, "--workers", 1, *TRAINING, *arguments, check=0)
        self.evaluate()

    def evaluate(self, *arguments: object, patch: str = "", check: int = 0) -> subprocess.CompletedProcess[str]:
        """Evaluate the run."""
        return act(
            "eval", self.run, "--episodes", 40, "--workers", 1, "--overwrite", *arguments, patch=patch, check=check
        )

    def copy(self, folder: Path) -> Case:
        """Copy the folder; the copied run names the copied dataset."""
        shutil.copytree(self.folder, folder, symlinks=True)
        config = folder / "run" / "config.yaml"
        config.write_text(config.read_text().replace(str(self.data.resolve()), str((folder / "data").resolve())))
        return Case(folder)


def make_healthy(folder: Path) -> Case:
    """Collect, train and evaluate without any fault."""
    case = Case(folder)
    case.collect()
    case.train()
    return case


def edit(case: Case, change: Callable[[EpisodeStore], None]) -> None:
    """Edit the arrays of a dataset and recompute its fingerprint, like an unintended edit by a user."""
    change(EpisodeStore.open(case.data, writable=True))
    EpisodeStore.open(case.data, writable=True).finish()

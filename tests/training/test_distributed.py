"""Several processes under torchrun train the same policy as a single process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from act_kit.datasets.store import EpisodeStore
from act_kit.metrics import read_metrics, series
from act_kit.policies.policy import Policy
from tests.conftest import ONE_THREAD, TINY, act

OPTIONS = (*TINY, "selection.num_evaluations=1", "trainer.steps=30", "trainer.log_every=1", "trainer.validate_every=10")


def torchrun(*arguments: object) -> list[str]:
    script = "from act_kit.cli import main; main()"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    return [*command, sys.executable, "-c", script, *map(str, arguments)]


@pytest.mark.e2e
def test_two_processes_train_the_same_policy_as_one(reach_store: EpisodeStore, tmp_path: Path) -> None:
    """Each of the two processes computes half of every batch."""
    train = ("train", "--data", reach_store.path, "--workers", 1)
    act(*train, "--out", tmp_path / "one", *OPTIONS, check=0)
    done = subprocess.run(
        torchrun(*train, "--out", tmp_path / "two", *OPTIONS),
        capture_output=True,
        text=True,
        env=ONE_THREAD,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Next: act eval") == 1, "only the first process prints"
    for name in ("train/loss", "train/l1_reconstruction", "train/grad_norm", "val/l1"):
        one = dict(series(tmp_path / "one", name))
        assert one == pytest.approx(dict(series(tmp_path / "two", name)), rel=2e-3), name
    one_model, two_model = (Policy.load(tmp_path / run / "checkpoints" / "last").model for run in ("one", "two"))
    assert (one_model.get_parameter("queries") - two_model.get_parameter("queries")).abs().max() < 1e-3


@pytest.mark.e2e
def test_interrupted_processes_stop_with_a_checkpoint_of_the_same_step(
    reach_store: EpisodeStore, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    long = ("selection.num_evaluations=0", "trainer.steps=100000", "trainer.validate_every=100000")
    process = subprocess.Popen(
        torchrun("train", "--data", reach_store.path, "--out", run, *OPTIONS, *long),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ONE_THREAD,
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < 20:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert f"Resume with: act train --resume --out {run}" in output
    step = json.loads((run / "checkpoints" / "last" / "training.json").read_text())["step"]
    assert step == read_metrics(run)[-1]["step"]

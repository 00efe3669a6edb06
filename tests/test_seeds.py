"""``act train --seeds``: several training seeds, and a failed seed does not affect the others."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from act_kit import cli
from act_kit.cli.children import choose_jobs
from act_kit.cli.seeds import create_seed_runs
from act_kit.comparison.experiments import read_method
from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.overrides import compose
from act_kit.policies.policy import Policy
from act_kit.training.run import load_run
from tests.conftest import ONE_THREAD, TINY, act

pytestmark = pytest.mark.e2e

NAMES = ("seed-0", "seed-7")
QUICK = (*TINY, "selection.num_evaluations=0")


def test_every_seed_is_a_run_and_a_failed_one_does_not_stop_the_others(
    reach_store: EpisodeStore, tmp_path: Path
) -> None:
    """Seed 0 is new, seed 1 cannot be trained, seed 7 was trained and half evaluated."""
    out = tmp_path / "runs"
    create_seed_runs(out, [reach_store.path], [0, 1, 7], compose(TrainConfig, QUICK), overwrite=False)
    act("train", "--resume", "--out", out / "seed-7", check=0)
    last = out / "seed-7" / "checkpoints" / "last" / "training.json"
    trained = last.stat().st_mtime_ns
    (out / "seed-7" / "eval-test").mkdir()
    (out / "seed-7" / "eval-test" / "init_states.json").write_text("half an evaluation")
    shutil.rmtree(out / "seed-1")
    done = act("train", "--resume", "--out", out, check=1)
    assert "There is no run at" in done.stderr
    assert f"Failed: seed-1; see above. Resume with: act train --resume --out {out}" in done.stderr
    assert f"act compare {out} OTHER --vary KEY" in done.stdout
    method = read_method(out)
    assert [seed.name for seed in method.seeds] == list(NAMES)
    assert [len(seed.tasks["reach-v3"].successes) for seed in method.seeds] == [100, 100]
    assert ", ".join(f"{100 * seed.value:.1f} %" for seed in method.seeds) in done.stdout
    assert last.stat().st_mtime_ns == trained
    again = act("train", "--resume", "--out", out, check=1)
    assert again.stdout.count(": trained and evaluated before.") == 2
    act("train", "--resume", "--steps", 70, "--out", out / "seed-7", check=0)  # killed before the evaluation
    act("train", "--resume", "--out", out, check=1)
    steps = [json.loads((out / name / "eval-test" / "summary.json").read_text())["policy_step"] for name in NAMES]
    assert steps == [60, 70]


def test_a_seed_has_the_configuration_of_a_single_run(
    reach_store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command creates the runs; `act train --resume` and `act eval` do the rest."""
    ran: list[Path] = []

    def run_seeds(out: Path, options: object, *, jobs: int, workers: int) -> int:
        ran.append(out)
        return 0

    monkeypatch.setattr("act_kit.cli.seeds.run_seeds", run_seeds)
    out = tmp_path / "runs"
    command = ["act", "train", "--data", str(reach_store.path), "--seeds", "0,3", *QUICK, "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    assert ran == [out]
    assert json.loads((out / "seeds.json").read_text()) == [0, 3]
    assert {path.name for path in out.iterdir()} == {"seeds.json", "seed-0", "seed-3"}
    config, data = load_run(out / "seed-3")
    assert (config.trainer.seed, config.trainer.steps, data) == (3, 60, [reach_store.path])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr("sys.argv", [*command[:-1], str(tmp_path / "other")])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_stopping_stops_the_training_seeds_and_prints_the_resume_command(
    reach_store: EpisodeStore, tmp_path: Path, jobs: int
) -> None:
    out = tmp_path / "runs"
    command = ["train", "--data", str(reach_store.path), "--seeds", "2", "--jobs", str(jobs), *QUICK, "--out", str(out)]
    stopped = subprocess.Popen(
        [sys.executable, "-c", "from act_kit.cli import main; main()", *command, "trainer.steps=100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ONE_THREAD,
    )
    last = [out / f"seed-{seed}" / "checkpoints" / "last" for seed in range(jobs)]
    while not all(folder.exists() for folder in last) and stopped.poll() is None:
        time.sleep(0.05)
    children = psutil.Process(stopped.pid).children(recursive=True)
    stopped.send_signal(signal.SIGTERM)
    output, stderr = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    stopped_lines = [line for line in stderr.splitlines() if "Stopped" in line]
    assert stopped_lines == [f"Stopped. Resume with: act train --resume --out {out}"]
    assert "Traceback" not in stderr
    assert not any(child.is_running() for child in children)
    assert (out / "seed-1" / "metrics.jsonl").exists() == (jobs == 2)
    if jobs == 2:
        assert {line.partition(":")[0] for line in output.splitlines()} == {"seed-0", "seed-1"}


def test_side_by_side_and_one_after_the_other_write_the_same_weights(reach_store: EpisodeStore, tmp_path: Path) -> None:
    weights = []
    for jobs in (1, 3):
        out = tmp_path / f"jobs-{jobs}"
        options = ("--seeds", "3", "--jobs", jobs, "--out", out, "--workers", 1, *QUICK)
        done = act("train", "--data", reach_store.path, *options, check=0)
        weights.append([Policy.load(out / f"seed-{seed}").weights_hash for seed in range(3)])
        assert "seed-2" in done.stdout
    assert weights[0] == weights[1]
    assert len(set(weights[0])) == 3


def test_the_number_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("act_kit.cli.children.num_cpus", lambda: 8)
    assert choose_jobs(0, "cpu", 3) == (3, 2)
    assert choose_jobs(0, "cpu", 16) == (8, 1)
    assert choose_jobs(0, "cpu", 20) == (10, 1), "two rounds of ten, not two of eight and one of four"
    assert choose_jobs(0, "cpu", 9) == (9, 1), "the last does not train alone"
    assert choose_jobs(0, "cuda", 3) == (1, 8)
    assert choose_jobs(2, "cuda", 3) == (2, 4)

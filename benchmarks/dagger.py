"""What correcting a policy buys (DAgger), beside as many demonstrations more.

    python -m benchmarks.dagger --seeds 0 1 2 --out dagger

A policy is trained on 10 demonstrations of push-v3. Then 30 attempts of it are corrected by the scripted expert, with
different shares of the expert in what is executed, and a policy is trained on both; or on 30 demonstrations more.
Every training is the same number of gradient steps; its last checkpoint is judged from 100 new initial states that
no figure elsewhere is measured on. What is finished is kept: stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from act_kit.datasets.store import EpisodeStore
from act_kit.eval.files import read_evaluation
from act_kit.statistics import seeds_mean
from benchmarks.command import act

TASK, STEPS = "push-v3", 1500
FEW, MORE = 10, 30
MIXTURES = {"a half": (0.5, 0.5), "a half, falling to none": (0.5, 0.0), "all, falling to none": (1.0, 0.0)}


def train(data: list[Path], seed: int, folder: Path) -> np.ndarray:
    """Train on datasets and return the successes from 100 new initial states, bool (100,)."""
    if not (folder / "eval" / "report.html").exists():
        named = [argument for dataset in data for argument in ("--data", dataset)]
        options = ("selection.num_evaluations=0", f"trainer.steps={STEPS}", f"trainer.seed={seed}")
        act("train", *named, "--out", folder / "run", "--overwrite", "--allow-low-diversity", *options)
        act("eval", folder / "run", "--out", folder / "eval", "--overwrite", "--seed", 200 + seed, "--workers", 1)
    return read_evaluation(folder / "eval").successes


def measure(seed: int, out: Path) -> dict[str, np.ndarray]:
    """Return the successes of one training seed, whose data are drawn by it too."""
    folder = out / str(seed)
    few, more = folder / "few", folder / "more"

    def collect(data: Path, *options: object) -> Path:
        if not data.exists() or EpisodeStore.open(data).fingerprint is None:
            act("collect", "--task", TASK, "--out", data, "--overwrite", "--workers", 1, *options)
        return data

    collect(few, "--n", FEW, "--seed", seed)
    collect(more, "--n", MORE, "--seed", 1000 + seed)
    successes = {f"{FEW} demonstrations": train([few], seed, folder / "before")}
    for name, (first, last) in MIXTURES.items():
        mixture = (f"dagger.expert_first={first}", f"dagger.expert_last={last}")
        policy = ("--demonstrator", "policy", "--source", folder / "before" / "run")
        corrected = collect(folder / name / "data", "--n", MORE, "--seed", seed, *policy, *mixture)
        successes[f"and {MORE} attempts, the expert's share {name}"] = train([few, corrected], seed, folder / name)
    successes[f"and {MORE} demonstrations"] = train([few, more], seed, folder / "plain")
    return successes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("dagger"))
    options = parser.parse_args()
    with ThreadPoolExecutor(2) as pool:
        measured = list(pool.map(lambda seed: measure(seed, options.out), options.seeds))
    print("| data | successes of 100, by training seed | mean [95 % interval over seeds] |\n|---|---|---|")
    for name in measured[0]:
        each = np.stack([successes[name] for successes in measured])
        mean = seeds_mean([each], same_init_states=False)
        interval = f"{100 * mean.value:.0f} [{100 * mean.low:.0f}, {100 * mean.high:.0f}] %" if len(each) > 1 else ""
        print(f"| {name} | {' '.join(map(str, each.sum(axis=1)))} | {interval} |")


if __name__ == "__main__":
    main()

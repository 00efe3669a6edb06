"""``act train --seeds``: one run per training seed, each trained and evaluated in separate processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from act_kit import interrupts
from act_kit.api.device import choose_device
from act_kit.api.train import Training
from act_kit.cli.children import Children, choose_jobs
from act_kit.cli.console import console, info, warn
from act_kit.config.training import TrainConfig
from act_kit.errors import ActKitError, ConfigError
from act_kit.files import SEEDS, quoted, read_json, write_json
from act_kit.outputs import finish_output, locked, new_folder


def train_seeds(training: Training, text: str | None, *, jobs: int, workers: int) -> int:
    """Create or update the runs of all seeds, train and evaluate them, and return the exit code.

    ``text`` is the value of ``--seeds``, None to resume those of the folder; ``jobs`` and ``workers`` 0 mean automatic.
    """
    from act_kit.training.run import resume_run

    seeds = [] if text is None else parse_seeds(text, training.given)
    device, out = choose_device(training.device), training.out
    with locked(out):
        if not training.has_run:
            training.check_diversity()
            create_seed_runs(out, training.datasets, seeds, training.config, overwrite=training.overwrite)
        elif seeds and seeds != read_json(out / SEEDS):
            raise ConfigError(f"{out} has other seeds than --seeds {text}. Fix: leave --seeds out.")
        else:
            for folder in sorted(out.glob("seed-*")):
                resume_run(folder, training.datasets, training.config, training.given)
        with interrupts.resume_command(training.resume_command):
            jobs, share = choose_jobs(jobs, device, len(read_json(out / SEEDS)))
            return run_seeds(out, ["--device", device], jobs=jobs, workers=workers or share)


def parse_seeds(text: str, given: Sequence[str]) -> list[int]:
    """Parse ``--seeds``, a number of seeds or a list of them; ``given`` are the dotted keys of the given options.

    Raises:
        ConfigError: It is neither, the seed is also given by another option, or the command runs under torchrun.
    """
    try:
        seeds = list(map(int, text.split(","))) if "," in text else list(range(int(text)))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text}: expected a number, such as 5, or distinct seeds, such as 0,3,7.")
    if "trainer.seed" in given:
        raise ConfigError("--seeds already sets the training seeds. Fix: leave out --seed and trainer.seed=.")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError(
            "--seeds does not run under torchrun. Fix: one command per seed, torchrun … act train --seed SEED"
        )
    return seeds


def create_seed_runs(
    out: Path, data: Sequence[Path], seeds: Sequence[int], config: TrainConfig, *, overwrite: bool
) -> None:
    """Create the folders of all runs, ``out/seed-N``, atomically, so that each run can be resumed."""
    from act_kit.comparison.experiments import SEED_FOLDER
    from act_kit.training.run import create_run

    hint = f"act train --resume --out {quoted(out)} resumes it"
    with new_folder(out, overwrite=overwrite, is_complete=False, hint=hint) as fresh:
        write_json(fresh / SEEDS, list(seeds))
        for seed in seeds:
            one = replace(config, trainer=replace(config.trainer, seed=seed))
            create_run(fresh / f"{SEED_FOLDER}{seed}", data, one, overwrite=False)


def run_seeds(out: Path, options: Sequence[str], *, jobs: int, workers: int) -> int:
    """Train and evaluate the unfinished seeds of ``out``, print the results, and return the exit code.

    ``jobs`` seeds run side by side, with ``workers`` simulation processes each; ``options`` are passed to both verbs. A
    failed seed is listed at the end and does not stop the others. Each stage is a separate process, because an
    evaluation needs one thread and a training all of them, and PyTorch cannot switch.
    """
    from act_kit.comparison.experiments import SEED_FOLDER, read_method, read_seeds
    from act_kit.comparison.modes import describe_modes
    from act_kit.reports.comparison import methods_table

    runs = [out / f"{SEED_FOLDER}{seed}" for seed in read_seeds(out)]
    options = [*options, "--workers", str(workers)]
    with Children(jobs) as children:
        succeeded = children.map(lambda run: _finish_seed(run, options, children), runs)
    failed = [run.name for run, is_done in zip(runs, succeeded, strict=True) if not is_done]
    if len(failed) < len(runs):
        method = read_method(out)
        console.print(methods_table([method]))
        if note := describe_modes(method):
            info(note)
        info(f"Next: act compare {quoted(out)} OTHER --vary KEY")
    if failed:
        warn(f"Failed: {', '.join(failed)}; see above. Resume with: act train --resume --out {quoted(out)}")
        return 1
    finish_output(out)
    return 0


def _finish_seed(run: Path, options: Sequence[str], children: Children) -> bool:
    """Train and evaluate one seed as far as it is not done; return False if it failed."""
    from act_kit.training.run import load_run, steps_taken

    if children.stopped.is_set():
        return False
    if not children.is_side_by_side:
        console.rule(run.name, align="left")
    try:
        is_trained = steps_taken(run) >= load_run(run)[0].trainer.steps
        is_done = is_trained and _is_evaluated(run)
    except ActKitError as error:
        warn(str(error))
        return False
    if is_done:
        info(f"{run.name}: trained and evaluated before.")
        return True
    code = 0 if is_trained else children.run(["train", "--resume", "--out", str(run), *options], run.name)
    # --overwrite replaces an incomplete evaluation, or one of an earlier checkpoint.
    return code == 0 and children.run(["eval", str(run), "--overwrite", *options], run.name) == 0


def _is_evaluated(run: Path) -> bool:
    """Return True if there is an evaluation of a run's checkpoint, not of one from before more steps were trained."""
    from act_kit.policies.policy import Policy

    summary = run / "eval-test" / "summary.json"
    if not summary.exists():
        return False
    values = read_json(summary)
    return isinstance(values, dict) and values.get("policy_step") == Policy.load(run).metadata.step

"""``act train --seeds``: one run per training seed, each trained and evaluated in separate processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from act_kit import interrupts
from act_kit.api.device import choose_device
from act_kit.api.train import Training
from act_kit.cli.console import console, info, warn
from act_kit.config import TrainConfig
from act_kit.errors import ActKitError, ConfigError
from act_kit.files import SEEDS, quoted, read_json, write_json
from act_kit.outputs import finish_output, locked, new_folder


def train_seeds(training: Training, text: str | None, *, workers: int) -> int:
    """Create or update the runs of all seeds, train and evaluate them, and return the exit code.

    ``text`` is the value of ``--seeds``, None to resume those of the folder.
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
            return run_seeds(out, ["--device", device, "--workers", str(workers)])


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
        raise ConfigError("--seeds trains the runs one after another, without torchrun. Fix: torchrun each with --seed")
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


def run_seeds(out: Path, options: Sequence[str]) -> int:
    """Train and evaluate the unfinished seeds of ``out``, print the results, and return the exit code.

    ``options`` are passed to both verbs. A failed seed is listed at the end and does not stop the others. Each stage is
    a separate process, because an evaluation needs one thread and a training all of them, and PyTorch cannot switch.
    """
    from act_kit.comparison.experiments import SEED_FOLDER, read_method, read_seeds
    from act_kit.comparison.modes import describe_modes
    from act_kit.reports.comparison import methods_table
    from act_kit.training.run import load_run, steps_taken

    seeds = read_seeds(out)
    failed: list[str] = []
    for seed in seeds:
        run = out / f"{SEED_FOLDER}{seed}"
        console.rule(run.name, align="left")
        try:
            is_trained = steps_taken(run) >= load_run(run)[0].trainer.steps
        except ActKitError as error:
            warn(str(error))
            failed.append(run.name)
            continue
        if is_trained and (run / "eval-test" / "summary.json").exists():
            info("Trained and evaluated before.")
            continue
        code = 0 if is_trained else _run_act(["train", "--resume", "--out", str(run), *options])
        # --overwrite replaces an incomplete evaluation, or one of an earlier checkpoint.
        if code or _run_act(["eval", str(run), "--overwrite", *options]):
            failed.append(run.name)
    if len(failed) < len(seeds):
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


def child() -> None:
    """Run the command line, and exit when the parent process does; the parent keeps standard input open until then.

    Otherwise this process would continue to train, concurrently with a process that resumes the training.
    """
    from act_kit.cli import main

    threading.Thread(target=_end_with_parent, daemon=True, name="end-with-parent").start()
    interrupts.leave_report_to_parent()
    main()


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _run_act(arguments: Sequence[str]) -> int:
    """Run the command line in another process, forward SIGINT and SIGTERM to it, and return its exit code."""
    # A separate process group: otherwise a Ctrl-C of the terminal would reach the process twice.
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from act_kit.cli.seeds import child; child()", *arguments],
        stdin=subprocess.PIPE,
        process_group=0,
    )
    stopped: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        process.send_signal(number)

    handlers = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stopped:
        interrupts.report_interruption()
        sys.exit(interrupts.EXIT_CODE)
    return code

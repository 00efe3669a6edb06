"""``act train --seeds``: one run per training seed, each trained and evaluated by processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from act_kit import interrupts
from act_kit.cli.console import complain, console, say
from act_kit.errors import ConfigError, DamagedFileError
from act_kit.files import SEEDS, finish_output, new_folder, quoted, read_json, write_json

SEED = "trainer.seed"


def parse_seeds(text: str, overrides: Sequence[str], flags: Mapping[str, Any]) -> list[int]:
    """Read ``--seeds``: how many, or which ones.

    Raises:
        ConfigError: It is neither, or the seed is given in another way too, or processes are to share a training.
    """
    try:
        seeds = [int(part) for part in text.split(",")] if "," in text else list(range(int(text)))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text}: give how many, such as 5, or different ones, such as 0,3,7.")
    if flags[SEED] is not None or any(override.startswith(f"{SEED}=") for override in overrides):
        raise ConfigError("--seeds says which training seeds: leave out --seed and trainer.seed=.")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("--seeds trains one run after the other, without torchrun; or torchrun each with --seed.")
    return seeds


def begin_seeds(
    out: Path, data: Sequence[Path], seeds: Sequence[int], overrides: Sequence[str], flags: Mapping[str, Any], *,
    overwrite: bool,
) -> None:  # fmt: skip
    """Make the folder of every run, ``out/seed-N``, so that each can be gone on with: of all of them, or of none."""
    from act_kit.compare.experiments import SEED_FOLDER
    from act_kit.training.run import create_run

    how_to_go_on = f"act train --resume --out {quoted(out)} goes on with it"
    with new_folder(out, overwrite=overwrite, is_complete=False, how_to_go_on=how_to_go_on) as fresh:
        write_json(fresh / SEEDS, list(seeds))
        for seed in seeds:
            create_run(fresh / f"{SEED_FOLDER}{seed}", data, overrides, {**flags, SEED: seed}, overwrite=False)


def run_seeds(out: Path, options: Sequence[str]) -> int:
    """Train and evaluate every seed of ``out`` that was not, print the results, and return the exit code.

    ``options`` are for both verbs. A seed that fails is named at the end and stops no other. Each stage is a process
    of its own: an evaluation wants one thread, a training all of them, and PyTorch cannot go from one to the other.
    """
    from act_kit.compare.compare import kinds_of_seeds
    from act_kit.compare.experiments import SEED_FOLDER, read_method
    from act_kit.errors import ActKitError
    from act_kit.reports.comparison import methods_table
    from act_kit.training.run import load_run, steps_taken

    seeds = _read_seeds(out)
    failed: list[str] = []
    for seed in seeds:
        run = out / f"{SEED_FOLDER}{seed}"
        console.rule(run.name, align="left")
        try:
            trained = steps_taken(run) >= load_run(run)[0].trainer.steps
        except ActKitError as error:
            complain(str(error))
            failed.append(run.name)
            continue
        results = run / "eval-test"
        if trained and (results / "summary.json").exists():
            say("Trained and evaluated before.")
            continue
        # An evaluation that is there is of a training that went on.
        stages = [["train", "--resume", "--out", str(run)], ["eval", str(run), "--overwrite"]]
        if not all(_act(stage + list(options)) == 0 for stage in stages[trained:]):
            failed.append(run.name)
    if len(failed) < len(seeds):
        method = read_method(out)
        console.print(methods_table([method]))
        note = kinds_of_seeds(method)
        if note:
            say(note)
        say(f"Compare with another: act compare {quoted(out)} OTHER --vary KEY")
    if failed:
        complain(f"Failed: {', '.join(failed)}; see above. Resume with: act train --resume --out {quoted(out)}")
        return 1
    finish_output(out)
    return 0


def _read_seeds(out: Path) -> list[int]:
    """Return the training seeds of the runs in ``out``.

    Raises:
        DamagedFileError: The file holds something else.
    """
    seeds = read_json(out / SEEDS)
    if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise DamagedFileError(f"{out / SEEDS} is damaged: a list of training seeds was expected.")
    return seeds


def child() -> None:
    """Run the command line, and end with the parent, who keeps this process's standard input open as long as it lives.

    It would train on otherwise, beside the process that goes on with the training.
    """
    from act_kit.cli import main

    threading.Thread(target=_end_with_parent, daemon=True, name="end-with-parent").start()
    interrupts.leave_it_to_the_parent_to_tell()
    main()


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _act(arguments: Sequence[str]) -> int:
    """Run the command line in another process, which is told to stop when this one is; return its exit code."""
    # In a process group of its own: a Ctrl-C of the terminal would reach it beside ours, and a second one is no wish.
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from act_kit.cli.seeds import child; child()", *arguments],
        stdin=subprocess.PIPE, process_group=0,
    )  # fmt: skip
    stopped: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        interrupts.tell()
        sys.exit(interrupts.EXIT_CODE)
    return code

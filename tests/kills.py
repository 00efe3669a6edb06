"""Fault injection at every file-system operation of a command, in a separate process that forks before any thread.

``python -m tests.kills FOLDER FAULT MOST CASE…`` prints a JSON line for each case: its number of operations, the number
of them at which the fault was injected (about MOST; 0 = all), and the errors.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save

import act_kit.api.evaluate as evaluating
import act_kit.cli.children as children
import act_kit.collection.collect as collecting
import act_kit.collection.render as rendering
import act_kit.monitoring.measure as monitoring
import act_kit.sim.render as sim_render
from act_kit import cli
from act_kit.errors import RenderError
from act_kit.eval.evaluate import roll_sets
from act_kit.parallel import ExecutorConfig, LocalExecutor
from act_kit.rollouts.agents import Agent, ExpertAgent
from act_kit.sim.looks import find_look
from act_kit.sim.render import Frames, Gl

_PRELOADED_MODULES = (
    "act_kit.reports.demo",
    "act_kit.reports.dataset",
    "act_kit.datasets.ops",
    "act_kit.datasets.formats.convert",
    "act_kit.diversity.measure",
    "act_kit.policies.onnx",
    "act_kit.finetuning.finetuner",
    "act_kit.reports.monitor",
    "pyarrow.parquet",
    "tensorboard.summary.writer.record_writer",
    "tensorboard.backend.event_processing.event_accumulator",
)

EXIT_CODES = {"kill": (0, -9), "interrupt": (0, 130), "full disk": (0, 2), "broken disk": (0, 2)}
"""Allowed exit codes of a command with a fault; 0 if the command was complete already."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate")
_NEEDS_SPACE = ("open", "os.mkdir", "os.symlink", "os.link")

TRAIN = (
    "policy.dim_model=32",
    "policy.dim_feedforward=64",
    "policy.latent_dim=8",
    "policy.chunk_size=8",
    "chunking.n_action_steps=4",
    "trainer.batch_size=8",
    "trainer.steps=4",
    "trainer.validate_every=1",
    "trainer.log_every=1",
    "selection.episodes=1",
    "selection.num_evaluations=2",
    "--device",
    "cpu",
    "--workers",
    "1",
    "--allow-low-diversity",
)
EVAL = ("--episodes", "1", "baseline_episodes=0", "demonstrated_episodes=0", "--workers", "1", "--device", "cpu")

MONITOR = "--episodes 2 --alpha 0.5 --workers 1 --device cpu"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Command into which a fault is injected, in a folder prepared by other commands.

    Attributes:
        command: Command line.
        out: Folder that the command writes.
        setup: Commands that prepare the folder.
        again: Command that a user types afterwards, or "--resume"; "" for the same command.
        replaces: True if ``out`` exists before; its content must not be lost until the new folder is complete.
    """

    command: str
    out: str
    setup: tuple[str, ...] = ()
    again: str = ""
    replaces: bool = False


DATA = "collect --task reach-v3 --n 3 --workers 1 --out data"
OTHER = "collect --task reach-v3 --n 2 --seed 1 --workers 1 --out other"
OLD = "collect --task reach-v3 --n 1 --seed 5 --workers 1 --out out"
LEROBOT = "data convert data lerobot --to lerobot"
RUN = f"train --data data --out out {' '.join(TRAIN)}"
TRAINED = (DATA, RUN.replace("--out out", "--out run"))
FINETUNE = (
    "finetune run --steps 1 ppo.sigma=0.1 episodes=1 select_episodes=1 select_every=1 width=8 --workers 1 --out out"
)
CASES: dict[str, Case] = {
    "collect": Case(command=DATA.replace("data", "out"), again="--resume", out="out"),
    "collect --overwrite": Case(
        command=DATA.replace("data", "out") + " --overwrite", setup=(OLD,), again="--resume", out="out", replaces=True
    ),
    "collect --overwrite again": Case(
        command=DATA.replace("data", "out") + " --overwrite", setup=(OLD,), out="out", replaces=True
    ),
    "collect more": Case(
        command=DATA.replace("data", "out") + " --resume",
        setup=(DATA.replace("--n 3", "--n 1").replace("data", "out"),),
        out="out",
    ),
    "render": Case(
        command="render out --size 16", setup=(DATA.replace("data", "out"),), again="render out --size 16", out="out"
    ),
    "render --overwrite": Case(
        command="render out --size 16 --overwrite",
        setup=(DATA.replace("data", "out"), "render out --size 24"),
        again="render out --size 16",
        out="out",
        replaces=True,
    ),
    "merge": Case(command="data merge data other --out out", setup=(DATA, OTHER), out="out"),
    "merge --overwrite": Case(
        command="data merge data other --out out --overwrite", setup=(DATA, OTHER, OLD), out="out", replaces=True
    ),
    "split": Case(command="data split data --parts 1,2 --out out", setup=(DATA,), out="out"),
    "split --overwrite": Case(
        command="data split data --parts 1,2 --out out --overwrite", setup=(DATA, OLD), out="out", replaces=True
    ),
    "filter": Case(command="data filter data --where episode>0 --out out", setup=(DATA,), out="out"),
    "filter --overwrite": Case(
        command="data filter data --where episode>0 --out out --overwrite", setup=(DATA, OLD), out="out", replaces=True
    ),
    "convert": Case(command="data convert data out --to diffusion-policy", setup=(DATA,), out="out"),
    "convert --overwrite": Case(
        command="data convert data out --to act-hdf5 --overwrite", setup=(DATA, OLD), out="out", replaces=True
    ),
    "convert to lerobot": Case(command="data convert data out --to lerobot", setup=(DATA,), out="out"),
    "convert to lerobot --overwrite": Case(
        command="data convert data out --to lerobot --overwrite", setup=(DATA, OLD), out="out", replaces=True
    ),
    "convert from lerobot": Case(command="data convert lerobot out", setup=(DATA, LEROBOT), out="out"),
    "convert from lerobot --overwrite": Case(
        command="data convert lerobot out --overwrite", setup=(DATA, LEROBOT, OLD), out="out", replaces=True
    ),
    "report": Case(command="report data --out out", setup=(DATA,), again="report data --out out", out="out"),
    "train": Case(command=RUN, setup=(DATA,), again="train --resume --out out --device cpu --workers 1", out="out"),
    "train --overwrite": Case(
        command=f"{RUN} --overwrite",
        setup=(DATA, OLD),
        again="train --resume --out out --device cpu --workers 1",
        out="out",
        replaces=True,
    ),
    "train --overwrite again": Case(command=f"{RUN} --overwrite", setup=(DATA, OLD), out="out", replaces=True),
    "eval": Case(command=f"eval run {' '.join(EVAL)} --out out", setup=TRAINED, out="out"),
    "eval --overwrite": Case(
        command=f"eval run {' '.join(EVAL)} --out out --overwrite",
        setup=(*TRAINED, OLD),
        out="out",
        replaces=True,
    ),
    "finetune": Case(
        command=FINETUNE,
        setup=TRAINED,
        again="finetune --resume --out out --workers 1",
        out="out",
    ),
    "finetune --overwrite": Case(
        command=f"{FINETUNE} --overwrite",
        setup=(*TRAINED, FINETUNE.replace("run", "run --seed 1")),
        again="finetune --resume --out out --workers 1",
        out="out",
        replaces=True,
    ),
    "monitor": Case(command=f"monitor run {MONITOR} --out out", setup=TRAINED, out="out"),
    "monitor --overwrite": Case(
        command=f"monitor run {MONITOR} --out out --overwrite",
        setup=(*TRAINED, OLD),
        out="out",
        replaces=True,
    ),
    "export": Case(command="export run --out out/policy.onnx", setup=TRAINED, out="out"),
    "train --seeds": Case(
        command=f"{RUN} --seeds 2 --jobs 1",
        setup=(DATA,),
        again="train --resume --out out --device cpu --workers 1 --jobs 1",
        out="out",
    ),
    "demo --overwrite": Case(
        command="demo --task reach-v3 --n 2 --steps 2 --episodes 1 --workers 1 --device cpu --out out --overwrite",
        setup=(OLD,),
        out="out",
        replaces=True,
    ),
}


@dataclass
class Report:
    """Result of a case."""

    case: str
    fault: str
    num_operations: int = 0
    num_tried: int = 0
    wrong: list[str] = field(default_factory=list)


class Fault:
    """Audit hook that counts the file-system operations of this process and injects a fault before one of them."""

    def __init__(self, kind: str, at: int) -> None:
        self.kind = kind
        self.at = at
        self.count = 0
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not (event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES)):
            return
        if str(arguments[0]).startswith("/dev/"):
            return
        self.count += 1
        if self.kind == "full disk" and 0 <= self.at < self.count and event in _NEEDS_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
        if self.count != self.at + 1:
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if self.kind == "broken disk":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(arguments[0]))


def run_forked(work: Path, function: Callable[[], int]) -> tuple[int, str]:
    """Call a function in a fork of this process; return its exit code (negative for a signal) and its output."""
    log = work.parent / "output.txt"
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(work)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = function()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace")


def act(work: Path, command: str, fault: str = "", at: int = -1) -> tuple[int, str]:
    """Run a command line in a fork, with a fault at one of its operations."""

    def run() -> int:
        sys.argv = ["act", *command.split()]
        injected = Fault(fault, at)
        try:
            cli.main()
            code: Any = 0
        except SystemExit as exit_:
            code = exit_.code
        num_operations = injected.count
        if not fault:  # otherwise the disk may be full
            (work.parent / "count.txt").write_text(str(num_operations), encoding="utf-8")
        return int(code or 0)

    return run_forked(work, run)


_TIME_DEPENDENT = ("train/steps_per_s", "finetune/steps_per_s", "train/roofline_fraction", "host/memory")


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file by its name, without time-dependent metrics and the minutes of fine-tuning."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.endswith(".act-lock"):  # a lock file left by a kill is unlocked, and stays until the next writer
            continue
        if path.is_symlink():
            files[name] = os.readlink(path).encode()
        elif path.name == "metrics.jsonl":
            files[name] = b"".join(_without_time(line) for line in path.read_bytes().splitlines())
        elif path.name == "training.safetensors":
            tensors = load_file(path)
            tensors.pop("extra/elapsed_s", None)
            files[name] = save(tensors)
        elif path.name == "evaluations.jsonl":  # a second evaluation into the same folder adds a second line
            files[name] = b"".join(sorted(set(path.read_bytes().splitlines(keepends=True))))
        elif path.is_file() and "tensorboard" not in path.parts:
            files[name] = path.read_bytes()
    return files


def _without_time(line: bytes) -> bytes:
    try:
        record = json.loads(line)
    except ValueError:
        return line
    return json.dumps({key: value for key, value in record.items() if key not in _TIME_DEPENDENT}).encode()


def render_fake_images(settings: Any, cameras: list[str], init_state: Any, physics: np.ndarray) -> Frames:
    """Return random images seeded by the physics and the camera, instead of rendering."""
    shape = (len(physics), settings.height_px, settings.width_px, 3)
    images: list[np.ndarray] = []
    for camera in cameras:
        rng = np.random.default_rng([abs(int(1e6 * physics.sum())), *camera.encode()])
        images.append(rng.integers(0, 255, shape, dtype=np.uint8))
    return Frames(images=np.stack(images, axis=1), renderer="llvmpipe")


def run_here(arguments: Sequence[str]) -> int:
    """Run a command of ``train --seeds`` or ``demo`` here, so that its operations count; return its exit code."""
    short_eval = EVAL[:4] if arguments[0] == "eval" else ()
    before, sys.argv = sys.argv, ["act", *arguments, *short_eval]
    try:
        cli.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    finally:
        sys.argv = before
    return 0


def roll_expert(roll: Any, name: str, agent: Agent, *arguments: Any, **options: Any) -> Any:
    """Roll out the expert: a policy of four steps has no success to calibrate a monitor with."""
    return roll_sets(roll, name, ExpertAgent(), *arguments, **options)


def find_no_gl(num_processes: int = 1) -> Gl:
    """Find no GL library."""
    raise RenderError("no GL library")


def operations_to_test(num: int, most: int) -> list[int]:
    """Choose evenly spaced operations, and the last three, which move the folders."""
    if not most:
        return list(range(num))
    return sorted({*range(0, num, max(1, num // most)), *range(max(0, num - 3), num)})


def next_command(case: Case, work: Path) -> str:
    """Return the command that a user types next."""
    out = work / case.out
    rendered: set[str] = set()
    for path in out.glob("data/images/*/zarr.json"):
        if '"height_px": 16' in path.read_text("utf-8"):
            rendered.add(path.parent.name.partition(".")[0])
    is_old = (out / "zarr.json").exists() and "--seed 5" in (out / "zarr.json").read_text("utf-8")
    can_resume = {
        "finetune": (out / "finetune.yaml").exists() and "seed: 1" not in (out / "finetune.yaml").read_text("utf-8"),
        "train": any((out / name).exists() for name in ("config.yaml", "seeds.json")),
        "render": len(rendered) == len(find_look("closeup").cameras),
        "collect": not is_old,
    }
    if case.again and not can_resume.get(case.command.split()[0], True):
        return case.command
    if case.again == "--resume":
        return case.command.replace(" --overwrite", "") + " --resume"
    if not case.again and not case.replaces and out.exists():
        return f"{case.command} --overwrite"
    return case.again or case.command


def run_case(root: Path, name: str, fault: str, most: int) -> Report:
    """Inject a fault at operations of a case; check that no finished folder is lost and the next command recovers."""
    case, report = CASES[name], Report(case=name, fault=fault)
    template, work = root / "template", root / "work"
    for folder in (template, work):
        shutil.rmtree(folder, ignore_errors=True)
    template.mkdir()
    for command in case.setup:
        code, output = act(template, command)
        assert code == 0, output
    old = set(tree(template / case.out).values()) if case.replaces else set()
    shutil.copytree(template, work, symlinks=True)
    code, output = act(work, case.command)
    assert code == 0, output
    expected = tree(work)
    new = set(tree(work / case.out).values())
    report.num_operations = int((root / "count.txt").read_text(encoding="utf-8"))
    for at in operations_to_test(report.num_operations, most):
        shutil.rmtree(work)
        shutil.copytree(template, work, symlinks=True)
        code, output = act(work, case.command, fault, at)
        report.num_tried += 1
        where = f"{name}, {fault} at {at}"
        seed_failed = code == 1 and "Failed: seed-" in output
        if (code not in EXIT_CODES[fault] and not seed_failed) or "Traceback" in output:
            report.wrong.append(f"{where}: exit code {code}: {output[-800:]}")
        contents = set(tree(work).values())
        if not (old <= contents or new <= contents):
            report.wrong.append(f"{where}: neither the old folder nor the new one is complete")
        again = next_command(case, work)
        code, output = act(work, again)
        if code != 0 or "Traceback" in output:
            report.wrong.append(f"{where}, then {again}: exit code {code}: {output[-800:]}")
            continue
        after = tree(work)
        differs = sorted(key for key in {*after, *expected} if after.get(key) != expected.get(key))
        if differs:
            report.wrong.append(f"{where}, then {again}: differs in {differs[:6]}")
    return report


def main() -> None:
    """Run the cases, and print a line for each."""
    assert threading.active_count() == 1, "a fork has only the calling thread"
    sys.dont_write_bytecode = True
    for name in _PRELOADED_MODULES:
        import_module(name)  # once, instead of in every fork
    torch.set_num_threads(1)
    replacements: list[tuple[Any, str, object]] = [
        (collecting, "COMMIT_EVERY", 2),
        (collecting, "git_commit", lambda: None),  # a commit may be made meanwhile
        (rendering, "render_episode", render_fake_images),
        (sim_render, "find_gl", lambda num_processes=1: Gl("egl", "llvmpipe", {})),
        (evaluating, "find_gl", find_no_gl),
        (monitoring, "roll_sets", roll_expert),
        (children.Children, "run", lambda self, arguments, name: run_here(arguments)),
        (children.Children, "map", lambda self, function, items: list(map(function, items))),  # in a fixed order
        (ExecutorConfig, "make_executor", lambda self, variables=None: LocalExecutor(1)),
    ]
    for owner, name, replacement in replacements:
        assert hasattr(owner, name), name
        setattr(owner, name, replacement)
    root, fault, most, *names = sys.argv[1:]
    for name in names:
        report = run_case(Path(root), name, fault, int(most))
        print(json.dumps(vars(report)), flush=True)


if __name__ == "__main__":
    main()

"""Damages a file that some verb reads, runs the verb, and reports what no user may see: tracebacks, hangs, memory.

    python -m tests.fuzzing MATERIAL --seed 0 --cases 500

MATERIAL is a folder that :func:`make_material` fills, once. Each case copies a part of it, damages one file there and
runs a verb on it in a process that is forked from one that has imported everything, so a case takes what the verb
itself takes. Prints one JSON line for each case that fails, and ends with the number of cases.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPU_S = 20
"""A verb on this material takes a few seconds."""
WALL_S = 240
MEMORY_BYTES = 2 * 10**9
_MOST_BYTES = 4 * 10**9
"""At which the process is stopped, so that the machine survives what is found."""

TINY = (
    "policy.width=32", "policy.feedforward=64", "policy.latent_dim=8", "policy.chunk_size=8", "execution.execute=4",
    "trainer.batch_size=32", "trainer.steps=6", "trainer.validate_every=3", "trainer.log_every=3",
    "selection.episodes=1", "selection.rollouts=1",
)  # fmt: skip


def call(*arguments: object) -> int:
    """Run the command line in this process; return its exit code."""
    from act_kit.cli import main

    sys.argv = ["act", *map(str, arguments)]
    try:
        main()
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
    return 0


def make_material(folder: Path) -> None:
    """Collect, train, evaluate: small real files of every kind."""
    run = folder / "run"
    assert call("collect", "--task", "reach-v3", "--n", 10, "--out", folder / "data", "--workers", 1) == 0
    assert call("collect", "--task", "reach-v3", "--n", 4, "--seed", 1, "--out", folder / "other", "--workers", 1) == 0
    assert call("train", "--data", folder / "data", "--out", run, "--workers", 1, *TINY) == 0
    assert call("eval", run, "--episodes", 3, "--workers", 1, "--out", run / "eval-fresh") == 0
    for seed in (0, 1):
        shutil.copytree(run, folder / "seeds" / f"seed-{seed}", symlinks=True)
    (folder / "seeds" / "seeds.json").write_text("[0, 1]\n", encoding="utf-8")


# -- verbs, by what they read ------------------------------------------------------------------------------------------

Verb = Callable[[Path], list[object]]

VERBS: dict[str, list[Verb]] = {
    "data": [
        lambda at: ["report", at / "data"],
        lambda at: ["data", "info", at / "data"],
        lambda at: ["data", "view", at / "data"],
        lambda at: ["data", "replay", at / "data", "--workers", 1],
        lambda at: ["data", "merge", at / "data", at / "other", "--out", at / "out"],
        lambda at: ["data", "split", at / "data", "--parts", "50,50", "--out", at / "out"],
        lambda at: ["data", "filter", at / "data", "--where", "steps > 0", "--out", at / "out"],
        lambda at: ["data", "convert", at / "data", at / "out", "--to", "act-hdf5"],
        lambda at: ["doctor", at / "data", "--workers", 1],
        lambda at: ["train", "--data", at / "data", "--out", at / "out", "--workers", 1, *TINY],
        lambda at: ["collect", "--task", "reach-v3", "--n", 10, "--out", at / "data", "--resume", "--workers", 1],
        lambda at: [
            "collect", "--task", "reach-v3", "--n", 2, "--demonstrator", "replay", "--from", at / "data",
            "--out", at / "out", "--workers", 1,
        ],
        lambda at: ["report", at / "data", "--run", at / "run"],
    ],
    "run": [
        lambda at: ["train", "--resume", "--out", at / "run", "--workers", 1],
        lambda at: ["eval", at / "run", "--episodes", 2, "--out", at / "out", "--workers", 1],
        lambda at: ["doctor", at / "run", "--workers", 1],
        lambda at: ["compare", at / "run", at / "seeds", "--out", at / "out"],
        lambda at: ["report", at / "data", "--run", at / "run"],
        lambda at: [
            "collect", "--task", "reach-v3", "--n", 1, "--demonstrator", "policy", "--from", at / "run",
            "--out", at / "out", "--workers", 1,
        ],
    ],
    "run/eval-fresh": [
        lambda at: ["compare", at / "run" / "eval-fresh", at / "seeds", "--out", at / "out"],
        lambda at: ["doctor", at / "run", "--workers", 1],
        lambda at: [
            "eval", at / "run", "--starts", at / "run" / "eval-fresh" / "starts.json", "--out", at / "out",
            "--workers", 1,
        ],
        lambda at: ["report", at / "data", "--against", at / "run" / "eval-fresh" / "starts.json"],
    ],
    "seeds": [
        lambda at: ["compare", at / "seeds", at / "run", "--out", at / "out"],
        lambda at: ["train", "--resume", "--out", at / "seeds", "--workers", 1],
    ],
}  # fmt: skip

NOT_SEEDS = ("train", "--resume")
"""Of a folder of seeds only ``seeds.json`` is damaged for this verb: the rest is that of a run."""

# -- damage ------------------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**30, 10**400, "", "x", "../../out", "/etc/passwd", "\0", "ü" * 300,
    "{x.__class__}", [], {}, [[]], [None], {"a": {}}, [0] * 100_000,
]  # fmt: skip


def damage_value(value: Any, rng: random.Random) -> Any:
    """Change one thing somewhere in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        choice = rng.random()
        if choice < 0.15:
            return {name: inner for name, inner in value.items() if name != key}
        if choice < 0.2:
            return {**value, f"{key}x": value[key]}
        return {**value, key: damage_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        choice = rng.random()
        if choice < 0.15:
            return value[:at]
        if choice < 0.25:
            return value * 2
        return [*value[:at], damage_value(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)


def damage_text(path: Path, rng: random.Random) -> None:
    """Change a text file in the way of its kind."""
    content = path.read_bytes()
    try:
        text = content.decode()
        value = json.loads(text)
    except ValueError:
        lines = content.splitlines(keepends=True) or [b""]
        at = rng.randrange(len(lines))
        odd = json.dumps(rng.choice(ODD)).encode()
        parts = lines[at].split(b",") if path.suffix == ".csv" else lines[at].rstrip(b"\n").split(b" ")
        parts[rng.randrange(len(parts))] = odd
        separator = b"," if path.suffix == ".csv" else b" "
        choices = [
            lines[:at],
            [*lines[:at], *lines[at + 1 :]],
            lines * 2,
            [*lines[:at], separator.join(parts).rstrip(b"\n") + b"\n", *lines[at + 1 :]],
        ]
        path.write_bytes(b"".join(rng.choice(choices)))
        return
    try:
        changed = json.dumps(damage_value(value, rng))
    except ValueError:  # a number with more digits than Python prints
        changed = "1" * 500
    path.write_text(changed, encoding="utf-8")


def damage_file(path: Path, rng: random.Random) -> str:
    """Damage a file in some way; return which."""
    size = path.stat().st_size
    is_text = path.suffix in (".json", ".jsonl", ".yaml", ".csv")
    ways = ["empty", "truncate", "flip", "noise", "folder", "pipe", "loop", "zero", "huge", "latin", "deep", "gone"]
    way = "text" if is_text and rng.random() < 0.7 else rng.choice(ways)
    if way == "text":
        damage_text(path, rng)
    elif way == "truncate":
        os.truncate(path, rng.randrange(size) if size else 0)
    elif way == "flip" and size:
        content = bytearray(path.read_bytes())
        content[rng.randrange(size)] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif way == "noise":
        path.write_bytes(rng.randbytes(max(16, min(size, 10_000))))
    elif way == "latin":
        path.write_bytes(path.read_bytes()[: size // 2] + "ä".encode("latin-1") + path.read_bytes()[size // 2 :])
    elif way == "deep":
        path.write_text(("[" if rng.random() < 0.5 else '{"a":') * 200_000, encoding="utf-8")
    elif way == "huge":
        os.truncate(path, 2**36)
    else:
        path.unlink()
        if way == "empty":
            path.touch()
        elif way == "folder":
            path.mkdir()
        elif way == "pipe":
            os.mkfifo(path)
        elif way == "loop":
            path.symlink_to(path.name)
        elif way == "zero":
            path.symlink_to("/dev/zero")
    return way


# -- cases -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What a user may not see.

    Attributes:
        case: Its number; with the seed it makes the case again.
        what: traceback, hang, memory, or killed by a signal.
        damaged, way: The file, and how.
        command: The verb.
        output: The end of what it printed.
    """

    case: int
    what: str
    damaged: str
    way: str
    command: str
    output: str


def pick_file(folder: Path, kind: str, command: list[object], rng: random.Random) -> Path:
    """Choose a file of the part that is damaged; those that describe rather than hold numbers more often."""
    root = folder / kind
    if kind == "seeds" and tuple(command[:2]) == NOT_SEEDS:
        return root / "seeds.json"
    files = sorted(file for file in root.rglob("*") if file.is_file() and "tensorboard" not in file.parts)
    if kind == "run":
        files = [file for file in files if "eval-fresh" not in file.parts]
    described = [file for file in files if file.suffix in (".json", ".yaml", ".jsonl", ".csv", ".safetensors")]
    return rng.choice(described if described and rng.random() < 0.8 else files)


def run_case(material: Path, seed: int, number: int) -> Fault | None:
    """Make, run and judge one case."""
    rng = random.Random(f"{seed}-{number}")
    kind = rng.choice(sorted(VERBS))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for part in ("data", "other", "run", "seeds"):
            shutil.copytree(material / part, folder / part, symlinks=True)
        config = folder / "run" / "config.yaml"
        config.write_text(config.read_text(encoding="utf-8").replace(str(material), str(folder)), encoding="utf-8")
        command = rng.choice(VERBS[kind])(folder)
        damaged = pick_file(folder, kind, command, rng)
        name = str(damaged.relative_to(folder))
        way = damage_file(damaged, rng)
        what, output = execute(command, folder)
        if what is None:
            return None
        shown = " ".join(map(str, command)).replace(scratch, ".")
        return Fault(number, what, name, way, shown, output[-1500:].replace(scratch, "."))


def execute(command: list[object], folder: Path) -> tuple[str | None, str]:
    """Run a verb in a forked process; say what was wrong with how it ended, and what it printed."""
    log = folder / "log"
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
        os.chdir(folder)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = 99
        try:
            code = call(*command)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + WALL_S
    ended, status, usage = 0, 0, None
    while not ended and time.monotonic() < deadline:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        time.sleep(0.02)
    if not ended:
        os.killpg(child, signal.SIGKILL)
        os.wait4(child, 0)
    output = log.read_text(encoding="utf-8", errors="replace")
    if not ended:
        return f"hangs for {WALL_S} s", output
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ("hang: CPU time" if number in (signal.SIGXCPU, signal.SIGKILL) else f"signal {number}"), output
    if "Traceback" in output or os.WEXITSTATUS(status) not in (0, 1, 2, 3):
        return f"traceback, exit code {os.WEXITSTATUS(status)}", output
    if usage is not None and usage.ru_maxrss * 1024 > MEMORY_BYTES:
        return f"{usage.ru_maxrss / 1e6:.1f} GB", output
    return None, output


def main() -> None:
    """Run cases and print what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("material", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, default=500)
    arguments = parser.parse_args()
    material = arguments.material.resolve()
    os.environ.setdefault("ACT_KIT_CACHE", str(material / "cache"))
    if not (material / "seeds" / "seeds.json").exists():
        with redirect_stdout(io.StringIO()), redirect_stderr(sys.stderr):
            # In a process of its own: threads that are started on the way would not survive a fork.
            child = os.fork()
            if child == 0:
                make_material(material)
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                raise SystemExit("the material could not be made")
    import_everything()
    for number in range(arguments.first, arguments.first + arguments.cases):
        fault = run_case(material, arguments.seed, number)
        if fault:
            print(json.dumps(fault.__dict__), flush=True)
    print(f"{arguments.cases} cases")


def import_everything() -> None:
    """Import what the verbs import when they run."""
    import importlib
    import pkgutil

    import metaworld
    import torch

    import act_kit

    torch.set_num_threads(1)
    assert metaworld.ALL_V3_ENVIRONMENTS
    for module in pkgutil.walk_packages(act_kit.__path__, "act_kit."):
        if "teleop" not in module.name:
            importlib.import_module(module.name)


if __name__ == "__main__":
    main()

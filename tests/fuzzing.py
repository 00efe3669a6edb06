"""Damages a file that some verb reads, runs the verb, and reports what no user may see: tracebacks, hangs, memory.

    python -m tests.fuzzing MATERIAL --seed 0 --cases 500

MATERIAL is a folder that :func:`make_material` fills, once. Each case copies it, damages one file there and runs a verb
that reads it, in a process that is forked from one that has imported everything, so a case takes what the verb itself
takes. Prints one JSON line for each case that fails, and ends with the number of cases and the most they took.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import json
import os
import pkgutil
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CPU_S = 20
"""A verb on this material takes a few seconds."""
DOCTOR_CPU_S = 90
"""But act doctor, which measures a healthy run for half a minute."""
WALL_S = 900
"""Waiting takes no CPU time; a crowded machine makes the rest take this long."""
MEMORY_BYTES = 2 * 10**9
_MOST_BYTES = 4 * 10**9
"""At which the process is stopped, so that the machine survives what is found."""

TASK = ("--task", "reach-v3")
SINGLE_PROCESS = ("--workers", 1)
TINY = (
    "policy.dim_model=32",
    "policy.dim_feedforward=64",
    "policy.latent_dim=8",
    "policy.chunk_size=8",
    "chunking.n_action_steps=4",
    "trainer.batch_size=32",
    "trainer.steps=6",
    "trainer.validate_every=3",
    "trainer.log_every=3",
    "selection.episodes=1",
    "selection.num_evaluations=1",
)
SEEING = (
    "policy=act_image_small",
    "policy.cameras=[corner4]",
    "policy.backbone=small",
    *TINY,
    "selection.num_evaluations=0",
)
WEIGHED = ("policy=act_image_small", "policy.cameras=[corner4]", "policy.backbone=resnet18", *TINY)

# -- material ----------------------------------------------------------------------------------------------------------


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
    """Collect, draw, train, evaluate, export: small real files of every kind."""
    os.environ["ACT_KIT_CACHE"] = str(folder / "cache")
    folder.mkdir(parents=True, exist_ok=True)

    def act(*arguments: object) -> None:
        if call(*arguments, *SINGLE_PROCESS) != 0:
            raise RuntimeError(f"the material could not be made: act {' '.join(map(str, arguments))}")

    run = folder / "run"
    act("collect", *TASK, "--n", 10, "--out", folder / "data")
    act("collect", *TASK, "--n", 4, "--seed", 1, "--out", folder / "other")
    act("collect", "--task", "button-press-topdown-v3", "--n", 4, "--out", folder / "button")
    act("train", "--data", folder / "data", "--out", run, "--allow-low-diversity", *TINY)
    act("eval", run, "--episodes", 3, "--out", run / "eval-test")
    act("eval", run, "--episodes", 2, "--seed", 1, "--out", folder / "elsewhere")
    both = ("--data", folder / "data", "--data", folder / "button")
    act("train", *both, "--out", folder / "pair", "--allow-low-diversity", *TINY)
    act("eval", folder / "pair", "--episodes", 2, "--out", folder / "pair" / "eval-test")
    shutil.copytree(folder / "other", folder / "images")
    _draw(folder / "images")
    for seed in (0, 1):
        shutil.copytree(run, folder / "seeds" / f"seed-{seed}", symlinks=True)
    (folder / "seeds" / "seeds.json").write_text("[0, 1]\n", encoding="utf-8")
    call("data", "convert", folder / "other", folder / "export", "--to", "act-hdf5")
    call("report", folder / "data", "--out", folder / "report")  # fills the cache
    _save_weights(folder / "weights")


def _draw(path: Path) -> None:
    """Put pictures into a dataset, of noise: so that no display is needed."""
    import numpy as np

    from act_kit.datasets.images import ImageStore
    from act_kit.datasets.store import EpisodeStore
    from act_kit.sim.render import RenderSettings

    store = EpisodeStore.open(path, writable=True)
    images = ImageStore.create(store, "corner4", RenderSettings(height_px=32, width_px=32))
    images.begin("noise")
    for length in store.episode_lengths:
        images.append(np.random.default_rng(0).integers(0, 255, (length, 32, 32, 3), dtype=np.uint8))
    images.take_over()


def _save_weights(folder: Path) -> None:
    """Write the files that the options of a policy name."""
    import torch
    from safetensors.torch import save_file

    from act_kit.policies.vision import FrozenBatchNorm2d, ResNet18

    folder.mkdir()
    save_file({"reach-v3": torch.arange(4.0)}, folder / "embeddings.safetensors")
    save_file(ResNet18(FrozenBatchNorm2d).state_dict(), folder / "resnet.safetensors")
    torch.save(ResNet18(FrozenBatchNorm2d).state_dict(), folder / "resnet.pth")


# -- verbs, by what they read ------------------------------------------------------------------------------------------

Command = tuple[object, ...]
Verb = Callable[[Path], Command]

VERBS: dict[str, list[Verb]] = {
    "data": [
        lambda at: ("report", at / "data"),
        lambda at: ("data", "info", at / "data", "--verify"),
        lambda at: ("data", "browse", at / "data", "--episodes", 1, *SINGLE_PROCESS),
        lambda at: ("data", "verify", at / "data", *SINGLE_PROCESS),
        lambda at: ("data", "merge", at / "data", at / "other", "--out", at / "out"),
        lambda at: ("data", "split", at / "data", "--parts", "50,50", "--out", at / "out"),
        lambda at: ("data", "split", at / "data", "--by", "source", "--out", at / "out"),
        lambda at: ("data", "filter", at / "data", "--where", "steps > 0 and jerk > 0", "--out", at / "out"),
        lambda at: ("data", "convert", at / "data", at / "out", "--to", "act-hdf5"),
        lambda at: ("doctor", at / "data", *SINGLE_PROCESS),
        lambda at: ("train", "--data", at / "data", "--out", at / "out", *SINGLE_PROCESS, *TINY),
        lambda at: ("collect", *TASK, "--n", 11, "--out", at / "data", "--resume", *SINGLE_PROCESS),
        lambda at: (
            *("collect", *TASK, "--n", 2, "--demonstrator", "replay", "--source", at / "data"),
            *("--out", at / "out", *SINGLE_PROCESS),
        ),
        lambda at: ("report", at / "data", "--run", at / "run"),
    ],
    "images": [
        lambda at: ("report", at / "images"),
        lambda at: ("data", "info", at / "images", "--verify"),
        lambda at: ("data", "browse", at / "images", "--episodes", 1, *SINGLE_PROCESS),
        lambda at: ("data", "merge", at / "images", at / "images", "--out", at / "out"),
        lambda at: ("data", "filter", at / "images", "--where", "steps > 0", "--out", at / "out"),
        lambda at: ("data", "convert", at / "images", at / "out", "--to", "diffusion-policy"),
        lambda at: ("train", "--data", at / "images", "--out", at / "out", *SINGLE_PROCESS, *SEEING),
    ],
    "run": [
        lambda at: ("train", "--resume", "--steps", 7, "--out", at / "run", *SINGLE_PROCESS),
        lambda at: (
            "train",
            "--init-from",
            at / "run",
            "--data",
            at / "data",
            "--out",
            at / "out",
            *SINGLE_PROCESS,
            *TINY,
        ),
        lambda at: ("eval", at / "run", "--episodes", 2, "--out", at / "out", *SINGLE_PROCESS),
        lambda at: ("doctor", at / "run", *SINGLE_PROCESS),
        lambda at: ("compare", at / "run", at / "seeds", "--out", at / "out"),
        lambda at: ("report", at / "data", "--run", at / "run"),
        lambda at: (
            *("collect", *TASK, "--n", 1, "--demonstrator", "policy", "--source", at / "run"),
            *("--out", at / "out", *SINGLE_PROCESS),
        ),
    ],
    "run/eval-test": [
        lambda at: ("compare", at / "run" / "eval-test", at / "seeds", "--out", at / "out"),
        lambda at: ("doctor", at / "run" / "eval-test", *SINGLE_PROCESS),
        lambda at: (
            "eval",
            at / "run",
            "--init-states",
            at / "run/eval-test/init_states.json",
            "--out",
            at / "out",
            *SINGLE_PROCESS,
        ),
        lambda at: ("report", at / "data", "--reference", at / "run/eval-test/init_states.json"),
    ],
    "elsewhere": [
        lambda at: ("doctor", at / "elsewhere", *SINGLE_PROCESS),
        lambda at: ("compare", at / "elsewhere", at / "seeds", "--out", at / "out"),
    ],
    "pair": [
        lambda at: ("eval", at / "pair", "--episodes", 1, "--out", at / "out", *SINGLE_PROCESS),
        lambda at: ("compare", at / "pair", at / "pair" / "eval-test", "--out", at / "out"),
    ],
    "seeds": [
        lambda at: ("compare", at / "seeds", at / "run", "--out", at / "out"),
        lambda at: ("train", "--resume", "--out", at / "seeds", *SINGLE_PROCESS),
        lambda at: ("train", "--resume", "--seeds", 2, "--out", at / "seeds", *SINGLE_PROCESS),
    ],
    "export": [
        lambda at: ("data", "convert", at / "export", at / "out"),
    ],
    "cache": [
        lambda at: ("report", at / "data"),
        lambda at: ("train", "--data", at / "data", "--out", at / "out", *SINGLE_PROCESS, *TINY),
    ],
    "weights": [
        lambda at: _train_with(at, "policy.task_embeddings", at / "weights" / "embeddings.safetensors", TINY),
        lambda at: _train_with(at, "policy.backbone_weights", at / "weights" / "resnet.safetensors", WEIGHED),
        lambda at: _train_with(at, "policy.backbone_weights", at / "weights" / "resnet.pth", WEIGHED),
    ],
    "beside": [
        lambda at: ("data", "merge", at / "data", at / "other", "--out", at / "out"),
        lambda at: ("train", "--data", at / "data", "--out", at / "out", *SINGLE_PROCESS, *TINY),
        lambda at: ("eval", at / "run", "--episodes", 1, "--out", at / "out", *SINGLE_PROCESS),
        lambda at: ("collect", *TASK, "--n", 1, "--out", at / "out", *SINGLE_PROCESS),
        lambda at: ("data", "convert", at / "data", at / "out", "--to", "act-hdf5"),
    ],
}


def _train_with(at: Path, option: str, file: Path, options: tuple[str, ...]) -> Command:
    data = at / ("data" if options == TINY else "images")
    return (
        "train",
        "--data",
        data,
        "--out",
        at / "out",
        "--allow-low-diversity",
        *SINGLE_PROCESS,
        *options,
        f"{option}={file}",
    )


# -- damage ------------------------------------------------------------------------------------------------------------

DESCRIBING = (".json", ".jsonl", ".yaml", ".csv")
"""Of files that describe rather than hold numbers."""

ODD: list[Any] = [
    *(None, True, -1, 0, 1, 10**12, 1e308, float("nan"), float("inf"), 10**30, 10**400),
    *("", "x", "../../out", "/etc/passwd", "/dev/zero", "\0", "\ud800", "ü" * 300, "{x.__class__}", "reach-v3"),
    *([], {}, [[]], [None], {"a": {}}, [0] * 100_000),
]


def damage_value(value: Any, rng: random.Random) -> Any:
    """Change one thing somewhere in a JSON value."""
    choice = rng.random()
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if choice < 0.15:
            return {name: inner for name, inner in value.items() if name != key}
        if choice < 0.2:
            return {**value, f"{key}x": value[key]}
        return {**value, key: damage_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        if choice < 0.15:
            return value[:at]
        if choice < 0.25:
            return value * 2
        return [*value[:at], damage_value(value[at], rng), *value[at + 1 :]]
    if type(value) in (int, float) and choice < 0.3:
        return value * rng.choice([-1, 2, 0.5, 1000, 10**9])
    return rng.choice(ODD)


def damage_text(path: Path, rng: random.Random) -> None:
    """Change a text file in the way of its kind."""
    content = path.read_bytes()
    try:
        value = json.loads(content)
    except ValueError:
        path.write_bytes(damage_lines(content, path.suffix, rng))
        return
    try:
        changed = json.dumps(damage_value(value, rng))
    except ValueError:  # a number with more digits than Python prints
        changed = "1" * 5000
    path.write_text(changed, encoding="utf-8")


def damage_lines(content: bytes, suffix: str, rng: random.Random) -> bytes:
    """Drop, double or change lines of YAML, CSV or JSON lines."""
    lines = content.splitlines(keepends=True) or [b""]
    at = rng.randrange(len(lines))
    separator = b"," if suffix == ".csv" else b" "
    parts = lines[at].rstrip(b"\n").split(separator)
    try:
        parts[rng.randrange(len(parts))] = json.dumps(rng.choice(ODD)).encode()
    except ValueError:
        parts = [b"1" * 5000]
    choices = [
        lines[:at],
        [*lines[:at], *lines[at + 1 :]],
        lines * 2,
        [*lines[:at], separator.join(parts) + b"\n", *lines[at + 1 :]],
        [*lines[:at], b"a: &a [1]\nb: [*a, *a]\n", *lines[at:]],
    ]
    return b"".join(rng.choice(choices))


def damage_file(path: Path, rng: random.Random) -> str:
    """Damage a file in some way; return which."""
    size = path.stat().st_size
    ways = ["empty", "truncate", "flip", "noise", "folder", "pipe", "loop", "zero", "huge", "latin", "deep", "gone"]
    way = "text" if path.suffix in DESCRIBING and rng.random() < 0.7 else rng.choice(ways)
    if way == "text":
        damage_text(path, rng)
    elif way == "truncate":
        os.truncate(path, rng.randrange(size) if size else 0)
    elif way == "flip":
        content = bytearray(path.read_bytes() or b"x")
        # Headers are at the beginning.
        content[rng.randrange(min(len(content), 64) if rng.random() < 0.5 else len(content))] ^= 1 << rng.randrange(8)
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
        if way != "gone":
            _MAKERS[way](path)
    return way


_MAKERS: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.touch(),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "loop": lambda path: path.symlink_to(path.name),
    "zero": lambda path: path.symlink_to("/dev/zero"),
}


# -- cases -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a case ended.

    Attributes:
        case: Its number; with the seed it makes the case again.
        wrong: traceback, hang, memory, or killed by a signal; "" if it ended as it should.
        damaged, way: The file, and how.
        command: The verb.
        output: The end of what it printed.
        cpu_s, memory_bytes: What it took.
    """

    case: int
    wrong: str
    damaged: str
    way: str
    command: str
    output: str
    cpu_s: float
    memory_bytes: int


def pick_file(folder: Path, kind: str, command: Command, rng: random.Random) -> Path:
    """Choose a file of the part that is damaged; those that describe rather than hold numbers more often."""
    if kind == "weights":
        return Path(str(command[-1]).partition("=")[2])
    if kind == "beside":
        beside = folder / f".out.act-{rng.choice(['lock', 'lock', 'old', 'new', 'trash'])}"
        beside.write_text('{"pid": 1, "host": "x", "since": "now", "command": ["act"]}', encoding="utf-8")
        return beside
    if kind == "seeds" and command[0] == "train":  # the rest is that of a run, in a process for each
        return folder / kind / "seeds.json"
    files = sorted(file for file in (folder / kind).rglob("*") if file.is_file())
    if kind == "run":
        files = [file for file in files if "eval-test" not in file.parts]
    if command[0] != "doctor":
        files = [file for file in files if "tensorboard" not in file.parts]
    described = [file for file in files if file.suffix in (*DESCRIBING, ".safetensors")]
    return rng.choice(described if described and rng.random() < 0.7 else files)


def run_case(material: Path, seed: int, number: int) -> Ended:
    """Make, run and judge one case."""
    rng = random.Random(f"{seed}-{number}")
    kind = rng.choice(sorted(VERBS))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "work"
        copy_material(material, folder, without=() if kind == "weights" else ("weights",))
        command = rng.choice(VERBS[kind])(folder)
        damaged = pick_file(folder, kind, command, rng)
        name = str(damaged.relative_to(folder))
        way = damage_file(damaged, rng)
        held = os.open(damaged, os.O_RDWR) if damaged.name.endswith("lock") and damaged.is_file() else None
        if held is not None:  # the lock of a process that is writing there
            fcntl.flock(held, fcntl.LOCK_EX)
        wrong, output, usage = execute(command, folder)
        if held is not None:
            os.close(held)
        return Ended(
            case=number,
            wrong=wrong,
            damaged=name,
            way=way,
            command=" ".join(map(str, command)).replace(str(folder), "."),
            output=output[-1500:].replace(str(folder), "."),
            cpu_s=usage.ru_utime + usage.ru_stime,
            memory_bytes=usage.ru_maxrss * 1024,
        )


def copy_material(material: Path, folder: Path, *, without: tuple[str, ...]) -> None:
    """Copy it, with the paths that its files name."""
    shutil.copytree(material, folder, symlinks=True, ignore=shutil.ignore_patterns(*without))
    for file in folder.rglob("*"):
        if file.suffix in DESCRIBING and file.is_file():
            content = file.read_bytes()
            if str(material).encode() in content:
                file.write_bytes(content.replace(str(material).encode(), str(folder).encode()))


def execute(command: Command, folder: Path) -> tuple[str, str, resource.struct_rusage]:
    """Run a verb in a forked process; say what was wrong with how it ended, what it printed, and what it took."""
    log = folder.parent / "log"
    child = os.fork()
    if child == 0:
        _run_forked(command, folder, log)
    deadline = time.monotonic() + WALL_S
    ended, status, usage = os.wait4(child, os.WNOHANG)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.02)
        ended, status, usage = os.wait4(child, os.WNOHANG)
    if not ended:
        os.killpg(child, signal.SIGKILL)
        _, _, usage = os.wait4(child, 0)
    output = log.read_text(encoding="utf-8", errors="replace")
    wrong = ""
    if not ended:
        wrong = f"hangs for {WALL_S} s"
    elif os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        wrong = "hang: CPU time" if number in (signal.SIGXCPU, signal.SIGKILL) else f"signal {number}"
    elif "Traceback" in output or os.WEXITSTATUS(status) not in (0, 1, 2, 3):
        wrong = f"traceback, exit code {os.WEXITSTATUS(status)}"
    elif usage.ru_maxrss * 1024 > MEMORY_BYTES:
        wrong = f"{usage.ru_maxrss / 1e6:.1f} GB"
    return wrong, output, usage


def _run_forked(command: Command, folder: Path, log: Path) -> None:
    """Become the process of a verb, which ends here."""
    os.setsid()
    cpu_s = DOCTOR_CPU_S if command[0] == "doctor" else CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    os.chdir(folder)
    os.environ["ACT_KIT_CACHE"] = str(folder / "cache")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 99
    try:
        code = call(*command)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def import_everything() -> None:
    """Import what the verbs import when they run."""
    import torch
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    import act_kit

    torch.set_num_threads(1)
    assert ALL_V3_ENVIRONMENTS
    for module in pkgutil.walk_packages(act_kit.__path__, "act_kit."):
        if "teleop" not in module.name and "__main__" not in module.name:
            importlib.import_module(module.name)


def main() -> None:
    """Run cases and print what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("material", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", type=int, default=500)
    arguments = parser.parse_args()
    material = arguments.material.resolve()
    if not (material / "weights" / "resnet.pth").exists():
        # In a process of its own: threads that are started on the way would not survive a fork.
        child = os.fork()
        if child == 0:
            make_material(material)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit("the material could not be made")
    import_everything()
    cpu_s, memory_bytes, num_wrong = 0.0, 0, 0
    for number in range(arguments.first, arguments.first + arguments.cases):
        ended = run_case(material, arguments.seed, number)
        cpu_s, memory_bytes = max(cpu_s, ended.cpu_s), max(memory_bytes, ended.memory_bytes)
        if ended.wrong:
            num_wrong += 1
            print(json.dumps(asdict(ended)), flush=True)
    print(
        f"{arguments.cases} cases of seed {arguments.seed}, {num_wrong} with a fault; the longest took {cpu_s:.0f} s, "
        f"the largest {memory_bytes / 1e9:.1f} GB"
    )


if __name__ == "__main__":
    main()

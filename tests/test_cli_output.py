"""What the command line prints: help, versions, progress; and what it needs of its environment."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from act_kit.cli.app import app
from act_kit.config.collection import CollectConfig
from act_kit.config.evaluation import EvalConfig
from act_kit.config.training import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.options import declared
from tests.conftest import ONE_THREAD, TINY, act
from tests.test_cli import run

VERBS = (
    *(("collect",), ("report",), ("render",), ("train",), ("eval",), ("serve",), ("compare",), ("export",)),
    *(("doctor",), ("finetune",), ("monitor",), ("demo",), ("data",)),
    *(("data", verb) for verb in ("info", "verify", "merge", "split", "filter", "convert", "browse")),
)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 60])
def test_help_shows_every_flag_whole(
    verb: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = run(monkeypatch, capsys, *verb, "--help")
    command = typer.main.get_command(app)
    for name in verb:
        command = command.commands[name]  # type: ignore[attr-defined]
    flags = [flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)]
    long = [flag for flag in flags if flag.startswith("--")]
    assert (code, [flag for flag in long if flag not in re.findall(r"--[\w-]+", out)]) == (0, [])
    assert verb != ("collect",) or "--init-distribution" in long


def test_flags_have_the_help_and_the_default_of_their_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, kind in (("collect", CollectConfig), ("train", TrainConfig), ("eval", EvalConfig)):
        _, out, _ = run(monkeypatch, capsys, verb, "--help")
        text = " ".join(out.split())
        for option in declared(kind).values():
            if option.flag:
                assert option.help + ("" if option.default in ("", None) else f" [default: {option.default}]") in text


def test_help_is_fast() -> None:
    assert "Usage: act" in act("--help", check=0).stdout
    code = "import sys, act_kit.cli; print([m for m in ('torch', 'mujoco', 'zarr', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    code = "import sys, act_kit.cli.app; print([m for m in ('torch', 'mujoco', 'zarr', 'hydra') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_versions_and_the_module(tmp_path: Path) -> None:
    shown = act("--version", check=0).stdout
    assert shown.startswith("act_kit ")
    assert "mujoco 3.3.0" in shown
    done = subprocess.run([sys.executable, "-m", "act_kit", "--version"], capture_output=True, text=True)
    assert done.stdout == shown
    assert "--install-completion" in act("--help", check=0).stdout


@pytest.mark.e2e
def test_a_log_gets_plain_progress_lines(reach_store: EpisodeStore, tmp_path: Path) -> None:
    overrides = [*TINY, "selection.num_evaluations=1"]
    lines = act("train", "--data", reach_store.path, *overrides, "--out", tmp_path / "r", check=0).stdout.splitlines()
    records = [line for line in lines if line.startswith("[")]
    assert len(records) == 7, "steps 1, 10, …, 60"
    assert re.fullmatch(
        r"\[\d+:\d\d\] train 30/60, \S+ of \d+/s, L1 [\d.]+ val [\d.]+, success n/a, \d:\d\d left", records[3]
    )
    assert re.search(r"train 60/60, .* success \d+ \[", records[-1])
    collected = act("collect", "--task", "reach-v3", "--n", 20, "--workers", 1, "--out", tmp_path / "d", check=0).stdout
    lines = [line for line in collected.splitlines() if line.startswith("[")]
    assert re.fullmatch(r"\[\d+:\d\d\] collect reach-v3 20/20, success 100 % of 20.*", lines[-1])
    assert len(lines) <= 12
    assert "0.0/s" not in collected


@pytest.mark.e2e
@pytest.mark.parametrize(
    "variables", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_no_home_and_no_utf8(reach_store: EpisodeStore, tmp_path: Path, variables: dict[str, str]) -> None:
    """The user has no name and no home, an ASCII locale, and a folder with an umlaut."""
    data = tmp_path / "grün"
    shutil.copytree(reach_store.path, data)
    names = ("HOME", "ACT_KIT_CACHE", "XDG_CACHE_HOME")
    environment = {name: value for name, value in ONE_THREAD.items() if name not in names} | variables
    unnamed_user = (
        "import os, pwd, warnings\n"
        "def getpwuid(number): raise KeyError('no such user')\n"
        "pwd.getpwuid = getpwuid\n"
        "from act_kit.cli import main; main()"
    )
    for arguments in (
        ["report", data],
        ["train", "--data", reach_store.path, *TINY, "selection.num_evaluations=0", "--out", tmp_path / "run"],
    ):
        done = subprocess.run(
            [sys.executable, "-X", "warn_default_encoding", "-c", unnamed_user, *map(str, arguments)],
            capture_output=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        warnings = [line for line in done.stderr.splitlines() if b"act_kit" in line and b"EncodingWarning" in line]
        assert warnings == []
    assert "reach-v3" in (tmp_path / "grün-report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.e2e
def test_a_read_only_cache_is_no_error(reach_store: EpisodeStore, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {**ONE_THREAD, "ACT_KIT_CACHE": str(tmp_path / "file" / "cache")}
    act("report", reach_store.path, "--out", tmp_path / "report", check=0, env=environment)

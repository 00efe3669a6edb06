"""The documents: every command of ``act`` in a code block, and in the help of a verb, has valid flags and options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from act_kit import options
from act_kit.cli.app import app
from act_kit.config.collection import CollectConfig
from act_kit.config.evaluation import EvalConfig, MonitorConfig
from act_kit.config.finetuning import FinetuneConfig
from act_kit.config.training import TrainConfig
from act_kit.eval.protocols import compose_evaluation
from act_kit.overrides import compose

ROOT = Path(__file__).parent.parent

KINDS: dict[str, type[options.Options]] = {
    "collect": CollectConfig,
    "train": TrainConfig,
    "finetune": FinetuneConfig,
    "monitor": MonitorConfig,
}

COMMAND = re.compile(r"(?:^\s*|&& |do |time )(?:\w+=\S+ )*act ((?!VERB)[a-z].*?)(?: &&.*|; done)?$")

PLACEHOLDERS = {"SEED": "0"}


def _lines() -> Iterator[tuple[str, str]]:
    """Yield the lines of all code blocks and of the help of all verbs, each with its place."""
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for block in re.findall(r"^```\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                yield path.name, line
    for verb in _verbs(typer.main.get_command(app)):
        for line in (verb.help or "").splitlines():
            if not line.endswith("."):
                yield f"act {verb.name} --help", line


def _verbs(group: Any) -> Iterator[Any]:
    for verb in group.commands.values():
        if hasattr(verb, "commands"):
            yield from _verbs(verb)
        else:
            yield verb


def _commands() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for place, line in _lines():
        match = COMMAND.search(line)
        if match:
            found.append((place, match[1]))
    return sorted(set(found))


@pytest.mark.parametrize(("place", "command"), _commands())
def test_commands_of_the_documents_are_valid(place: str, command: str) -> None:
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command, comments=True) if word != "…"]
    verb: Any = typer.main.get_command(app)
    name = words[0]
    while hasattr(verb, "commands"):
        verb = verb.commands[words.pop(0)]
    given = verb.make_context(name, words).params
    overrides = [word for word in given.get("overrides") or [] if not word.startswith("policy.head=")]
    if name in ("eval", "doctor"):
        compose_evaluation(overrides, _flags(EvalConfig, given if name == "eval" else {}))
    elif name in KINDS:
        flags = _flags(KINDS[name], {**given, "task": None})
        if given.get("source"):
            flags[{"policy": "dagger.run", "replay": "replay.dataset"}[given["demonstrator"]]] = given["source"]
        compose(KINDS[name], overrides, flags)
    else:
        assert not overrides


def _flags(kind: type[options.Options], given: dict[str, Any]) -> dict[str, Any]:
    return {key: given.get(name) for name, key in options.flag_keys(kind).items()}


def test_commands_are_found() -> None:
    assert len(_commands()) > 80
    assert {place for place, _ in _commands()} >= {"README.md", "serve.md", "act train --help"}

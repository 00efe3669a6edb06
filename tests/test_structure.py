"""The form of the code: imports point one way, statements stay simple, and names are the field's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import act_kit

PACKAGE = Path(act_kit.__file__).parent
ROOT = PACKAGE.parent

LAYERS = (
    {
        "errors",
        "files",
        "imports",
        "outputs",
        "interrupts",
        "processors",
        "versions",
        "arrays",
        "statistics",
        "options",
        "config",
        "overrides",
        "pages",
        "preflight",
        "text",
    },
    {"workers", "sim"},
    {"metrics", "parallel"},
    {"rollouts"},
    {"datasets"},
    {"diversity", "policies"},
    {"collection", "finetuning", "serving", "training"},
    {"eval", "monitoring"},
    {"comparison"},
    {"doctor"},
    {"reports"},
    {"api"},
    {"cli"},
)
"""Parts of the package, from the lowest: each imports parts of its own layer and of those below."""

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

LONG_FILES = {
    "comparison/compare.py": "one comparison, of which half is the text of its verdicts",
    "datasets/expressions.py": "one grammar",
    "datasets/store.py": "the format of a dataset",
    "diversity/soundness.py": "one procedure, whose checks share the replayed episode",
    "doctor/evaluations.py": "a list of small checks",
    "rollouts/rollout.py": "one loop, and where it runs",
    "statistics.py": "a list of formulas",
    "training/trainer.py": "the training loop and what it writes",
}
"""Files with more than 400 lines, and the one concept that a split would tear apart."""

OLD_WORDS = (
    r"to mend it",
    r"learnt by heart",
    r"hardly trained",
    r"start law",
    r"carr(y|ies|ied|ying) out",
    r"success for nothing",
    r"got as far as",
    r"as many as are worth it",
    r"goes? on with",
    r"\bpictures?\b",
    r"normalis",
    r"randomis",
    r"\b(somebody|nobody|whoever|complain)",
)
"""Words with a plain equivalent: "Fix:", "memorizes its initial states", "underfitting", "image", "execute", …"""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("act_kit."):
            yield node.module.split(".")[1]


def test_every_part_has_a_layer() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    assert parts - {"__init__", "__main__"} == set().union(*LAYERS)


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_point_down(path: Path) -> None:
    layer_of = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part in layer_of:
        above = [imported for imported in imports(path) if layer_of[imported] > layer_of[part]]
        assert above == []


def count_comprehensions(statement: ast.AST) -> int:
    """Count the comprehensions of a statement, without those of the statements in its body."""
    num = 0
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            num += isinstance(child, COMPREHENSIONS) + count_comprehensions(child)
    return num


@pytest.mark.parametrize("path", modules(), ids=str)
def test_a_statement_has_at_most_one_comprehension(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.stmt):
            assert count_comprehensions(node) <= 1, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", modules(), ids=str)
def test_a_file_has_at_most_400_lines(path: Path) -> None:
    if path.relative_to(PACKAGE).as_posix() not in LONG_FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", modules(), ids=str)
def test_the_formatter_formats_everything(path: Path) -> None:
    assert "fmt: " + "skip" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("word", OLD_WORDS)
def test_texts_use_the_fields_words(word: str) -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in {".py", ".j2", ".yaml"}:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                if re.search(word, line, re.IGNORECASE):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize(("folder", "other"), [("tests", "benchmarks"), ("benchmarks", "tests")])
def test_tests_and_benchmarks_do_not_import_each_other(folder: str, other: str) -> None:
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            found += [f"{path}:{module}" for module in modules if module.partition(".")[0] == other]
    assert found == []

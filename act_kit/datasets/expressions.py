"""Expressions over the columns of episodes, such as ``steps < 90 and source != 'teleop:ann'``.

The page of ``act data browse`` has the same language in JavaScript (``templates/expressions.js.j2``): the same tokens,
grammar and messages. Change both together; ``tests/datasets/test_expressions.py`` compares them.

Every part of an expression has a kind that is known before evaluation: a number, text, or true or false. So kind errors
are reported before the first episode, and no value is larger than one number for each episode.

Grammar, from lowest to highest precedence::

    either      both ("or" both)*
    both        negation ("and" negation)*
    negation    "not" negation | comparison
    comparison  sum (("<" | ">" | "<=" | ">=" | "==" | "!=" | "in" | "not" "in") sum)*
    sum         term (("+" | "-") term)*
    term        unary (("*" | "/" | "%") unary)*
    unary       ("-" | "+") unary | atom
    atom        NUMBER | TEXT | "True" | "False" | COLUMN | "abs" "(" either ")" | "(" either ")" | list
    list        "[" (either ("," either)* ","?)? "]", or the same in "(" ")" with a comma; of literals of one kind

A comparison with a missing value (NaN) is false, including ``!=`` and ``not in``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

MAX_CHARACTERS = 10_000
MAX_DEPTH = 50
_MAX_QUOTED = 40
"""Maximum number of characters of a part that a message quotes."""

_FOREIGN = {
    "and": "&& & AND",
    "or": "|| | OR",
    "not": "~ ! NOT",
    "in": "IN",
    "==": "=== = := is",
    "!=": "!== <> ^ ≠",
    "<=": "=< ≤",
    ">=": "=> ≥",
    "-": "−",
    '"': "“ ”",
    "'": "‘ ’",
    "True": "true",
    "False": "false",
    "x * x": "**",
    "(x - x % n) / n": "//",
    "not success_step >= 0": "None null nan",
}

SPELLINGS = {spelling: ours for ours, spellings in _FOREIGN.items() for spelling in spellings.split()}
"""Spellings of other languages, and their equivalents in this one."""

NUMBER, TEXT, FLAG, LIST = "a number", "text", "true or false", "a list"
_DTYPES: dict[str, Any] = {FLAG: np.bool_, TEXT: np.object_, NUMBER: np.float64}
_ORDERS = {"<": np.less, ">": np.greater, "<=": np.less_equal, ">=": np.greater_equal}
_COMPARISONS: dict[str, np.ufunc] = {**_ORDERS, "==": np.equal, "!=": np.not_equal}
_CALCULATIONS = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "%": np.fmod}
_WORDS = ("and", "or", "not", "in")
SIGNS = sorted(
    [*_COMPARISONS, *"()[],+-*/%", *(sign for sign in SPELLINGS if not sign.isalpha())], key=len, reverse=True
)
"""Operators and punctuation, also those that are only recognized for error messages, the longest first."""

_TOKEN = re.compile(
    r"[ \t\r\n]*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.]))"
    r"""|(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"""
    rf"|(?P<sign>{'|'.join(map(re.escape, SIGNS))}))",
    re.DOTALL,
)
_UNKNOWN = re.compile(r"[ \t\r\n]*([A-Za-z0-9_.]+|.)", re.DOTALL)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}

Columns = Mapping[str, list[Any]]
"""Columns by name, with one value per episode: numbers, bools or strings."""
Run = Callable[[np.ndarray], np.ndarray]
"""Function that returns the values for episodes given by index."""


class ExpressionError(ValueError):
    """Invalid expression, or an expression that has no value for an episode."""


@dataclass(frozen=True)
class _Part:
    """A part of an expression.

    Attributes:
        kind: NUMBER, TEXT, FLAG or LIST.
        text: Source text.
        run: Function that evaluates the part; a list is not evaluated.
        literals: Value of a literal, or values of a list.
    """

    kind: str
    text: str
    run: Run
    literals: frozenset[Any] = frozenset()


def compile_expression(text: str, columns: Columns) -> Run:
    """Compile an expression to a function that returns for each episode whether it is true, bool.

    Raises:
        ExpressionError: The expression is invalid. The returned function raises it for a division by zero.
    """
    return _Parser(text, columns).parse()


class _Parser:
    """Recursive descent parser; each method parses the grammar rule of its name."""

    def __init__(self, text: str, columns: Columns) -> None:
        if len(text) > MAX_CHARACTERS:
            raise ExpressionError(f"it has {len(text)} characters, the maximum is {MAX_CHARACTERS}")
        self._text, self._columns = text, columns
        self._tokens = list(_tokenize(text))
        self._at = self._depth = 0

    def parse(self) -> Run:
        if not self._tokens:
            raise ExpressionError("it is empty")
        expression = self._either()
        if self._at < len(self._tokens):
            raise self._unexpected()
        _require_flag(expression, "the expression")
        return expression.run

    # -- tokens ----------------------------------------------------------------------------------------------------

    def _peek(self) -> str:
        return _word(self._tokens[self._at]) if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._peek()
        if token not in wanted:
            return ""
        self._at += 1
        return token

    def _need(self, wanted: str) -> None:
        if not self._take(wanted):
            if self._peek():
                raise self._unexpected()
            raise ExpressionError(f"'{wanted}' is missing at the end")

    def _unexpected(self) -> ExpressionError:
        before = _short(_word(self._tokens[self._at - 1])) if self._at else ""
        token = self._peek()
        if not token:
            return ExpressionError(f"something is missing after '{before}'")
        if token in SPELLINGS:
            return _spelled(token)
        where = f"follow '{before}'" if before else "be at the beginning"
        return ExpressionError(f"'{_short(token)}' cannot {where}")

    def _part(self, first: int, kind: str, run: Run, literals: frozenset[Any] = frozenset()) -> _Part:
        """Return the part that was parsed from token ``first`` on."""
        begin = self._tokens[first].start(self._tokens[first].lastgroup or 0)
        return _Part(kind, _short(self._text[begin : self._tokens[self._at - 1].end()]), run, literals)

    def _deeper(self, rule: Callable[[], _Part]) -> _Part:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"it is nested more than {MAX_DEPTH} levels deep")
        part = rule()
        self._depth -= 1
        return part

    # -- rules -----------------------------------------------------------------------------------------------------

    def _either(self) -> _Part:
        return self._joined(self._both, "or")

    def _both(self) -> _Part:
        return self._joined(self._negation, "and")

    def _joined(self, rule: Callable[[], _Part], word: str) -> _Part:
        first = self._at
        parts = [rule()]
        while self._take(word):
            parts.append(rule())
        if len(parts) == 1:
            return parts[0]
        for part in parts:
            _require_flag(part, f"'{word}'")
        return self._part(first, FLAG, partial(_join, [part.run for part in parts], word == "and"))

    def _negation(self) -> _Part:
        first = self._at
        if not self._take("not"):
            return self._comparison()
        negated = self._deeper(self._negation)
        _require_flag(negated, "'not'")
        return self._part(first, FLAG, lambda rows: ~negated.run(rows))

    def _comparison(self) -> _Part:
        first = self._at
        left = self._sum()
        links: list[Run] = []
        while sign := self._take(*_COMPARISONS, "in", "not"):
            if sign == "not":
                self._need("in")
                sign = "not in"
            right = self._sum()
            links.append(_look_up(left, sign, right) if sign.endswith("in") else _compare(left, sign, right))
            left = right
        return self._part(first, FLAG, partial(_join, links, True)) if links else left

    def _sum(self) -> _Part:
        return self._calculation(self._term, "+", "-")

    def _term(self) -> _Part:
        return self._calculation(self._unary, "*", "/", "%")

    def _calculation(self, rule: Callable[[], _Part], *signs: str) -> _Part:
        first = self._at
        begin = rule()
        steps: list[tuple[str, Run]] = []
        while sign := self._take(*signs):
            part = rule()
            _require_numbers(sign, begin, part)
            steps.append((sign, part.run))
        return self._part(first, NUMBER, partial(_calculate, begin.run, steps)) if steps else begin

    def _unary(self) -> _Part:
        first = self._at
        sign = self._take("-", "+")
        if not sign:
            return self._atom()
        part = self._deeper(self._unary)
        _require_numbers(sign, part)
        factor = -1.0 if sign == "-" else 1.0
        literals = frozenset(factor * value for value in part.literals)
        return self._part(first, NUMBER, lambda rows: factor * part.run(rows), literals)

    def _atom(self) -> _Part:
        first, token = self._at, self._peek()
        if token in ("(", "["):
            return self._deeper(self._bracket)
        if token == "abs":
            return self._deeper(self._absolute)
        kind = self._tokens[first].lastgroup if token else "sign"
        if kind == "sign" or token in _WORDS:
            raise self._unexpected()
        if kind == "name" and token not in ("True", "False"):
            return self._column()
        self._at += 1
        if kind == "number":
            return self._literal(first, NUMBER, float(token))
        if kind == "text":
            return self._literal(first, TEXT, _ESCAPE.sub(_unescape, token[1:-1]))
        return self._literal(first, FLAG, token == "True")

    def _literal(self, first: int, kind: str, value: Any) -> _Part:
        return self._part(first, kind, lambda rows: np.full(len(rows), value, _DTYPES[kind]), frozenset([value]))

    def _column(self) -> _Part:
        name = self._peek()
        if name not in self._columns:
            raise _spelled(name) if name in SPELLINGS else ExpressionError(f"there is no column '{_short(name)}'")
        self._at += 1
        kind = _kind_of(self._columns[name][0])
        values = np.array(self._columns[name], dtype=_DTYPES[kind])
        if kind == NUMBER:
            values[~np.isfinite(values)] = math.nan
        return _Part(kind, name, lambda rows: values[rows])

    def _absolute(self) -> _Part:
        first = self._at
        self._need("abs")
        self._need("(")
        part = self._either()
        _require_numbers("abs", part)
        self._need(")")
        return self._part(first, NUMBER, lambda rows: np.abs(part.run(rows)))

    def _bracket(self) -> _Part:
        first = self._at
        is_round = self._take("(", "[") == "("
        end = ")" if is_round else "]"
        items: list[_Part] = []
        while not self._take(end):
            items.append(self._either())
            if not self._take(","):
                self._need(end)
                if is_round and len(items) == 1:
                    return replace(items[0], text=self._part(first, LIST, _no_run).text)
                break
        for item in items:
            if item.kind == LIST or not item.literals:
                raise ExpressionError(f"{item.text} cannot be in a list: write numbers or text")
            if item.kind != items[0].kind:
                raise _mismatch(items[0], "a list", item)
        literals = frozenset[Any]().union(*(item.literals for item in items))
        return self._part(first, LIST, _no_run, literals)


def _tokenize(text: str) -> Iterator[re.Match[str]]:
    at, end = 0, len(text.rstrip(" \t\r\n"))
    while at < end:
        token = _TOKEN.match(text, at)
        if token is None:
            unknown = _UNKNOWN.match(text, at)
            assert unknown is not None
            if unknown[1] in "\"'":
                raise ExpressionError(f"a text has no closing {unknown[1]}")
            raise ExpressionError(f"'{_short(unknown[1])}' is not understood")
        if token["sign"] in SPELLINGS:
            raise _spelled(token["sign"])
        at = token.end()
        yield token


def _word(token: re.Match[str]) -> str:
    return token[token.lastgroup or 0]


def _short(text: str) -> str:
    return text if len(text) <= _MAX_QUOTED else text[: _MAX_QUOTED - 1] + "…"


def _unescape(found: re.Match[str]) -> str:
    """Decode a backslash escape of Python's ``repr``."""
    code = found[1]
    number = int(code[1:], 16) if len(code) > 1 else 0
    if number > 0x10FFFF or (len(code) == 1 and code not in _ESCAPES):
        raise ExpressionError(f"'{found[0]}' is not understood in a text: a backslash is written \\\\")
    return chr(number) if len(code) > 1 else _ESCAPES[code]


# -- kinds ---------------------------------------------------------------------------------------------------------


def _kind_of(value: Any) -> str:
    return FLAG if isinstance(value, bool) else TEXT if isinstance(value, str) else NUMBER


def _spelled(token: str) -> ExpressionError:
    return ExpressionError(f"'{token}' is not used here: write {SPELLINGS[token]}")


def _require_flag(part: _Part, what: str) -> None:
    if part.kind != FLAG:
        comparison = {NUMBER: " > 0", TEXT: " == 'x'"}.get(part.kind, "")
        advice = f"write a comparison, such as {part.text}{comparison}" if comparison else "write in before it"
        raise ExpressionError(f"{what} must be true or false, but {part.text} is {part.kind}: {advice}")


def _require_numbers(sign: str, *parts: _Part) -> None:
    for part in parts:
        if part.kind != NUMBER:
            raise ExpressionError(f"'{sign}' takes numbers, but {part.text} is {part.kind}")


def _mismatch(left: _Part, what: str, right: _Part) -> ExpressionError:
    advice = "write two numbers or two texts"
    for part in (right, left):
        if part.kind == FLAG:
            advice = f"write {part.text} alone, or not {part.text}"
    return ExpressionError(
        f"{what} needs values of one kind, but {left.text} is {left.kind}, {right.text} is {right.kind}: {advice}"
    )


# -- values --------------------------------------------------------------------------------------------------------


def _no_run(rows: np.ndarray) -> np.ndarray:
    raise AssertionError("A list is never evaluated.")


def _join(parts: Sequence[Run], is_and: bool, rows: np.ndarray) -> np.ndarray:
    """Join with ``and`` or ``or``: each part is evaluated only for the episodes that no previous part decides."""
    values = np.full(len(rows), is_and)
    for part in parts:
        undecided = np.flatnonzero(values == is_and)
        values[undecided] = part(rows[undecided])
    return values


def _compare(left: _Part, sign: str, right: _Part) -> Run:
    if LIST in (left.kind, right.kind):
        raise ExpressionError(f"'{sign}' cannot compare lists: write in")
    if left.kind != right.kind:
        raise _mismatch(left, f"'{sign}'", right)
    if left.kind != NUMBER and sign in _ORDERS:
        raise ExpressionError(f"'{sign}' compares numbers, but {left.text} is {left.kind}: write == or !=")

    def run(rows: np.ndarray) -> np.ndarray:
        a, b = left.run(rows), right.run(rows)
        is_known = (a == a) & (b == b)  # NaN differs from itself
        result: np.ndarray = is_known & _COMPARISONS[sign](a, b)
        return result.astype(np.bool_)

    return run


def _look_up(left: _Part, sign: str, right: _Part) -> Run:
    """Return the function of ``in`` or ``not in``: membership in a list, or substring of a text."""
    if left.kind == LIST or right.kind not in (LIST, TEXT):
        raise ExpressionError(f"'{sign}' needs a list or text after it: write {sign} [{right.text}]")
    kinds = {TEXT} if right.kind == TEXT else set(map(_kind_of, right.literals))
    for kind in kinds - {left.kind}:
        raise _mismatch(left, f"'{sign}'", replace(right, kind=kind))

    def run(rows: np.ndarray) -> np.ndarray:
        values = left.run(rows)
        texts = right.run(rows) if right.kind == TEXT else [right.literals] * len(rows)
        found = np.fromiter((value in text for value, text in zip(values.tolist(), texts, strict=True)), np.bool_)
        result: np.ndarray = (values == values) & (found == (sign == "in"))  # NaN differs from itself
        return result

    return run


def _calculate(first: Run, steps: Sequence[tuple[str, Run]], rows: np.ndarray) -> np.ndarray:
    result: np.ndarray = first(rows)
    for sign, run in steps:
        other = run(rows)
        if sign in "/%" and (other == 0).any():
            raise ExpressionError(f"division by zero in episode {rows[np.argmax(other == 0)]}")
        with np.errstate(all="ignore"):
            result = _CALCULATIONS[sign](result, other)
            if sign == "%":  # Python's has the sign of the divisor
                result += np.where((result != 0) & ((other < 0) != (result < 0)), other, 0.0)
    return result

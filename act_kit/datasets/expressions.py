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
from typing import Any

import numpy as np

MAX_CHARACTERS = 10_000
MAX_DEPTH = 50
_MAX_QUOTED = 40
"""Maximum number of characters of a part that a message quotes."""

SPELLINGS = {
    "&&": "and",
    "||": "or",
    "===": "==",
    "!==": "!=",
    "<>": "!=",
    "=>": ">=",
    "=<": "<=",
    ":=": "==",
    "&": "and",
    "|": "or",
    "^": "!=",
    "~": "not",
    "!": "not",
    "=": "==",
    "**": "x * x",
    "//": "(x - x % n) / n",
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
    "−": "-",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "is": "==",
    "AND": "and",
    "OR": "or",
    "NOT": "not",
    "IN": "in",
    "true": "True",
    "false": "False",
    "None": "not success_step >= 0",
    "null": "not success_step >= 0",
    "nan": "not success_step >= 0",
}
"""Spellings of other languages, and their equivalents in this one."""

NUMBER, TEXT, FLAG, LIST = "a number", "text", "true or false", "a list"
_ORDERS = ("<", ">", "<=", ">=")
SIGNS = sorted(
    [*_ORDERS, "==", "!=", *"()[],+-*/%", *(sign for sign in SPELLINGS if not sign.isalpha())], key=len, reverse=True
)
"""Operators and punctuation, also those that are only recognized for error messages, the longest first."""

_TOKEN = re.compile(
    r"[ \t\r\n]*(?:((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.]))"
    r"""|("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|([A-Za-z_][A-Za-z0-9_]*)|(""" + "|".join(map(re.escape, SIGNS)) + "))",
    re.DOTALL,
)
_UNKNOWN = re.compile(r"[A-Za-z0-9_.]+|.", re.DOTALL)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}

Columns = Mapping[str, list[Any]]
"""Columns by name, with one value per episode: numbers, bools or strings."""
Run = Callable[[np.ndarray], np.ndarray]
"""Function that returns the values for episodes given by index."""


class ExpressionError(ValueError):
    """Invalid expression, or an expression that has no value for an episode."""


@dataclass(frozen=True, kw_only=True)
class Part:
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


@dataclass(frozen=True)
class _Token:
    text: str
    begin: int
    end: int
    group: int


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
        return self._tokens[self._at].text if self._at < len(self._tokens) else ""

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
        before = self._tokens[self._at - 1].text if self._at else ""
        if self._at == len(self._tokens):
            return ExpressionError(f"something is missing after '{_short(before)}'")
        token = self._peek()
        if token in SPELLINGS:
            return ExpressionError(f"'{token}' is not used here: write {SPELLINGS[token]}")
        where = f"follow '{_short(before)}'" if before else "be at the beginning"
        return ExpressionError(f"'{_short(token)}' cannot {where}")

    def _since(self, first: int) -> str:
        """Return the parsed text from token ``first`` on."""
        return _short(self._text[self._tokens[first].begin : self._tokens[self._at - 1].end])

    def _deeper(self, rule: Callable[[], Part]) -> Part:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"it is nested more than {MAX_DEPTH} levels deep")
        part = rule()
        self._depth -= 1
        return part

    # -- rules -----------------------------------------------------------------------------------------------------

    def _either(self) -> Part:
        return self._joined(self._both, "or", _any)

    def _both(self) -> Part:
        return self._joined(self._negation, "and", _all)

    def _joined(self, rule: Callable[[], Part], word: str, join: Callable[[Sequence[Run]], Run]) -> Part:
        first = self._at
        parts = [rule()]
        while self._take(word):
            parts.append(rule())
        if len(parts) == 1:
            return parts[0]
        for part in parts:
            _require_flag(part, f"'{word}'")
        return Part(kind=FLAG, text=self._since(first), run=join([part.run for part in parts]))

    def _negation(self) -> Part:
        first = self._at
        if not self._take("not"):
            return self._comparison()
        negated = self._deeper(self._negation)
        _require_flag(negated, "'not'")
        return Part(kind=FLAG, text=self._since(first), run=lambda rows: ~negated.run(rows))

    def _comparison(self) -> Part:
        first = self._at
        left = self._sum()
        links: list[Run] = []
        while sign := self._take(*_ORDERS, "==", "!=", "in", "not"):
            if sign == "not":
                self._need("in")
                sign = "not in"
            right = self._sum()
            links.append(_look_up(left, sign, right) if sign.endswith("in") else _compare(left, sign, right))
            left = right
        return Part(kind=FLAG, text=self._since(first), run=_all(links)) if links else left

    def _sum(self) -> Part:
        return self._calculation(self._term, "+", "-")

    def _term(self) -> Part:
        return self._calculation(self._unary, "*", "/", "%")

    def _calculation(self, rule: Callable[[], Part], *signs: str) -> Part:
        first = self._at
        begin = rule()
        steps: list[tuple[str, Part]] = []
        while sign := self._take(*signs):
            steps.append((sign, rule()))
            _require_numbers(sign, begin, steps[-1][1])
        return Part(kind=NUMBER, text=self._since(first), run=_calculate(begin, steps)) if steps else begin

    def _unary(self) -> Part:
        first = self._at
        sign = self._take("-", "+")
        if not sign:
            return self._atom()
        part = self._deeper(self._unary)
        _require_numbers(sign, part)
        factor = -1.0 if sign == "-" else 1.0
        literals = frozenset(factor * value for value in part.literals)
        return Part(kind=NUMBER, text=self._since(first), run=lambda rows: factor * part.run(rows), literals=literals)

    def _atom(self) -> Part:
        if self._at == len(self._tokens):
            raise self._unexpected()
        token = self._tokens[self._at]
        if token.text in ("(", "["):
            return self._deeper(self._bracket)
        if token.text == "abs":
            return self._deeper(self._absolute)
        if token.group == 3 and token.text not in ("and", "or", "not", "in", "True", "False"):
            return self._column()
        if token.group == 4 or token.text in ("and", "or", "not", "in"):
            raise self._unexpected()
        self._at += 1
        if token.group == 1:
            return _literal(NUMBER, token.text, float(token.text))
        if token.group == 2:
            return _literal(TEXT, _short(token.text), _unescape(token.text[1:-1]))
        return _literal(FLAG, token.text, token.text == "True")

    def _column(self) -> Part:
        name = self._peek()
        if name not in self._columns:
            spelling = SPELLINGS.get(name)
            raise ExpressionError(
                f"'{name}' is not used here: write {spelling}" if spelling else f"there is no column '{_short(name)}'"
            )
        self._at += 1
        values = self._columns[name]
        kind = FLAG if isinstance(values[0], bool) else TEXT if isinstance(values[0], str) else NUMBER
        array: np.ndarray = np.array(values, dtype={FLAG: np.bool_, TEXT: np.object_, NUMBER: np.float64}[kind])
        if kind == NUMBER:
            array[~np.isfinite(array)] = math.nan
        return Part(kind=kind, text=name, run=lambda rows: array[rows])

    def _absolute(self) -> Part:
        first = self._at
        self._need("abs")
        self._need("(")
        part = self._either()
        _require_numbers("abs", part)
        self._need(")")
        return Part(kind=NUMBER, text=self._since(first), run=lambda rows: np.abs(part.run(rows)))

    def _bracket(self) -> Part:
        first = self._at
        opened = self._take("(", "[")
        end = ")" if opened == "(" else "]"
        items: list[Part] = []
        while not self._take(end):
            items.append(self._either())
            if self._take(","):
                continue
            self._need(end)
            if opened == "(" and len(items) == 1:
                return replace(items[0], text=self._since(first))
            break
        for item in items:
            if item.kind == LIST or not item.literals:
                raise ExpressionError(f"{item.text} cannot be in a list: write numbers or text")
            if item.kind != items[0].kind:
                raise _mismatch(items[0], "a list", item)
        literals = frozenset[Any]().union(*(item.literals for item in items))
        return Part(kind=LIST, text=self._since(first), run=_no_run, literals=literals)


def _tokenize(text: str) -> Iterator[_Token]:
    end = len(text.rstrip(" \t\r\n"))
    at = 0
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None or found.lastindex is None:
            rest = text[at:].lstrip(" \t\r\n")
            if rest[0] in "\"'":
                raise ExpressionError(f"a text has no closing {rest[0]}")
            unknown = _UNKNOWN.match(rest)
            raise ExpressionError(f"'{_short(unknown[0] if unknown else rest)}' is not understood")
        token = found[found.lastindex]
        if found.lastindex == 4 and token in SPELLINGS:
            raise ExpressionError(f"'{token}' is not used here: write {SPELLINGS[token]}")
        at = found.end()
        yield _Token(token, found.start(found.lastindex), at, found.lastindex)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_QUOTED else text[: _MAX_QUOTED - 1] + "…"


def _unescape(text: str) -> str:
    """Return a quoted text without its quotes, with backslash escapes as in Python's ``repr`` decoded."""

    def character(found: re.Match[str]) -> str:
        code = found[1]
        number = int(code[1:], 16) if len(code) > 1 else 0
        if number > 0x10FFFF or (len(code) == 1 and code not in _ESCAPES):
            raise ExpressionError(f"'{found[0]}' is not understood in a text: a backslash is written \\\\")
        return chr(number) if len(code) > 1 else _ESCAPES[code]

    return _ESCAPE.sub(character, text)


# -- kinds ---------------------------------------------------------------------------------------------------------


def _require_flag(part: Part, what: str) -> None:
    if part.kind != FLAG:
        comparison = {NUMBER: " > 0", TEXT: " == 'x'"}.get(part.kind, "")
        advice = f"write a comparison, such as {part.text}{comparison}" if comparison else "write in before it"
        raise ExpressionError(f"{what} must be true or false, but {part.text} is {part.kind}: {advice}")


def _require_numbers(sign: str, *parts: Part) -> None:
    for part in parts:
        if part.kind != NUMBER:
            raise ExpressionError(f"'{sign}' takes numbers, but {part.text} is {part.kind}")


def _mismatch(left: Part, what: str, right: Part) -> ExpressionError:
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


def _literal(kind: str, text: str, value: Any) -> Part:
    dtype: Any = {FLAG: np.bool_, TEXT: np.object_, NUMBER: np.float64}[kind]
    return Part(
        kind=kind, text=text, run=lambda rows: np.full(len(rows), value, dtype=dtype), literals=frozenset([value])
    )


def _all(parts: Sequence[Run]) -> Run:
    """Join with ``and``: each part is evaluated only for the episodes for which all previous parts are true."""

    def run(rows: np.ndarray) -> np.ndarray:
        is_true = np.ones(len(rows), dtype=np.bool_)
        for part in parts:
            at = np.flatnonzero(is_true)
            is_true[at] = part(rows[at])
        return is_true

    return run


def _any(parts: Sequence[Run]) -> Run:
    """Join with ``or``: each part is evaluated only for the episodes for which all previous parts are false."""

    def run(rows: np.ndarray) -> np.ndarray:
        is_true = np.zeros(len(rows), dtype=np.bool_)
        for part in parts:
            at = np.flatnonzero(~is_true)
            is_true[at] = part(rows[at])
        return is_true

    return run


def _compare(left: Part, sign: str, right: Part) -> Run:
    if LIST in (left.kind, right.kind):
        raise ExpressionError(f"'{sign}' cannot compare lists: write in")
    if left.kind != right.kind:
        raise _mismatch(left, f"'{sign}'", right)
    if left.kind != NUMBER and sign in _ORDERS:
        raise ExpressionError(f"'{sign}' compares numbers, but {left.text} is {left.kind}: write == or !=")

    def run(rows: np.ndarray) -> np.ndarray:
        a, b = left.run(rows), right.run(rows)
        is_known = np.ones(len(rows), dtype=np.bool_) if left.kind != NUMBER else ~(np.isnan(a) | np.isnan(b))
        compared = {
            "<": np.less,
            ">": np.greater,
            "<=": np.less_equal,
            ">=": np.greater_equal,
            "==": np.equal,
            "!=": np.not_equal,
        }[sign](a, b)
        return is_known & compared.astype(np.bool_)

    return run


def _look_up(left: Part, sign: str, right: Part) -> Run:
    """Return the function of ``in`` or ``not in``: membership in a list, or substring of a text."""
    if left.kind == LIST or right.kind not in (LIST, TEXT):
        raise ExpressionError(f"'{sign}' needs a list or text after it: write {sign} [{right.text}]")
    wanted = sign == "in"
    if right.kind == TEXT:
        if left.kind != TEXT:
            raise _mismatch(left, f"'{sign}'", right)

        def find(rows: np.ndarray) -> np.ndarray:
            pairs = zip(left.run(rows), right.run(rows), strict=True)
            return np.array([(a in b) == wanted for a, b in pairs], dtype=np.bool_)

        return find
    kinds = {bool: FLAG, str: TEXT, float: NUMBER}
    for literal in right.literals:
        if kinds[type(literal)] != left.kind:
            raise _mismatch(left, f"'{sign}'", Part(kind=kinds[type(literal)], text=right.text, run=_no_run))

    def look(rows: np.ndarray) -> np.ndarray:
        values = left.run(rows).tolist()
        return np.array([value == value and (value in right.literals) == wanted for value in values], dtype=np.bool_)

    return look


def _calculate(first: Part, steps: Sequence[tuple[str, Part]]) -> Run:
    def run(rows: np.ndarray) -> np.ndarray:
        result = first.run(rows)
        for sign, part in steps:
            other = part.run(rows)
            if sign in "/%" and (other == 0).any():
                raise ExpressionError(f"division by zero in episode {rows[np.argmax(other == 0)]}")
            with np.errstate(all="ignore"):
                result = _CALCULATIONS[sign](result, other)
        return result

    return run


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute Python's ``%``, which has the sign of ``b``."""
    rest = np.fmod(a, b)
    remainder: np.ndarray = np.where((rest != 0) & ((b < 0) != (rest < 0)), rest + b, rest)
    return remainder


_CALCULATIONS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": _remainder,
}

"""Expressions: the command line and the page select the same episodes and give the same error messages."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from playwright.sync_api import Browser, Page

from act_kit.datasets.episode_table import select_episodes
from act_kit.datasets.expressions import MAX_CHARACTERS, MAX_DEPTH, SIGNS, SPELLINGS
from act_kit.errors import ConfigError
from act_kit.pages import render_page

COLUMNS: dict[str, list[Any]] = {
    "episode": list(range(6)),
    "steps": [80, 90, 90, 120, 7, 500],
    "source": ["scripted", "teleop:ann", "it's", 'a "quote" \\ \n', "", "é𝄞"],
    "succeeded": [True, True, False, True, False, True],
    "success_step": [70.0, 80.0, math.nan, 110.0, math.nan, 490.0],
    "object_x": [-0.1, 1 / 3, 0.0, -0.0, 0.30000000000000004, 1e-9],
    "never": [math.nan] * 6,
}


def chosen(where: str) -> list[int]:
    return select_episodes(COLUMNS, where).tolist()


def rejection(where: str) -> str:
    """Return the reason for which an expression is rejected, without the rest of the message."""
    with pytest.raises(ConfigError) as caught:
        select_episodes(COLUMNS, where)
    message = str(caught.value)
    assert "\n" not in message
    assert "The columns are episode, steps" in message
    found = re.search(r"expression over the columns of an episode: (.*)\. Fix: write, for example", message)
    assert found, message
    return found[1]


CASES: list[tuple[str, list[int]]] = [
    ("steps < 90", [0, 4]),
    ("steps <= 90 and not steps < 90", [1, 2]),
    ("7 < steps <= 90", [0, 1, 2]),
    ("90 > steps > 10 or episode == 5", [0, 5]),
    ("episode % 2 == 0", [0, 2, 4]),
    ("-episode % 4 == 3", [1, 5]),
    ("episode - 1 - 1 == 0", [2]),
    ("12 / (episode + 1) / 2 == 3", [1]),
    ("2 + 3 * 4 == 14 and (2 + 3) * 4 == 20", [0, 1, 2, 3, 4, 5]),
    ("abs(-episode + 3) < +1.5", [2, 3, 4]),
    ("not succeeded", [2, 4]),
    ("succeeded != True", [2, 4]),
    ("succeeded == (steps > 80)", [1, 3, 4, 5]),
    ("succeeded or steps < 10 and episode == 0", [0, 1, 3, 5]),
    ("source == 'scripted'", [0]),
    ("'ann' in source or source in ['it\\'s', \"x\"]", [1, 2]),
    ("source not in ('scripted', 'teleop:ann')", [2, 3, 4, 5]),
    ("source == " + repr(COLUMNS["source"][3]), [3]),
    ("source == '\\xe9\\U0001d11e'", [5]),
    ("'' in source", [0, 1, 2, 3, 4, 5]),
    ("episode in [0, 3,] or episode in (4,)", [0, 3, 4]),
    ("episode in [] or episode in ()", []),
    ("episode in [-1, +2]", [2]),
    ("succeeded in [True]", [0, 1, 3, 5]),
    ("object_x == 0.3", []),
    ("object_x == 0.30000000000000004", [4]),
    ("object_x < .3333", [0, 2, 3, 4, 5]),
    ("object_x == 0", [2, 3]),
    ("success_step != 70", [1, 3, 5]),
    ("success_step not in [70]", [1, 3, 5]),
    ("not success_step >= 0", [2, 4]),
    ("success_step == success_step", [0, 1, 3, 5]),
    ("never != never or never < 1 or never >= 1 or never in [1]", []),
    ("abs(never) + 1 > 0", []),
    ("steps * 1e308 * 10 > 1e308", [0, 1, 2, 3, 4, 5]),
    ("steps * 1e308 * 10 - steps * 1e308 * 10 != 0", []),
    ("episode == 0 or 6 / episode > 2.9", [0, 1, 2]),
    ("episode > 0 and 6 / episode > 2.9", [1, 2]),
    ("1e999 > steps and 9007199254740993 == 9007199254740992", [0, 1, 2, 3, 4, 5]),
    ("True", [0, 1, 2, 3, 4, 5]),
]

REJECTED = {
    "steps < 90 & succeeded": "'&' is not used here: write and",
    "steps < 90 | succeeded": "write or",
    "steps < 90 && succeeded": "write and",
    "steps < 90 || succeeded": "write or",
    "!succeeded": "write not",
    "~succeeded": "write not",
    "succeeded ^ succeeded": "write !=",
    "steps = 90": "'=' is not used here: write ==",
    "steps === 90": "write ==",
    "steps !== 90": "write !=",
    "steps <> 90": "write !=",
    "steps =< 90": "write <=",
    "steps => 90": "write >=",
    "(x := 3) > 2": "':=' is not used here: write ==",
    "steps > 100 == False": "'==' needs values of one kind, but 100 is a number, False is true or false",
    "steps ≤ 90": "write <=",
    "source == “ann”": "'“' is not used here: write \"",
    "steps is 90": "'is' is not used here: write ==",
    "steps < 90 AND succeeded": "write and",
    "NOT succeeded": "write not",
    "succeeded == true": "'true' is not used here: write True",
    "success_step == None": "'None' is not used here: write not success_step >= 0",
    "success_step != nan": "write not success_step >= 0",
    "steps ** 2 > 3": "'**' is not used here: write x * x",
    "steps // 2 > 3": "write (x - x % n) / n",
    "9**9**9**9 > 1": "'**' is not used here",
    "steps": "the expression must be true or false, but steps is a number: write a comparison, such as steps > 0",
    "source": "source is text: write a comparison, such as source == 'x'",
    "[1]": "[1] is a list",
    "steps and succeeded": "'and' must be true or false, but steps is a number",
    "not steps": "'not' must be true or false, but steps is a number",
    "steps < 'a'": "'<' needs values of one kind, but steps is a number, 'a' is text",
    "steps == '90'": "write two numbers or two texts",
    "succeeded == 1": "succeeded is true or false, 1 is a number: write succeeded alone, or not succeeded",
    "succeeded + 1 > 1": "'+' takes numbers, but succeeded is true or false",
    "-succeeded": "'-' takes numbers",
    "source < 'b'": "'<' compares numbers, but source is text: write == or !=",
    "succeeded < True": "write == or !=",
    "source + 'x' == 'y'": "'+' takes numbers, but source is text",
    "source * 1000000000 == 'y'": "'*' takes numbers, but source is text",
    "'%1000000000d' % steps == 'y'": "'%' takes numbers",
    "'x' * 10 * 10 * 10 == source": "'*' takes numbers",
    "abs(source) > 1": "'abs' takes numbers",
    "f'{steps}' == 'x'": "there is no column 'f'",
    "source.upper() == 'X'": "'.upper' is not understood",
    "'{0.__class__}'.format(source) == 'x'": "'.format' is not understood",
    "source[0] == 'x'": "'[' cannot follow 'source'",
    "len(source) > 1": "there is no column 'len'",
    "steps(1) > 1": "'(' cannot follow 'steps'",
    "__import__('os')": "there is no column '__import__'",
    "[x for x in [1]]": "there is no column 'x'",
    "[steps for steps in [1]]": "'for' cannot follow 'steps'",
    "{'a': 1}": "'{' is not understood",
    "lambda: 1": "':' is not understood",
    "succeeded if True else False": "'if' cannot follow 'succeeded'",
    "episode in [steps]": "steps cannot be in a list: write numbers or text",
    "episode in [[1]]": "[1] cannot be in a list",
    "episode in [1, 'a']": "a list needs values of one kind",
    "episode in ['1']": "'in' needs values of one kind",
    "episode in steps": "'in' needs a list or text after it: write in [steps]",
    "episode in 3": "write in [3]",
    "3 in source": "'in' needs values of one kind",
    "[1] == [1]": "'==' cannot compare lists: write in",
    "stepz < 3": "there is no column 'stepz'",
    "steps <": "something is missing after '<'",
    "steps < 3 and": "something is missing after 'and'",
    "(steps < 3": "')' is missing at the end",
    "episode in [1, 2": "']' is missing at the end",
    "steps < 3)": "')' cannot follow '3'",
    "< 3": "'<' cannot be at the beginning",
    "and": "'and' cannot be at the beginning",
    "steps < not 3": "'not' cannot follow '<'",
    "steps not 3": "'3' cannot follow 'not'",
    "steps < 3 4": "'4' cannot follow '3'",
    "steps < 3x": "'3x' is not understood",
    "steps < 1_000": "'1_000' is not understood",
    "steps < 0x10": "'0x10' is not understood",
    "steps < 1.2.3": "'1.2.3' is not understood",
    "source == 'ann": "a text has no closing '",
    "source == '\\d'": "'\\d' is not understood in a text",
    "source == '\\Uffffffff'": "is not understood in a text",
    "steps < 3; True": "';' is not understood",
    "steps < 3 # all": "'#' is not understood",
    "": "it is empty",
    " \n ": "it is empty",
    "steps / episode > 1": "division by zero in episode 0",
    "steps % 0 > 1": "division by zero in episode 0",
    "(" * 60 + "succeeded" + ")" * 60: "it is nested more than 50 levels deep",
    "not " * 60 + "succeeded": "it is nested more than 50 levels deep",
    "-" * 60 + "steps > 0": "it is nested more than 50 levels deep",
    "steps > 0" + " " * MAX_CHARACTERS: "characters, the maximum is 10000",
    "steps" * 50 + " > 1": "there is no column 'stepsstepsstepsstepsstepsstepsstepsstep…'",
}


@pytest.mark.parametrize(("where", "episodes"), CASES)
def test_an_expression_selects_the_expected_episodes(where: str, episodes: list[int]) -> None:
    assert chosen(where) == episodes


@pytest.mark.parametrize("where", REJECTED)
def test_an_invalid_expression_is_rejected_in_one_line(where: str) -> None:
    assert REJECTED[where] in rejection(where)


HEAVY = [
    "1" + "+1" * 4990 + " > 0",
    "steps > 0" + " or steps < 0" * 760,
    "steps > 0" + " and not steps < 0" * 550,
    "steps" + " <= steps" * 1100,
    "episode in [" + "1," * 4900 + "]",
    "(" * 9999,
    "'" * 9999,
    "-" * 9900 + "1 > 0",
    "'" + "\\x41" * 2400 + "' == source",
    "'" + "a" * 8000 + "b' in '" + "a" * 1900 + "'",
    "x" * 9999,
    "1e" * 4999,
    "\\" * 9999,
    "'x' * 1000000000 == source",
    "10**10**10 > 1",
    "'%99999999999d' % 1 == source",
    "x" * 10**8,
]


@pytest.mark.parametrize("where", HEAVY, ids=[where[:12] for where in HEAVY])
def test_time_and_memory_of_every_expression_are_bounded(where: str) -> None:
    columns = {name: values * 500 for name, values in COLUMNS.items()} | {"episode": list(range(3000))}

    def evaluate() -> None:
        with contextlib.suppress(ConfigError):
            select_episodes(columns, where)

    begin = time.process_time()
    evaluate()
    assert time.process_time() - begin < 1
    tracemalloc.start()
    evaluate()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 100e6


# -- on the page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(browser: Browser) -> Page:
    """A page with only the compiler."""
    page = browser.new_page()
    language = {"spellings": SPELLINGS, "signs": SIGNS, "characters": MAX_CHARACTERS, "depth": MAX_DEPTH}
    columns: dict[str, list[Any]] = {}
    for name, values in COLUMNS.items():
        columns[name] = [None if value != value else value for value in values]
    constants = f"const language = {json.dumps(language)}, columns = {json.dumps(columns)};"
    script = Markup(render_page("expressions.js.j2", {}))
    page.set_content(f"<script>{constants}{script}</script>")
    return page


ON_THE_PAGE = """where => {
    try {
        const wanted = compile(where, columns, language);
        return columns.episode.filter(i => wanted(i));
    } catch (error) { return error.message; }
}"""


def assert_same(page: Page, where: str) -> bool:
    """Require the same episodes or the same error from both; return True for a valid expression."""
    try:
        here: list[int] | str = chosen(where)
    except ConfigError:
        here = rejection(where)
    there = page.evaluate(ON_THE_PAGE, where)
    if isinstance(there, str) and there.startswith("division by zero"):  # the page names the first episode, Python any
        here, there = str(here)[:16], there[:16]
    assert there == here, where
    return not isinstance(here, str)


@pytest.mark.browser
def test_the_page_gives_the_same_results_and_messages(page: Page) -> None:
    for where in (*(where for where, _ in CASES), *REJECTED):
        assert_same(page, where)


NAMES = [*COLUMNS, "stepz", "True", "False"]
LITERALS = [
    "0",
    "1",
    "90",
    "1.5",
    ".5",
    "1e3",
    "'scripted'",
    '"a"',
    "'it\\'s'",
    "''",
    "[0, 1]",
    "['', 'a']",
    "(1,)",
    "[]",
]
ATOMS = st.sampled_from([*NAMES, *LITERALS])
INFIX = ["<", ">", "<=", ">=", "==", "!=", "in", "not in", "and", "or", "+", "-", "*", "/", "%"]
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(INFIX), inner).map(" ".join),
        st.tuples(st.sampled_from(["not ", "-", "+", "abs"]), inner).map(lambda pair: f"{pair[0]}({pair[1]})"),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=8,
)
NUMBERS = st.recursive(
    st.sampled_from(["steps", "episode", "success_step", "object_x", "never", "1", "3", "90", "0.1"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(INFIX[-5:]), inner).map(" ".join),
        st.tuples(st.sampled_from(["-", "abs"]), inner).map(lambda pair: f"{pair[0]}({pair[1]})"),
    ),
    max_leaves=5,
)
CONDITIONS = st.recursive(
    st.one_of(
        st.tuples(NUMBERS, st.sampled_from(INFIX[:6]), NUMBERS).map(" ".join),
        st.tuples(NUMBERS, st.sampled_from(INFIX[:6]), NUMBERS, st.sampled_from(INFIX[:6]), NUMBERS).map(" ".join),
        st.tuples(NUMBERS, st.sampled_from(["in", "not in"]), st.just("[1, 3, -90]")).map(" ".join),
        st.sampled_from(["succeeded", "source == 'scripted'", "'e' in source", "source not in ['', 'x']"]),
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join), inner.map(lambda text: f"not ({text})")
    ),
    max_leaves=5,
)
TOKENS = st.lists(st.sampled_from([*NAMES, *LITERALS, *INFIX, *SPELLINGS, "not", "abs", *"()[],\\'\"#é"])).map(" ".join)


@pytest.mark.browser
@settings(max_examples=250, deadline=None)
@given(where=st.one_of(EXPRESSIONS, CONDITIONS, TOKENS, st.text(max_size=30)))
def test_the_page_and_the_command_line_agree(page: Page, where: str) -> None:
    assert_same(page, where)


@settings(max_examples=150, deadline=None)
@given(where=CONDITIONS)
def test_a_condition_and_its_negation_partition_the_episodes(where: str) -> None:
    with contextlib.suppress(ConfigError):  # a division by zero
        assert sorted([*chosen(where), *chosen(f"not ({where})")]) == COLUMNS["episode"]


@settings(max_examples=150, deadline=None)
@given(where=CONDITIONS)
@pytest.mark.filterwarnings("ignore")
def test_results_equal_those_of_python_without_missing_values(where: str) -> None:
    """The language is a subset of Python's, except for missing values."""
    if "never" in where or "success_step" in where:
        return
    try:
        here: list[int] | str = chosen(where)
    except ConfigError:
        here = "division by zero"
    there: list[int] | str = []
    for episode in COLUMNS["episode"]:
        values = {name: column[episode] for name, column in COLUMNS.items()}
        values = {name: float(value) if type(value) is int else value for name, value in values.items()}
        try:
            if eval(where, {"__builtins__": {"abs": abs}}, values):
                there = [*there, episode]
        except ZeroDivisionError:
            there = "division by zero"
            break
    assert here == there, where


def test_columns_are_not_changed() -> None:
    infinite = {**COLUMNS, "steps": [math.inf, *COLUMNS["steps"][1:]]}
    assert select_episodes(infinite, "steps > 0").tolist() == [1, 2, 3, 4, 5], "infinite values are missing"
    assert np.isinf(infinite["steps"][0])

"""Conditions on metadata: what they mean, compared with plain Python, and what is said where they mean nothing."""

from __future__ import annotations

import contextlib
import datetime
import math
import operator

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgekit.errors import ArgumentError
from bgekit.search.where import Where

DAY = datetime.date(2024, 5, 31)
NOON = datetime.datetime(2024, 5, 31, 12)
UTC = datetime.timezone.utc
ROWS = [
    {"year": 2019, "price": 1.5, "lang": "en", "new": True, "day": DAY, "at": NOON, "tags": ["a", "b"]},
    {"year": 2020, "price": 2.0, "lang": "fr", "new": False, "day": DAY.replace(day=1), "at": None, "tags": []},
    {"year": 2021, "price": None, "lang": None, "new": None, "day": None, "at": NOON.replace(day=30), "tags": None},
    {"year": None, "price": -0.5, "lang": "it's", "new": True, "day": DAY, "at": NOON.replace(hour=0), "tags": ["b"]},
]
TYPES = {
    "year": pyarrow.int64(), "price": pyarrow.float64(), "lang": pyarrow.string(), "new": pyarrow.bool_(),
    "day": pyarrow.date32(), "at": pyarrow.timestamp("us"), "tags": pyarrow.list_(pyarrow.string()),
    "empty": pyarrow.null(),
}  # fmt: skip
TABLE = pyarrow.table({name: pyarrow.array([row.get(name) for row in ROWS], type_) for name, type_ in TYPES.items()})


def rows(expression, table=TABLE):
    found = Where(expression).rows(table)
    assert found.dtype == bool and len(found) == len(table)
    return [int(row) for row in found.nonzero()[0]]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("year = 2020", [1]),
        ("year == 2020", [1]),
        ("year != 2020", [0, 2]),
        ("year <> 2020", [0, 2]),
        ("year>=2020", [1, 2]),
        ("year < 2020.5", [0, 1]),
        ("year = 2020.0", [1]),
        ("year > 99999999999999999999", []),
        ("year < 99999999999999999999", [0, 1, 2]),
        ("year > -1e300", [0, 1, 2]),
        ("price = 2", [1]),
        ("price < .0", [3]),
        ("price in (1.5, -0.5)", [0, 3]),
        ("price not in (1.5)", [1, 3]),
        ("lang = 'en'", [0]),
        ("lang = 'it''s'", [3]),
        ("lang >= 'f'", [1, 3]),
        ("lang in ('en', 'xx', 'fr')", [0, 1]),
        ("LANG = 'en'", None),
        ("new = true", [0, 3]),
        ("new != TRUE", [1]),
        ("new in (true, false)", [0, 1, 3]),
        ("day = '2024-05-31'", [0, 3]),
        ("day < '2024-05-31'", [1]),
        ("day in ('2024-05-01', '2023-01-01')", [1]),
        # A date stands for its whole day.
        ("at = '2024-05-31'", [0, 3]),
        ("at > '2024-05-30'", [0, 3]),
        ("at <= '2024-05-30'", [2]),
        ("at != '2024-05-31'", [2]),
        ("at in ('2024-05-30')", [2]),
        ("at not in ('2024-05-30')", [0, 3]),
        ("at >= '2024-05-31T12:00'", [0]),
        ("at = '2024-05-31 12:00:00.0'", [0]),
        # A list matches if an element does.
        ("tags = 'a'", [0]),
        ("tags != 'a'", [0, 3]),
        ("not tags = 'a'", [1, 3]),
        ("tags in ('b', 'c')", [0, 3]),
        ("tags not in ('b')", [0]),
        ("tags is null", [2]),
        ("tags is not null", [0, 1, 3]),
        ("empty is null", [0, 1, 2, 3]),
        ("empty = 3 or empty != 'x'", []),
        ("not empty < 3", []),
        # Null matches `is null` alone.
        ("year is null", [3]),
        ("not year = 2020", [0, 2]),
        ("not (year = 2020 or lang = 'en')", []),
        ("not (year = 2020 and lang = 'en')", [0, 1, 2, 3]),
        ("year = 2020 or lang = 'it''s'", [1, 3]),
        ("year >= 2019 and not lang = 'en' or year is null", [1, 3]),
        ("year >= 2019 and (not lang = 'en' or price is null)", [1, 2]),
        ('"year" = 2020 and `lang` = \'fr\'', [1]),
        ("not not not new = true", [1]),
    ],
)  # fmt: skip
def test_meaning(expression, expected):
    if expected is None:
        with pytest.raises(ArgumentError, match="no column LANG"):
            rows(expression)
    else:
        assert rows(expression) == expected


def test_names_with_anything_in_them():
    table = pyarrow.table({"a b": [1], 'say "x"': [2], "in": [3], "größe": [4], "x.y-z": [5]})
    assert rows('"a b" = 1 and "say ""x""" = 2 and "in" = 3 and größe = 4 and x.y-z = 5', table) == [0]


def test_times_with_zones_are_compared_in_utc():
    table = pyarrow.table({"at": pyarrow.array([NOON.replace(tzinfo=UTC)], pyarrow.timestamp("us", "UTC"))})
    assert rows("at = '2024-05-31T14:00+02:00' and at = '2024-05-31T12:00:00Z' and at = '2024-05-31T12:00'", table)


def test_parts_of_tables():
    whole = pyarrow.concat_tables([TABLE, TABLE.slice(0, 0), TABLE.slice(1, 3), TABLE]).slice(1, 9)
    assert rows("tags = 'b'", whole) == [2, 5, 6]
    assert rows("year = 2020 or tags = 'a'", whole) == [0, 3, 6, 7]
    assert rows("tags = 'b'", whole.slice(0, 0)) == []


def test_whole_numbers_are_not_rounded():
    table = pyarrow.table({"n": [2**53, 2**53 + 1, -(2**63), 2**63 - 1], "f": [2.0**53, math.inf, -math.inf, 0.0]})
    assert rows(f"n = {2**53 + 1}", table) == [1]
    assert rows(f"n > {2**53}.0", table) == [1, 3]
    assert rows(f"f = {2**53 + 1}", table) == []
    assert rows(f"f < {2**53 + 1}", table) == [0, 2, 3]
    assert rows(f"f > {10**400}", table) == [1]
    assert rows(f"f <= -{10**400}", table) == [2]
    assert rows("f in (-0.0)", table) == rows("f in (0)", table) == [3]


@pytest.mark.parametrize(
    ("expression", "reason", "mark"),
    [
        ("", "is empty", "^"),
        ("year >=", "a value is expected", "       ^"),
        ("year >= and lang = 'en'", "a value is expected", "        ^^^"),
        ("year", "a comparison is expected", "    ^"),
        ("year like 3", "like is not a comparison; there are =", "     ^^^^"),
        ("tags contains 'soup'", "if one of its elements does: tags = 'soup'", "     ^^^^^^^^"),
        ("added >= 2024-05-31 and year = 3", "a date stands in single quotes: '2024-05-31'", "         ^^^^^^^^^^"),
        ("added in (2024-5-31)", "a date stands in single quotes: '2024-5-31'", "          ^^^^^^^^^"),
        ("2020 <= year", "begins with the name of a column", "^^^^"),
        ("in = 3", "stands in double quotes: \"in\"", "^^"),
        ("lang = en", "single quotes: 'en'", "       ^^"),
        ('lang = "en"', "enclose names of columns; a string stands in single quotes: 'en'", "       ^^^^"),
        ("lang = 'en", "opened here and not closed", "       ^"),
        ("lang = null", "write lang is null", "       ^^^^"),
        ("lang != null", "write lang is not null", "        ^^^^"),
        ("lang is 'en'", "is goes with null alone", "     ^^"),
        ("lang in 'en'", "values in parentheses", "        ^^^^"),
        ("lang in ('en' 'fr')", "a comma or a closing", "              ^^^^"),
        ("lang in ()", "a value is expected", "         ^"),
        ("(year = 3", "not closed", "^"),
        ("year = 3)", "was not opened", "        ^"),
        ("year = 3 year = 4", "and, or, or the end", "         ^^^^"),
        ("year = 3 && new = true", "the word is and", "         ^"),
        ("year = 3; drop table x", "; has no meaning", "        ^"),
        ("year = 20x", "not a number", "       ^"),
        ("year = 1e999", "too large", "       ^^^^^"),
        ("year = " + "9" * 5000, "too large", "       " + "^" * 5000),
        ("中文 = '中文' 中文", "the end", " " * 14 + "^^^^"),
        ("__import__('os')", "a comparison is expected", "          ^"),
        ("(" * 101 + "x = 1" + ")" * 101, "more than 100", " " * 100 + "^"),
        ("not " * 1000 + "x = 1", "more than 100", " " * 400 + "^^^"),
        ("yaer = 3", r"no column yaer \(did you mean year\?\); there are year, price, lang", "^^^^"),
        ("lang = 5", "holds strings: write '5'", "       ^"),
        ("lang in ('x', 5)", "holds strings: write '5'", "              ^"),
        ("year = '2020'", "holds whole numbers: write 2020 without quotes", "       ^^^^^^"),
        ("price = 'x'", "holds numbers: write a number", "        ^^^"),
        ("price = true", "holds numbers", "        ^^^^"),
        ("new = 1", "true and false: write true or false", "      ^"),
        ("new < true", "no order", "      ^^^^"),
        ("day = 'May'", "'May' is not an ISO date such as '2024-05-31'", "      ^^^^^"),
        ("day = '2024-13-01'", "month", "      ^^^^^^^^^^^^"),
        ("day = '2024-05-31T12:00'", "write the date alone: '2024-05-31'", "      ^^^^^^^^^^^^^^^^^^"),
        ("day = 2024", "holds dates: write one as '2024-05-31'", "      ^^^^"),
        ("at = '2024-05-31T12:00Z'", "no time zones", "     ^^^^^^^^^^^^^^^^^^^"),
        ("tags = 5", "holds lists of strings: write '5'", "       ^"),
    ],
)  # fmt: skip
def test_errors_point_at_the_place(expression, reason, mark):
    with pytest.raises(ArgumentError, match=reason) as error:
        rows(expression)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("where: ")
    assert lines[1:] == [f"    {expression}", f"    {mark}"]


def test_columns():
    assert Where("b = 1 or not (a is null and b in (2)) and `c d` < 'x'").columns == ("b", "a", "c d")


# --- compared with plain Python

NUMBERS = st.one_of(
    st.integers(-3, 3), st.sampled_from([-0.5, 0.0, -0.0, 1.5, 2.0, 2**53 + 1, -(2**63), 2**63, 2.0**63, 10**30]),
)  # fmt: skip
STRINGS = st.sampled_from(["", "a", "b", "it's", 'say "x"', "é", "\U0001f600", "\uffff", "\n"])
DATES = st.dates(datetime.date(2024, 2, 27), datetime.date(2024, 3, 2))
TIMES = st.datetimes(datetime.datetime(2024, 2, 28, 22), datetime.datetime(2024, 3, 1, 2)).map(
    lambda moment: moment.replace(minute=0, second=0, microsecond=moment.microsecond % 2)
)
#: Column -> the strategy of its values, its type, and that of what it is compared with.
COLUMNS = {
    "n": (st.one_of(st.integers(-3, 3), st.sampled_from([2**53, -(2**63), 2**63 - 1])), pyarrow.int64(), NUMBERS),
    "f": (st.one_of(st.integers(-3, 3).map(float), st.sampled_from([0.5, -0.0, 2.0**53, math.inf])),
          pyarrow.float64(), NUMBERS),
    "s": (STRINGS, pyarrow.string(), STRINGS),
    "b": (st.booleans(), pyarrow.bool_(), st.booleans()),
    "d": (DATES, pyarrow.date32(), DATES),
    "t": (TIMES, pyarrow.timestamp("us"), st.one_of(DATES, TIMES)),
    "l": (st.lists(st.one_of(st.none(), STRINGS), max_size=3), pyarrow.list_(pyarrow.string()), STRINGS),
    "m": (st.lists(st.integers(-3, 3), max_size=3), pyarrow.list_(pyarrow.int64()), NUMBERS),
}  # fmt: skip
OPERATORS = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def written(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    text = value if isinstance(value, str) else value.isoformat()
    return "'" + text.replace("'", "''") + "'"


def element_test(value, operators, literals):
    """What a comparison of one element says, or None where it is null."""
    if value is None:
        return None
    found = []
    for literal in literals:
        own = value
        if type(literal) is datetime.date and isinstance(value, datetime.datetime):
            own = value.date()
        found.append(OPERATORS[operators](own, literal))
    return any(found)


def held(value, test):
    """What a test of elements says of a value, which may be a list of them."""
    if isinstance(value, list):
        return any(test(element) is True for element in value)
    return test(value)


def unknown_not(truth):
    return None if truth is None else not truth


@st.composite
def comparisons(draw):
    """An expression, and the function that says of a row what it is: true, false or None."""
    name = draw(st.sampled_from(list(COLUMNS)))
    literals = COLUMNS[name][2]
    kind = draw(st.sampled_from(["null", "not null", "compare", "compare", "in", "not in"]))
    if kind == "null":
        return f"{name} is null", lambda row: row[name] is None
    if kind == "not null":
        return f"{name} IS  NOT null", lambda row: row[name] is not None
    if kind == "compare":
        used = draw(st.sampled_from(["=", "!="] if name == "b" else list(OPERATORS)))
        value = draw(literals)
        return (
            f"{name}{used}{written(value)}",
            lambda row: held(row[name], lambda each: element_test(each, used, [value])),
        )
    values = draw(st.lists(literals, min_size=1, max_size=4))
    listed = ", ".join(map(written, values))
    if kind == "in":
        return (
            f"{name} in ({listed})",
            lambda row: held(row[name], lambda each: element_test(each, "=", values)),
        )
    return (
        f'"{name}" Not In ({listed})',
        lambda row: held(row[name], lambda each: unknown_not(element_test(each, "=", values))),
    )


def joined(parts, word):
    (left, is_left), (right, is_right) = parts

    def truth(row):
        one, other = is_left(row), is_right(row)
        decisive = word == "or"
        if decisive in (one, other):
            return decisive
        return None if None in (one, other) else not decisive

    return f"({left}) {word} ({right})", truth


EXPRESSIONS = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        inner.map(lambda part: (f"not ({part[0]})", lambda row: unknown_not(part[1](row)))),
        st.tuples(st.tuples(inner, inner), st.sampled_from(["and", "or"])).map(lambda both: joined(*both)),
    ),
    max_leaves=6,
)
CASES = st.fixed_dictionaries({name: st.one_of(st.none(), values) for name, (values, *_) in COLUMNS.items()})


@settings(max_examples=300)
@given(st.lists(CASES, max_size=6), EXPRESSIONS)
def test_it_agrees_with_plain_python(cases, expression):
    table = pyarrow.table(
        {name: pyarrow.array([row[name] for row in cases], type_) for name, (_, type_, _) in COLUMNS.items()}
    )
    text, truth = expression
    assert rows(text, table) == [at for at, row in enumerate(cases) if truth(row) is True]


@settings(max_examples=300)
@given(st.text(alphabet="ab=<>!()',\"` 019.-eEx&;\n中", max_size=30) | st.text(max_size=20))
def test_any_text_is_a_condition_or_an_error(text):
    with contextlib.suppress(ArgumentError):
        rows(text)

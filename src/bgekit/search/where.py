"""Conditions on metadata, such as `year >= 2020 and lang = 'en'`: parsed by a closed grammar, computed by pyarrow.

    condition   = all-of { "or" all-of }
    all-of      = single { "and" single }
    single      = "not" single | "(" condition ")" | comparison
    comparison  = column ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value
                | column [ "not" ] "in" "(" value { "," value } ")"
                | column "is" [ "not" ] "null"
    value       = number | 'string' | true | false

Comparisons are exact: numbers are compared as numbers, not as what they round to. A null matches `is null` alone. A
list matches if one of its elements does.
"""

from __future__ import annotations

import datetime
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from ..display.option_names import did_you_mean
from ..display.terminal import columns as columns_taken
from ..errors import ArgumentError

#: Parentheses and `not` within one another, which cost stack.
_DEEPEST: Final = 100
_KEYWORDS: Final = frozenset({"and", "or", "not", "in", "is", "null", "true", "false"})
_OPERATORS: Final = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_COMPARISONS: Final = "=, !=, <, <=, >, >=, in, not in, is null and is not null"
_TOKEN: Final = re.compile(
    r"""(?P<number>[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])
    |(?P<string>'(?:[^']|'')*')
    |(?P<quoted>"(?:[^"]|"")+"|`(?:[^`]|``)+`)
    |(?P<word>[^\W\d][\w.-]*)
    |(?P<symbol><=|>=|!=|<>|==|[=<>(),])""",
    re.VERBOSE,
)
_DATE: Final = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(\.\d{1,6})?(Z|[+-]\d\d:\d\d)?)?")
_BARE_DATE: Final = re.compile(r"\d{4}-\d{1,2}-\d{1,2}(?![\w.])")
#: Ends of 64-bit whole numbers, and the largest double float.
_LEAST, _MOST, _LARGEST = -(1 << 63), (1 << 63) - 1, sys.float_info.max
_MICROSECONDS: Final = 10**6
_DAY: Final = 24 * 3600 * _MICROSECONDS


class WhereError(ArgumentError):
    """A condition that does not follow the grammar, or has no meaning for the metadata.

    Attributes:
        reason: What is wrong.
        start: Character of the condition where that stands.
        end: Character behind it.
    """

    def __init__(self, message: str, reason: str, start: int, end: int) -> None:
        super().__init__(message)
        self.reason, self.start, self.end = reason, start, end


@dataclass(frozen=True)
class _Token:
    """A piece of an expression, from character `start` to before `end`; `kind` is "end" behind the last one."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Column:
    name: str
    place: _Token


@dataclass(frozen=True)
class _Value:
    """A number, string or truth value as it stands in an expression."""

    value: int | float | str | bool
    place: _Token


@dataclass(frozen=True)
class _Comparison:
    column: _Column
    operator: str
    value: _Value


@dataclass(frozen=True)
class _In:
    column: _Column
    values: tuple[_Value, ...]
    negated: bool


@dataclass(frozen=True)
class _IsNull:
    column: _Column
    negated: bool


@dataclass(frozen=True)
class _Not:
    part: _Condition


@dataclass(frozen=True)
class _Joined:
    """Several conditions, of which all (`and`) or one (`or`) must hold."""

    word: str
    parts: tuple[_Condition, ...]


_Condition: TypeAlias = "_Comparison | _In | _IsNull | _Not | _Joined"
#: What a condition says of each value of an array: true, false, or null where it cannot be known.
_Test: TypeAlias = "Callable[[Any], Any]"


class Where:
    """Condition on the metadata of rows.

    Attributes:
        expression: The condition as it was written.
        columns: Names of the columns it looks at, in the order of their first use.

    Raises:
        ArgumentError: it does not follow the grammar; the message points at the place.
    """

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self._condition = _Parser(expression).parsed()
        self.columns = tuple(dict.fromkeys(_columns_of(self._condition)))

    def rows(self, table: Any) -> npt.NDArray[np.bool_]:
        """Mark [rows] of the rows of a pyarrow table that the condition holds for.

        Raises:
            ArgumentError: the table has no column of a name, or one of another type than it is compared with.
        """
        import pyarrow.compute as pc

        held = pc.fill_null(_Evaluation(self.expression, table).holds(self._condition), False)
        return np.asarray(held.to_numpy(), dtype=np.bool_)

    def rows_in(self, place: object, table: Any) -> npt.NDArray[np.bool_]:
        """The same for the metadata of an index.

        Args:
            place: The index, as messages name it.
            table: Its metadata; None where it keeps none.

        Raises:
            ArgumentError: as `rows`, or the index keeps no metadata.
        """
        if table is None:
            columns = " ".join(each if each.isidentifier() else f"'{each}'" for each in self.columns)
            raise ArgumentError(
                f"{place} keeps no metadata for a condition: build it again with keep=[...] (--keep {columns})"
            )
        return self.rows(table)


def _columns_of(condition: _Condition) -> Iterator[str]:
    if isinstance(condition, _Not):
        yield from _columns_of(condition.part)
    elif isinstance(condition, _Joined):
        for part in condition.parts:
            yield from _columns_of(part)
    else:
        yield condition.column.name


def _fail(expression: str, place: _Token, reason: str) -> NoReturn:
    # One column of the terminal for each line break and tab, so that the mark stands where it should.
    shown = "".join(" " if each.isspace() else each for each in expression)
    mark = " " * columns_taken(shown[: place.start]) + "^" * max(columns_taken(shown[place.start : place.end]), 1)
    raise WhereError(f"where: {reason}\n    {shown}\n    {mark}", reason, place.start, place.end)


def _tokens(expression: str) -> Iterator[_Token]:
    at = 0
    while True:
        while at < len(expression) and expression[at].isspace():
            at += 1
        if at == len(expression):
            yield _Token("end", "", at, at)
            return
        found = _TOKEN.match(expression, at)
        if found is None:
            _fail(expression, _Token("", expression[at], at, at + 1), _unknown(expression[at:]))
        kind, text = str(found.lastgroup), found[0]
        if kind == "word" and text.lower() in _KEYWORDS:
            kind, text = "keyword", text.lower()
        yield _Token(kind, text, at, found.end())
        at = found.end()


def _unknown(rest: str) -> str:
    """Why nothing of the grammar begins with this."""
    first = rest[0]
    if first in "'\"`":
        return f"the quote {first} is opened here and not closed; one that is part of a string or name is doubled"
    if first.isdigit():
        return "this is not a number; a string stands in single quotes"
    words = {"&": "and", "|": "or", "!": "not"}
    return f"{first} has no meaning here" + (f"; the word is {words[first]}" if first in words else "")


class _Parser:
    """Recursive descent, a method a rule of the grammar."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens = list(_tokens(expression))
        self._at = 0

    def parsed(self) -> _Condition:
        """The whole expression."""
        if self._now.kind == "end":
            self._fail("the condition is empty; one looks like year >= 2020 and lang = 'en'")
        condition = self._condition(0)
        if self._now.kind != "end":
            closing = self._now.text == ")"
            self._fail("this parenthesis was not opened" if closing else "and, or, or the end is expected here")
        return condition

    @property
    def _now(self) -> _Token:
        return self._tokens[self._at]

    def _takes(self, *texts: str) -> bool:
        """Go past keywords or symbols, if they come next in this order."""
        coming = self._tokens[self._at : self._at + len(texts)]
        if [token.text for token in coming if token.kind in ("keyword", "symbol")] != list(texts):
            return False
        self._at += len(texts)
        return True

    def _fail(self, reason: str, place: _Token | None = None) -> NoReturn:
        _fail(self._expression, place or self._now, reason)

    def _condition(self, depth: int) -> _Condition:
        return self._joined("or", lambda: self._joined("and", lambda: self._single(depth)))

    def _joined(self, word: str, part: Callable[[], _Condition]) -> _Condition:
        parts = [part()]
        while self._takes(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else _Joined(word, tuple(parts))

    def _single(self, depth: int) -> _Condition:
        if depth == _DEEPEST:
            self._fail(f"there are more than {_DEEPEST} parentheses or not within one another")
        if self._takes("not"):
            return _Not(self._single(depth + 1))
        opening = self._now
        if not self._takes("("):
            return self._comparison()
        condition = self._condition(depth + 1)
        if not self._takes(")"):
            if self._now.kind == "end":
                self._fail("this parenthesis is not closed", opening)
            self._fail("and, or, or a closing parenthesis is expected here")
        return condition

    def _comparison(self) -> _Condition:
        column = self._column()
        if self._takes("is", "not", "null"):
            return _IsNull(column, negated=True)
        if self._takes("is", "null"):
            return _IsNull(column, negated=False)
        if self._now.text == "is" and self._now.kind == "keyword":
            self._fail("is goes with null alone: is null, is not null")
        negated = self._takes("not", "in")
        if negated or self._takes("in"):
            return _In(column, self._list(), negated)
        operator = self._now
        if operator.kind != "symbol" or operator.text not in _OPERATORS:
            what = (
                f"{operator.text} is not a comparison" if operator.kind == "word" else "a comparison is expected here"
            )
            of_lists = operator.text.lower() in ("contains", "has", "includes")
            hint = f" (a list meets = if one of its elements does: {column.place.text} = 'soup')" if of_lists else ""
            self._fail(f"{what}; there are {_COMPARISONS}{hint}")
        self._at += 1
        return _Comparison(column, _OPERATORS[operator.text], self._value(column, operator.text))

    def _column(self) -> _Column:
        token = self._now
        if token.kind == "word":
            name = token.text
        elif token.kind == "quoted":
            quote = token.text[0]
            name = token.text[1:-1].replace(quote * 2, quote)
        else:
            self._fail(_no_column(token))
        self._at += 1
        return _Column(name, token)

    def _list(self) -> tuple[_Value, ...]:
        if not self._takes("("):
            self._fail("in is followed by values in parentheses: lang in ('en', 'fr')")
        values = [self._value()]
        while self._takes(","):
            values.append(self._value())
        if not self._takes(")"):
            self._fail("a comma or a closing parenthesis is expected here")
        return tuple(values)

    def _value(self, column: _Column | None = None, operator: str = "") -> _Value:
        token = self._now
        if token.kind == "number":
            bare = _BARE_DATE.match(self._expression, token.start)
            if bare is not None:  # Its parts would be numbers, and the error would stand at the second of them.
                place = _Token("", bare[0], token.start, bare.end())
                self._fail(f"a date stands in single quotes: '{bare[0]}'", place)
            value: int | float | str | bool = _number(token.text)
            if isinstance(value, float) and math.isinf(value):
                self._fail("this number is too large")
        elif token.kind == "string":
            value = token.text[1:-1].replace("''", "'")
        elif token.kind == "keyword" and token.text in ("true", "false"):
            value = token.text == "true"
        else:
            self._fail(_no_value(token, column, operator))
        self._at += 1
        return _Value(value, token)


def _number(text: str) -> int | float:
    try:
        return float(text) if set(text) & set(".eE") else int(text)
    except ValueError:  # More digits than Python reads.
        return math.inf


def _no_column(token: _Token) -> str:
    if token.kind == "keyword":
        return f'{token.text} is a word of conditions; a column of that name stands in double quotes: "{token.text}"'
    if token.kind in ("number", "string"):
        return "a comparison begins with the name of a column: year >= 2020"
    return "the name of a column is expected here"


def _no_value(token: _Token, column: _Column | None, operator: str) -> str:
    if token.kind == "keyword" and token.text == "null" and column is not None:
        is_null = "is not null" if operator in ("!=", "<>") else "is null"
        return f"null is not compared by {operator}; write {column.place.text} {is_null}"
    if token.kind == "word":
        return f"a string stands in single quotes: '{token.text}'"
    if token.kind == "quoted":
        return f"these quotes enclose names of columns; a string stands in single quotes: '{token.text[1:-1]}'"
    return "a value is expected here: a number, a string in single quotes, true or false"


class _Evaluation:
    """A condition computed over the rows of one table, in the logic of three values: what is null is unknown."""

    def __init__(self, expression: str, table: Any) -> None:
        import pyarrow
        import pyarrow.compute

        self._arrow, self._compute = pyarrow, pyarrow.compute
        self._expression, self._table = expression, table

    def holds(self, condition: _Condition) -> Any:
        """True, false or null for each row."""
        if isinstance(condition, _Not):
            return self._compute.invert(self.holds(condition.part))
        if isinstance(condition, _Joined):
            join = self._compute.and_kleene if condition.word == "and" else self._compute.or_kleene
            return reduce(join, map(self.holds, condition.parts))
        column = self._column(condition.column)
        if isinstance(condition, _IsNull):
            return (self._compute.is_valid if condition.negated else self._compute.is_null)(column)
        types = self._arrow.types
        if types.is_list(column.type) or types.is_large_list(column.type):
            test = self._test(condition, column.type.value_type, "lists of ")
            return self._of_lists(column, test)
        return self._test(condition, column.type, "")(column)

    def _column(self, column: _Column) -> Any:
        names = self._table.column_names
        if column.name not in names:
            hint = did_you_mean(column.name, names, within=True)
            self._fail(column.place, f"there is no column {column.name}{hint}; there are {', '.join(names) or 'none'}")
        return self._table.column(column.name)

    def _fail(self, place: _Token, reason: str) -> NoReturn:
        _fail(self._expression, place, reason)

    def _of_lists(self, lists: Any, test: _Test) -> Any:
        """Whether a test holds for one element of each list; of an empty one never, and null for a null."""
        arrow, parts = self._arrow, []
        for chunk in lists.chunks:
            held = np.zeros(len(chunk), dtype=np.bool_)
            met = self._compute.fill_null(test(chunk.flatten()), False).to_numpy(zero_copy_only=False)
            held[self._compute.list_parent_indices(chunk).to_numpy()[met]] = True
            parts.append(arrow.array(held, mask=chunk.is_null().to_numpy(zero_copy_only=False)))
        return arrow.chunked_array(parts, arrow.bool_())

    def _test(self, condition: _Comparison | _In, type_: Any, lists: str) -> _Test:
        """The condition as a test of an array.

        Args:
            condition: A comparison of a column, or of the elements of its lists.
            type_: Of the array.
            lists: What messages say of the column before the type.
        """
        if self._arrow.types.is_null(type_):  # There is no value in it, so nothing is known.
            return lambda array: array.cast(self._arrow.bool_())
        called = f"the column {condition.column.name} holds {lists}"
        type_, kind = self._kind(condition, type_, called)
        if isinstance(condition, _Comparison):
            if kind == "bool" and condition.operator not in ("=", "!="):
                self._fail(condition.value.place, f"{called}true and false, which have no order: use = or !=")
            return self._compared(condition.operator, self._range(condition.value, kind, called, type_), type_)
        return self._among([self._range(value, kind, called, type_) for value in condition.values], type_, condition)

    def _kind(self, condition: _Comparison | _In, type_: Any, called: str) -> tuple[Any, str]:
        """The type that a column is compared in, and what kind of values that is."""
        arrow, types = self._arrow, self._arrow.types
        if types.is_boolean(type_):
            return type_, "bool"
        if types.is_integer(type_):
            return arrow.int64(), "whole"
        if types.is_floating(type_):
            return arrow.float64(), "number"
        if types.is_string(type_) or types.is_large_string(type_):
            return type_, "string"
        if types.is_date32(type_):
            return type_, "date"
        if types.is_timestamp(type_) and type_.unit == "us":
            return type_, "time"
        self._fail(condition.column.place, f"{called}{type_}, which is not compared")

    def _range(self, value: _Value, kind: str, called: str, type_: Any) -> _Range:
        """The values of a column's type that a value of the expression stands for."""
        given, place = value.value, value.place
        if kind == "bool":
            if not isinstance(given, bool):
                self._fail(place, f"{called}true and false: write true or false")
            return _Range(given, given)
        if kind in ("whole", "number"):
            if isinstance(given, bool) or isinstance(given, str):
                plain = isinstance(given, str) and re.fullmatch(r"[-+]?\d+(\.\d+)?", given.strip())
                hint = f"write {given.strip()} without quotes" if plain and isinstance(given, str) else "write a number"
                self._fail(place, f"{called}{'whole numbers' if kind == 'whole' else 'numbers'}: {hint}")
            return _whole_range(given) if kind == "whole" else _float_range(given)
        if not isinstance(given, str):
            what = {"string": "strings", "date": "dates", "time": "times"}[kind]
            example = f"'{place.text}'" if kind == "string" else "one as '2024-05-31'"
            self._fail(place, f"{called}{what}: write {example}, in single quotes")
        if kind == "string":
            return _Range(given, given)
        try:
            return _date_range(given) if kind == "date" else _time_range(given, zone=type_.tz is not None)
        except ValueError as error:
            self._fail(place, f"{called}{'dates' if kind == 'date' else 'times'}: {error}")

    def _compared(self, operator: str, wanted: _Range, type_: Any) -> _Test:
        compute = self._compute
        low, high = (None if end is None else self._arrow.scalar(end, type_) for end in (wanted.low, wanted.high))
        if operator in ("=", "!="):
            if low is None or high is None:
                equal = self._always(False)
            elif wanted.low == wanted.high:
                equal = lambda array: compute.equal(array, low)  # noqa: E731
            else:
                equal = lambda array: compute.and_(  # noqa: E731
                    compute.greater_equal(array, low), compute.less_equal(array, high)
                )
            return equal if operator == "=" else lambda array: compute.invert(equal(array))
        function, end, without = {
            "<": (compute.less, low, True), ">=": (compute.greater_equal, low, False),
            "<=": (compute.less_equal, high, False), ">": (compute.greater, high, True),
        }[operator]  # fmt: skip
        return self._always(without) if end is None else lambda array: function(array, end)

    def _always(self, answer: bool) -> _Test:
        """The same answer for every value; null for a null."""
        none = self._arrow.scalar(None, self._arrow.bool_())
        return lambda array: self._compute.if_else(self._compute.is_valid(array), answer, none)

    def _among(self, wanted: Sequence[_Range], type_: Any, condition: _In) -> _Test:
        """Whether a value is in one of several ranges, or in none of them."""
        compute = self._compute
        values = [each.low for each in wanted if each.low is not None and each.low == each.high]
        if 0.0 in values and self._arrow.types.is_floating(type_):
            values += [0.0, -0.0]  # Equal, but not the same bits.
        known = self._arrow.array(values, type_)
        wider = [self._compared("=", each, type_) for each in wanted if None not in (each.low, each.high)
                 and each.low < each.high]  # fmt: skip
        none = self._arrow.scalar(None, self._arrow.bool_())

        def test(array: Any) -> Any:
            found = compute.if_else(compute.is_valid(array), compute.is_in(array, value_set=known), none)
            found = reduce(compute.or_, (one(array) for one in wider), found)
            return compute.invert(found) if condition.negated else found

        return test


@dataclass(frozen=True)
class _Range:
    """The values of a type from `low` to `high` that are equal to a value of an expression.

    Where there is none, because the value lies between two of the type, these are the next above and the next below
    it; None where there is no such either.
    """

    low: Any
    high: Any


def _whole_range(value: int | float) -> _Range:
    """Of a column of 64-bit whole numbers."""
    low, high = math.ceil(value), math.floor(value)
    return _Range(
        None if low > _MOST else max(low, _LEAST),
        None if high < _LEAST else min(high, _MOST),
    )


def _float_range(value: int | float) -> _Range:
    """Of a column of double floats."""
    try:
        near = float(value)
    except OverflowError:
        return _Range(math.inf, _LARGEST) if value > 0 else _Range(-_LARGEST, -math.inf)
    # Python compares whole and other numbers exactly.
    low = near if near >= value else math.nextafter(near, math.inf)
    high = near if near <= value else math.nextafter(near, -math.inf)
    return _Range(low, high)


def _date_range(text: str) -> _Range:
    day, time = _read_date(text)
    if time is not None:
        raise ValueError(f"write the date alone: '{day}'")
    return _Range(day, day)


def _time_range(text: str, *, zone: bool) -> _Range:
    """Microseconds since 1970: of a date those of the whole day, in UTC where the column has time zones."""
    day, time = _read_date(text)
    start = (day - datetime.date(1970, 1, 1)).days * _DAY
    if time is None:
        return _Range(start, start + _DAY - 1)
    if time.tzinfo is not None and not zone:
        raise ValueError("they have no time zones: leave that out")
    since = time.replace(tzinfo=time.tzinfo or datetime.timezone.utc) - datetime.datetime(
        1970, 1, 1, tzinfo=datetime.timezone.utc
    )
    moment = (since.days * 24 * 3600 + since.seconds) * _MICROSECONDS + since.microseconds
    return _Range(moment, moment)


def _read_date(text: str) -> tuple[datetime.date, datetime.datetime | None]:
    """The day of an ISO date, and the moment if there is a time behind it."""
    found = _DATE.fullmatch(text)
    if found is None:
        raise ValueError(f"'{text}' is not an ISO date such as '2024-05-31' or '2024-05-31T17:30'")
    day, clock, fraction, zone = found.groups()
    # Made whole: older Pythons read fewer forms.
    written = f"{day}T{clock or '00:00'}{'' if (clock or '').count(':') == 2 else ':00'}{(fraction or '.'):0<7}"
    moment = datetime.datetime.fromisoformat(written + (zone or "").replace("Z", "+00:00"))
    return moment.date(), moment if clock else None

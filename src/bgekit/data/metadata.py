"""Metadata: columns of rows that are carried along to vectors, index and results, each with one type.

JSON, Parquet and Arrow say what type a value has, and a column that is kept has one. Cells of csv and tsv files have
none: they are kept as they are written, and all cells of a column are typed together when an index is made.
"""

from __future__ import annotations

import datetime
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import IO, Any, Final, TypeAlias

from ..errors import ArgumentError, DataError, OutputError
from .encodings import repair
from .formats import BadRow, shown

#: Stands for all columns but those of text, title and id.
ALL: Final = "*"
#: Columns to keep, by name.
Keep: TypeAlias = "str | Sequence[str]"
#: What is known of a row beside id and text: column -> value.
Metadata: TypeAlias = "Mapping[str, Any]"
#: Rows that are stored together.
_BATCH: Final = 1 << 16
#: Marks columns of cells that have no type yet.
_UNTYPED: Final = {b"bgekit": b"untyped cells"}
_CELLS_OF_TABLES: Final = "cells of a csv or tsv file"
#: Cells of a column of whole numbers, of numbers, and of truth values. What would come out otherwise than it was
#: written is none of them: 007, or more digits than a number of 64 bits holds.
_CELLS: Final = {
    "whole": r"^-?(0|[1-9]\d{0,17})$",
    "number": r"^-?((0|[1-9]\d{0,14})(\.\d+)?|\.\d+)([eE][-+]?\d\d?)?$",
    "truth": r"^(?i:true|false)$",
}


class Cell(str):
    """A cell of a csv or tsv file: a string that may turn out to be a number or a truth value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Cell({super().__repr__()})"


_TYPES: Final = {
    bool: "bool", int: "number", float: "number", str: "string", Cell: "cell", datetime.date: "date",
    datetime.datetime: "time",
}  # fmt: skip
_WORDS: Final = {
    "bool": "true or false", "number": "a number", "string": "a string", "cell": "a cell of a table", "date": "a date",
    "time": "a date with a time", "zoned": "a date with a time and a time zone", "": "nothing",
    "list of bool": "a list of true and false", "list of number": "a list of numbers",
    "list of string": "a list of strings", "list of date": "a list of dates",
    "list of time": "a list of dates with times", "list of zoned": "a list of dates with times and time zones",
    "list of ": "an empty list",
}  # fmt: skip


class BadValue(BadRow):
    """A value that cannot be kept, or is of another type than those of its column before it."""


def checked_keep(keep: Keep | None) -> tuple[str, ...]:
    """Names of columns to keep; one name alone is a list of one.

    Raises:
        ArgumentError: one of them is not a name.
    """
    names = () if keep is None else (keep,) if isinstance(keep, str) else tuple(keep)
    for name in names:
        if not isinstance(name, str) or not name:
            raise ArgumentError(f"keep is a list of names of columns, or '*' for all of them, not {shown(name)}")
    return tuple(dict.fromkeys(names))


class Kinds:
    """Kind of the values of each column, by those seen so far."""

    def __init__(self) -> None:
        #: Kind, and the file and line that it was first seen in.
        self._kinds: dict[str, tuple[str, str, int]] = {}
        self._fractions: set[str] = set()

    def checked(self, metadata: Metadata, file: str = "", line: int = 0) -> dict[str, Any]:
        """The values of a row as they are kept: strings of valid Unicode, plain numbers, dates, null for no number.

        Raises:
            BadValue: a value cannot be kept, or is of another kind than those of its column before it.
        """
        return {name: self._checked(name, value, file, line) for name, value in metadata.items()}

    def _checked(self, name: str, value: Any, file: str, line: int) -> Any:
        if value is None:
            return None
        kind, value = _kind(name, value)
        if kind == "number" and isinstance(value, float):
            self._fractions.add(name)
        elif kind == "list of number" and any(isinstance(element, float) for element in value):
            self._fractions.add(name)
        if kind == "":
            return None
        before = self._kinds.get(name)
        if before is None or (before[0] == "list of " and kind.startswith("list of ")):
            self._kinds[name] = (kind, file, line)
        elif before[0] != kind and not (kind == "list of " and before[0].startswith("list of ")):
            place = f" in {before[1]}, line {before[2]:,}" if before[1] else " before"
            shown = value.isoformat() if isinstance(value, datetime.date) else repr(value)
            raise BadValue(
                f"the column {name} is {_WORDS[kind]} here ({shown:.40}) and {_WORDS[before[0]]}{place}: a column "
                f"that is kept has one type; write it in one way, or name the columns to keep without {name}"
            )
        return value

    def field(self, name: str) -> Any:
        """The Arrow field of a column."""
        import pyarrow

        kind, *_ = self._kinds.get(name, ("",))
        whole = pyarrow.float64() if name in self._fractions else pyarrow.int64()
        types = {
            "bool": pyarrow.bool_(), "number": whole, "string": pyarrow.string(), "cell": pyarrow.string(),
            "date": pyarrow.date32(), "time": pyarrow.timestamp("us"), "zoned": pyarrow.timestamp("us", "UTC"),
            "": pyarrow.null(),
        }  # fmt: skip
        is_list = kind.startswith("list of ")
        type_ = types[kind.removeprefix("list of ")]
        return pyarrow.field(
            name, pyarrow.list_(type_) if is_list else type_, metadata=_UNTYPED if kind == "cell" else None
        )


def _kind(name: str, value: Any) -> tuple[str, Any]:
    """Kind of a value, and the value as it is kept; "" for what is the same as null.

    Raises:
        BadValue: it cannot be kept.
    """
    kind = _TYPES.get(type(value))
    if kind is None:
        return _further_kind(name, value)
    if kind == "string":
        return kind, value if value.isascii() else repair(value)[0]
    if kind == "number":
        if isinstance(value, float):
            return ("", None) if math.isnan(value) else (kind, value)
        if not -(1 << 63) <= value < 1 << 63:
            raise BadValue(f"the column {name} has a whole number of more than 64 bits ({value:.6e}): make it a string")
    if kind == "time" and value.tzinfo is not None:
        return "zoned", value.astimezone(datetime.timezone.utc)
    return kind, value


def _further_kind(name: str, value: Any) -> tuple[str, Any]:
    if isinstance(value, list | tuple):
        return _list_kind(name, value)
    if isinstance(value, Mapping):
        raise BadValue(
            f"the column {name} is an object ({', '.join(map(str, value))[:40]}), and kept columns have no inner "
            f"fields: make columns of them, or name the columns to keep without {name}"
        )
    if isinstance(value, Decimal):
        if not value.is_finite():
            return "", None
        return _kind(name, int(value) if value == value.to_integral_value() else float(value))
    if hasattr(value, "to_pydatetime"):  # What pyarrow makes of nanoseconds where pandas is installed.
        return _kind(name, value.to_pydatetime(warn=False))
    if hasattr(value, "tolist") and not isinstance(value, str | bytes):  # Numbers and arrays of numpy.
        return _kind(name, value.tolist())
    for plain in (str, int, float):
        if isinstance(value, plain) and not isinstance(value, bool):
            return _kind(name, plain(value))
    raise BadValue(f"the column {name} is {shown(value)}, which cannot be kept: make it a string or a number")


def _list_kind(name: str, values: Sequence[Any]) -> tuple[str, list[Any]]:
    found = ""
    kept: list[Any] = []
    for element in values:
        if element is None:
            kept.append(None)
            continue
        kind, plain = _kind(name, element)
        if kind.startswith("list of "):
            raise BadValue(f"the column {name} is a list of lists, which cannot be kept")
        if kind and found and kind != found:
            raise BadValue(f"the column {name} is a list of {_WORDS[found]} and {_WORDS[kind]}: a list has one type")
        found = found or kind
        kept.append(plain)
    return f"list of {found}", kept


def table_of(rows: Sequence[Metadata], places: Sequence[tuple[str, int]] = ()) -> Any:
    """The pyarrow table of the metadata of some rows, null where a row lacks a column of others; None without columns.

    Args:
        rows: The metadata of each.
        places: File and line of each, for messages; "" and the number of the record where there is no file.

    Raises:
        DataError: a value cannot be kept, or a column has values of different types.
    """
    import pyarrow

    kinds, checked = Kinds(), []
    for at, row in enumerate(rows):
        file, line = places[at] if places else ("", at)
        try:
            checked.append(kinds.checked(row, file, line))
        except BadValue as error:
            raise DataError(f"{file}, line {line:,}: {error}" if file else f"record {line:,}: {error}") from error
    names = dict.fromkeys(name for row in checked for name in row)
    if not names:
        return None
    schema = pyarrow.schema([kinds.field(name) for name in names])
    columns = [pyarrow.array([row.get(each.name) for row in checked], each.type) for each in schema]
    return pyarrow.Table.from_arrays(columns, schema=schema)


class Columns:
    """Columns of several tables of metadata, each with the type that it has in all of them."""

    def __init__(self) -> None:
        self._types: dict[str, Any] = {}
        self._cells: dict[str, _Cells] = {}

    def add(self, table: Any, place: object) -> None:
        """Look at one of the tables.

        Raises:
            DataError: a column has another type in it than in those before; the message says where (`place`).
        """
        for field in table.schema:
            type_ = field.type
            if field.metadata == _UNTYPED:
                type_ = _CELLS_OF_TABLES
                self._cells.setdefault(field.name, _Cells()).add(table.column(field.name))
            before = self._types.get(field.name)
            joined = type_ if before is None else _joined(before, type_)
            if joined is None:
                raise DataError(
                    f"{place}: the column {field.name} is of the type {type_} here and {before} before: a column that "
                    "is kept has one type"
                )
            self._types[field.name] = joined

    @property
    def schema(self) -> Any:
        """The pyarrow schema of all tables together; what were cells has a type now."""
        import pyarrow

        cells = {name: found.type for name, found in self._cells.items()}
        return pyarrow.schema([pyarrow.field(name, cells.get(name, type_)) for name, type_ in self._types.items()])

    def cast(self, table: Any, rows: int, schema: Any = None) -> Any:
        """One of the tables with the types of all: nulls for columns that it lacks, and for all if it is None.

        Args:
            table: The table.
            rows: Its number of rows.
            schema: Types that it gets instead, such as those that all have together with further tables.
        """
        import pyarrow

        schema, columns = self.schema if schema is None else schema, []
        for field in schema:
            if table is None or field.name not in table.column_names:
                columns.append(pyarrow.nulls(rows, field.type))
            elif field.name in self._cells and table.schema.field(field.name).metadata == _UNTYPED:
                columns.append(_typed(table.column(field.name), field.type))
            else:
                columns.append(table.column(field.name).cast(field.type, safe=False))
        return pyarrow.table(columns, schema=schema)

    def are_cells(self, name: str) -> bool:
        """Whether a column has nothing but cells, whose type was seen from what they are."""
        return name in self._cells and self._types[name] == _CELLS_OF_TABLES


def _is_null(type_: Any) -> bool:
    return str(type_) == "null"


def _joined(one: Any, other: Any) -> Any:
    """The type of values of two types, None if there is none."""
    import pyarrow

    types = pyarrow.types
    if one == other or _is_null(other):
        return one
    if _is_null(one):
        return other
    if _CELLS_OF_TABLES in (one, other):
        return None
    if types.is_list(one) and types.is_list(other):
        element = _joined(one.value_type, other.value_type)
        return None if element is None else pyarrow.list_(element)
    return pyarrow.float64() if {one, other} == {pyarrow.int64(), pyarrow.float64()} else None


class _Cells:
    """What all cells of a column are that are not empty."""

    def __init__(self) -> None:
        self._possible = dict(_CELLS)
        self._any = False

    def add(self, cells: Any) -> None:
        import pyarrow.compute as pc

        written = pc.utf8_trim_whitespace(cells)
        written = written.filter(pc.fill_null(pc.not_equal(written, ""), False))
        self._any = self._any or len(written) > 0
        for kind, pattern in list(self._possible.items()):
            if not pc.all(pc.match_substring_regex(written, pattern), min_count=0).as_py():
                del self._possible[kind]

    @property
    def type(self) -> Any:
        """Their Arrow type."""
        import pyarrow

        types = {"whole": pyarrow.int64(), "number": pyarrow.float64(), "truth": pyarrow.bool_()}
        if not self._any:
            return pyarrow.null()
        return next((types[kind] for kind in self._possible), pyarrow.string())


def _typed(cells: Any, type_: Any) -> Any:
    """Cells as values of their type, empty ones as null."""
    import pyarrow
    import pyarrow.compute as pc

    if _is_null(type_):
        return pyarrow.nulls(len(cells))
    none = pyarrow.scalar(None, pyarrow.string())
    if pyarrow.types.is_string(type_):
        return pc.if_else(pc.equal(cells, ""), none, cells)
    written = pc.utf8_trim_whitespace(cells)
    written = pc.if_else(pc.equal(written, ""), none, written)
    return pc.equal(pc.ascii_lower(written), "true") if pyarrow.types.is_boolean(type_) else written.cast(type_)


#: A table of metadata (None without columns), how messages call it, and its number of rows.
Part: TypeAlias = "tuple[Any, str, int]"


def typed(parts: Callable[[], Iterable[Part]]) -> tuple[Any, Iterator[Any]] | None:
    """The schema that all parts have together, and each part with these types; None without columns.

    Args:
        parts: Gives the parts, in order, each time it is called.

    Raises:
        DataError: a column has different types in them.
    """
    columns = Columns()
    for table, place, _ in parts():
        if table is not None:
            columns.add(table, place)
    schema = columns.schema
    return (schema, (columns.cast(table, rows) for table, _, rows in parts())) if len(schema) else None


def extended(schema: Any, parts: Callable[[], Iterable[Part]], where: str) -> tuple[Any, Iterator[Any]] | None:
    """As `typed`, of parts that are added to a table: the schema that both have together, None without columns.

    Args:
        schema: Schema of the table; None if it has no columns.
        parts: What is added.
        where: Stands in messages for the place of the table, such as the name of an index.

    Raises:
        DataError: a column has different types in the parts, or another one than in the table.
    """
    import pyarrow

    columns = Columns()
    for table, place, _ in parts():
        if table is not None:
            columns.add(table, place)
    types = {} if schema is None else {field.name: field.type for field in schema}
    for field in columns.schema:
        before = types.get(field.name, field.type)
        # Cells are written as strings: a column that is known to be one takes them as they are.
        joined = before if columns.are_cells(field.name) and str(before) == "string" else _joined(before, field.type)
        if joined is None:
            raise DataError(
                f"the column {field.name} is of the type {field.type} in what is added and {before} in {where}: a "
                "column that is kept has one type"
            )
        types[field.name] = joined
    if not types:
        return None
    whole = pyarrow.schema(list(types.items()))
    return whole, (columns.cast(table, rows, whole) for table, _, rows in parts())


def joined_tables(schema: Any, tables: Iterable[Any]) -> Any:
    """Tables of one schema as one, in memory."""
    import pyarrow

    return pyarrow.concat_tables([schema.empty_table(), *tables])


def cast_table(table: Any, rows: int, schema: Any) -> Any:
    """A table with the types of a schema, which take its values, and nulls for columns that it lacks.

    Args:
        table: The table; None is one without columns.
        rows: Its number of rows.
        schema: The schema.
    """
    return Columns().cast(table, rows, schema)


def content_of(table: Any) -> bytes:
    """The content of a table, for fingerprints: it does not depend on how Arrow stores it."""
    types = [(field.name, str(field.type), field.metadata) for field in table.schema]
    return repr((types, table.to_pylist())).encode()


def write_table(file: IO[bytes] | Any, schema: Any, tables: Iterable[Any]) -> None:
    """Write tables as one Arrow file (IPC), which can be mapped into memory.

    Args:
        file: Open for bytes.
        schema: Schema of all tables.
        tables: One after another.
    """
    from pyarrow import ipc

    with ipc.new_file(file, schema) as writer:
        for table in _batched(tables):
            writer.write_table(table.combine_chunks())


def _batched(tables: Iterable[Any]) -> Iterator[Any]:
    import pyarrow

    waiting: list[Any] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= _BATCH:
            yield pyarrow.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pyarrow.concat_tables(waiting)


def read_table(path: str | os.PathLike[str], rows: int) -> Any:
    """The pyarrow table of such a file, mapped: what is not looked at is not read.

    Raises:
        OutputError: it is missing or damaged, or does not have as many rows.
    """
    import pyarrow
    from pyarrow import ipc

    try:
        # The table keeps the mapping open for as long as it is used.
        table = ipc.open_file(pyarrow.memory_map(os.fspath(path))).read_all()
        table.validate()
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError.
        raise OutputError(f"{path} is missing or damaged ({error}); make it again") from error
    if len(table) != rows:
        raise OutputError(f"{path} has {len(table):,} rows, not {rows:,}; make it again")
    return table


def row_of(table: Any, row: int) -> dict[str, Any]:
    """The metadata of a row as Python values."""
    return {name: column[row].as_py() for name, column in zip(table.column_names, table.columns, strict=True)}


def rows_of(table: Any, rows: Sequence[int]) -> list[dict[str, Any]]:
    """The same of several rows, read column by column."""
    if len(rows) < _ALONE:
        return [row_of(table, row) for row in rows]
    columns = [column.to_pylist() for column in table.take(rows).columns]
    names = table.column_names
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


#: Rows that are sooner read one by one.
_ALONE: Final = 16


def plain(value: Any) -> Any:
    """A value as JSON takes it: dates by ISO 8601."""
    if isinstance(value, list):
        return [plain(element) for element in value]
    return value.isoformat() if isinstance(value, datetime.date) else value


def free_names(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Names of columns beside others: one that is taken gets a number behind, such as `text_1`."""
    used = {*taken, *names}
    free = []
    for name in names:
        if name in taken:
            name = next(other for at in itertools.count(1) if (other := f"{name}_{at}") not in used)
            used.add(name)
        free.append(name)
    return free

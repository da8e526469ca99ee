"""The published tables of MTEB and C-MTEB, exactly as printed, and our results in the same form beside them.

The tables (`published_*.md`) are those of the README of BGE v1.5. Their average is over datasets, not over kinds: each
column counts as often as it has datasets. `Row.drift` tells how far a printed average is from that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from ...errors import ArgumentError
from ..judged_model import MTEB_NAMES, Kind
from .definitions import Benchmark, BenchmarkTask, benchmark

if TYPE_CHECKING:
    from ..results import Result

#: Files of the published tables by benchmark.
PUBLISHED: Final[Mapping[str, str]] = {"mteb-en": "published_mteb_en.md", "c-mteb": "published_c_mteb.md"}
#: Printed averages are rounded, and so are the columns that they are recomputed from.
TOLERANCE: Final = 0.02
#: Between two words that are written as one, as in PairClassification.
_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_LINK: Final = re.compile(r"\[([^\]]*)\]\([^)]*\)")


@dataclass(frozen=True)
class Row:
    """A row of a published table.

    Attributes:
        cells: As printed, with markup.
        scores: Mean (x100) of each kind.
        average: As printed.
        recomputed: Average over datasets that follows from the columns.
    """

    cells: tuple[str, ...]
    scores: Mapping[Kind, float]
    average: float
    recomputed: float

    @property
    def model(self) -> str:
        """Name of the model as printed."""
        return plain(self.cells[0])

    @property
    def drift(self) -> float:
        """Difference of the printed average to the recomputed one."""
        return self.average - self.recomputed

    @property
    def recomputes(self) -> bool:
        """Whether the printed average follows from the printed columns."""
        return abs(self.drift) <= TOLERANCE


@dataclass(frozen=True)
class PublishedTable:
    """A published table.

    Attributes:
        header: Titles of the columns, as printed.
        rule: The line below them.
        rows: Rows in the order printed.
    """

    header: tuple[str, ...]
    rule: tuple[str, ...]
    rows: tuple[Row, ...]

    def row(self, model: str) -> Row:
        """The row of a model, by its name with or without the organisation, in any case.

        Raises:
            ArgumentError: the table has no such model.
        """
        wanted = model.split("/")[-1].lower()
        for row in self.rows:
            if row.model.split("/")[-1].lower() == wanted:
                return row
        raise ArgumentError(f"the published table has no row {model!r}; it has {', '.join(r.model for r in self.rows)}")


def average(scores: Mapping[Kind, float], weights: Mapping[Kind, int]) -> float:
    """Average over datasets: the mean of each kind counts as often as the kind has datasets.

    Raises:
        ArgumentError: a kind has no score.
    """
    missing = [kind for kind in weights if kind not in scores]
    if missing:
        raise ArgumentError(f"there is no average over {sum(weights.values())} datasets without {', '.join(missing)}")
    return sum(scores[kind] * weight for kind, weight in weights.items()) / sum(weights.values())


@lru_cache
def published_table(name: str) -> PublishedTable | None:
    """The published table of a benchmark, None where it has none."""
    wanted = benchmark(name)
    if wanted.name not in PUBLISHED:
        return None
    text = files(__package__).joinpath(PUBLISHED[wanted.name]).read_text(encoding="utf-8")
    header, rule, *body = (_cells(line) for line in text.splitlines())
    kinds = tuple(wanted.weights)
    rows = []
    for cells in body:
        numbers = [float(plain(cell)) for cell in cells[-len(kinds) - 1 :]]
        scores = dict(zip(kinds, numbers[1:], strict=True))
        rows.append(Row(cells, scores, numbers[0], average(scores, wanted.weights)))
    return PublishedTable(header, rule, tuple(rows))


def plain(cell: str) -> str:
    """The text of a cell of a markdown table, without links and stress."""
    return _LINK.sub(r"\1", cell).replace("**", "").strip()


@dataclass(frozen=True)
class OurRow:
    """Scores of a model on the tasks of a benchmark.

    Attributes:
        label: The model, and what differs from its default setting.
        dimension: Width of its vectors.
        max_length: Longest input in tokens.
        scores: Main score (x100) by task.
        not_comparable: Tasks whose data is not that of the published scores.
    """

    label: str
    dimension: int | None
    max_length: int | None
    scores: Mapping[BenchmarkTask, float]
    not_comparable: tuple[str, ...] = ()

    def of(self, tasks: Iterable[BenchmarkTask]) -> tuple[float | None, int, int]:
        """Mean over tasks (None unless all are there), how many are there, and of how many."""
        wanted = list(tasks)
        there = [self.scores[task] for task in wanted if task in self.scores]
        mean = sum(there) / len(wanted) if wanted and len(there) == len(wanted) else None
        return mean, len(there), len(wanted)


def our_rows(name: str, results: Iterable[Result]) -> tuple[list[OurRow], list[str]]:
    """Results in the rows of a benchmark's table, and the names of tasks that are not part of it.

    A result counts where its task, its split and (if the task has several subsets) its language are the benchmark's,
    with the metric of the table.
    """
    wanted = benchmark(name)
    rows: dict[str, tuple[Result, dict[BenchmarkTask, float], list[str]]] = {}
    foreign: list[str] = []
    for result in results:
        _, scores, inexact = rows.setdefault(result.label, (result, {}, []))
        task = next((task for task in wanted if _counts(result, task)), None)
        if task is None:
            foreign.append(f"{result.task} ({result.split})")
            continue
        score = result.metrics.get(task.main_metric)
        if score is None and result.main_metric != task.main_metric:
            foreign.append(f"{result.task} (no {task.main_metric})")
            continue
        scores[task] = result.main_score if score is None else score
        if not result.comparable:
            inexact.append(task.key)
    made = [
        OurRow(
            label,
            result.setting.get("dimension") or result.card.get("dimension"),
            result.card.get("max_length"),
            scores,
            tuple(dict.fromkeys(inexact)),
        )
        for label, (result, scores, inexact) in rows.items()
    ]
    return made, list(dict.fromkeys(foreign))


def render_table(name: str, results: Iterable[Result] = (), *, markdown: bool = True) -> str:
    """Our results in the form of a benchmark's published table, above the published rows.

    The mean of a kind is shown once all its tasks are there, and the average once all kinds are; until then the cell
    is "-" with how many of how many tasks there are.

    Args:
        name: Name of the benchmark.
        results: Ours, of one model or several.
        markdown: As a markdown table; otherwise aligned for a console.
    """
    wanted, table = benchmark(name), published_table(name)
    ours, foreign = our_rows(name, results)
    header, rule = (table.header, table.rule) if table else _made_header(wanted)
    lengths = len(header) - len(wanted.weights) - 2
    body = [_our_cells(row, wanted, lengths) for row in ours]
    published = [row.cells for row in table.rows] if table else []
    if markdown:
        lines = [_line(cells) for cells in (header, rule, *body, *published)]
    else:
        lines = _aligned(header, body, [tuple(map(plain, cells)) for cells in published])
    notes = _notes(ours, foreign, table, wanted)
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" if markdown else note for note in notes)])


def _counts(result: Result, task: BenchmarkTask) -> bool:
    if result.kind != task.kind or result.split != task.split or not task.answers_to(result.task):
        return False
    # A name without its subset says nothing about the language: the data has to.
    if task.subset and result.task.lower() == task.name.lower():
        language = result.language.lower()
        return not language or language in (task.language, task.subset.lower())
    return True


def _our_cells(row: OurRow, wanted: Benchmark, lengths: int) -> tuple[str, ...]:
    def shown(tasks: Iterable[BenchmarkTask]) -> str:
        mean, there, of = row.of(tasks)
        return f"- ({there}/{of})" if mean is None else f"{mean:.2f}"

    sizes = (row.dimension, row.max_length)[:lengths]
    kinds = [shown(task for task in wanted if task.kind == kind) for kind in wanted.weights]
    return (f"{row.label} (ours)", *("-" if size is None else str(size) for size in sizes), shown(wanted), *kinds)


def _made_header(wanted: Benchmark) -> tuple[tuple[str, ...], tuple[str, ...]]:
    # MTEB's own names of the kinds, in words.
    titles = [f"{_WORDS.sub(' ', MTEB_NAMES[kind])} ({count})" for kind, count in wanted.weights.items()]
    header = ("Model Name", "Dimension", "Sequence Length", f"Average ({len(wanted)})", *titles)
    return header, tuple(":---:" for _ in header)


def _notes(ours: Sequence[OurRow], foreign: list[str], table: PublishedTable | None, wanted: Benchmark) -> list[str]:
    notes = []
    if any(row.of(wanted)[0] is None for row in ours):
        notes.append("- (n/m): only n of the m tasks were run, so there is no mean that could be compared")
    inexact = dict.fromkeys(key for row in ours for key in row.not_comparable)
    if inexact:
        notes.append(f"not exactly the data of the published scores: {', '.join(inexact)}")
    if foreign:
        notes.append(f"not part of {wanted.name} and not counted: {', '.join(foreign)}")
    drifting = [row.model for row in table.rows if not row.recomputes] if table else []
    if drifting:
        notes.append(f"published averages that do not follow from their columns: {', '.join(drifting)}")
    return notes


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|"))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _aligned(header: Sequence[str], ours: Sequence[tuple[str, ...]], published: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with aligned columns; the words of a title stand below each other, so that lines fit a console."""
    stacked = [[header[0]], *(title.split() for title in header[1:])]
    height = max(map(len, stacked))
    titles = list(zip(*([""] * (height - len(words)) + words for words in stacked), strict=True))
    rows = [*titles, *ours, *published]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
    ruled = "-" * max(map(len, lines))
    if ours and published:
        lines.insert(height + len(ours), ruled)
    lines.insert(height, ruled)
    return lines

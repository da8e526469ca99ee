"""A cross-encoder's scores for training data (`bge score`): streamed, and going on where a run was interrupted.

The output grows as `OUTPUT.partial`, of a URL in the local cache; it gets its name when it is complete. Rows are
scored in groups of fixed size, so its bytes do not depend on how often a run was interrupted.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ..data.formats import Dialect, Quoting, line_of
from ..data.training_rows import InputRow, Row, check_output, check_training, copy_key, read_training
from ..errors import OutputError
from ..files.atomic import OutputFolder
from ..files.hashing import file_sha256
from ..files.remote import is_url, write_url
from ..files.transfer import local_place
from ..inference.shards import ARITHMETIC, in_words
from ..search.index import PairScorer
from .known_pairs import Relevant

logger = logging.getLogger(__name__)

#: Rows of a group: scored together, and lost together in an interruption.
GROUP: Final = 64


class Teacher(PairScorer, Protocol):
    """A pair scorer whose scores are written down, such as `FlagReranker`."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever decides a score."""

    def compute_score(
        self, sentence_pairs: list[tuple[str, str]], *, normalize: bool = False, show_progress: bool = False
    ) -> Sequence[float]:
        """One score for each pair; higher is more relevant."""


@dataclass(frozen=True)
class Scoring:
    """What is scored of a file of training data.

    Attributes:
        input: The file, or its URL.
        dialect: How it is written.
        overwrite_scores: Score rows that have scores, too.
        normalize: Scores between 0 and 1.
    """

    input: str
    dialect: Dialect
    overwrite_scores: bool
    normalize: bool

    def groups(self, first_row: int) -> Iterator[list[InputRow]]:
        """The groups of rows from a row on that begins one."""
        rows = itertools.islice(read_training(self.input, self.dialect), first_row, None)
        return iter(lambda: list(itertools.islice(rows, GROUP)), [])

    def pairs(self, group: Sequence[InputRow]) -> list[tuple[str, str]]:
        """The pairs of a group that are scored."""
        wanted = [each.row for each in group if self.wants(each.row)]
        return [(row.query, text) for row in wanted for text in (*row.positives, *row.negatives)]

    def wants(self, row: Row) -> bool:
        """Whether a row is scored."""
        return row.score is None and (self.overwrite_scores or not row.has_teacher)


class GroupTeacher(Protocol):
    """What scores the groups of a file by itself, such as a cluster."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever decides a score."""

    def score_groups(self, scoring: Scoring, first_row: int) -> Iterator[Sequence[float]]:
        """The scores of the pairs of each group from a row on that begins one, in order."""


@dataclass
class ScoreCounts:
    """Counts of a run.

    Attributes:
        rows: Rows of the output.
        resumed: Those that an earlier run had finished.
        scored: Rows that this run scored.
        had_scores: Rows of this run that had scores and keep them.
        scored_pairs: Rows of this run with `score`, which are handed on as they are.
        above: Rows that this run scored in which a negative scores at least as much as a positive.
    """

    rows: int = 0
    resumed: int = 0
    scored: int = 0
    had_scores: int = 0
    scored_pairs: int = 0
    above: int = 0


def score(
    teacher: Teacher | GroupTeacher, input: str, output: str, *, overwrite_scores: bool = False,
    normalize: bool = False, advance: Callable[[int, int], None] | None = None,
    encoding: str | None = None, quoting: Quoting = "auto", allow_mixed: bool = False,
) -> ScoreCounts:  # fmt: skip
    """Write a file of training data with `pos_scores` and `neg_scores`.

    Args:
        teacher: What scores: here, or by itself, group by group.
        input: File of training data, or its URL.
        output: The file to write, or its URL; one that is there is replaced when the new one is complete.
        overwrite_scores: Replace scores that rows have; otherwise these rows are left as they are.
        normalize: Scores between 0 and 1, by a sigmoid.
        advance: Called after each group with the rows that are done, and all rows.
        encoding: What the input is written in, as in `read_records`.
        quoting: Quoting of the input, as in `read_records`.
        allow_mixed: Go on with scores that another kind of CPU or torch computed, with a warning.

    Raises:
        DataError: the input cannot be used; it names file and lines.
        OutputError: the output cannot be written, another process writes it, or an interrupted run was another one.

    Example:
        >>> from bgekit import FlagReranker
        >>> from bgekit.mining import score
        >>> counts = score(FlagReranker("BAAI/bge-reranker-base"), "train.jsonl", "scored.jsonl")
    """
    check_output(output, input)
    dialect = Dialect(encoding, quoting)
    counts = ScoreCounts(rows=check_training(input, scored_pairs=True, dialect=dialect))
    _warn_of_positives(input, dialect)
    facts = {
        "input_sha256": file_sha256(input), "teacher": str(teacher.fingerprint), "normalize": normalize,
        "overwrite_scores": overwrite_scores, "group": GROUP, **dialect.settings,
    }  # fmt: skip
    # Beside the output, so that the last step is a renaming; the lock keeps a second run out.
    beside = not is_url(output)
    work = Path(f"{output}.scoring") if beside else local_place("runs", f"{output}.scoring")
    partial = Path(f"{output}.partial") if beside else work / "partial"
    with OutputFolder(work) as folder:
        kind: dict[str, str] | None = getattr(teacher, ARITHMETIC, None)
        done, size = _begun(folder, partial, facts, [] if kind is None else [kind], allow_mixed)
        counts.resumed = done
        scoring = Scoring(input, dialect, overwrite_scores, normalize)
        try:
            with partial.open("ab") as file, contextlib.closing(_scores(teacher, scoring, done)) as scores:
                file.truncate(size)
                for group, found in zip(scoring.groups(done), scores, strict=True):
                    file.write(b"".join(map(line_of, _scored(scoring, group, found, counts))))
                    # To the system, so that a killed process loses no more than a group.
                    file.flush()
                    done += len(group)
                    if advance is not None:
                        advance(done, counts.rows)
                os.fsync(file.fileno())
            if beside:
                os.replace(partial, output)
            else:
                write_url(output, partial)
                partial.unlink()
            (folder.path / _FACTS).unlink()
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"cannot write {output}: {error.strerror or error}; the same command continues from what is written"
            ) from error
    work.rmdir()
    return counts


_FACTS: Final = "run.json"


def _warn_of_positives(input: str, dialect: Dialect) -> None:
    """Say how many negatives are positives of the same query in another row: they are scored as any other."""
    relevant = Relevant.of_rows(read_training(input, dialect))
    found = sum(
        len({copy_key(text) for text in each.row.negatives} & set(relevant.to(each.row.query)))
        for each in read_training(input, dialect)
        if each.row.negatives
    )
    if found:
        logger.warning(
            "%d negatives in %s are positives of the same query in some row: bge mine --keep-existing leaves them out",
            found, input,
        )  # fmt: skip


def _begun(
    folder: OutputFolder, partial: Path, facts: dict[str, Any], kinds: list[dict[str, str]], allow_mixed: bool
) -> tuple[int, int]:
    """Rows and bytes that an interrupted run has finished, if it was this one; note what this one is.

    Args:
        folder: The folder of what is known of the run.
        partial: What it has written.
        facts: What must be the same.
        kinds: The arithmetic of this one, if it is known: another one has slightly other scores.
        allow_mixed: Whether it may be another one.
    """
    path = folder.path / _FACTS
    rows, size = _finished(partial) if path.exists() and partial.exists() else (0, 0)
    # A run that finished nothing binds nobody.
    if rows:
        before = json.loads(path.read_bytes())
        there = before.pop(ARITHMETIC, [])
        if before != facts:
            names = [name for name in facts if before.get(name) != facts[name]]
            raise OutputError(
                f"{partial} was begun by another run ({', '.join(names)} differ): remove it, or give another output"
            )
        if there and kinds and kinds[0]["class"] not in {each["class"] for each in there}:
            what = f"{partial} was computed with {in_words(there)}, this is {in_words(kinds)}"
            if not allow_mixed:
                raise OutputError(
                    f"{what}, and the same pair would have slightly other scores in the rest; --allow-mixed continues, "
                    "or remove it"
                )
            logger.warning("%s", what)
        kinds = there + [each for each in kinds if each not in there]
    else:
        partial.unlink(missing_ok=True)
    with folder.create(_FACTS) as file:
        file.write(json.dumps(facts | {ARITHMETIC: kinds}).encode())
    return rows, size


def _finished(partial: Path) -> tuple[int, int]:
    """The rows of whole groups in a partial output, and their bytes."""
    rows = size = 0
    with partial.open("rb") as file:
        while len(group := list(itertools.islice(file, GROUP))) == GROUP and group[-1].endswith(b"\n"):
            rows, size = rows + GROUP, size + sum(map(len, group))
    return rows, size


def _scores(
    teacher: Teacher | GroupTeacher, scoring: Scoring, first_row: int
) -> Generator[Sequence[float], None, None]:
    """The scores of the pairs of each group, in order."""
    if not hasattr(teacher, "compute_score"):
        yield from teacher.score_groups(scoring, first_row)
        return
    for group in scoring.groups(first_row):
        pairs = scoring.pairs(group)
        yield teacher.compute_score(pairs, normalize=scoring.normalize, show_progress=False) if pairs else ()


def _scored(
    scoring: Scoring, group: Sequence[InputRow], found: Sequence[float], counts: ScoreCounts
) -> list[dict[str, Any]]:
    wanted = []
    for each in group:
        row = each.row
        if row.score is not None:
            counts.scored_pairs += 1
        elif not scoring.wants(row):
            counts.had_scores += 1
        else:
            counts.scored += 1
            wanted.append(row)
    scores = iter(found)
    new = {
        row.index: {
            "pos_scores": [round(float(next(scores)), 6) for _ in row.positives],
            "neg_scores": [round(float(next(scores)), 6) for _ in row.negatives],
        }
        for row in wanted
    }
    counts.above += sum(max(each["neg_scores"], default=-math.inf) >= min(each["pos_scores"]) for each in new.values())
    return [{**each.fields, **new.get(each.row.index, {})} for each in group]

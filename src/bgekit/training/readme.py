"""What the README of a trained model says of its training: data, arguments, scores and curves, for other people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..models.side_files import short_names, shown_name

#: Before the names of scores that the first stage of a reranker has without it.
FIRST_STAGE: Final = "first_stage"


def origin(base: str | None, rows: int, *, verb: str = "Fine-tuned", unit: str = "rows") -> str:
    """The sentence on how a model came about.

    Args:
        base: What it was trained from; None for random weights.
        rows: What it was trained on.
        verb: What was done.
        unit: What the rows are called.
    """
    start = f"`{shown_name(base)}`" if base else "random weights"
    return f"{verb} from {start} on {rows:,} {unit} by bgekit."


def add_training(
    file: Path, *, datasets: Sequence[tuple[Sequence[str], int]], arguments: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]], kept: int | None, findings: Mapping[str, str], drawn: bool,
) -> None:  # fmt: skip
    """Say in a README how the model was trained.

    Args:
        file: The README.
        datasets: Files and rows of each dataset.
        arguments: Those that made the model what it is.
        history: What was logged.
        kept: The step whose weights the model has; None for the last.
        findings: What was noticed.
        drawn: Whether there are curves beside it.
    """
    names = short_names([files[0] for files, _ in datasets])
    more = [f" and {len(files) - 1} more files" if len(files) > 1 else "" for files, _ in datasets]
    data = [
        (name + others, f"{rows:,}") for name, others, (_, rows) in zip(names, more, datasets, strict=True)
    ]  # fmt: skip
    parts = ["## Training\n", _table(("data", "rows"), data)]
    shown = [
        (f"`{name}`" if name.startswith("--") else name, f"`{_value(value)}`") for name, value in arguments.items()
    ]
    parts.append(_table(("argument", "value"), shown))
    if scores := list(_scores(history, kept)):
        width = 4 if any(len(row) > 3 for row in scores) else 3
        header = ("score", "before", "after", "first stage alone")[:width]
        parts.append(_table(header, [(*row, *("",) * (width - len(row))) for row in scores]))
    if findings:
        parts.append(
            "Noticed while training:\n\n" + "\n".join(f"- {sentence}" for sentence in findings.values()) + "\n"
        )
    if drawn:
        parts.append("![Curves of the training run](training.png)\n")
    parts.append("`training.json` has all arguments, versions and the whole log.\n")
    text = file.read_text(encoding="utf-8").rstrip("\n")
    file.write_text(text + "\n\n" + "\n".join(parts), encoding="utf-8")


def _scores(history: Sequence[Mapping[str, Any]], kept: int | None) -> Iterator[tuple[str, ...]]:
    """Each score before the first step, of the weights that were kept, and of the first stage alone."""
    rows = [row for row in history if any(name.startswith("eval_") for name in row)]
    if not rows:
        return
    after = next((row for row in reversed(rows) if kept is None or row["step"] == kept), rows[-1])
    before = next((row for row in rows if row["step"] == 0), {})
    beside = f"eval_{FIRST_STAGE}_"
    names = [name for name in after if name.startswith("eval_") and not name.startswith(beside)]
    for name in names:
        plain = name.removeprefix("eval_")
        if plain == "score" and len(names) == 2:  # The mean of one.
            continue
        values = [before.get(name), after[name], *([after[beside + plain]] if beside + plain in after else [])]
        yield (plain, *("" if value is None else f"{value:.4g}" for value in values))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _value(value: Any) -> str:
    """As the command line has it; of a file its name, not where it lies here."""
    value = getattr(value, "value", value)
    if isinstance(value, list):
        return " ".join(map(_value, value))
    local = isinstance(value, str) and (Path(value).is_absolute() or Path(value).exists())
    return shown_name(value) if local else str(value)

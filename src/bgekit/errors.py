"""Every error that bgekit raises on purpose.

BgekitError
├── CardError            (ValueError)    what a model needs is unknown or contradictory
├── CheckpointError      (OSError)       a model cannot be found, read or written
├── TextTypeError        (TypeError)     an element of the input is not a string
├── ArgumentError        (TypeError)     an unknown or impossible argument
│   └── UsageError                       the same of a command line: its exit code is 2
├── DataError            (ValueError)    a record of an input file cannot be used
│   └── NoGuaranteeError                 no threshold has the guarantee that was asked for
├── OutputError          (OSError)       an output cannot be written, or belongs to another run
├── NumericalError       (ArithmeticError)  NaN or infinity in a vector
├── WorkerError          (RuntimeError)  a worker process died or answered with an error
├── ForkError            (RuntimeError)  a model on a GPU is used in a process forked after it was loaded
├── ApiError             (RuntimeError)  an embedding API refused or did not answer
└── MissingExtraError    (ImportError)   an optional dependency is not installed
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from numbers import Integral
from types import ModuleType
from typing import Any, Final


class BgekitError(Exception):
    """Base of all errors raised by bgekit; its message says what to do.

    Example:
        >>> from bgekit import BgekitError, FlagModel
        >>> try:
        ...     FlagModel("no-such-folder/model", trust_remote_code=False)
        ... except BgekitError as error:
        ...     print(type(error).__name__)
        CheckpointError
    """


class CardError(BgekitError, ValueError):
    """Error where pooling, prompts or other fields of a model are unknown or contradictory."""


class CheckpointError(BgekitError, OSError):
    """A model cannot be found, read or written."""


class TextTypeError(BgekitError, TypeError):
    """An element of the input is not a string."""


class ArgumentError(BgekitError, TypeError):
    """An argument is unknown or has an impossible value."""


class UsageError(ArgumentError):
    """A command line has an unknown option, lacks one, or gives one an impossible value."""


class DataError(BgekitError, ValueError):
    """A record of an input file cannot be used."""


class NoGuaranteeError(DataError):
    """No threshold has the guarantee that was asked for on these pairs.

    Attributes:
        measured: What was measured nonetheless (`bgekit.evaluation.calibration.Shortfall`).
    """

    def __init__(self, message: str, measured: Any = None) -> None:
        super().__init__(message)
        self.measured = measured


class OutputError(BgekitError, OSError):
    """An output cannot be written, or belongs to another run."""


class NumericalError(BgekitError, ArithmeticError):
    """A vector contains NaN or infinity.

    Attributes:
        row: Place of its text in the input, from 0; None where that is not known.
    """

    row: int | None = None


class WorkerError(BgekitError, RuntimeError):
    """A worker process died or answered with an error."""


class ForkError(BgekitError, RuntimeError):
    """A model on a GPU is used in a process that was forked after it was loaded."""


class ApiError(BgekitError, RuntimeError):
    """An embedding API refused a request or did not answer."""


class MissingExtraError(BgekitError, ImportError):
    """An optional dependency is not installed."""


#: Items of a list that a message shows; the others are counted.
SHOWN: Final = 10


def in_lines(items: Sequence[object], count: int | None = None) -> str:
    """Items for the end of a message: one in the same line, several in a line each, the first ten, then how many more.

    Args:
        items: What is listed.
        count: How many there are in all, where `items` are the first of them.
    """
    count = len(items) if count is None else count
    if count == 1:
        return f" {items[0]}"
    more = [f"  ... and {count - len(items[:SHOWN]):,} more"] if count > len(items[:SHOWN]) else []
    return "".join(f"\n{line}" for line in (*(f"  {item}" for item in items[:SHOWN]), *more))


def check_count(name: str, value: object, things: str) -> None:
    """Raise ArgumentError unless an argument is left out (None) or a positive whole number."""
    if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
        raise ArgumentError(f"{name} must be a positive number of {things}, not {value!r}")


def import_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say in one line which extra brings it.

    Raises:
        MissingExtraError: `module` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise _missing(module, extra) from error


def require_extra(extra: str, *packages: str) -> None:
    """See to it, before any work is done, that the packages of an extra are there; none of them is imported.

    Raises:
        MissingExtraError: one is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise _missing(package, extra)


def _missing(module: str, extra: str) -> MissingExtraError:
    return MissingExtraError(f"this needs the package {module!r}: pip install 'bgekit[{extra}]'")

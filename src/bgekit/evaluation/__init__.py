"""Measuring models: tasks, metrics, own data, named benchmarks, comparison, calibration and reports.

Names are imported when they are first used: their modules need the extra `eval`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import Calibration, calibrate
    from .evaluating import Candidate, evaluate
    from .judged import JudgedModel, Setting
    from .reading import read_tasks
    from .results import Comparison, Report, Result
    from .task import Scores, Task

_HOMES = {
    "Calibration": "calibration",
    "Candidate": "evaluating",
    "Comparison": "results",
    "JudgedModel": "judged",
    "Report": "results",
    "Result": "results",
    "Scores": "task",
    "Setting": "judged",
    "Task": "task",
    "calibrate": "calibration",
    "evaluate": "evaluating",
    "read_tasks": "reading",
}

__all__ = [
    "Calibration",
    "Candidate",
    "Comparison",
    "JudgedModel",
    "Report",
    "Result",
    "Scores",
    "Setting",
    "Task",
    "calibrate",
    "evaluate",
    "read_tasks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

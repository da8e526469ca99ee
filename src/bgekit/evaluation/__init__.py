"""Measuring models: tasks, metrics, own data, named benchmarks, comparison, calibration and reports.

Names are imported when they are first used: their modules need the extra `eval`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

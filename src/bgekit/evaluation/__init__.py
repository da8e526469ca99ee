"""Measuring models: tasks, metrics, own data, named benchmarks, comparison, calibration and reports.

Names are imported when they are first used: their modules need the extra `eval`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .calibration import Calibration, calibrate
    from .evaluator import Candidate, evaluate
    from .judged_model import JudgedModel, Setting
    from .readers.detect import read_tasks
    from .report.report import Report
    from .results import Comparison, Result
    from .tasks.base import Scores, Task

_HOMES = {
    "Calibration": "calibration",
    "Candidate": "evaluator",
    "Comparison": "results",
    "JudgedModel": "judged_model",
    "Report": "report.report",
    "Result": "results",
    "Scores": "tasks.base",
    "Setting": "judged_model",
    "Task": "tasks.base",
    "calibrate": "calibration",
    "evaluate": "evaluator",
    "read_tasks": "readers.detect",
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

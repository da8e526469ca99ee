"""Measuring models: tasks, metrics, own data, named benchmarks, comparison, calibration and reports.

Names are imported when they are first used: their modules need the extra `eval`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .calibration import Calibration as Calibration
    from .calibration import calibrate as calibrate
    from .evaluator import Candidate as Candidate
    from .evaluator import evaluate as evaluate
    from .hybrid_calibration import HybridCalibration as HybridCalibration
    from .hybrid_calibration import calibrate_hybrid as calibrate_hybrid
    from .judged_model import JudgedModel as JudgedModel
    from .judged_model import Setting as Setting
    from .readers.detect import read_tasks as read_tasks
    from .report.report import Report as Report
    from .results import Comparison as Comparison
    from .results import Result as Result
    from .tasks.base import Scores as Scores
    from .tasks.base import Task as Task

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "calibration": ("Calibration", "calibrate"),
        "evaluator": ("Candidate", "evaluate"),
        "hybrid_calibration": ("HybridCalibration", "calibrate_hybrid"),
        "judged_model": ("JudgedModel", "Setting"),
        "readers.detect": ("read_tasks",),
        "report.report": ("Report",),
        "results": ("Comparison", "Result"),
        "tasks.base": ("Scores", "Task"),
    },
)

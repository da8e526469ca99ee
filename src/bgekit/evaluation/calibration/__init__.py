"""Calibration of similarities on one's own data: distributions, thresholds with a promise, calibrated scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._lazy import lazy_names

if TYPE_CHECKING:
    from .calibration import Calibration, Wish, calibrate
    from .thresholds import Rate, Threshold, choose_threshold

_HOMES = {
    "Calibration": "calibration",
    "Rate": "thresholds",
    "Threshold": "thresholds",
    "Wish": "calibration",
    "calibrate": "calibration",
    "choose_threshold": "thresholds",
}

__all__ = [
    "Calibration",
    "Rate",
    "Threshold",
    "Wish",
    "calibrate",
    "choose_threshold",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

"""Calibration of similarities on one's own data: distributions, thresholds with a promise, calibrated scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._lazy import lazy_names

if TYPE_CHECKING:
    from .calibration import Calibration, calibrate

_HOMES = {
    "Calibration": "calibration",
    "calibrate": "calibration",
}

__all__ = [
    "Calibration",
    "calibrate",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

"""The frame of all charts of the benchmarks."""

from __future__ import annotations

from typing import Any


def subplots(count: int = 1, width: float = 6.4, height: float = 4) -> tuple[Any, list[Any]]:
    """A figure and its axes beside one another, each of a size in inches; drawn without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False)
    return figure, list(axes[0])


def save(figure: Any, path: str) -> None:
    """Write it as an image."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)

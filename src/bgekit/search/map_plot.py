"""Picture of a map of vectors: each text a point, near to those that are like it.

UMAP lays the points out (extra `map`), from the neighbours that the map has; without it, two principal components.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..display.pages import INK, MUTED, SURFACE, drawing, new_figure
from ..display.terminal import clipped, printable
from ..errors import ArgumentError, DataError, MissingExtraError, import_extra
from .vector_map import FACTS_KEY

logger = logging.getLogger(__name__)
#: Most points that are drawn; more would hide one another.
POINTS: Final = 50_000
#: Fewest texts that UMAP is asked to lay out.
_LEAST: Final = 50
#: Seed of the layout, of the texts drawn and of the order in which points are laid over one another.
_SEED: Final = 0
#: Colours of small points: the nine of Paul Tol's scheme "muted" (SRON/EPS/TN/09-002), which colour-blind eyes can tell
#: apart; those of lines in plots are too dark for this. From the tenth value on they come again, lighter.
_COLORS: Final = (
    "#332288", "#ddcc77", "#cc6677", "#117733", "#88ccee", "#aa4499", "#999933", "#44aa99", "#882255",
)  # fmt: skip
#: Most values of a column that get a colour; the least frequent ones are grey together.
_VALUES: Final = 16
#: Cells a side in which the densest place of a group is looked for, to write its name there.
_CELLS: Final = 24
#: Width and height of the picture in units of 1/72 inch.
_SIZE: Final = (900, 640)
#: What is not emphasised: texts without a colour, and those of values that have none.
_GREY: Final = "#b3b9c2"
_UNCOLOURED: Final = "#88a9c9"
#: Near copies where no column colours the points.
_COPIES: Final = "#c8500a"


@dataclass(frozen=True)
class _Points:
    """Texts that are drawn, in the order of their rows, and what the map says of them.

    Attributes:
        vectors: [n, d].
        neighbors: Rows and distances, [n, k]; None where not all texts are drawn, so that rows have other numbers.
        near, lone: Marks, [n].
        values: Values of the column that colours them; None without.
        rows: Texts of the map.
        facts: The map's own.
    """

    vectors: npt.NDArray[np.float32]
    neighbors: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None
    near: npt.NDArray[np.bool_]
    lone: npt.NDArray[np.bool_]
    values: list[Any] | None
    rows: int
    facts: dict[str, Any]


def draw_map(file: str | os.PathLike[str], *, color: str | None = None, points: int = POINTS) -> Any:
    """The matplotlib figure of a map that `write_map` wrote.

    The same map gives the same picture. Near copies have a ring (a colour, where no column colours), lone texts a
    cross. Of more than `points` texts, so many are drawn by lot, and the title says so.

    Args:
        file: The map.
        color: A column that colours the points: its 16 most frequent values, or a scale where it holds many numbers.
        points: Maximum number of texts drawn.

    Raises:
        ArgumentError: the map has no such column.
        DataError: the file is not a map.
        MissingExtraError: matplotlib is not installed (extra `map`).

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.search import draw_map, index_records, write_map
        >>> index, _ = index_records(FlagModel("BAAI/bge-small-en-v1.5"), read_records("corpus.jsonl"), "index")
        >>> report = write_map(index, "map.parquet", neighbors=3)
        >>> draw_map("map.parquet").savefig("map.png")
    """
    drawn = _read(Path(file), color, points)
    places, layout, groups = _layout(drawn)
    shown = "" if len(places) == drawn.rows else f"{len(places):,} of "
    model = printable(str(drawn.facts["model_name"])).rstrip("/").rpartition("/")[2]
    with drawing():
        figure = new_figure(*_SIZE)
        axes = figure.add_axes((0.02, 0.03, 0.7, 0.85))
        axes.set_axis_off()  # The directions mean nothing.
        axes.margins(0.02)
        _draw(axes, places, drawn, color, named=groups)
        figure.text(0.02, 0.957, f"{shown}{drawn.rows:,} texts, vectors of {model}", fontsize=17, va="center")
        figure.text(0.02, 0.912, layout, fontsize=12, color=MUTED, va="center")
    return figure


def _read(path: Path, color: str | None, points: int) -> _Points:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            facts = json.loads((file.schema_arrow.metadata or {})[FACTS_KEY])
            names = file.schema_arrow.names
            if color is not None and color not in names:
                raise ArgumentError(f"--color {color}: the map has no such column; it has {', '.join(names)}")
            rows = file.metadata.num_rows
            chosen = np.sort(np.random.default_rng(_SEED).permutation(rows)[:points])
            columns = ["vector", "near_copy", "lone"] + ["neighbors"] * (len(chosen) == rows)
            columns += [color] if color is not None and color not in columns else []
            first, parts = 0, []
            for group in range(file.num_row_groups):
                part = file.read_row_group(group, columns=columns)
                begin, end = np.searchsorted(chosen, (first, first + part.num_rows))
                parts.append(part.take(chosen[begin:end] - first))
                first += part.num_rows
    except (OSError, ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a map of bgekit: {error}") from error
    import pyarrow

    table = pyarrow.concat_tables(parts).combine_chunks()

    def flat(column: Any) -> Any:
        whole = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
        return (whole.chunk(0) if isinstance(whole, pyarrow.ChunkedArray) else whole).flatten()

    neighbors = None
    if "neighbors" in table.column_names:
        pairs = [np.asarray(each.flatten()).reshape(rows, -1) for each in flat(table["neighbors"])]
        neighbors = (pairs[0], pairs[1])
    return _Points(
        np.asarray(flat(table["vector"])).reshape(len(chosen), -1), neighbors, np.asarray(table["near_copy"]),
        np.asarray(table["lone"]), None if color is None else table[color].to_pylist(), rows, facts,
    )  # fmt: skip


def _layout(drawn: _Points) -> tuple[npt.NDArray[Any], str, bool]:
    """Places of the points [n, 2], a sentence about what they mean, and whether groups lie apart."""
    umap: Any = None
    count = len(drawn.vectors)
    if count >= _LEAST:
        try:
            umap = import_extra("umap", "map")
        except MissingExtraError as error:
            logger.warning("the picture shows two principal components, which blur groups; for UMAP, %s", error)
    if umap is None:
        return *_components(drawn.vectors), False
    neighbors = min(15, count - 1)
    known: Any = {}
    if drawn.neighbors is not None and drawn.neighbors[0].shape[1] >= neighbors:
        known = {"precomputed_knn": (*(np.array(each) for each in drawn.neighbors), None)}
    with warnings.catch_warnings():
        # A seed costs UMAP its threads, and without a search index it can take no further texts: both are meant.
        warnings.filterwarnings("ignore", message=r"(?s).*(n_jobs|knn_search_index|precomputed_knn)")
        made = umap.UMAP(n_neighbors=neighbors, metric="cosine", random_state=_SEED, n_jobs=1, **known)
        places = made.fit_transform(drawn.vectors)
    return places, "UMAP: texts side by side are alike; how far apart groups lie says little", True


def _components(vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], str]:
    """The first two principal components, by the covariances of the dimensions."""
    centred = vectors - vectors.mean(axis=0)
    variances, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    places = centred @ axes[:, ::-1][:, :2].astype(np.float32)
    # A component has no sign of its own: the larger half to the right and up.
    places *= np.where(np.median(places, axis=0) > 0, -1, 1)
    share = variances[-2:].sum() / max(variances.sum(), 1e-12)
    if places.shape[1] < 2:
        places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    return places, f"two principal components, with {share:.0%} of the variance: what lies apart differs"


def _draw(axes: Any, places: npt.NDArray[Any], drawn: _Points, color: str | None, *, named: bool) -> None:
    """The points, their colours and marks, and what these mean, beside them.

    Args:
        axes: Where.
        places: [n, 2].
        drawn: The texts.
        color: The column that colours them.
        named: Write the name of each group on it: only where groups lie apart.
    """
    count, figure = len(places), axes.figure
    # Large enough to show their colour, small enough to leave one another in sight.
    looks: dict[str, Any] = {
        "s": float(np.clip(60_000 / count, 2, 36)), "alpha": float(np.clip(4000 / count, 0.5, 0.9)), "linewidths": 0,
        "rasterized": True,
    }  # fmt: skip
    order = np.random.default_rng(_SEED).permutation(count)  # No group lies over another as a whole.
    title = clipped(printable(color or ""), 26)
    if drawn.values is None:
        # Of many near copies rings would hide what they are around; without a column colours are free for them.
        for part, each in ((order[~drawn.near[order]], _UNCOLOURED), (order[drawn.near[order]], _COPIES)):
            axes.scatter(*places[part].T, color=each, **looks)
    elif (numbers := _numbers(drawn.values)) is not None:
        colormap = import_extra("matplotlib", "map").colormaps["viridis"].with_extremes(bad=_GREY)
        shown = axes.scatter(*places[order].T, c=numbers[order], cmap=colormap, plotnonfinite=True, **looks)
        scale = figure.colorbar(shown, cax=figure.add_axes((0.745, 0.42, 0.016, 0.4)))
        scale.outline.set_visible(False)
        scale.solids.set_alpha(1)
        figure.text(0.745, 0.85, title, fontsize=12, color=INK, va="center")
    else:
        labels, names = _labels(drawn.values)
        colors = np.asarray([*_palette(len(names)), _GREY])
        rest = labels[order] == len(names)
        for part in (order[rest], order[~rest]):
            axes.scatter(*places[part].T, c=colors[labels[part]], **looks)
        if named:
            _name_groups(axes, places, labels, names)
        entries = list(zip(names, colors, strict=False))
        if rest.any():
            entries.append((f"other ({int(rest.sum()):,})", _GREY))
        _legend(
            figure, [(name, {"marker": "o", "color": each, "markersize": 8}) for name, each in entries], 0.885, title
        )
    _mark(axes, places, drawn)


def _name_groups(axes: Any, places: npt.NDArray[Any], labels: npt.NDArray[np.int64], names: list[str]) -> None:
    """Write each name where its texts are densest, if most texts there are its own; the legend has all of them."""
    effects: Any = import_extra("matplotlib.patheffects", "map")
    canvas: Any = import_extra("matplotlib.backends.backend_agg", "map").FigureCanvasAgg(axes.figure)
    # Places on the picture are known once the limits are.
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    low, high = places.min(axis=0), places.max(axis=0)
    cells = np.minimum(((places - low) / np.maximum(high - low, 1e-12) * _CELLS).astype(int), _CELLS - 1)
    keys = cells[:, 0] * _CELLS + cells[:, 1]
    frame, taken = axes.get_window_extent(canvas.get_renderer()), list[Any]()
    for number, name in enumerate(names):
        own = labels == number
        densest = np.bincount(keys[own]).argmax()
        around = np.abs(cells - np.divmod(densest, _CELLS)).max(axis=1) <= 1
        if 2 * np.count_nonzero(own & around) <= np.count_nonzero(around):
            continue
        place = np.median(places[own & (keys == densest)], axis=0)
        text = axes.text(*place, name, fontsize=12, fontweight="bold", color=INK, ha="center", va="center", zorder=5)
        text.set_path_effects([effects.withStroke(linewidth=3, foreground=SURFACE)])
        box = text.get_window_extent(canvas.get_renderer())
        shift = max(frame.x0 - box.x0, 0) - max(box.x1 - frame.x1, 0)
        box = box.translated(shift, 0)
        if any(box.overlaps(other) for other in taken):
            text.remove()
            continue
        taken.append(box)
        x, y = axes.transData.transform(place)
        text.set_position(axes.transData.inverted().transform((x + shift, y)))


def _mark(axes: Any, places: npt.NDArray[Any], drawn: _Points) -> None:
    """Rings around near copies, if these have no colour, and crosses on lone texts; and what they mean."""
    looks: dict[str, dict[str, Any]] = {
        "near_copy": {"marker": "o", "markerfacecolor": "none", "markeredgecolor": INK, "color": INK}
        if drawn.values is not None
        else {"marker": "o", "color": _COPIES, "markeredgecolor": _COPIES},
        "lone": {"marker": "x", "markeredgecolor": INK, "color": INK},
    }
    for name, marked in (("near_copy", drawn.near), ("lone", drawn.lone)):
        many = int(marked.sum()) > len(marked) / 20 or int(marked.sum()) > 200
        look = looks[name] | {"markersize": 3.2 if many else 5, "markeredgewidth": 0.45 if many else 0.9}
        if name == "lone" or drawn.values is not None:
            axes.plot(*places[marked].T, linestyle="none", rasterized=True, **look)
    facts = drawn.facts
    copies = f"near copy: {facts['near_copies']:,} texts\nanother is {facts['near_threshold']:g} alike or more"
    below = "" if facts["lone_below"] is None else f", below {facts['lone_below']:.2f}"
    alone = f"lone: {facts['lone']:,} texts\nthe nearest is less alike\nthan that of 99 %{below}"
    meanings = zip((copies, alone), looks.values(), strict=True)
    _legend(axes.figure, [(text, look | {"markersize": 7, "markeredgewidth": 1}) for text, look in meanings], 0.215)


def _legend(figure: Any, entries: list[tuple[str, dict[str, Any]]], top: float, title: str = "") -> None:
    """Markers with texts, to the right of the points, from a height on downwards."""
    lines: Any = import_extra("matplotlib.lines", "map")
    handles = [lines.Line2D([], [], linestyle="none", label=text, **look) for text, look in entries]
    box = figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.735, top), title=title or None, alignment="left",
        fontsize=12, title_fontsize=12, handletextpad=0.3, labelspacing=0.45, borderpad=0, borderaxespad=0,
    )  # fmt: skip
    box.get_title().set_color(INK)
    figure.add_artist(box)


def _numbers(values: list[Any]) -> npt.NDArray[np.float64] | None:
    """The values as numbers, NaN for null, where there are more different ones than colours; else None."""
    known = [value for value in values if value is not None]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in known):
        return None
    if len(set(known)) <= _VALUES:
        return None
    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)


def _labels(values: list[Any]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The number of each text's value, and the values by their frequency; the last number is that of all others."""
    texts = [None if value is None else clipped(printable(str(value)), 24) for value in values]
    frequent = [name for name, _ in Counter(text for text in texts if text is not None).most_common(_VALUES)]
    place = {name: at for at, name in enumerate(frequent)}
    return np.asarray(
        [place.get(text, len(frequent)) if text is not None else len(frequent) for text in texts]
    ), frequent


def _palette(count: int) -> list[str]:
    """Colours of so many values, at most 16."""
    colors: Any = import_extra("matplotlib.colors", "map")
    light = [colors.to_hex(0.5 * np.asarray(colors.to_rgb(each)) + 0.5) for each in _COLORS]
    return [*_COLORS, *light][:count]

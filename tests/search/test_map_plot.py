"""Pictures of maps: what is drawn, and how it is coloured."""

import io

import numpy as np
import pyarrow as pa
import pytest

from bgekit.display.pages import drawing, new_figure, save_plot
from bgekit.errors import ArgumentError, DataError, MissingExtraError
from bgekit.inference.similarity import unit
from bgekit.search import draw_map, map_plot, write_map

RNG = np.random.default_rng(7)
ROWS = 300
GROUPS = RNG.integers(3, size=ROWS)


@pytest.fixture
def mapped(shards_of, tmp_path):
    """A map of three groups, with columns of names, numbers and nulls."""
    vectors = unit(np.eye(12, dtype=np.float32)[GROUPS] + 0.1 * RNG.standard_normal((ROWS, 12)).astype(np.float32))
    vectors[1] = vectors[0]
    many = [f"value {row % 40}" if row % 7 else None for row in range(ROWS)]
    metadata = pa.table({
        "group": pa.array(GROUPS).cast(pa.string()), "size": [None if row == 4 else row / 7 for row in range(ROWS)],
        "many": many, "$x_1$\n": ["a"] * ROWS,
    })  # fmt: skip
    file = tmp_path / "map.parquet"
    write_map(shards_of(vectors), file, metadata=metadata, near_threshold=0.9999)
    return file


@pytest.fixture
def no_umap(monkeypatch):
    def missing(module, extra):
        raise MissingExtraError("pip install 'bgekit[map]'")

    real = map_plot.import_extra
    monkeypatch.setattr(map_plot, "import_extra", lambda *asked: (missing if asked[0] == "umap" else real)(*asked))


def texts(figure):
    legends = [text.get_text() for legend in figure.legends for text in [legend.get_title(), *legend.get_texts()]]
    return [text.get_text() for text in figure.texts] + legends


def picture(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_two_components_without_umap(mapped, no_umap, caplog):
    figure = draw_map(mapped, color="group")
    said = texts(figure)
    assert said[0].startswith("300 texts, vectors of ")
    assert "two principal components, with " in said[1]
    assert "pip install 'bgekit[map]'" in caplog.text
    assert {"group", "0", "1", "2"} < set(said)
    assert any(text.startswith("near copy: 2 texts\nanother is 0.9999 alike") for text in said)
    assert any(text.startswith("lone: 3 texts") for text in said)
    # Three groups lie apart on two components.
    points = map_plot._layout(map_plot._read(mapped, None, 1000))[0]
    centres = np.stack([points[group == GROUPS].mean(axis=0) for group in range(3)])
    assert min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 0.5
    assert picture(draw_map(mapped, color="group")) == picture(figure)


def test_colours(mapped, no_umap):
    said = texts(draw_map(mapped, color="many"))
    assert len([text for text in said if text.startswith("value ")]) == 16
    others = next(text for text in said if text.startswith("other ("))
    assert int(others[7:-1]) == ROWS - sum(1 for row in range(ROWS) if row % 7 and f"value {row % 40}" in said)
    assert len(draw_map(mapped, color="size").axes) == 2  # The scale.
    assert "near_copy" in texts(draw_map(mapped, color="near_copy"))
    # What looks like a formula is none.
    picture(draw_map(mapped, color="$x_1$\n"))


def test_so_many_texts_are_drawn_by_lot(mapped, no_umap):
    figure = draw_map(mapped, points=100)
    assert texts(figure)[0].startswith("100 of 300 texts, ")
    assert sum(len(part.get_offsets()) for part in figure.axes[0].collections) == 100


def test_errors(mapped, tmp_path):
    with pytest.raises(ArgumentError, match=r"no such column; it has id, text, group, size"):
        draw_map(mapped, color="label")
    other = tmp_path / "other.parquet"
    pa.parquet.write_table(pa.table({"vector": [1]}), other)
    for path in (other, tmp_path / "none.parquet"):
        with pytest.raises(DataError, match="is not a map"):
            draw_map(path)


@pytest.mark.slow
def test_umap(mapped, tmp_path):
    pytest.importorskip("umap")
    figure = draw_map(mapped, color="group")
    assert any(text.startswith("UMAP") for text in texts(figure))
    save_plot(figure, tmp_path / "map.png")
    drawn = map_plot._read(mapped, None, 1000)
    places, _, named = map_plot._layout(drawn)
    assert named and (places == map_plot._layout(drawn)[0]).all()
    nearest = np.linalg.norm(places[:, None] - places, axis=-1) + np.diag(np.full(ROWS, np.inf))
    assert (GROUPS[nearest.argmin(axis=1)] == GROUPS).mean() > 0.95


def test_names_stand_on_groups_that_are_there_within_the_picture_and_apart():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 60)
    names = ["a long name at the left edge", "right", "right, just above", "mixed", "mixed, too"]
    # The last two share their places, and the second and third have names that would overlap.
    places = random.random((300, 2)) + np.array([[0, 0], [10, 0], [10, 1.2], [5, 9], [5, 9]])[labels]
    with drawing():
        figure = new_figure(600, 400)
        axes = figure.add_axes((0.02, 0.03, 0.7, 0.85))
        axes.scatter(*places.T)
        map_plot._name_groups(axes, places, labels, names)
        boxes = {each.get_text(): each.get_window_extent() for each in axes.texts}
        frame = axes.get_window_extent()
    assert names[0] in boxes and "right" in boxes and not {"mixed", "mixed, too"} <= boxes.keys()
    assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes.values())
    found = list(boxes.values())
    assert not any(box.overlaps(other) for place, box in enumerate(found) for other in found[place + 1 :])

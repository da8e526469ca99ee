from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from bgekit.display.pages import DARK, LIGHT, MARKERS, ROLES, looks, save_plot
from bgekit.errors import ArgumentError, OutputError
from bgekit.evaluation.report import charts as plots
from bgekit.evaluation.report.summary import View

RANDOM = np.random.default_rng(0)
UNRELATED, RELATED = RANDOM.normal(0.6, 0.05, 500), RANDOM.normal(0.85, 0.05, 300)


def luminance(color):
    values = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    lights = sorted(float(luminance(color) @ [0.2126, 0.7152, 0.0722]) for color in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def oklab(linear):
    first = [[0.4122215, 0.5363325, 0.051446], [0.2119035, 0.6806995, 0.107397], [0.0883025, 0.2817188, 0.6299787]]
    second = [
        [0.2104543, 0.7936178, -0.004072],
        [1.9779985, -2.4285922, 0.4505937],
        [0.025904, 0.7827718, -0.8086758],
    ]
    return 100 * np.array(second) @ np.cbrt(np.array(first) @ np.clip(linear, 0, 1))


#: Machado et al. 2009, severity 1: protanopia, deuteranopia, tritanopia.
SIGHTS = (
    np.eye(3),
    np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
)


@pytest.mark.parametrize(("series", "place"), [(LIGHT, 0), (DARK, 1)])
def test_colours_stand_out_and_differ_for_every_sight(series, place):
    surface = ROLES["surface"][place]
    assert min(contrast(color, surface) for color in series) >= 3
    assert contrast(ROLES["muted"][place], surface) >= 4.5
    for sight in SIGHTS:
        seen = [oklab(sight @ luminance(color)) for color in series]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 9


def test_many_models_all_look_different():
    found = looks([f"model {number}" for number in range(24)])
    assert len({(look.place, look.marker) for look in found.values()}) == 24
    assert {look.marker for look in list(found.values())[:8]} == set(MARKERS)


def test_labels_are_text_without_formulas(make_report):
    report = make_report(["$a_1$ 模型 & <b>", "_hidden"], ["Task $x^2$ 任务", "LCQMC"])
    view = View(report)
    svg = plots.scores_plot(view.tasks, looks(view.labels), name="p")
    assert "Task $x^2$ 任务: nDCG@10" in "".join(ElementTree.fromstring(svg.replace("xlink:", "")).itertext())
    svg = plots.similarity_plot(view.tasks[0].results, looks(view.labels), name="p")
    assert "$a_1$ 模型 &amp; &lt;b&gt;" in svg and "_hidden" in svg


def test_colours_are_variables_of_the_page(make_report):
    view = View(make_report(["a", "b"], ["SciFact"]))
    svg = plots.recall_plot(view.tasks[0].results, looks(view.labels), name="p")
    assert "var(--s1, #0a66b0)" in svg and "var(--s2" in svg and "var(--ink" not in svg
    assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", svg)) <= {"#000000"}
    assert "DejaVu" not in svg and "http" not in svg


def test_two_plots_share_no_id(make_report):
    view = View(make_report(["a", "b"], ["SciFact"]))
    first, second = (
        set(re.findall(r' id="([^"]*)"', plots.recall_plot(view.tasks[0].results, looks(view.labels), name=name)))
        for name in ("p", "q")
    )
    assert first and not first & second


def test_the_same_plot_is_the_same_text(make_report):
    view = View(make_report(["a", "b"], ["SciFact"]))
    first, second = (plots.recall_plot(view.tasks[0].results, looks(view.labels), name="p") for _ in range(2))
    assert first == second


def test_a_scatter_plot_of_many_items_stays_small(make_one_result):
    a, b = (make_one_result(label, "LCQMC", "sts", seed=seed, count=20_000) for seed, label in enumerate("ab"))
    assert len(plots.scatter_plot(a, b, looks(["a", "b"]), name="p")) < 300_000


@pytest.mark.parametrize("related", [RELATED, None])
def test_a_calibration_plot_is_a_whole_svg_file(related, tmp_path):
    svg = plots.calibration_plot(
        UNRELATED, related, 0.7654, title="模型 <M> on $data$", lines=["95 % & more", "x" * 200]
    )
    tree = ElementTree.fromstring(svg)
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    words = "".join(tree.itertext())
    assert "模型 <M> on $data$" in words and "95 % & more" in words and "threshold 0.765" in words
    assert "unrelated pairs (500)" in words and ("related pairs (300)" in words) == (related is not None)
    plots.save_plot(svg, tmp_path / "deep" / "plot.svg")
    assert ElementTree.parse(tmp_path / "deep" / "plot.svg").getroot().tag == tree.tag


def test_a_plot_is_saved_as_png(tmp_path):
    svg = plots.calibration_plot(UNRELATED, RELATED, 0.75, title="t", path=tmp_path / "one.png")
    save_plot(svg, tmp_path / "two.PNG")
    save_plot(svg.figure, tmp_path / "three.png")
    for name in ("one.png", "two.PNG", "three.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3


def test_what_cannot_be_saved_says_why(tmp_path):
    svg = plots.calibration_plot(UNRELATED, None, 0.75, title="t")
    with pytest.raises(ArgumentError, match=r"\.svg or \.png"):
        save_plot(svg, tmp_path / "plot.pdf")
    with pytest.raises(ArgumentError, match="plain string"):
        save_plot(str(svg), tmp_path / "plot.png")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        save_plot(svg, tmp_path / "file" / "plot.svg")


def test_infinite_and_missing_similarities_are_left_out():
    svg = plots.calibration_plot([0.1, float("nan"), 0.2, float("inf")], [], 0.5, title="t")
    assert "unrelated pairs (2)" in svg and "related pairs (0)" in svg


def test_no_figure_is_kept_by_pyplot():
    import subprocess
    import sys

    code = (
        "import sys, bgekit.evaluation.report.charts as p;"
        "assert 'matplotlib' not in sys.modules;"
        "p.calibration_plot([0.1, 0.2], None, 0.3, title='t');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

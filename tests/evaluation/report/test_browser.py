"""Pages in a real browser: scripts may run, styles apply, nothing is asked for, and all of it fits a telephone."""

import html as escaping
import json
import re
import shutil
import subprocess

import pytest

pytest.importorskip("matplotlib")

from bgekit.evaluation.report.page import html
from bgekit.training.loop.training_page import save_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium)", allow_module_level=True)


#: A page that holds another one, uses it as a reader would, and says what it saw.
HARNESS = """<!DOCTYPE html><body style="margin:0"><pre id="seen"></pre>
<iframe id="frame" style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe>
<script>
document.getElementById("frame").addEventListener("load", (event) => {{
  const page = event.target.contentDocument, seen = {{}};
  seen.dark = event.target.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches;
  seen.surface = event.target.contentWindow.getComputedStyle(page.body).backgroundColor;
  seen.ink = event.target.contentWindow.getComputedStyle(page.body).color;
  page.querySelectorAll("details").forEach((each) => {{ if (!each.open) each.querySelector("summary").click(); }});
  seen.folded = page.querySelectorAll("details:not([open])").length;
  seen.details = page.querySelectorAll("details").length;
  const heads = [...page.querySelectorAll("table.sortable th.n button")];
  const table = heads[0].closest("table"), place = heads[0].parentNode.cellIndex;
  const column = () => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[place].textContent));
  heads[0].click(); seen.falling = column();
  heads[0].click(); seen.rising = column();
  seen.too_wide = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  seen.requests = event.target.contentWindow.performance.getEntriesByType("resource").map((each) => each.name);
  seen.plots = [...page.querySelectorAll("figure > svg")].map((each) => each.getBoundingClientRect().width);
  document.getElementById("seen").textContent = JSON.stringify(seen);
}});
</script>"""


def shown(path, fragment, tmp_path, *more):
    """The page as the browser has it after its scripts, and what was written on its console."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
        "--virtual-time-budget=2000", "--dump-dom", *more, f"file://{path}{fragment}",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout, re.findall(r"CONSOLE.*", result.stderr)


def test_the_script_runs_and_nothing_is_refused_or_missing(make_report, tmp_path):
    path = tmp_path / "report.html"
    page = html(make_report(["org/model_a", "模型 <B>"], ["SciFact", "中文<检索>", "Ocnli", "Rerank"]))
    path.write_text(page, encoding="utf-8")
    assert "<button" not in page
    target = re.search(r'<section class="task" id="([^"]+)"', page)[1]
    closed = re.search(rf'<section class="task" id="{target}"><details(?! open)', page)
    assert closed, "with four tasks they are folded"
    document, console = shown(path, f"#{target}", tmp_path)
    assert console == []
    # Heads of tables became buttons, and the task of the address unfolded.
    assert document.count('<button type="button">') >= 3
    assert re.search(rf'<section class="task" id="{target}"><details open', document)


def training_page(folder):
    """The page of a run of three tasks that was logged at 60 steps and measured at seven."""
    history = [
        {"step": step, "loss": 2 / (step + 1), "learning_rate": 1e-5 * (60 - step), "positive": 0.7, "negative": 0.4}
        for step in range(1, 61)
    ]
    history += [
        {"step": step, "eval_score": 80 + step / 10, "eval_a_ndcg_at_10": 80 + step / 8, "eval_b_map": 75 + step / 20,
         "eval_<c>_cosine_spearman": 82 - step / 40}
        for step in range(0, 61, 10)
    ]  # fmt: skip
    assert save_page(
        folder, name="tuned <b>", base="/some/where/far/away/bge-small-en-v1.5", datasets=[(["rows.jsonl"], 400)],
        facts={"time": "5 min", "command": "bge finetune " + "--train-data /a/very/long/path/of/rows.jsonl " * 9},
        arguments={"--learning-rate": "1e-05", "--max-steps": "60"}, history=history, kept=60, first_stage="alone",
        findings={"false negatives": "3 % of the negatives score above their positive"},
    )  # fmt: skip
    return (folder / "training.html").read_text("utf-8")


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
@pytest.mark.parametrize("which", ["evaluation", "training"])
def test_readers_sort_unfold_and_read_in_the_dark_and_on_a_telephone(which, width, dark, make_report, tmp_path):
    labels = ["org/model_a", "a-folder/with-a-name-that-is-rather-long-v1.5", "模型"]
    page = html(make_report(labels, ["SciFact"])) if which == "evaluation" else training_page(tmp_path)
    path = tmp_path / "harness.html"
    path.write_text(HARNESS.format(width=width, page=escaping.escape(page)), encoding="utf-8")
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    document, console = shown(path, "", tmp_path, *scheme)
    assert console == []
    seen = json.loads(escaping.unescape(re.search(r'<pre id="seen">([^<]+)</pre>', document)[1]))
    assert seen["dark"] == dark
    light, dark_color = ("rgb(254, 254, 254)", "rgb(21, 23, 27)")
    assert seen["surface"] == (dark_color if dark else light)
    assert seen["details"] >= 2 and seen["folded"] == 0
    assert seen["falling"] == sorted(seen["falling"], reverse=True) and seen["rising"] == seen["falling"][::-1]
    assert len(set(seen["falling"])) > 1
    assert seen["too_wide"] <= 0, "the page scrolls sideways"
    assert seen["requests"] == []
    assert seen["plots"] and all(250 < each <= width for each in seen["plots"])

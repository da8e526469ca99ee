"""The page of a report in a real browser: its script may run, its style applies, and it asks for nothing."""

import re
import shutil
import subprocess

import pytest

pytest.importorskip("matplotlib")

from bgekit.evaluation.report.page import html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium)", allow_module_level=True)


def shown(path, fragment, tmp_path):
    """The page as the browser has it after its scripts, and what was written on its console."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
        "--virtual-time-budget=2000", "--dump-dom", f"file://{path}{fragment}",
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

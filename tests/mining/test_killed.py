"""Processes that are killed, and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bgekit.mining import mining, teacher

SETTING = """
import sys, time
sys.path.insert(0, {tests!r})
import bgekit.mining.mining as run, bgekit.mining.teacher as teacher
from table_embedder import TableEmbedder
from bgekit.mining.negatives import Choice
run.BLOCK = teacher.GROUP = 4
pause = float(sys.argv[1])
"""
MINE = (
    SETTING
    + """
task = run.Mining("in.jsonl", "out.jsonl", choice=Choice(first=0, last=20, negatives=4))
run.mine(task, [TableEmbedder()], advance=lambda *_: time.sleep(pause))
"""
)
SCORE = (
    SETTING
    + """
class Teacher:
    fingerprint = "t"
    def compute_score(self, pairs, **_):
        return [len(query) / len(passage) for query, passage in pairs]
teacher.score(Teacher(), "in.jsonl", "out.jsonl", advance=lambda *_: time.sleep(pause))
"""
)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize(("code", "begun"), [(MINE, "out.jsonl.mining/rows-*.json"), (SCORE, "out.jsonl.partial")])
def test_kill(tmp_path, code, begun, monkeypatch):
    rows = [{"query": f"question {n}", "pos": [f"answer {n}"], "neg": [f"other {n}"]} for n in range(40)]
    code = code.format(tests=str(Path(__file__).parents[1]))
    results = {}
    for kill in (True, False):
        folder = tmp_path / str(kill)
        folder.mkdir()
        (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if kill:
            process = subprocess.Popen([sys.executable, "-c", code, "60"], cwd=folder)
            for _ in range(1200):
                if any(path.stat().st_size for path in folder.glob(begun)):
                    break
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert not (folder / "out.jsonl").exists()
        # The run that ends, in this process.
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["-c", "0"])
            for module, size in ((mining, "BLOCK"), (teacher, "GROUP")):
                patch.setattr(module, size, getattr(module, size))  # The code sets them.
            exec(code, {})
        results[kill] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert results[True] == results[False]

"""Report: what an evaluation found, and its files for people and programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ...files.atomic import OutputFolder
from ..results import PER_ITEM, RESULTS, ReportContent
from .markdown import markdown
from .page import html


class Report(ReportContent):
    """Everything that an evaluation found: results, comparisons, and how it was measured.

    Example:
        >>> report = evaluate(["BAAI/bge-small-en-v1.5"], ["data/nfcorpus"])  # doctest: +SKIP
        >>> report.save("reports/nfcorpus")  # doctest: +SKIP
    """

    def save(self, output: str | os.PathLike[str]) -> list[Path]:
        """Write results.json, per_item.jsonl, report.md and report.html into a folder, each whole or not at all.

        Returns:
            The files.

        Raises:
            OutputError: the folder cannot be written, or another process writes to it.
        """
        with OutputFolder(output) as folder:
            files = {
                RESULTS: json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n",
                PER_ITEM: "".join(self.item_lines()),
                "report.md": markdown(self),
                "report.html": html(self),
            }
            for name, content in files.items():
                with folder.create(name) as file:
                    file.write(content.encode("utf-8", "replace"))
            folder.sync()
            return [folder.path / name for name in files]

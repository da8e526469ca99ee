"""What rerankers are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def expected_scores(folder: Path, pairs: Any, max_length: int = 64) -> Any:
    """Logits of plain transformers, one pair at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    rows = []
    with torch.no_grad():
        for query, passage in pairs:
            inputs = tokenizer(query, passage, truncation="only_second", max_length=max_length, return_tensors="pt")
            rows.append(model.eval()(**inputs).logits[0])
    return torch.stack(rows)


@pytest.fixture(scope="session")
def plain_logits() -> Callable[..., Any]:
    return expected_scores

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from bgekit.data.records import Record
from bgekit.display.terminal import Progress
from bgekit.evaluation import JudgedModel
from bgekit.evaluation.judged_model import ITEMS, MTEB_NAMES, TITLES, Kind, role_of
from bgekit.models.card import Prompt


def card_with(embedder, **prompts):
    card = embedder().card
    return replace(card, prompts={**card.prompts, **{name: Prompt(text) for name, text in prompts.items()}})


@pytest.mark.parametrize("names", [MTEB_NAMES, TITLES, ITEMS])
def test_every_kind_of_task_has_its_names(names):
    assert tuple(names) == get_args(Kind)


def test_a_prompt_for_the_task_comes_before_one_for_its_kind(embedder):
    card = card_with(embedder, **{"Retrieval": "kind", "SciFact-query": "task"})
    assert role_of(card, "retrieval", "SciFact", "query") == "SciFact-query"
    assert role_of(card, "retrieval", "SciFact", "document") == "Retrieval"
    assert role_of(card, "retrieval", "Other", "query") == "Retrieval"
    assert role_of(card, "reranking", "Other", "query") == "query"


def test_plain_texts_get_the_default_prompt_or_the_prefix_that_a_model_always_saw(embedder):
    assert role_of(embedder().card, "sts", "t", "plain") is None
    assert role_of(card_with(embedder, document="passage: "), "sts", "t", "plain") == "query"
    declared = replace(card_with(embedder, other="x"), default_prompt="other")
    assert role_of(declared, "sts", "t", "plain") == "other"


@pytest.mark.parametrize("task", ["ArguAna", "QuoraRetrieval", "SciDocsRR"])
def test_queries_like_documents_get_no_instruction_from_english_bge(embedder, task):
    card = replace(embedder().card, family="BGE v1.5, English")
    assert role_of(card, "retrieval", task, "query") is None
    assert role_of(card, "retrieval", "SciFact", "query") == "query"
    assert role_of(replace(card, family="BGE v1.5, Chinese"), "retrieval", task, "query") == "query"


def test_bars_say_task_side_and_model(embedder, tmp_path, monkeypatch):
    seen = []
    original = Progress.__init__

    def noted(self, *given, **more):
        original(self, *given, **more)
        seen.append((self._verb, self._total, self._shown))

    monkeypatch.setattr(Progress, "__init__", noted)
    judged = JudgedModel(embedder(), folder=tmp_path, progress=True, place="model 2 of 2")
    judged.queries(["a question"], "retrieval", "SciFact")
    judged.plain(["a text", "another"], "sts", "STSB")
    records = [Record(str(i), f"text {i}") for i in range(7)]
    with judged.corpus(records, "digest", "retrieval", "SciFact", count=7) as blocks:
        list(blocks)
    assert seen == [
        ("SciFact: queries, model 2 of 2", 1, True),
        ("STSB: texts, model 2 of 2", 2, True),
        ("SciFact: documents, model 2 of 2", 7, True),
    ]


def test_a_corpus_is_read_in_blocks_and_kept_on_disk(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr("bgekit.evaluation.judged_model._BLOCK", 2000)
    model = embedder()
    records = [Record(str(i), f"text {i}") for i in range(2500)]
    for _ in range(2):
        judged = JudgedModel(model, folder=tmp_path, progress=False)
        with judged.corpus(iter(records), "digest", "retrieval", "t") as blocks:
            parts = list(blocks)
        assert [first for first, _ in parts] == [0, 2048]
        assert np.allclose(np.concatenate([block for _, block in parts])[7], model.vector("text 7"))
    assert model.encoded == 2500

"""Where each fact about a model comes from, and what happens when nobody knows it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bgekit import FlagModel
from bgekit.errors import CardError, CheckpointError
from bgekit.models.card import read_card
from bgekit.models.prompts import Prompt

ZH = "为这个句子生成表示以用于检索相关文章："
Make = Callable[..., Path]


@pytest.fixture
def copy(tiny_bert: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_bert, folder)
        return folder

    return make


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_files_come_first(copy: Callable[[str], Path]) -> None:
    folder = copy("bge-small-en-v1.5")
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    write(folder, "1_Pooling/config.json", pooling)
    write(folder, "config_sentence_transformers.json", {"prompts": {"query": "own: ", "document": ""}})
    card = read_card(folder)
    assert card.pooling == "mean"
    assert card.sources["pooling"] == "checkpoint"
    assert card.prompts["query"] == Prompt("own: ")
    assert card.max_length == 64


def test_the_family_fills_what_files_leave_out(copy: Callable[[str], Path]) -> None:
    folder = copy("bge-small-zh-v1.5")
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    card = read_card(folder)
    assert card.pooling == "cls"
    assert "family" in card.sources["pooling"]
    assert card.prompts["query"].prefix == ZH
    assert read_card(copy("run/checkpoint-500"), "run/bge-small-zh-v1.5/checkpoint-500").prompts["query"].prefix == ZH


def test_empty_prompts_of_sentence_transformers_say_nothing(copy: Callable[[str], Path]) -> None:
    folder = copy("bge-small-zh-v1.5")
    write(folder, "config_sentence_transformers.json", {"prompts": {"query": "", "document": ""}})
    assert read_card(folder).prompts["query"].prefix == ZH
    write(
        folder, "config_sentence_transformers.json", {"prompts": {"query": "", "document": ""}, "bgekit": {"format": 1}}
    )
    assert read_card(folder).prompts["query"] == Prompt()


def test_unknown_pooling_is_an_error_that_lists_what_to_pass(make_model: Make) -> None:
    folder = make_model(pooling=None, name="my-own-model")
    with pytest.raises(CardError, match=r"pooling_method=, one of cls, mean, max, weighted_mean, last_token"):
        FlagModel(folder)
    assert FlagModel(folder, pooling_method="mean", devices="cpu").card.pooling == "mean"


def test_unknown_prompts_mean_none_with_a_log_line(tiny_bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bgekit"):
        assert read_card(tiny_bert).prompts["query"] == Prompt()
    assert "no prompts are known" in caplog.text


def test_a_caller_who_contradicts_is_obeyed_and_warned(
    copy: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy("bge-small-zh-v1.5")
    with caplog.at_level(logging.WARNING, "bgekit"):
        model = FlagModel(folder, pooling_method="mean", devices="cpu")
    assert model.card.pooling == "mean"
    assert model.card.sources["pooling"] == "caller"
    assert "'cls'" in caplog.text
    assert "'mean'" in caplog.text
    caplog.clear()
    FlagModel(folder, query_instruction_for_retrieval=ZH, devices="cpu")
    FlagModel(folder, query_instruction_for_retrieval=None, devices="cpu")
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted_mean"),
        ({"embedding_dimension": 32, "pooling_mode": "lasttoken", "include_prompt": True}, "last_token"),
        ({"embedding_dimension": 32, "pooling_mode": "weightedmean"}, "weighted_mean"),
    ],
)
def test_both_forms_of_pooling_files(copy: Callable[[str], Path], content: Any, pooling: str) -> None:
    folder = copy("model")
    write(folder, "1_Pooling/config.json", content)
    assert read_card(folder).pooling == pooling


def test_newer_module_names(copy: Callable[[str], Path]) -> None:
    folder = copy("model")
    kinds = {
        "": "sentence_transformers.base.modules.transformer.Transformer",
        "1_Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "2_Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    }
    write(folder, "modules.json", [{"path": path, "type": kind} for path, kind in kinds.items()])
    assert read_card(folder).normalize is True
    write(folder, "modules.json", [{"path": "", "type": "elsewhere.Strange"}])
    with pytest.raises(CardError, match="Strange"):
        read_card(folder)


@pytest.mark.parametrize(
    "content",
    [
        {"pooling_mode_mean_sqrt_len_tokens": True},
        {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
        {},
    ],
)
def test_pooling_that_is_not_one_of_ours(copy: Callable[[str], Path], content: Any) -> None:
    folder = copy("model")
    write(folder, "1_Pooling/config.json", content)
    with pytest.raises(CardError, match="1_Pooling"):
        read_card(folder)


def test_damaged_side_files_are_named(copy: Callable[[str], Path]) -> None:
    folder = copy("model")
    (folder / "modules.json").write_text("[{")
    with pytest.raises(CheckpointError, match=r"modules\.json is damaged"):
        read_card(folder)


def test_a_length_beyond_the_positions(tiny_bert: Path) -> None:
    with pytest.raises(CardError, match="position embeddings for 64"):
        FlagModel(tiny_bert, max_length=100)
    assert FlagModel(tiny_bert, max_length=20, devices="cpu").card.max_length == 20


def test_roberta_positions_start_after_the_padding(make_model: Make) -> None:
    assert read_card(make_model("roberta")).position_limit == 65


def test_the_notice_of_bge_v1_is_logged_once(make_model: Make, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_model(name="bge-small-en")
    with caplog.at_level(logging.WARNING, "bgekit"):
        FlagModel(folder, devices="cpu")
        FlagModel(folder, devices="cpu")
    assert caplog.text.count("v1.5") == 1


def test_sequence_classifiers_are_rerankers(copy: Callable[[str], Path]) -> None:
    folder = copy("some-model")
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", config | {"architectures": ["XLMRobertaForSequenceClassification"]})
    with pytest.raises(CardError, match="FlagReranker"):
        read_card(folder)
